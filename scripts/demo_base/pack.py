"""Stage 3: the shipped folder in fp16, and stage 4: what the judge says of it."""

import json
import math
import random
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderTiny, SD3Transformer2DModel
from PIL import Image
from transformers import AutoTokenizer, CLIPTextModelWithProjection

from lora_loom.trainer.base_model import open_base
from lora_loom.trainer.config.run import ModelConfig
from lora_loom.trainer.demo.scenes import random_scene
from lora_loom.trainer.families.common.source import read_shapes

from .denoiser import generate, held_out_scenes, pixels_of, rate
from .judge import judge

SCORES, MADE = "scores.json", "made.json"
STAGES = ("autoencoder", "decoder", "denoiser", "refine", "grow")
CARD = Path(__file__).with_name("card.md")
GATES = {"autoencoder shape": 0.95, "colour": 0.95, "count": 0.95, "shape": 0.85}
"""Shares that the base was meant to reach; `scores.json` says what it did reach."""


def pack(work: Path, trained: Path, assets: Path) -> None:
    """Copy a trained denoiser and its text encoder as fp16, and the autoencoder if `work` has one; what it lacks stays as it is."""
    SD3Transformer2DModel.from_pretrained(trained / "transformer").half().save_pretrained(assets / "transformer")
    CLIPTextModelWithProjection.from_pretrained(trained / "text_encoder").half().save_pretrained(
        assets / "text_encoder"
    )
    if not (
        assets / "tokenizer"
    ).is_dir():  # the words stay; newer transformers writes a class that older ones do not know
        AutoTokenizer.from_pretrained(trained / "tokenizer").save_pretrained(assets / "tokenizer")
    if (work / "vae").is_dir():
        AutoencoderTiny.from_pretrained(work / "vae").half().save_pretrained(assets / "vae")
    for part in ("transformer", "vae"):
        _drop_odd_settings(assets / part / "config.json")
    index = {
        "_class_name": "StableDiffusion3Pipeline",
        "transformer": ["diffusers", "SD3Transformer2DModel"],
        "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
        "vae": ["diffusers", "AutoencoderTiny"],
    }
    made = json.loads((assets / MADE).read_text(encoding="utf-8")) if (assets / MADE).is_file() else {}
    notes = {stage: work / f"{stage}.txt" for stage in STAGES}
    made |= {stage: file.read_text(encoding="utf-8").strip() for stage, file in notes.items() if file.is_file()}
    (assets / MADE).write_text(json.dumps(made, indent=2) + "\n", encoding="utf-8")
    (assets / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _drop_odd_settings(config: Path) -> None:
    """diffusers writes one that it warns of when reading, and the folder that weights came from."""
    odd = ("block_out_channels", "_name_or_path")
    kept = {name: value for name, value in json.loads(config.read_text()).items() if name not in odd}
    config.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")


def load(assets: Path) -> tuple[Any, Any]:
    """(denoiser, encoders) through the engine's own loading."""
    base = open_base(ModelConfig(base=str(assets), device="cpu"))
    return base.load_denoiser(ModelConfig(base=str(assets), device="cpu"), "float32"), base.load_encoders()


def round_trip(codec: Any, count: int, seed: int = 2) -> float:
    """Share of drawn scenes whose shape the judge still names right after encoding and decoding."""
    rng = random.Random(seed)
    right = 0
    for _ in range(count):
        scene = random_scene(rng)
        pixels = codec.decode(codec.encode(pixels_of(scene.draw())[None]))[0].clamp(-1, 1)
        verdict = judge(to_picture(pixels))
        right += verdict.shape == scene.shape
    return right / count


def to_picture(pixels_CHW: torch.Tensor) -> Image.Image:
    return Image.fromarray(((pixels_CHW.permute(1, 2, 0) + 1) * 127.5).round().byte().numpy())


def scores(assets: Path, prompts: int = 64) -> dict[str, float]:
    """The gates' figures of a base: held-out combinations, seeds 0, 1, 2, …"""
    denoiser, encoders = load(assets)
    scenes = held_out_scenes(prompts)
    pictures = generate(denoiser, encoders.text, encoders.image, [scene.caption for scene in scenes])
    drawn = rate([judge(picture) for picture in pictures], scenes)
    return {"autoencoder shape": round_trip(encoders.image, prompts), **drawn}


def measure(assets: Path, prompts: int) -> str:
    """Write scores.json and the model card; returns the figures as lines."""
    found = scores(assets, prompts)
    (assets / SCORES).write_text(json.dumps({"prompts": prompts, **found}, indent=2) + "\n", encoding="utf-8")
    (assets / "README.md").write_text(card(assets, prompts, found), encoding="utf-8")
    return "\n".join(f"{name}: {found[name]:.1%} (gate {gate:.0%})" for name, gate in GATES.items())


def card(assets: Path, prompts: int, found: dict[str, float]) -> str:
    """The model card: the template beside this file with what was measured."""
    files = {part: assets / part for part in ("transformer", "text_encoder", "vae")}
    counts = {part: sum(map(math.prod, _shapes(folder))) for part, folder in files.items()}
    size = sum(path.stat().st_size for path in assets.rglob("*.safetensors")) / 1e6
    rows = "\n".join(
        f"| {name} | {gate:.0%} | {found[name]:.1%} | {'reached' if found[name] >= gate else 'missed'} |"
        for name, gate in GATES.items()
    )
    made = json.loads((assets / MADE).read_text(encoding="utf-8"))
    template = CARD.read_text(encoding="utf-8")
    return template.format(prompts=prompts, megabytes=size, rows=rows, **counts, **made)


def _shapes(folder: Path) -> list[tuple[int, ...]]:
    return [shape for file in folder.glob("*.safetensors") for shape in read_shapes(file).values()]
