"""Toy models as ComfyUI MODELs, built in inference mode as a loader node would."""

import importlib
import json
import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, os.environ["COMFYUI_PATH"])
sys.path.append(str(ROOT / "scripts"))
sys.path.append(str(ROOT))

import utils.extra_config  # noqa: E402, F401 - as ComfyUI's main does: later another module of that name is in the way
from comfy.cli_args import args  # noqa: E402

args.cpu = True

import comfy  # noqa: E402
import comfy.model_management as mm  # noqa: E402
import comfy.model_patcher  # noqa: E402
import torch  # noqa: E402
from host_toys import TOYS, toy_inputs, toy_tensor  # noqa: E402
from record_host_gradients import out_of_place  # noqa: E402
from record_host_keys import build  # noqa: E402

torch.set_num_threads(1)
__all__ = ["ROOT", "TOYS", "answer", "comfy", "conditions", "import_pack", "mm", "out_of_place", "relative", "torch", "toy_inputs", "toy_model", "toy_tensor"]  # fmt: skip


def import_pack():
    """A function that imports our modules by name: the repository as the package it is, whatever its folder is called."""
    folder = Path(tempfile.mkdtemp())
    (folder / "lora_loom").symlink_to(ROOT)
    sys.path.append(str(folder))
    return lambda name: importlib.import_module(f"lora_loom.{name}")


def relative(value, reference):
    """|value - reference| / |reference|."""
    return float((value - reference).norm() / reference.norm())


@torch.inference_mode()
def toy_model(name, dtype=torch.float32):
    """A ModelPatcher over a toy whose weights are inference tensors."""
    import comfy.supported_models

    model = build(comfy, TOYS[name], toy_tensor)
    if dtype != torch.float32:
        model.diffusion_model.to(dtype)
        model.manual_cast_dtype = torch.float32
        for module in model.diffusion_model.modules():
            if hasattr(module, "comfy_cast_weights"):
                module.comfy_cast_weights = True
    for module in model.modules():
        for key, parameter in list(module._parameters.items()):
            if parameter is not None:
                module._parameters[key] = torch.nn.Parameter(parameter.data.clone(), requires_grad=False)
    return comfy.model_patcher.ModelPatcher(
        model, load_device=mm.get_torch_device(), offload_device=mm.unet_offload_device()
    )


@torch.inference_mode()
def conditions(patcher, name, row, latents):
    """The network's inputs for one sample, as extra_conds makes them."""
    toy, inputs = TOYS[name], toy_inputs(TOYS[name])
    given = {
        "cross_attn": inputs["text"][row : row + 1],
        "noise": latents[row : row + 1],
        "device": torch.device("cpu"),
        **toy.extra,
    }
    if "pooled" in inputs:
        given["pooled_output"] = inputs["pooled"][row : row + 1]
    return {key: value.cond for key, value in patcher.model.extra_conds(**given).items()}


def answer(value):
    """What the program has found, for the test that started it."""
    sys.stdout.write(json.dumps(value) + "\n")
