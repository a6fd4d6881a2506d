"""Test-only nodes: toy models of every family with a stand-in text encoder and VAE, through ComfyUI's own classes."""

import gc
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from aiohttp import web
from PIL import Image

ROOT = Path(__file__).resolve().parents[3]
sys.path.append(str(ROOT / "scripts"))

import comfy  # noqa: E402
import comfy.model_management as mm  # noqa: E402
import comfy.model_patcher  # noqa: E402
import folder_paths  # noqa: E402
import server  # noqa: E402
from host_toys import TOYS, toy_tensor  # noqa: E402
from record_host_keys import build  # noqa: E402

MASKED = {"lumina2", "qwen"}
"""Their text encoders give an attention mask."""
_loaded, _clips = {}, {}


class ToyText(torch.nn.Module):
    """Words as fixed random vectors."""

    def __init__(self, context, pooled):
        super().__init__()
        self.words = torch.nn.Embedding(64, context)
        self.pool = torch.nn.Linear(context, max(pooled, 1))
        self.has_pooled = bool(pooled)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                parameter.copy_(toy_tensor(f"text.{name}", tuple(parameter.shape)) * 3)


class ToyTokenizer:
    def __init__(self, length=16):
        self.length = length


class ToyClip:
    """What CLIPTextEncode needs of a CLIP."""

    def __init__(self, context, pooled, masked):
        self.cond_stage_model, self.masked = ToyText(context, pooled), masked
        self.tokenizer, self.layer_idx, self.tokenizer_options, self.use_clip_schedule = ToyTokenizer(), None, {}, False
        self.patcher = comfy.model_patcher.ModelPatcher(
            self.cond_stage_model, load_device=torch.device("cpu"), offload_device=torch.device("cpu")
        )

    def clone(self):
        return self

    def tokenize(self, text):
        ids = [sum(map(ord, word)) % 63 + 1 for word in text.split()][: self.tokenizer.length]
        return ids + [0] * (self.tokenizer.length - len(ids))

    def encode_from_tokens_scheduled(self, tokens):
        hidden = self.cond_stage_model.words(torch.tensor([tokens]))
        extra = {"attention_mask": torch.ones(1, len(tokens), dtype=torch.long)} if self.masked else {}
        if self.cond_stage_model.has_pooled:
            extra["pooled_output"] = self.cond_stage_model.pool(hidden.mean(1))
        return [[hidden, extra]]


class ToyCodec(torch.nn.Module):
    """8x8 blocks to mixed means and back: enough to see colours."""

    def __init__(self, channels, video):
        super().__init__()
        self.mix = torch.nn.Parameter(toy_tensor("vae.mix", (channels, 3)))
        self.video = video

    def encode(self, pixels):
        means = torch.nn.functional.avg_pool2d(pixels, 8)
        return torch.einsum("ck,bkhw->bchw", self.mix, means)

    def decode(self, latents):
        latents = latents.squeeze(2) if self.video else latents
        pixels = torch.einsum("kc,bchw->bkhw", torch.linalg.pinv(self.mix), latents)
        pixels = pixels.repeat_interleave(8, 2).repeat_interleave(8, 3)
        return pixels.unsqueeze(2) if self.video else pixels


class ToyVae:
    def __init__(self, channels, video):
        self.first_stage_model = ToyCodec(channels, video)
        self.latent_channels, self.latent_dim, self.downscale_ratio = channels, 3 if video else 2, 8
        self.patcher = comfy.model_patcher.ModelPatcher(
            self.first_stage_model, load_device=torch.device("cpu"), offload_device=torch.device("cpu")
        )
        self.process_output = lambda image: torch.clamp((image + 1) / 2, 0, 1)

    def spacial_compression_encode(self):
        return 8

    def encode(self, pixels):
        latents = self.first_stage_model.encode(pixels.movedim(-1, 1) * 2 - 1)
        return latents.unsqueeze(2) if self.latent_dim == 3 else latents

    def decode(self, latents):
        pixels = self.process_output(self.first_stage_model.decode(latents))
        return pixels.movedim(1, -1)


def encoders(name):
    """Stand-ins for the text encoder and VAE of a toy; "sd1-file" goes with the file that the stock loader accepts."""
    toy = TOYS[name.removesuffix("-file")]
    context = 768 if name == "sd1-file" else toy.context
    return ToyClip(context, toy.pooled, name in MASKED), ToyVae(toy.channels, toy.video)


def loaded(name):
    """As a loader node would: inference tensors, kept between prompts."""
    if name not in _loaded:
        toy = TOYS[name]
        model = build(comfy, toy, toy_tensor)
        for module in model.modules():
            for key, parameter in list(module._parameters.items()):
                if parameter is not None:
                    module._parameters[key] = torch.nn.Parameter(parameter.data.clone(), requires_grad=False)
        patcher = comfy.model_patcher.ModelPatcher(
            model, load_device=mm.get_torch_device(), offload_device=mm.unet_offload_device()
        )
        _loaded[name] = patcher
    return _loaded[name]


def take_toy_checkpoints():
    """ComfyUI's own loader gives the toy that a checkpoint is named after, "toy-sd1.safetensors", and every other as before."""
    import nodes

    stock = nodes.CheckpointLoaderSimple.load_checkpoint

    def load_checkpoint(self, ckpt_name):
        name = Path(ckpt_name).stem.removeprefix("toy-")
        return (loaded(name).clone(), *encoders(name)) if ckpt_name.startswith("toy-") else stock(self, ckpt_name)

    nodes.CheckpointLoaderSimple.load_checkpoint = load_checkpoint


take_toy_checkpoints()


class LoomTestModel:
    CATEGORY, FUNCTION = "test", "run"
    RETURN_TYPES = ("MODEL", "CLIP", "VAE")

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"toy": ([*sorted(TOYS), "sd1-file"],)}}

    def run(self, toy):
        model = None if toy.endswith("-file") else loaded(toy).clone()
        return model, *encoders(toy)


class LoomTestPartLoaded:
    """The MODEL as ComfyUI holds it where only half of it fits the device: by its own `load`, in its list of loaded models."""

    CATEGORY, FUNCTION, RETURN_TYPES = "test", "run", ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",)}}

    def run(self, model):
        device = torch.device(model.load_device)
        mm.load_models_gpu([model])
        model.detach()
        model.model_patches_to(device)
        model.load(device, lowvram_model_memory=model.model_size() // 2)
        assert model.model.model_lowvram
        return (model,)


class LoomTestNeedsMemory:
    """A prompt that needs so many bytes more on the device than are free there, and asks ComfyUI for them as loading a model does."""

    CATEGORY, FUNCTION, OUTPUT_NODE = "test", "run", True
    RETURN_TYPES = ()

    @classmethod
    def INPUT_TYPES(cls):
        whole = {"default": 0, "min": -(2**40), "max": 2**40}
        return {"required": {"more": ("INT", whole), "salt": ("INT", whole)}}

    def run(self, more, salt):
        device = mm.get_torch_device()
        mm.free_memory(mm.get_free_memory(device) + more, device)
        return {"ui": {"text": [str(salt)]}}


class LoomTestClip:
    """ComfyUI's own CLIP for the toys of SD 1, SD 2 and SDXL, with its tokenizer, as wide as their text; clip skip as of its node."""

    CATEGORY, FUNCTION, RETURN_TYPES = "test", "run", ("CLIP",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"kind": (["sd1", "sd2", "sdxl"],)}}

    def run(self, kind):
        import toy_texts

        if kind not in _clips:
            _clips[kind] = toy_texts.toy_clip(kind, toy_tensor)
        return (_clips[kind],)


class LoomTestText:
    """What a CLIP says about a text: the first rows, as an output of the prompt."""

    CATEGORY, FUNCTION, OUTPUT_NODE, RETURN_TYPES = "test", "run", True, ()

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"clip": ("CLIP",), "text": ("STRING", {"default": ""}), "salt": ("INT", {"default": 0})}}

    def run(self, clip, text, salt):
        [[made, _]] = clip.encode_from_tokens_scheduled(clip.tokenize(text))
        return {"ui": {"text": [json.dumps(made[0, :12].flatten().tolist())]}}


class LoomTestQwenText:
    """Qwen-Image's CLIP as ComfyUI has it, tokenizer and all, over a toy language model as wide as the toys' text."""

    CATEGORY, FUNCTION, RETURN_TYPES = "test", "run", ("CLIP",)
    made = None

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    def run(self):
        if LoomTestQwenText.made is None:
            LoomTestQwenText.made = qwen_clip()
        return (LoomTestQwenText.made,)


def qwen_clip():
    import comfy.sd
    import toy_texts
    from comfy import sd1_clip
    from comfy.text_encoders import qwen_image
    from record_host_texts import fill, toy_language

    network = toy_language(toy_texts, vocab_size=152064, hidden_size=64, num_attention_heads=4)

    class Model(sd1_clip.SDClipModel):
        def __init__(self, device="cpu", dtype=None, model_options=None, **_):
            super().__init__(
                device=device, layer="last", textmodel_json_config={}, dtype=dtype, special_tokens={"pad": 151643},
                layer_norm_hidden_state=False, model_class=network, enable_attention_masks=True,
                return_attention_masks=True, model_options=model_options or {},
            )  # fmt: skip

    class Encoder(qwen_image.QwenImageTEModel):
        def __init__(self, device="cpu", dtype=None, model_options=None):
            options = {"name": "qwen25_7b", "clip_model": Model, "model_options": model_options or {}}
            sd1_clip.SD1ClipModel.__init__(self, device=device, dtype=dtype, **options)

    class Target:
        params, clip, tokenizer = {}, Encoder, qwen_image.QwenImageTokenizer

    made = comfy.sd.CLIP(Target, model_options={"dtype": torch.float32})
    fill(made.cond_stage_model.qwen25_7b.transformer, toy_tensor)
    return made


class LoomTestHash:
    """Digest of every weight of a MODEL, as an output of the prompt."""

    CATEGORY, FUNCTION, OUTPUT_NODE = "test", "run", True
    RETURN_TYPES = ()

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {"model": ("MODEL",), "salt": ("INT", {"default": 0})},
            "optional": {"after": ("LOOM_RUN",)},
        }

    def run(self, model, salt, after=None):
        import hashlib

        mm.load_models_gpu([model])  # takes out what another clone, with a LoRA, has left in the weights
        sha = hashlib.sha256()
        for key, tensor in sorted(model.model.diffusion_model.state_dict().items()):
            sha.update(key.encode() + tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return {"ui": {"text": [sha.hexdigest()]}}


class LoomTestHold:
    """A prompt that occupies the queue until the test lets it go on, or cancels it; without a signal it does nothing."""

    CATEGORY, FUNCTION, OUTPUT_NODE = "test", "run", True
    RETURN_TYPES = ()

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"signal": ("STRING", {"default": ""}), "salt": ("INT", {"default": 0})}}

    def run(self, signal, salt):
        started, file = time.time(), Path(folder_paths.get_input_directory()) / signal
        while signal and not file.exists():
            mm.throw_exception_if_processing_interrupted()
            time.sleep(0.01)
        return {"ui": {"text": [repr(started)]}}


def live_bytes(least=4096):
    """Of all storages behind tensors that Python can reach."""
    gc.collect()
    found = {}
    for thing in gc.get_objects():
        if isinstance(thing, torch.Tensor):
            found |= storages(thing)
    return sum(size for size in found.values() if size >= least)


def storages(tensor):
    if hasattr(tensor, "_qdata"):
        return storages(tensor._qdata)
    try:
        storage = tensor.untyped_storage()
    except NotImplementedError:  # autograd of a running step holds undefined tensors, which have none
        return {}
    return {storage.data_ptr(): storage.nbytes()}


@server.PromptServer.instance.routes.get("/loom_test/bytes")
async def count_bytes(request):
    """Counted without a prompt, which would let the host drop what the last one has cached."""
    models = mm.loaded_models()
    runs = [one for one in models if one is not None and type(one.model).__name__ == "LoraLoomRun"]
    return web.json_response({"bytes": live_bytes(), "loaded": len(models) - len(runs), "runs": len(runs)})


@server.PromptServer.instance.routes.get("/loom_test/small_card")
async def small_card(request):
    """From a step on, training runs out of memory unless its base is streamed; without a step it no longer does."""
    name = next(name for name in sys.modules if name.endswith(".trainer.training.loop"))
    loop, streaming = sys.modules[name], sys.modules[name.replace("training.loop", "weights.streaming")]
    plain = getattr(loop, "plain_step", loop.train_step)
    loop.plain_step = plain

    def limited(denoiser, batch, loss, key, *rest):
        if key.step >= int(request.query["step"]) and streaming.stream_of(denoiser.module) is None:
            raise torch.cuda.OutOfMemoryError("tried to allocate 20 GiB")
        return plain(denoiser, batch, loss, key, *rest)

    loop.train_step = limited if "step" in request.query else plain
    return web.json_response({})


VISION = {
    "model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2,
    "num_hidden_layers": 3, "num_channels": 3, "image_size": 32, "patch_size": 8, "projection_dim": 16,
    "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
}  # fmt: skip


class LoomTestVision:
    """A small CLIP_VISION of ComfyUI's own class, with fixed weights."""

    CATEGORY, FUNCTION, RETURN_TYPES = "test", "run", ("CLIP_VISION",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    def run(self):
        from comfy.clip_vision import ClipVisionModel

        path = Path(folder_paths.get_temp_directory()) / "vision.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(VISION))  # older versions take no dictionary
        made = ClipVisionModel(str(path))
        made.load_sd(
            {
                name: toy_tensor(f"vision.{name}", tuple(t.shape))
                for name, t in made.get_sd().items()
                if t.is_floating_point()
            }
        )
        return (made,)


class LoomTestEmbed:
    """What a CLIP_VISION says of picture files, one row each."""

    CATEGORY, FUNCTION, OUTPUT_NODE, RETURN_TYPES = "test", "run", True, ()

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"clip_vision": ("CLIP_VISION",), "paths": ("STRING", {"multiline": True})}}

    def run(self, clip_vision, paths):
        rows = []
        for path in paths.splitlines():
            pixels = torch.from_numpy(np.asarray(Image.open(path).convert("RGB"), dtype=np.float32) / 255)
            rows.append(clip_vision.encode_image(pixels.unsqueeze(0))["image_embeds"].flatten().tolist())
        return {"ui": {"text": [json.dumps(rows)]}}


NODES = (
    LoomTestModel,
    LoomTestPartLoaded,
    LoomTestNeedsMemory,
    LoomTestClip,
    LoomTestText,
    LoomTestQwenText,
    LoomTestHash,
    LoomTestHold,
    LoomTestVision,
    LoomTestEmbed,
)
NODE_CLASS_MAPPINGS = {cls.__name__: cls for cls in NODES}
