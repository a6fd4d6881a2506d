"""Stage 2: an SD3-class denoiser and its text encoder, trained together by flow matching.

The family's own code does the noising, the prediction, the encoding and the sampling, so what is trained here is what
the engine runs.
"""

import copy
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny, SD3Transformer2DModel
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lora_loom.trainer.demo.scenes import Scene, random_scene
from lora_loom.trainer.diffusion.guidance import CFG
from lora_loom.trainer.diffusion.sample import SampleSettings, sample, start_noise
from lora_loom.trainer.families.common.encoders import TinyCodec, penultimate
from lora_loom.trainer.families.sd3 import FAMILY, SD3Denoiser, SD3Text

from .grow import HEAD, grown
from .judge import Verdict, judge
from .pictures import held_out, training_scene
from .text import MAX_TOKENS, SPARE, WIDTH, new_text_encoder, new_tokenizer

DROPOUT, NOISE_WORDS = 0.1, 0.15
POOL_SEED = 0


def config(blocks: int) -> dict[str, Any]:
    """Arguments of diffusers' SD3 class: 64 channels a block, as ComfyUI's class reads the number of blocks from the width."""
    return {
        "num_layers": blocks, "attention_head_dim": HEAD, "num_attention_heads": blocks, "caption_projection_dim": HEAD * blocks,
        "joint_attention_dim": WIDTH, "pooled_projection_dim": WIDTH, "in_channels": 16, "out_channels": 16, "patch_size": 2,
        "sample_size": 16, "pos_embed_max_size": 32, "qk_norm": "rms_norm", "dual_attention_layers": tuple(range(blocks)),
    }  # fmt: skip


class Model(nn.Module):
    """Denoiser and text encoder under one optimizer."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.tokenizer = new_tokenizer()
        self.transformer = SD3Transformer2DModel(**config(blocks))
        self.text = new_text_encoder(self.tokenizer)

    def encode(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        """With gradients: (B, L, D) penultimate states and (B, D) pooled, as `SD3Text` reads them."""
        ids = self.tokenizer(
            captions, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt"
        )["input_ids"]
        output = self.text(ids, output_hidden_states=True)
        return output.hidden_states[-2], output.text_embeds

    def load(self, directory: Path) -> None:
        """Weights of an earlier training; a denoiser of one block less is grown."""
        weights = load_file(directory / "transformer" / "diffusion_pytorch_model.safetensors")
        blocks, smaller = self.transformer.config.num_layers, weights["proj_out.weight"].shape[1] // HEAD
        if smaller < blocks:
            weights = grown({name: weight.float() for name, weight in weights.items()}, blocks=smaller)
        self.transformer.load_state_dict(weights)
        self.text.load_state_dict(load_file(directory / "text_encoder" / "model.safetensors"))

    def family_denoiser(self) -> SD3Denoiser:
        settings = FAMILY.variants["sd3"]
        return SD3Denoiser(family="sd3", module=self.transformer, objective=settings.objective, target_presets={})

    def family_text(self) -> SD3Text:
        return SD3Text([penultimate(self.text, self.tokenizer)], None, WIDTH)


@torch.no_grad()
def encode_pool(codec: TinyCodec, count: int, seed: int, path: Path) -> tuple[Tensor, list[str]]:
    """(count, 16, 16, 16) model-space latents in fp16 and their captions, kept in `path`."""
    rng = random.Random(seed)
    scenes = [training_scene(rng) for _ in range(count)]
    if path.is_file():
        return load_file(path)["latents"], [scene.caption for scene in scenes]
    latents, started = [], time.monotonic()
    for start in range(0, count, 16):
        pixels = torch.stack([pixels_of(scene.draw()) for scene in scenes[start : start + 16]])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            raw = codec.encode(pixels)
        latents.append(FAMILY.latent_space.to_model(raw).half())
        if start % 1600 == 0:
            print(f"encoded {start}/{count}, {time.monotonic() - started:.0f} s", flush=True)
    encoded = torch.cat(latents).contiguous()
    save_file({"latents": encoded}, path)
    return encoded, [scene.caption for scene in scenes]


def pixels_of(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.asarray(picture, dtype=np.float32) / 127.5 - 1).permute(2, 0, 1)


def disturbed(caption: str, rng: random.Random) -> str:
    """Sometimes nothing, sometimes a word that means nothing."""
    if rng.random() < DROPOUT:
        return ""
    words = caption.split()
    if rng.random() < NOISE_WORDS:
        words.insert(rng.randrange(len(words) + 1), rng.choice(SPARE))
    return " ".join(words)


def draw_sigma(batch: int, generator: torch.Generator) -> Tensor:
    """Logit-normal, half of it shifted by 3 as SD3 samples."""
    sigma = torch.sigmoid(torch.randn(batch, generator=generator))
    shift = torch.where(torch.rand(batch, generator=generator) < 0.5, 3.0, 1.0)
    return shift * sigma / (1 + (shift - 1) * sigma)


def train(
    directory: Path,
    autoencoder: Path,
    *,
    steps: int,
    batch: int,
    pool: int,
    kept: Path,
    learning_rate: float,
    seed: int,
    blocks: int = 2,
    start: Path | None = None,
) -> None:
    """Train, and keep the moving average's weights in `directory`.

    Args:
        directory: Where weights and a sheet of samples go, every 1000 steps.
        autoencoder: The folder of stage 1.
        steps: Optimizer steps; the rate rises over 3 % of them and falls in a cosine to zero.
        batch: Pictures a step.
        pool: How many pictures are drawn and encoded.
        kept: The file that keeps their latents.
        learning_rate: The highest rate.
        seed: Of the new weights, the noise and the order.
        blocks: Depth of the denoiser.
        start: The folder of an earlier training to go on from; one of a block less is grown (grow.py).
    """
    torch.manual_seed(seed)
    vae = AutoencoderTiny.from_pretrained(autoencoder, torch_dtype=torch.float32).eval()
    codec = TinyCodec(vae.to(memory_format=torch.channels_last))  # half the time on a CPU
    latents, captions = encode_pool(codec, pool, POOL_SEED, kept)
    model = Model(blocks)
    if start is not None:
        model.load(start)
    average = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.99), weight_decay=0.01)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.03)
    generator, rng = torch.Generator().manual_seed(seed), random.Random(seed)
    objective, started, smooth = FAMILY.variants["sd3"].objective, time.monotonic(), 1.0
    for step in range(1, steps + 1):
        rows = torch.randint(len(latents), (batch,), generator=generator)
        clean = latents[rows].float()
        noise, sigma = torch.randn(clean.shape, generator=generator), draw_sigma(batch, generator)
        text, pooled = model.encode([disturbed(captions[row], rng) for row in rows.tolist()])
        predicted = model.family_denoiser().predict(
            objective.add_noise(clean, noise, sigma), sigma, {"text": text, "pooled": pooled}
        )
        loss = F.mse_loss(predicted, objective.target(clean, noise, sigma))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        rate.step()
        with torch.no_grad():
            decay = min(0.999, (1 + step) / (10 + step))
            for mean, live in zip(average.parameters(), model.parameters(), strict=True):
                mean.lerp_(live, 1 - decay)
        smooth = 0.99 * smooth + 0.01 * loss.item()
        if step % 100 == 0:
            print(f"{step} loss {smooth:.4f} {(time.monotonic() - started) / step:.2f} s/step", flush=True)
        if step % 1000 == 0 or step == steps:
            save(average, directory)
            print(scores(average, codec, 32, directory / "samples.png"), flush=True)


def save(model: Model, directory: Path) -> None:
    model.transformer.save_pretrained(directory / "transformer")
    model.text.save_pretrained(directory / "text_encoder")
    model.tokenizer.save_pretrained(directory / "tokenizer")


def held_out_scenes(count: int, seed: int = 1) -> list[Scene]:
    """Scenes whose combinations no training picture shows."""
    rng = random.Random(seed)
    found: list[Scene] = []
    while len(found) < count:
        if held_out(scene := random_scene(rng)):
            found.append(scene)
    return found


def generate(
    denoiser: Any, text: Any, codec: TinyCodec, prompts: list[str], *, steps: int = 20, scale: float = 4.0
) -> list[Image.Image]:
    """One picture per prompt, seeds 0, 1, 2, …"""
    settings = SampleSettings(steps=steps, sampler="euler", scheduler="normal", guidance=CFG(scale))
    pictures = []
    for start in range(0, len(prompts), 16):
        chunk = prompts[start : start + 16]
        noise = torch.cat([start_noise((16, 16, 16), start + i, torch.device("cpu")) for i in range(len(chunk))])
        encoded = FAMILY.condition(text.encode(chunk), [], 1.0)
        empty = FAMILY.condition(text.encode([""] * len(chunk)), [], 1.0)
        latents = sample(denoiser, noise, encoded, empty, settings)
        pixels = codec.decode(FAMILY.latent_space.to_raw(latents)).clamp(-1, 1)
        pictures += [Image.fromarray(((p.permute(1, 2, 0) + 1) * 127.5).round().byte().numpy()) for p in pixels]
    return pictures


def scores(model: Model, codec: TinyCodec, count: int, sheet: Path | None = None) -> dict[str, float]:
    """Share of held-out prompts whose picture shows the right colour, count and shape."""
    scenes = held_out_scenes(count)
    pictures = generate(model.family_denoiser(), model.family_text(), codec, [scene.caption for scene in scenes])
    if sheet is not None:
        page = Image.new("RGB", (8 * 128, -(-count // 8) * 128))
        for i, picture in enumerate(pictures):
            page.paste(picture, (i % 8 * 128, i // 8 * 128))
        page.save(sheet)
    return rate([judge(picture) for picture in pictures], scenes)


def rate(verdicts: list[Verdict], scenes: list[Scene]) -> dict[str, float]:
    pairs = list(zip(verdicts, scenes, strict=True))
    return {
        "colour": sum(v.colour == s.colour for v, s in pairs) / len(pairs),
        "count": sum(v.count == len(s.things) for v, s in pairs) / len(pairs),
        "shape": sum(v.shape == s.shape for v, s in pairs) / len(pairs),
    }
