"""Toy models as ComfyUI MODELs, built in inference mode as a loader node would."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, os.environ["COMFYUI_PATH"])
sys.path.append(str(ROOT / "scripts"))

from comfy.cli_args import args  # noqa: E402

args.cpu = True

import comfy  # noqa: E402
import comfy.model_management as mm  # noqa: E402
import comfy.model_patcher  # noqa: E402
import torch  # noqa: E402
from host_toys import TOYS, toy_inputs, toy_tensor  # noqa: E402
from record_host_keys import build  # noqa: E402

__all__ = ["TOYS", "comfy", "conditions", "mm", "torch", "toy_inputs", "toy_model", "toy_tensor"]


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
