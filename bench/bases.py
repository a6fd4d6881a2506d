"""Toy bases beside the demo's, which is of SD3's class: a UNet of SD1's class and one of Flux's class, trained on the same drawings.

Each is trained from random weights when it is first asked for and kept in .bench/bases. Their
text encoders and their autoencoder are the demo's, frozen; what a family wants of latents (four channels, another scale) is put
into the autoencoder's last convolution. Its decoder stays as it was made at random: only losses are measured on these bases.

    python -m bench.bases               trains both
"""

import copy
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny, FluxTransformer2DModel, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoTokenizer, CLIPTextModel, T5Config, T5EncoderModel

from lora_loom.trainer import families
from lora_loom.trainer.base_model import open_base
from lora_loom.trainer.config.run import ModelConfig
from lora_loom.trainer.families.common.encoders import TinyCodec
from lora_loom.trainer.families.sd3 import FAMILY as SD3
from scripts.demo_base.denoiser import disturbed, draw_sigma, pixels_of
from scripts.demo_base.pictures import training_scene

from .common import RESULTS, two_blocks

FOLDER = RESULTS / "bases"
STEPS, BATCH, POOL, RATE, SEED = 1000, 8, 800, 2e-3, 0
EVERY = 100
"""Steps after which it is kept how far the training is: one that was cut off goes on there."""
TEXT = 64
"""Width of the demo's text encoder."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A base that is not there yet: its family, and its network."""

    family: str
    part: str
    network: type[nn.Module]
    config: Mapping[str, Any]
    levels: Callable[[int, torch.Generator], Tensor]
    """(batch, generator) → shares of the schedule that are trained."""


RECIPES = {
    "unet": Recipe(
        family="sd",
        part="unet",
        network=UNet2DConditionModel,
        config={
            "in_channels": 4, "out_channels": 4, "sample_size": 16, "block_out_channels": (32, 64), "layers_per_block": 1,
            "cross_attention_dim": TEXT, "norm_num_groups": 8, "attention_head_dim": 4,
            "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        },
        levels=lambda batch, generator: torch.rand(batch, generator=generator),
    ),
    "flux": Recipe(
        family="flux",
        part="transformer",
        network=FluxTransformer2DModel,
        config={
            "in_channels": 64, "num_layers": 1, "num_single_layers": 2, "attention_head_dim": 64, "num_attention_heads": 2,
            "joint_attention_dim": TEXT, "pooled_projection_dim": TEXT, "guidance_embeds": True, "axes_dims_rope": (8, 28, 28),
        },
        levels=draw_sigma,
    ),
}  # fmt: skip
"""{name: how it is made}."""


def base(name: str) -> Path:
    """The folder of a base; it is trained first if it is not there. "demo" is the demo base of two blocks."""
    if name == "demo":
        return two_blocks()
    folder = FOLDER / name
    if not (folder / "trained").is_file():
        train(RECIPES[name], folder)
    return folder


def train(recipe: Recipe, folder: Path, steps: int = STEPS) -> None:
    """Train a base and write it as a diffusers folder. Where one was cut off it goes on."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    latents, captions = drawings()
    family: Any = families.get(recipe.family)
    to_model = projection(latents, family.latent_space.channels)
    write_parts(recipe, folder, to_model)
    clean_pool = torch.einsum("oc,nchw->nohw", to_model, latents)
    torch.manual_seed(SEED)
    module = recipe.network(**recipe.config)
    module.save_pretrained(folder / recipe.part)  # type: ignore[operator]
    opened = open_base(ModelConfig(base=str(folder), device="cpu"))
    denoiser, text = opened.load_denoiser(opened_config(folder), "float32"), opened.load_encoders().text
    live = denoiser.module.requires_grad_(True).train()
    average = copy.deepcopy(live)
    optimizer = torch.optim.AdamW(live.parameters(), lr=RATE, betas=(0.9, 0.99), weight_decay=0.01)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.03)
    begun, state = 0, folder / "training.pt"
    if state.is_file():
        kept = torch.load(state, weights_only=True)
        for part, name in ((live, "live"), (average, "average"), (optimizer, "optimizer"), (rate, "rate")):
            part.load_state_dict(kept[name])
        begun = kept["step"]
    objective, smooth, started = denoiser.objective, 1.0, time.monotonic()
    for step in range(begun + 1, steps + 1):
        generator, rng = torch.Generator().manual_seed(step), random.Random(step)
        rows = torch.randint(len(clean_pool), (BATCH,), generator=generator)
        clean, noise = clean_pool[rows], torch.randn(clean_pool[rows].shape, generator=generator)
        sigma = objective.sigma_at(recipe.levels(BATCH, generator))
        prompts = [disturbed(captions[row], rng) for row in rows.tolist()]
        conditioning = family.condition(text.encode(prompts), [], 1.0)
        predicted = denoiser.predict(objective.add_noise(clean, noise, sigma), sigma, conditioning)
        loss = F.mse_loss(predicted, objective.target(clean, noise, sigma))
        loss.backward()
        nn.utils.clip_grad_norm_(live.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        rate.step()
        with torch.no_grad():
            for mean, now in zip(average.parameters(), live.parameters(), strict=True):
                mean.lerp_(now, 1 - min(0.999, (1 + step) / (10 + step)))
        smooth = 0.99 * smooth + 0.01 * loss.item()
        if step % EVERY == 0:
            print(
                f"{folder.name} {step} loss {smooth:.4f} {(time.monotonic() - started) / (step - begun):.3f} s/step",
                flush=True,
            )
            parts = {"live": live, "average": average, "optimizer": optimizer, "rate": rate}
            torch.save({**{name: part.state_dict() for name, part in parts.items()}, "step": step}, state)
    average.save_pretrained(folder / recipe.part)  # type: ignore[operator]
    (folder / "trained").write_text(f"{steps} steps, batch {BATCH}, loss {smooth:.4f}\n", encoding="utf-8")
    state.unlink(missing_ok=True)


@torch.no_grad()
def drawings() -> tuple[Tensor, list[str]]:
    """(POOL, 16, 16, 16) latents of drawings in the demo's model space, and their captions."""
    path, rng = FOLDER / "latents.safetensors", random.Random(SEED)
    scenes = [training_scene(rng) for _ in range(POOL)]
    if not path.is_file():
        codec = demo_codec()
        raw = [codec.encode(pixels_of(scene.draw()).unsqueeze(0)) for scene in scenes]
        save_file({"latents": SD3.latent_space.to_model(torch.cat(raw))}, path)
    return load_file(path)["latents"], [scene.caption for scene in scenes]


def opened_config(folder: Path) -> ModelConfig:
    """The base on the CPU."""
    return ModelConfig(base=str(folder), device="cpu")


def demo_codec() -> TinyCodec:
    """The demo's autoencoder in fp32."""
    return TinyCodec(AutoencoderTiny.from_pretrained(two_blocks() / "vae", torch_dtype=torch.float32).eval())


def projection(latents_NCHW: Tensor, channels: int) -> Tensor:
    """(channels, 16): the demo's latents as another family has them. With as many channels nothing changes; else the largest
    principal components, each scaled to a variance of 1."""
    if channels == latents_NCHW.shape[1]:
        return torch.eye(channels)
    flat = latents_NCHW.transpose(0, 1).flatten(1)
    variance, axes = torch.linalg.eigh(torch.cov(flat))
    return (axes[:, -channels:] / variance[-channels:].sqrt()).T.contiguous()


def write_parts(recipe: Recipe, folder: Path, to_model: Tensor) -> None:
    """The frozen parts: text encoders, tokenizers, and the autoencoder whose latents are the family's."""
    tokenizer = AutoTokenizer.from_pretrained(two_blocks() / "tokenizer")
    tokenizer.save_pretrained(folder / "tokenizer")
    CLIPTextModel.from_pretrained(two_blocks() / "text_encoder", torch_dtype=torch.float32).save_pretrained(
        folder / "text_encoder"
    )
    if recipe.family == "flux":
        torch.manual_seed(SEED)
        config = T5Config(vocab_size=len(tokenizer), d_model=TEXT, d_kv=16, d_ff=2 * TEXT, num_layers=2, num_heads=4)
        T5EncoderModel(config).save_pretrained(folder / "text_encoder_2")
        tokenizer.save_pretrained(folder / "tokenizer_2")
    autoencoder(recipe, to_model).save_pretrained(folder / "vae")


def autoencoder(recipe: Recipe, to_model: Tensor) -> AutoencoderTiny:
    """The demo's encoder, whose last convolution also does the projection and the family's scale and shift."""
    demo, space = demo_codec().module, families.get(recipe.family).latent_space
    torch.manual_seed(SEED)
    settings = {**demo.config, "latent_channels": space.channels, "scaling_factor": space.scale}  # type: ignore[dict-item]
    made = AutoencoderTiny(
        **{name: value for name, value in settings.items() if name[0] != "_" and name != "block_out_channels"}
    )
    made.encoder.load_state_dict({**demo.encoder.state_dict(), **_last(demo.encoder, to_model, space)})  # type: ignore[operator]
    return made


@torch.no_grad()
def _last(encoder: Any, to_model: Tensor, space: Any) -> dict[str, Tensor]:
    """Weights of the last convolution: raw latents of the demo → model space of SD3 → `to_model` → raw latents of the family."""
    name = f"layers.{len(encoder.layers) - 1}"
    last, sd3 = encoder.layers[-1], SD3.latent_space
    matrix = to_model * (sd3.scale / space.scale)
    bias = matrix @ (last.bias - sd3.shift) + space.shift
    return {f"{name}.weight": torch.einsum("oc,cihw->oihw", matrix, last.weight), f"{name}.bias": bias}


def main() -> None:
    for name in RECIPES:
        print(base(name))


if __name__ == "__main__":
    main()
