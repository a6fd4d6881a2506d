"""What a run of the graph needs besides its steps: what ComfyUI encodes before it, what stays while training, and samples."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from .....trainer.diffusion.denoiser import Denoiser
from .....trainer.memory_plan.planner import Around
from .....trainer.memory_plan.rehearsal import as_shapes, most_live
from .....trainer.memory_plan.shapes_only import META
from .....trainer.runs.samples import asked_images
from .....trainer.types import Conditioning, Size
from ....sockets.values import ValidationValue
from ...comfy_types import ModelPatcher
from ...encoding.encoder_bytes import bytes_of, counted, estimate, vae_structure
from ...encoding.texts import TrainedTexts
from ..samples import HELD, Decoder, open_decoder, prompts_of_value


@dataclass(frozen=True, kw_only=True)
class Beside:
    """The parts of a run that are not the trained network."""

    value: ValidationValue | None
    """How samples are made; None for a run without."""
    texts: TrainedTexts | None
    """The text encoders, where they are trained."""
    caching: int
    """Predicted bytes of what LoomCache has encoded."""


@torch.inference_mode(False)
def around(
    beside: Beside, patcher: ModelPatcher, on_shapes: Callable[[], Denoiser], conditioning: Conditioning
) -> Around:
    """Bytes of all of it. `on_shapes` makes the denoiser without weights; `conditioning` is that of one image, for samples."""
    text = bytes_of(beside.texts.clip.network) if beside.texts else 0
    if beside.value is None:
        return Around(encoders=text, caching=beside.caching, is_cached=True)
    held, device = HELD.of(beside.value), torch.device(patcher.load_device)
    decoder, size = open_decoder(held.vae), _largest(beside.value)
    weights = bytes_of(decoder.network)
    is_there = next(decoder.network.parameters()).device.type == device.type
    shown = held.preview.model_size() if held.preview else 0
    latents = (
        1,
        int(patcher.model.latent_format.latent_channels),
        size[1] // decoder.factor,
        size[0] // decoder.factor,
    )
    decoding = _decoding(decoder, latents, estimate(held.vae, "memory_used_decode", latents))
    sampling = max(decoding, _predicting(on_shapes(), latents, conditioning))
    return Around(
        encoders=text + shown + (weights if is_there else 0), caching=beside.caching, is_cached=True, sampling=sampling
    )


def _largest(value: ValidationValue) -> Size:
    """(width, height) of the largest sample in pixels."""
    asked = value.validation
    sizes = [image.size for image in asked_images(asked, prompts_of_value(value), asked.width)]
    return max(sizes, key=lambda size: size[0] * size[1])


def _decoding(decoder: Decoder, latents: Sequence[int], estimated: int) -> int:
    """Bytes that the VAE takes for a sample, beside its weights; ComfyUI's estimate for one that does not run on shapes."""

    def rehearsed() -> int:
        network = vae_structure(decoder.network)
        without = replace(decoder, network=network)
        return most_live(network, lambda: without(torch.empty(*latents, device=META)))

    return counted(rehearsed, "VAE", estimated)


def _predicting(denoiser: Denoiser, latents: Sequence[int], conditioning: Conditioning) -> int:
    """Bytes of one pass of the network without a gradient."""
    noisy_BCHW, sigma_B = torch.empty(*latents, device=META), torch.empty(1, device=META)
    return most_live(denoiser.module, lambda: denoiser.predict(noisy_BCHW, sigma_B, as_shapes(conditioning)))
