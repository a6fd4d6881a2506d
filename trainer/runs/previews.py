"""Pictures while training: the validation prompts, rendered by the engine's sampler from the live adapter."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ..base_model import Base
from ..config.run import TrainConfig
from ..data.cache.references import encode_with_references, reference_latents, reference_placement
from ..diffusion.denoiser import Denoiser
from ..diffusion.guidance import CFG
from ..diffusion.sample import SampleSettings, sample, start_noise
from ..errors import ConfigError
from ..families.common.family import Encoders, ImageCodec
from ..storage.atomic import write_bytes
from ..types import Conditioning, Geometry, Size, named_references
from .prompt_library import all_prompts
from .reference_images import check_references, read_references


@dataclass(frozen=True, kw_only=True)
class Samples:
    """One picture per pair of conditionings; the session's `SampleRenderer`, headless and in a host."""

    every: int
    """Steps between renderings; 0 only on request."""
    folder: Path
    denoiser: Denoiser
    decode: Callable[[Tensor], Tensor]
    """Model-space latents (1, C, h, w) to pixels (3, H, W) in [0, 1]."""
    conditions: Sequence[tuple[Conditioning, Conditioning]]
    """(of the prompt, of the negative prompt)."""
    settings: SampleSettings
    seed: int
    """Of the first picture; the next ones count up."""
    shape: tuple[int, ...]
    """(C, h, w) of the latents."""
    device: torch.device
    writes: bool = True
    """Off in a process that only computes along."""

    def render(self, step: int, kind: str = "") -> list[Path]:
        paths = []
        for number, (positive, negative) in enumerate(self.conditions):
            noise = start_noise(self.shape, self.seed + number, self.device)
            latents = sample(self.denoiser, noise, positive, negative, self.settings)
            if self.writes:
                paths.append(self._write(self.decode(latents), f"step-{step:06d}-{number}{'-' + kind if kind else ''}"))
        return paths

    def _write(self, pixels_CHW: Tensor, name: str) -> Path:
        import io

        array = (pixels_CHW.float().clamp(0, 1).movedim(0, -1) * 255).round().to(torch.uint8).cpu().numpy()
        buffer = io.BytesIO()
        Image.fromarray(array).save(buffer, "png")
        write_bytes(self.folder / f"{name}.png", buffer.getvalue())
        return self.folder / f"{name}.png"


@dataclass(frozen=True, kw_only=True)
class SampleInputs:
    """What is made before the network is loaded, so that it and the text encoders are never in memory together."""

    codec: ImageCodec
    conditions: Sequence[tuple[Conditioning, Conditioning]]


def prompts_of(config: TrainConfig) -> tuple[str, ...]:
    """Raises ConfigError for a library that cannot be read."""
    asked = config.validation
    return tuple(all_prompts(asked.prompts, asked.prompt_library, "validation.prompt_library"))


def check_samples(config: TrainConfig, base: Base) -> None:
    """Raise ConfigError or DataError for what could not be rendered, before anything is loaded."""
    if not prompts_of(config):
        return
    for name, side in zip(("width", "height"), _size(config), strict=True):
        if side % base.family.bucket_step:
            raise ConfigError(
                f"validation.{name} = {side}: {base.family.name} needs multiples of {base.family.bucket_step}"
            )
    check_references("validation.references", config.validation.references, base)


def _size(config: TrainConfig) -> Size:
    width, height = (side or config.data.resolution for side in (config.validation.width, config.validation.height))
    return width, height


def sample_inputs(config: TrainConfig, base: Base) -> SampleInputs | None:
    """Encode prompts and reference images; None without a prompt. Only the VAE is kept."""
    prompts = prompts_of(config)
    if not prompts:
        return None
    encoders = base.load_encoders()
    named = read_references("validation.references", config.validation.references)
    shown = [reference.paths for reference in named]
    conditions = []
    for prompt, paths in product(prompts, shown or [()]):
        references = _looked_at(config, base, encoders, paths)
        texts = (prompt, config.validation.negative_prompt)
        pair = [{**_said(config, base, encoders, text, paths), **references} for text in texts]
        conditions.append((pair[0], pair[1]))
    return SampleInputs(codec=encoders.image, conditions=conditions)


def _said(config: TrainConfig, base: Base, encoders: Encoders, text: str, shown: Sequence[Path]) -> Conditioning:
    geometry = Geometry.whole(_size(config))
    if config.text.learning_rate:  # read anew by the encoders that are trained
        return {"captions": [text], "geometries": [geometry]}
    if shown and base.settings.text_pixels:
        encoded = encode_with_references(encoders, text, shown, base.settings.text_pixels)
    else:
        [encoded] = encoders.text.encode([text])
    made = base.family.condition([encoded], [geometry], config.objective.guidance_scale)
    return {name: tensor.to(base.device) for name, tensor in made.items()}


def _looked_at(config: TrainConfig, base: Base, encoders: Encoders, shown: Sequence[Path]) -> Mapping[str, Tensor]:
    """{"reference", "reference_2", …: (1, C, h, w) in model space}."""
    raw_CHW = [reference_latents(encoders, path, reference_placement(path, _size(config))) for path in shown]
    to_model = base.family.latent_space.to_model
    return named_references([to_model(latents.unsqueeze(0)).to(base.device) for latents in raw_CHW])


def make_samples(
    config: TrainConfig, base: Base, inputs: SampleInputs, denoiser: Denoiser, folder: Path, *, writes: bool
) -> Samples:
    asked, (width, height), codec = config.validation, _size(config), inputs.codec

    def decode(latents_BCHW: Tensor) -> Tensor:
        return (codec.decode(base.family.latent_space.to_raw(latents_BCHW))[0].float() + 1) / 2

    return Samples(
        every=asked.sample_every or config.training.save_every or config.training.steps,
        folder=folder,
        denoiser=denoiser,
        decode=decode,
        conditions=inputs.conditions,
        settings=SampleSettings(
            steps=asked.sample_steps,
            sampler="euler",
            scheduler="normal",
            guidance=CFG(asked.guidance_scale or base.settings.guidance_scale),
        ),
        seed=asked.seed,
        shape=(base.family.latent_space.channels, height // codec.factor, width // codec.factor),
        device=base.device,
        writes=writes,
    )
