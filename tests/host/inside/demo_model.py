"""The demo base inside ComfyUI against the engine: texts, latents of a sampled picture, decoded and encoded pixels."""

import sys
from pathlib import Path

from .toys import ROOT, answer, import_pack, relative, torch


def stand_in(folder):
    """Random weights of the demo base's shapes, as long as the trained ones are not there."""
    from scripts.demo_base.autoencoder import new_autoencoder
    from scripts.demo_base.denoiser import Model

    torch.manual_seed(0)
    model = Model(blocks=3)
    with torch.no_grad():  # diffusers starts some layers at zero; nothing may hide behind that
        for parameter in model.transformer.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    model.transformer.save_pretrained(folder / "transformer")
    model.text.save_pretrained(folder / "text_encoder")
    model.tokenizer.save_pretrained(folder / "tokenizer")
    new_autoencoder().save_pretrained(folder / "vae")
    (folder / "model_index.json").write_text("{}")
    return folder


def in_host(loom, folder, prompt):
    """Through ComfyUI's sampler and VAE, in inference mode as the executor runs nodes."""
    import comfy.sample

    demo = loom("nodes.host.demo.model").load_demo(folder)
    model, clip, vae = demo
    with torch.inference_mode():
        positive, negative = (clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in (prompt, ""))
        empty = torch.zeros(1, 16, 16, 16)
        noise = comfy.sample.prepare_noise(empty, 3)
        latents = comfy.sample.sample(
            model, noise, 8, 4.0, "euler", "normal", positive, negative, empty, seed=3, disable_pbar=True
        )
        pixels = vae.decode(latents).movedim(-1, 1) * 2 - 1
        again = vae.encode(((pixels + 1) / 2).movedim(1, -1))
        patched = lora_effect(model, clip, noise, positive, empty)
    return demo, {
        "text": positive[0][0], "pooled": positive[0][1]["pooled_output"], "pixels": pixels, "raw": again,
        "latents": model.model.process_latent_in(latents), **patched,
    }  # fmt: skip


def lora_effect(model, clip, noise, positive, empty):
    """A LoRA on both through the host: how far it moves latents and text."""
    import comfy.sample
    import comfy.sd

    lora = {}
    for key, (rows, columns) in {
        "lora_unet_joint_blocks_0_x_block_attn_proj": (192, 192),
        "lora_te1_text_model_encoder_layers_0_self_attn_q_proj": (64, 64),
    }.items():
        lora[f"{key}.lora_up.weight"], lora[f"{key}.lora_down.weight"] = torch.randn(rows, 2), torch.randn(2, columns)
    patched_model, patched_clip = comfy.sd.load_lora_for_models(model, clip, lora, 1.0, 1.0)
    plain = clip.encode_from_tokens_scheduled(clip.tokenize("a circle"))[0][0]
    moved = patched_clip.encode_from_tokens_scheduled(patched_clip.tokenize("a circle"))[0][0]
    again = clip.encode_from_tokens_scheduled(clip.tokenize("a circle"))[0][0]

    def sampled(with_model):
        return comfy.sample.sample(
            with_model, noise, 2, 1.0, "euler", "normal", positive, positive, empty, seed=3, disable_pbar=True
        )

    return {"lora_text": moved - plain, "text_back": again - plain, "lora_latents": sampled(patched_model) - sampled(model)}  # fmt: skip


def in_engine(loom, folder, prompt, raw_latents):
    base = loom("trainer.base_model").open_base(loom("trainer.config.run").ModelConfig(base=str(folder), device="cpu"))
    config = loom("trainer.config.run").ModelConfig(base=str(folder), device="cpu")
    denoiser, encoders = base.load_denoiser(config, "float32"), base.load_encoders()
    sample = loom("trainer.diffusion.sample")
    family = loom("trainer.families.sd3").FAMILY
    positive, negative = (family.condition(encoders.text.encode([text]), [], 1.0) for text in (prompt, ""))
    settings = sample.SampleSettings(
        steps=8, sampler="euler", scheduler="normal", guidance=loom("trainer.diffusion.guidance").CFG(4.0)
    )
    noise = sample.start_noise((16, 16, 16), 3, torch.device("cpu"))
    latents = sample.sample(denoiser, noise, positive, negative, settings)
    pixels = encoders.image.decode(family.latent_space.to_raw(latents)).clamp(-1, 1)
    return {
        "text": positive["text"], "pooled": positive["pooled"], "latents": latents, "pixels": pixels,
        "raw": encoders.image.encode(raw_latents),
    }  # fmt: skip


def main(folder):
    loom = import_pack()
    assets = ROOT / "assets" / "demo"
    used = assets if (assets / "transformer").is_dir() else stand_in(folder)
    prompt = "two red circles on a meadow"
    (model, _, _), host = in_host(loom, used, prompt)
    engine = in_engine(loom, used, prompt, host["pixels"])
    errors = {name: relative(host[name], value) for name, value in engine.items()}
    effects = {name: float(host[name].abs().max()) for name in ("lora_text", "text_back", "lora_latents")}
    answer({"class": type(model.model).__name__, "errors": errors, "effects": effects, "trained": used == assets})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
