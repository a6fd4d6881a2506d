"""Whether a LoRA file fits a MODEL is asked of the names that ComfyUI gives its tensors as it loads it."""

import sys
from types import SimpleNamespace

import pytest
import torch

from lora_loom.trainer.errors import ModelFileError

from .stubs import module, stubbed

WEIGHT = "diffusion_model.img_in.weight"


def convert(tensors):
    """ComfyUI's renaming of Black Forest Labs' files, which also says the new shape of the input."""
    renamed = {f"diffusion_model.{key}": tensor for key, tensor in tensors.items()}
    return renamed | {"diffusion_model.img_in.reshape_weight": torch.tensor([6, 8])}


@pytest.fixture
def check(tmp_path, monkeypatch):
    lora = module(
        "comfy.lora",
        model_lora_keys_clip=None,
        model_lora_keys_unet=lambda model, keys: {WEIGHT.removesuffix(".weight"): WEIGHT},
    )
    with stubbed(tmp_path):
        monkeypatch.setitem(sys.modules, "comfy.lora", lora)
        monkeypatch.setitem(sys.modules, "comfy.lora_convert", module("comfy.lora_convert", convert_lora=convert))
        from lora_loom.nodes.host.backend.lora_check import check_fits_model

        yield check_fits_model


def lora(rows, columns, name="img_in"):
    return {f"{name}.lora_A.weight": torch.ones(2, columns), f"{name}.lora_B.weight": torch.ones(rows, 2)}


def test_a_file_that_comfyui_renames_and_widens_is_swept(check):
    model = SimpleNamespace(state_dict=lambda: {WEIGHT: torch.ones(6, 4)})
    check(model, lora(6, 8), "depth")
    with pytest.raises(ModelFileError, match="ComfyUI matches none of its 1 modules"):
        check(model, lora(6, 4, "other"), "other")
