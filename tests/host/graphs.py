"""Prompts in API form, small enough to read."""


def node(kind, **inputs):
    return {"class_type": kind, "inputs": inputs}


def toy(name):
    """A model, text encoder and VAE built by the test node."""
    return {
        "model": node("LoomTestModel", toy=name),
        "sources": {"model": ["model", 0], "clip": ["model", 1], "vae": ["model", 2]},
    }


def file(name):
    """A model through ComfyUI's own loader, text encoder and VAE from the test node."""
    like = {"sd1": "sd1-file", "sd3": "sd3", "flux": "flux-dev"}[name]
    return {
        "model": node("UNETLoader", unet_name=f"{name}.safetensors", weight_dtype="default"),
        "encoders": node("LoomTestModel", toy=like),
        "sources": {"model": ["model", 0], "clip": ["encoders", 1], "vae": ["encoders", 2]},
    }


def data(base, folder="pics", **changes):
    """`base` with data set and cache."""
    sources = base["sources"]
    options = {"resolution": 64, "buckets": "pixel_area", "bucket_step": 16, **changes}
    return {
        **base,
        "dataset": node("LoomDataset", folder=folder, captions="auto"),
        "cache": node("LoomCache", dataset=["dataset", 0], vae=sources["vae"], clip=sources["clip"], **options),
    }


def train(base, name, key="train", **changes):
    """A LoomTrain over `base`."""
    options = {
        "steps": 6, "learning_rate": 1e-3, "rank": 4, "batch_size": 1, "save_every": 3, "seed": 0, "mode": "wait",
        "existing_run": "resume", **changes,
    }  # fmt: skip
    full = base if "cache" in base else data(base)
    return {**full, key: node("LoomTrain", model=base["sources"]["model"], cache=["cache", 0], name=name, **options)}


def picture(base, model=None, key="picture", prompt="a red thing", seed=1, **changes):
    """KSampler, decoded and saved under `key`."""
    sources = base["sources"]
    options = {"steps": 3, "cfg": 3.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0, **changes}
    return {
        **base,
        f"{key}-positive": node("CLIPTextEncode", clip=sources["clip"], text=prompt),
        f"{key}-negative": node("CLIPTextEncode", clip=sources["clip"], text=""),
        f"{key}-latent": node("EmptyLatentImage", width=64, height=64, batch_size=1),
        f"{key}-sampler": node(
            "KSampler", model=model or sources["model"], positive=[f"{key}-positive", 0],
            negative=[f"{key}-negative", 0], latent_image=[f"{key}-latent", 0], seed=seed, **options,
        ),
        f"{key}-decode": node("VAEDecode", samples=[f"{key}-sampler", 0], vae=sources["vae"]),
        key: node("SaveImage", images=[f"{key}-decode", 0], filename_prefix=key),
    }  # fmt: skip


def prompt(base):
    """Without our own bookkeeping."""
    return {name: value for name, value in base.items() if name != "sources"}


def hold(signal):
    """A prompt of somebody else that ends when the test says so: `server.release(signal)`."""
    return {"hold": node("LoomTestHold", signal=signal, salt=0)}


def trivial(salt):
    """A prompt of somebody else that does nothing."""
    return {"hold": node("LoomTestHold", signal="", salt=salt)}


def base_hash(base, salt):
    return {
        **{name: base[name] for name in ("model",)},
        "hash": node("LoomTestHash", model=base["sources"]["model"], salt=salt),
    }
