"""A LoRA of the text encoders too, merged into a checkpoint, says in ComfyUI what base and LoRA loader say there."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_loom.trainer.lora_tools.base_keys import written_slices
from lora_loom.trainer.lora_tools.with_base import merge_into_base
from tests.lora_tools.test_with_base import base_file, lora_for, opened, quiet, text_tensors

from .programs import run_inside

pytestmark = pytest.mark.comfyui
ENCODERS = {
    "sd1": {"cond_stage_model.transformer.": ("plain", "lora_te_")},
    "sdxl": {
        "conditioner.embedders.0.transformer.": ("plain", "lora_te1_"),
        "conditioner.embedders.1.model.transformer.": ("open_clip", "lora_te2_"),
    },
}
STRENGTH = 0.5


def write(toy, stems, folder):
    """Base, LoRA and merged checkpoint of a toy."""
    path, source, lora = base_file(toy, folder / f"{toy}.base.safetensors", prefix="model.diffusion_model."), torch.Generator().manual_seed(3), {}  # fmt: skip
    tensors = load_file(path)
    for stem, (kind, prefix) in stems.items():
        stored, weights = text_tensors(kind)
        tensors |= {stem + key: value for key, value in stored.items()}
        for name, weight in weights.items():
            key = f"{prefix}text_model_encoder_layers_0_{name.replace('.', '_')}"
            lora[f"{key}.lora_down.weight"] = torch.randn(2, weight.shape[1], generator=source) * 0.3
            lora[f"{key}.lora_up.weight"] = torch.randn(weight.shape[0], 2, generator=source)
        if kind == "open_clip":
            tensors[stem.removesuffix("transformer.") + "text_projection"] = torch.randn(8, 8, generator=source)
            for name, shape in (("lora_down", (2, 8)), ("lora_up", (8, 2))):
                lora[f"{prefix}text_projection.{name}.weight"] = torch.randn(shape, generator=source)
    save_file(tensors, path)
    base = opened(path)
    lora_for(base, folder / "network.safetensors", [sorted(written_slices(base))[0]])
    save_file({**lora, **load_file(folder / "network.safetensors")}, folder / f"{toy}.lora.safetensors")
    merge_into_base(base, [(folder / f"{toy}.lora.safetensors", STRENGTH)], folder / f"{toy}.merged.safetensors", quiet)


def test_merged_encoders_say_what_base_and_loader_say(tmp_path):
    for toy, stems in ENCODERS.items():
        write(toy, stems, tmp_path)
    for toy, found in run_inside("merged_text", tmp_path).items():
        assert found["used"] == found["modules"] == {"sd1": 6, "sdxl": 13}[toy], (
            "ComfyUI uses every module of the encoders"
        )
        for part in ("clip_l", "clip_g", "clip_g pooled")[: {"sd1": 1, "sdxl": 3}[toy]]:
            effect, difference = found[part]
            assert effect > 0.1, part
            assert difference < 1e-4 * effect, part
