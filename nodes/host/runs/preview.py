"""The MODEL that the samples of a run are made with in place of the one that is trained: Turbo, while its base is trained."""

from collections.abc import Sequence

import torch
from torch import nn

from ....trainer.config.model import BaseLoraConfig
from ....trainer.config.network import NetworkConfig
from ....trainer.errors import ConfigError
from ....trainer.lora.base_lora import lay_base_loras
from ....trainer.lora.preview import check_alike, check_kind
from ....trainer.weights.frozen import compute_in
from ....trainer.weights.quantize import quantize
from ...sockets.values import MemoryValue
from ..backend.base_loras import read_base_loras
from ..backend.denoiser import LoadedDenoiser, is_dynamic, load_denoiser, refuse_patches
from ..backend.model_rows import names_of
from ..comfy_types import ModelPatcher

WHAT = "preview_model of LoomValidation"


def preview_name(patcher: ModelPatcher) -> str:
    """What run.json calls it: its file's name, or the class of its network where ComfyUI keeps no path."""
    return next(iter(names_of(patcher)), type(patcher.model).__name__)


def check_preview(
    preview: ModelPatcher, trained: ModelPatcher, network: NetworkConfig, *, streamed: bool, with_clip: bool = False
) -> None:
    """Raise LoomError, before a weight is touched, for a MODEL that could not show the LoRA."""
    check_kind(network, WHAT)
    for option, is_set in (
        ("a streamed base (LoomMemory)", streamed),
        ("clip of LoomTrain", with_clip),
    ):
        if is_set:
            raise ConfigError(f"{WHAT} does not go with {option}: leave one of them out")
    refuse_patches(preview)
    ours, theirs = type(trained.model).__name__, type(preview.model).__name__
    if ours != theirs:
        raise ConfigError(
            f"{WHAT} is a {theirs} model, and a {ours} model is trained: samples need one of the same family"
        )
    whole = trained.model.diffusion_model
    check_alike(
        whole,
        preview.model.diffusion_model,
        [path for path, part in whole.named_modules() if _may_be_trained(path, part)],
        WHAT,
    )


def _may_be_trained(path: str, layer: nn.Module) -> bool:
    """Whether it is a layer of a list, as those of blocks are: what lies outside may differ between the members of a family."""
    is_layer = isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1)
    return is_layer and any(name.isdigit() for name in path.split("."))


def load_preview(
    preview: ModelPatcher,
    trained: LoadedDenoiser,
    base_loras: Sequence[BaseLoraConfig],
    memory: MemoryValue,
) -> LoadedDenoiser:
    """Share the weights of a MODEL that ComfyUI has brought to the device together with the trained one.

    The LoRAs that are loaded into it are computed too, and those of LoomBaseLora that are always on. Raises ConfigError where both
    do not fit. Node thread only.
    """
    below = read_base_loras(preview, [one for one in base_loras if one.use == "always"])
    device = torch.device(preview.load_device)
    shown = load_denoiser(preview, compute_dtype=trained.compute_dtype)
    if is_dynamic(preview):
        fits = device.type != "cuda" or preview.model_size() <= torch.cuda.mem_get_info(device)[0]
    else:
        fits = {one.device.type for one in shown.module.parameters()} == {device.type}
    if not fits:
        raise ConfigError(
            f"{WHAT} takes {preview.model_size() / 1e9:.1f} GB more on {device} than is free next to the trained MODEL: leave it out, or use a smaller or fp8 file"
        )
    with torch.inference_mode(False):
        shown.module.to(device)
        if memory.quantize != "none":
            quantize(shown.module, memory.quantize, shown.compute_dtype)
        compute_in(shown.module, shown.compute_dtype)
        lay_base_loras(shown.module, below)
    return shown
