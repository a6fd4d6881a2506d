"""A sample as it forms, small and rough, for the page: its latents by the linear law to colours that ComfyUI has for each model."""

import base64
import io
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor

SECONDS = 1.0
"""Between two events of a run: what a person sees as alive, and no load for the connection."""
SIDE = 256
"""Longest side of the picture, in pixels; a JPEG of it has about 10 kB."""


def to_rgb(latents_BCHW: Tensor, latent_format: Any) -> Tensor | None:
    """Colours of the first image in [0, 1], (h, w, 3), of latents in model space; None where ComfyUI has no factors for the model.

    The law is ComfyUI's (`latent_preview.Latent2RGBPreviewer`): colour = factors x channels + bias, in [-1, 1].
    """
    factors = getattr(latent_format, "latent_rgb_factors", None)
    if factors is None:
        return None
    latents = latents_BCHW[:1].detach().float().cpu()
    if reshape := getattr(latent_format, "latent_rgb_factors_reshape", None):
        latents = reshape(latents)
    weight_C3 = torch.tensor(factors, dtype=torch.float32)
    if latents.ndim != 4 or latents.shape[1] != len(weight_C3):
        return None
    bias = getattr(latent_format, "latent_rgb_factors_bias", None)
    colours = latents[0].movedim(0, -1) @ weight_C3
    if bias is not None:
        colours = colours + torch.tensor(bias, dtype=torch.float32)
    return ((colours + 1) / 2).nan_to_num().clamp(0, 1)


def as_data_url(colours_HW3: Tensor) -> str:
    """A JPEG that an <img> takes as it is, enlarged without new detail."""
    image = Image.fromarray((colours_HW3 * 255).round().to(torch.uint8).numpy())
    scale = SIDE / max(image.size)
    image = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), Image.Resampling.BILINEAR)  # fmt: skip
    buffer = io.BytesIO()
    image.save(buffer, "jpeg", quality=70)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


@dataclass(kw_only=True)
class Forming:
    """Tells the page how a run's samples form. Called in the run's thread."""

    name: str
    count: int
    """Images of a set of samples."""
    latent_format: Any
    emit: Callable[[str, dict[str, Any]], None]
    clock: Callable[[], float] = time.monotonic
    _spoke: float = field(default=float("-inf"), init=False)

    def __call__(self, step: int, number: int, denoised_BCHW: Tensor) -> None:
        """At most one event in `SECONDS`; the latents come to the CPU for those alone."""
        if self.clock() - self._spoke < SECONDS:
            return
        self._spoke = self.clock()
        try:
            colours = to_rgb(denoised_BCHW, self.latent_format)
        except (RuntimeError, ValueError, TypeError):  # a custom node's latent format: a rough picture ends no run
            return
        if colours is None:
            return
        self.emit("lora_loom.forming", {"name": self.name, "step": step, "number": number + 1, "of": self.count, "image": as_data_url(colours)})  # fmt: skip
