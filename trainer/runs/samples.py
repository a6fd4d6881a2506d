"""Samples: images of the validation prompts, made while training by the engine's sampler with the current weights."""

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ..base_model import Base, open_base
from ..config.checks import parse_sizes
from ..config.network import BY_BASE
from ..config.prompt_library import Prompt, listed_prompts
from ..config.run import TrainConfig, TrainingConfig, ValidationConfig
from ..data.cache.references import encode_with_references, reference_latents, reference_placement
from ..data.sample_scores import SampleScores
from ..diffusion.denoiser import Denoiser
from ..diffusion.guidance import CFG, Guidance, Rescaled
from ..diffusion.sample import SampleSettings, make_skip, sample, start_noise
from ..diffusion.skip_layers import check_skip_layers
from ..errors import ConfigError, StoppedError
from ..families.common.family import Encoders, ImageCodec
from ..lora.base_lora import BaseLora, always, lay_base_loras
from ..lora.preview import check_alike, check_kind, laid_over
from ..storage.atomic import write_bytes
from ..types import Conditioning, Geometry, Size, named_references
from .reference_images import check_references, read_references

ON_REQUEST = -1
"""As `validation.sample_every`: only when the panel's button asks for samples."""


@dataclass(frozen=True, kw_only=True)
class Shot:
    """One image of a set of samples."""

    prompt: Prompt
    positive: Conditioning
    negative: Conditioning
    settings: SampleSettings
    seed: int
    shape: tuple[int, ...]
    """(C, h, w) of the latents."""


@dataclass(frozen=True, kw_only=True)
class Samples:
    """One image per shot; the session's `SampleRenderer`, headless and in a host."""

    every: int
    """Steps between samples; 0 only on request."""
    folder: Path
    denoiser: Denoiser
    decode: Callable[[Tensor], Tensor]
    """Model-space latents (1, C, h, w) to pixels (3, H, W) in [0, 1]."""
    shots: Sequence[Shot]
    device: torch.device
    writes: bool = True
    """False in a process that only computes along."""
    is_other: bool = False
    """The denoiser is another one than the one that is trained."""
    forming: Callable[[int, int, Tensor], None] | None = None
    """Is shown (step of the run, number of the image, estimate of its clean latents in model space) while an image forms."""

    def using(self, trained: Callable[[], Mapping[str, Tensor]]) -> AbstractContextManager[None]:
        return laid_over(self.denoiser, trained()) if self.is_other else nullcontext()

    def paths(self, step: int, kind: str = "") -> list[Path]:
        ending = f"-{kind}.png" if kind else ".png"
        names = [as_file_name(shot.prompt.name) for shot in self.shots]
        return [
            self.folder / f"step-{step:06d}-{number}{f'-{name}' if name else ''}{ending}"
            for number, name in enumerate(names)
        ]

    def render(self, step: int, kind: str = "", should_stop: Callable[[], bool] = lambda: False) -> list[Path]:
        paths: list[Path] = []
        places = self.paths(step, kind)

        def progress(done: int, total: int) -> None:
            if should_stop():
                raise StoppedError("stopped while sampling")

        for number, shot in enumerate(self.shots):
            noise = start_noise(shot.shape, shot.seed, self.device)
            try:
                watch = partial(self.forming, step, number) if self.forming else _unwatched
                latents = sample(self.denoiser, noise, shot.positive, shot.negative, shot.settings, progress, watch)
            except StoppedError:
                return paths
            if self.writes:
                _write_image(self.decode(latents), places[number], _said_of(shot, step, kind))
                paths.append(places[number])
        return paths


def _unwatched(denoised_BCHW: Tensor) -> None:
    pass


def _said_of(shot: Shot, step: int, kind: str) -> dict[str, str]:
    """What the PNG says of itself, as texts by name."""
    settings = shot.settings
    said = {
        "prompt": shot.prompt.text, "name": shot.prompt.name, "step": step, "weights": kind or "current", "seed": shot.seed,
        "sampling_steps": settings.steps, "sampler": settings.sampler, "scheduler": settings.scheduler,
        "guidance_scale": settings.guidance.scale,
    }  # fmt: skip
    return {name: str(value) for name, value in said.items() if value != ""}


def as_file_name(name: str) -> str:
    """A prompt's name as a part of a file name: letters of any script, digits, and - for the rest; at most 60 characters."""
    return re.sub(r"[^\w]+", "-", name).strip("-")[:60]


def _write_image(pixels_CHW: Tensor, path: Path, said: Mapping[str, str]) -> None:
    import io

    from PIL.PngImagePlugin import PngInfo

    texts = PngInfo()
    for name, text in said.items():
        texts.add_itxt(name, text)
    array = (pixels_CHW.float().clamp(0, 1).movedim(0, -1) * 255).round().to(torch.uint8).cpu().numpy()
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "png", pnginfo=texts)
    write_bytes(path, buffer.getvalue())


@dataclass(frozen=True, kw_only=True)
class SampleInputs:
    """What is made before the network is loaded, so that it and the text encoders are never in memory together."""

    codec: ImageCodec
    asked: Sequence["Asked"]
    conditions: Sequence[tuple[Conditioning, Conditioning]]
    """(of the prompt, of the negative prompt) of each."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """An image that samples shall have."""

    prompt: Prompt
    size: Size
    seed: int
    references: int = 0
    """Index of its set of reference images."""


def asked_images(asked: ValidationConfig, prompts: Sequence[Prompt], resolution: int, sets: int = 1) -> list[Asked]:
    """Every prompt with each of `sets` sets of reference images, in each size; 0 takes the training resolution.

    Seeds count up from prompt to prompt and set to set, unless they are to be the same; sizes share theirs.
    """
    usual = asked.width or resolution, asked.height or resolution
    sizes = parse_sizes("validation.sizes", asked.sizes) or [usual]
    found = []
    for number, (prompt, chosen) in enumerate(product(prompts, range(sets))):
        counted = asked.seed if asked.same_seed else asked.seed + number
        seed = counted if prompt.seed is None else prompt.seed
        own = bool(prompt.width or prompt.height)
        own_sizes = [(prompt.width or usual[0], prompt.height or usual[1])] if own else sizes
        found += [Asked(prompt=prompt, size=size, seed=seed, references=chosen) for size in own_sizes]
    return found


def sample_interval(asked: ValidationConfig, training: TrainingConfig) -> int:
    """Steps between samples: at checkpoints if nothing else is asked for. 0 = only on request."""
    if asked.sample_every == ON_REQUEST:
        return 0
    return asked.sample_every or training.save_every or training.steps


def sample_settings(asked: ValidationConfig, usual_guidance: float, prompt: Prompt | None = None) -> SampleSettings:
    """How samples are made, by both front ends; a prompt may have a number of steps and a scale of its own."""
    scale = asked.guidance_scale or usual_guidance
    steps = asked.sample_steps
    if prompt is not None:
        scale, steps = scale if prompt.scale is None else prompt.scale, prompt.steps or steps
    guidance: Guidance = CFG(scale)
    if asked.guidance_rescale:
        guidance = Rescaled(guidance=guidance, phi=asked.guidance_rescale)
    return SampleSettings(
        steps=steps, sampler=asked.sampler, scheduler=asked.scheduler, guidance=guidance, skip=make_skip(asked)
    )


def prompts_of(asked: ValidationConfig) -> list[Prompt]:
    """Raises ConfigError for a library that cannot be read."""
    return listed_prompts(asked.prompts, asked.prompt_library, "validation.prompt_library")


def check_samples(config: TrainConfig, base: Base) -> None:
    """Raise ConfigError or DataError for what could not be rendered, before anything is loaded."""
    asked = config.validation
    if not prompts_of(asked):
        return
    base.check_guidance("validation.model_guidance", asked.model_guidance, ValidationConfig.model_guidance)
    if asked.sample_every == ON_REQUEST:
        raise ConfigError(
            "validation.sample_every = -1: samples on request need ComfyUI's panel; use 0 (at checkpoints) or more"
        )
    step = base.family.bucket_step
    for image in asked_images(asked, prompts_of(asked), config.data.resolution):
        for name, side in zip(("width", "height"), image.size, strict=True):
            if side % step:
                where = "sizes" if asked.sizes else name
                raise ConfigError(f"validation.{where} = {side}: {base.family.name} needs multiples of {step}")
    if asked.clip_score:
        SampleScores(asked.clip_score)
    if asked.skip_layers:
        check_skip_layers("validation.skip_layers", asked.skip_layers, base.skeleton().module, base.family.name)
    check_references("validation.references", asked.references, base)


def sample_inputs(config: TrainConfig, base: Base) -> SampleInputs | None:
    """Encode prompts and reference images; None without a prompt. Only the VAE is kept. Where text encoders are trained the prompts stay
    texts."""
    asked, trains_text = config.validation, config.text.is_trained
    prompts = prompts_of(asked)
    if not prompts:
        return None
    encoders = base.load_encoders()

    def condition(text: str, paths: Sequence[Path], geometry: Geometry) -> Conditioning:
        if trains_text:  # encoded while training, by the encoders that are trained
            return {"captions": [text], "geometries": [geometry]}
        if paths and base.settings.text_pixels:
            encoded = encode_with_references(encoders, text, paths, base.settings.text_pixels)
        else:
            [encoded] = encoders.text.encode([text])
        made = base.family.condition([encoded], [geometry], asked.model_guidance)
        return {name: tensor.to(base.device) for name, tensor in made.items()}

    named = read_references("validation.references", asked.references)
    sets: Sequence[Sequence[Path]] = [reference.paths for reference in named] or [()]
    images = asked_images(asked, prompts, config.data.resolution, len(sets))
    conditions = []
    for image in images:
        paths, geometry = sets[image.references], Geometry.whole(image.size)
        references = _reference_latents(base, encoders, paths, image.size)
        negative = asked.negative_prompt if image.prompt.negative is None else image.prompt.negative
        made = [{**condition(text, paths, geometry), **references} for text in (image.prompt.text, negative)]
        conditions.append((made[0], made[1]))
    return SampleInputs(codec=encoders.image, asked=images, conditions=conditions)


def _reference_latents(base: Base, encoders: Encoders, paths: Sequence[Path], size: Size) -> Mapping[str, Tensor]:
    """Returns {"reference", "reference_2", …: (1, C, h, w) in model space}."""
    raw_CHW = [reference_latents(encoders, path, reference_placement(path, size)) for path in paths]
    to_model = base.family.latent_space.to_model
    return named_references([to_model(latents.unsqueeze(0)).to(base.device) for latents in raw_CHW])


def open_preview(config: TrainConfig, base: Base, trained: Denoiser, targets: Sequence[str]) -> Base | None:
    """The base of `validation.model`; None without one. Raises ConfigError for one that cannot show the LoRA, or not next to the trained one."""
    asked = config.validation.model
    if not asked or not prompts_of(config.validation):
        return None
    memory, what = config.memory, f"validation.model = {asked!r}"
    check_kind(config.network, what)
    for option, is_set in (
        (f"network.kind = {config.network.kind!r}", config.network.kind in BY_BASE),
        ("text.learning_rate", config.text.is_trained),
        ("memory.shard", memory.shard),
        ("a streamed base", memory.base == "stream" or bool(memory.vram_gb)),
    ):
        if is_set:
            raise ConfigError(f"{what} does not go with {option}: leave one of them out")
    asked_model = replace(config.model, base=asked, family="auto", variant="auto", base_lora=())
    preview = open_base(asked_model, objective=config.objective)
    if preview.family.name != base.family.name:
        raise ConfigError(
            f"{what} is a {preview.family.name} model, and a {base.family.name} model is trained: samples need one of the same family"
        )
    check_alike(trained.module, preview.skeleton().module, targets, what)
    return preview


def load_preview(config: TrainConfig, preview: Base, base_loras: Sequence[BaseLora]) -> Denoiser:
    """The network of `validation.model` on the device, with the base LoRAs that are always on. Raises ConfigError where it does not fit
    next to the trained one."""
    size = sum(file.stat().st_size for file in preview.source.denoiser_files)
    if preview.device.type == "cuda" and size > torch.cuda.mem_get_info(preview.device)[0]:
        raise ConfigError(
            f"validation.model = {config.validation.model!r} takes {size / 1e9:.1f} GB more on {preview.device} than is free next to the trained model: leave it out, or quantize (model.quantize)"
        )
    network = preview.load_denoiser(config.model, config.training.precision)
    lay_base_loras(network.module, always(base_loras))
    return network


def make_samples(
    config: TrainConfig,
    base: Base,
    inputs: SampleInputs,
    trained: Denoiser,
    folder: Path,
    *,
    preview: Base | None = None,
    base_loras: Sequence[BaseLora] = (),
    writes: bool,
) -> Samples:
    """The headless renderer. A process that does not write only computes along. `preview` is that of `open_preview`."""
    asked, codec = config.validation, inputs.codec
    factor, channels = codec.factor, base.family.latent_space.channels
    usual = (preview or base).settings.guidance_scale

    def decode(latents_BCHW: Tensor) -> Tensor:
        return (codec.decode(base.family.latent_space.to_raw(latents_BCHW))[0].float() + 1) / 2

    return Samples(
        every=sample_interval(asked, config.training),
        folder=folder,
        denoiser=trained if preview is None else load_preview(config, preview, base_loras),
        decode=decode,
        shots=[
            Shot(
                prompt=image.prompt,
                positive=positive,
                negative=negative,
                settings=sample_settings(asked, usual, image.prompt),
                seed=image.seed,
                shape=(channels, image.size[1] // factor, image.size[0] // factor),
            )
            for image, (positive, negative) in zip(inputs.asked, inputs.conditions, strict=True)
        ],
        device=base.device,
        writes=writes,
        is_other=preview is not None,
    )
