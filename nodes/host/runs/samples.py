"""Samples while training: prompts are encoded in the node; the thread samples with the engine and a shadow of the VAE."""

import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ....trainer.config.prompt_library import Prompt, listed_prompts
from ....trainer.config.run import TrainingConfig, ValidationConfig
from ....trainer.config.toml import digest
from ....trainer.data.cache.references import (
    encode_with_references,
    reference_latents,
    reference_placement,
    references_digest,
)
from ....trainer.data.cache.store import CODE_VERSION, Cache, text_key
from ....trainer.data.images.load import file_digest
from ....trainer.data.sample_scores import SampleScores
from ....trainer.diffusion.skip_layers import check_skip_layers
from ....trainer.errors import ConfigError
from ....trainer.families.common.family import Encoders
from ....trainer.runs.samples import ON_REQUEST, Samples, Shot, asked_images, sample_interval, sample_settings
from ....trainer.runs.trackers import check_tracker
from ....trainer.types import Geometry, Size
from ...sockets.names import AUTO
from ...sockets.values import ValidationValue
from ...widgets import skip_options
from ..backend.conditions import check_accepts_references, network_inputs
from ..backend.denoiser import LoadedDenoiser
from ..backend.encoder_check import VALIDATION, check_unpacked, check_vae
from ..backend.latents import latent_normaliser
from ..backend.model_rows import usual_cfg
from ..backend.packing import unpack
from ..backend.shadow import build_shadow
from ..comfy_types import Clip, ClipVision, ModelPatcher, Vae
from ..encoding.clip_vision import HostVision, vision_of_run
from ..encoding.edit_prompts import chosen_reading, text_pixels
from ..encoding.encoders import clip_identity, host_encoders, vae_identity
from ..encoding.reference_images import NAMES, kept_references
from ..encoding.texts import TrainedTexts
from ..forming import Forming
from ..paths import cache_folder, library_path, resolve_folder
from .preview import preview_name
from .server import emit


class Held(NamedTuple):
    """What a record of LoomValidation is for."""

    vae: Vae
    preview: ModelPatcher | None = None
    """The MODEL that samples are made with; None for the one that is trained."""
    clip_vision: ClipVision | None = None
    """What compares samples with the training images."""


class HeldModels:
    """The VAE, the MODEL and the CLIP_VISION of each record that LoomValidation made, for as long as the record lives.

    A record on a socket holds no tensors. ComfyUI keeps it while the node's output is cached or a graph uses it, so a
    cached LoomValidation finds its VAE again, and a VAE that no graph needs any more is let go.
    """

    def __init__(self) -> None:
        self._held: dict[int, Held] = {}

    def hold(self, value: ValidationValue, held: Held) -> None:
        self._held[id(value)] = held
        weakref.finalize(value, self._held.pop, id(value), None)

    def of(self, value: ValidationValue) -> Held:
        """Raises ConfigError for a record that another process made."""
        if id(value) not in self._held:
            raise ConfigError(
                "the VAE of LoomValidation is not loaded in this process: change one of its inputs, e.g. seed, and queue the graph again"
            )
        return self._held[id(value)]

    def __len__(self) -> int:
        return len(self._held)


HELD = HeldModels()


@dataclass(frozen=True, kw_only=True)
class Decoder:
    """A VAE's decoder over shared weights: raw latents (1, C, h, w) to pixels in [0, 1], (3, H, W)."""

    network: torch.nn.Module
    process_output: Callable[[Tensor], Tensor]
    video: bool
    factor: int

    @torch.no_grad()
    def __call__(self, raw_BCHW: Tensor) -> Tensor:
        weight = next(self.network.parameters())
        latents = raw_BCHW.to(weight.device, weight.dtype)
        pixels = self.network.decode(latents.unsqueeze(2) if self.video else latents)  # type: ignore[operator]
        pixels = self.process_output(pixels.float())
        return (
            pixels.reshape(-1, *pixels.shape[-2:])[:3].clamp(0, 1).cpu() if self.video else pixels[0].clamp(0, 1).cpu()
        )


def prepare_validation(vae: Vae, clip: Clip, prompts: str, options: Mapping[str, Any]) -> ValidationValue:
    """Encode the prompts and share the decoder. Raises ConfigError without a prompt, or without the library for the curves."""
    check_tracker(str(options.get("report", "none")))
    preview: ModelPatcher | None = options.get("preview_model")
    lines = tuple(line.strip() for line in prompts.splitlines() if line.strip())
    listed = listed_prompts(lines, library_path(str(options.get("prompt_library", ""))), "prompt_library")
    lines = tuple(dict.fromkeys(prompt.text for prompt in listed))
    if not lines:
        raise ConfigError("validation.prompts is empty: write at least one prompt, or name a prompt_library")
    negative = str(options.get("negative", ""))
    sets = kept_references([options.get(name) for name in NAMES])
    reading = chosen_reading(str(options.get("edit_prompts", AUTO)), clip, max(map(len, sets), default=0))
    identity, text = vae_identity(vae), clip_identity(clip)
    size = (int(options.get("width", 512)), int(options.get("height", 512)))
    encodings = ValidationCache(
        cache=Cache(cache_folder()), encoders=host_encoders(vae, clip, reading), vae=identity, text=text
    )
    references = tuple(
        encodings.references([Path(path) for path in paths], size, text_pixels(reading)) for paths in sets
    )
    negatives = {prompt.negative for prompt in listed if prompt.negative is not None}
    encodings.read({*lines, negative, *negatives}, sets, text_pixels(reading))
    asked = validation_config(lines, negative, sets, size, options)
    check_sizes(asked, listed, bool(sets), encodings.encoders.image.factor)
    value = ValidationValue(
        validation=asked,
        prompts=tuple(listed),
        vae=identity,
        text=text,
        report_to=options.get("report", "none"),
        tracker_project=str(options.get("tracker_project") or ValidationValue.tracker_project),
        tracker_run=str(options.get("tracker_run") or ""),
        references=references,
    )
    HELD.hold(value, Held(vae, preview, options.get("clip_vision")))
    return value


def validation_config(
    prompts: Sequence[str],
    negative: str,
    references: Sequence[Sequence[str]],
    size: Size,
    options: Mapping[str, Any],
) -> ValidationConfig:
    """The node's inputs under the names of the command line's [validation] table. Raises ConfigError."""
    return ValidationConfig(
        prompts=tuple(prompts),
        negative_prompt=negative,
        references=tuple(tuple(paths) for paths in references),
        width=size[0],
        height=size[1],
        sample_every=int(options.get("every", 0)) or ON_REQUEST,
        sample_steps=int(options.get("steps", 20)),
        guidance_scale=float(options.get("cfg", 0.0)),
        model_guidance=float(options.get("model_guidance", ValidationConfig.model_guidance)),
        model=preview_name(options["preview_model"]) if options.get("preview_model") else "",
        seed=int(options.get("seed", 0)),
        same_seed=bool(options.get("same_seed", False)),
        every=int(options.get("measure_every", 0)),
        timesteps=int(options.get("timesteps", ValidationConfig.timesteps)),
        patience=int(options.get("patience", 0)),
        doctor=bool(options.get("doctor", False)),
        sampler=str(options.get("sampler", ValidationConfig.sampler)),
        scheduler=str(options.get("scheduler", ValidationConfig.scheduler)),
        guidance_rescale=float(options.get("guidance_rescale", 0.0)),
        sizes=str(options.get("sizes", "")),
        clip_score=clip_folder(str(options.get("clip_score") or "")),
        **skip_options(options),
    )


def clip_folder(text: str) -> str:
    """The folder of the CLIP that scores samples, "" for none. Raises ConfigError for one that may not be used, ModelFileError for one
    without a CLIP."""
    folder = str(resolve_folder(text, "clip_score")) if text.strip() else ""
    if folder:
        SampleScores(folder)
    return folder


def check_sizes(asked: ValidationConfig, prompts: Sequence[Prompt], has_references: bool, factor: int) -> None:
    """Raise ConfigError for sizes that cannot be made: of no whole latents, or several with reference images, which are prepared for one."""
    sizes = {image.size for image in asked_images(asked, prompts, asked.width)}
    for side in (side for size in sizes for side in size):
        if side % factor:
            raise ConfigError(f"sizes: {side} pixels are no whole latents of this VAE; use multiples of {factor}")
    if has_references and sizes != {(asked.width, asked.height)}:
        raise ConfigError(
            "sizes: reference images are prepared for one size, that of width and height; leave sizes out"
        )


def prompts_of_value(value: ValidationValue) -> Sequence[Prompt]:
    """The prompts with their names and options; a value that an earlier version saved has texts alone."""
    return value.prompts or [Prompt(text=text) for text in value.validation.prompts]


def texts_of(asked: ValidationConfig, prompt: Prompt) -> tuple[str, str]:
    """A prompt's text and its negative prompt."""
    return prompt.text, asked.negative_prompt if prompt.negative is None else prompt.negative


def all_texts(value: ValidationValue | None) -> list[str]:
    """Everything that is read for the samples of a run."""
    prompts = prompts_of_value(value) if value else ()
    return [text for one in prompts for text in texts_of(value.validation, one)] if value else []


@dataclass(frozen=True, kw_only=True)
class ValidationCache:
    """Keeps the encodings of the samples' prompts and reference images until the run begins."""

    cache: Cache
    encoders: Encoders
    vae: str
    text: str
    """Identities of the encoders."""

    def references(self, paths: Sequence[Path], size: Size, pixels: int) -> tuple[str, tuple[str, ...]]:
        """A set of reference images as `ValidationValue.references` has it; their latents are in the cache afterwards."""
        keys = []
        for path in paths:
            target = reference_placement(path, size).target
            key = digest(["shown latents", CODE_VERSION, file_digest(path), target, self.vae])
            if self.cache.missing([key]):
                latents_CHW = reference_latents(self.encoders, path, reference_placement(path, size))
                self.cache.put({key: {"latents": latents_CHW}})
            keys.append(key)
        return self._seen(paths, pixels), tuple(keys)

    def _seen(self, paths: Sequence[Path], pixels: int) -> str:
        return references_digest([file_digest(path) for path in paths], pixels) if pixels else ""

    def read(self, prompts: Collection[str], sets: Sequence[Sequence[str]], pixels: int) -> None:
        """Encode every prompt that is missing: with each set of reference images that the text encoder sees, else alone."""
        for named in (sets if pixels else ()) or ((),):
            paths = [Path(path) for path in named]
            seen = self._seen(paths, pixels) if paths else ""
            for prompt in prompts:
                key = text_key(prompt, self.text, seen)
                if self.cache.missing([key]):
                    made = (
                        encode_with_references(self.encoders, prompt, paths, pixels)
                        if seen
                        else self.encoders.text.encode([prompt])[0]
                    )
                    self.cache.put({key: made})


def encoder_of(value: ValidationValue | None) -> HostVision | None:
    """What compares the samples of a run with its training images; None without a CLIP_VISION."""
    clip_vision = HELD.of(value).clip_vision if value else None
    return vision_of_run(clip_vision) if clip_vision is not None else None


def open_decoder(vae: Vae) -> Decoder:
    """A decoder over the VAE's weights as they lie now."""
    with torch.inference_mode(False):
        network = build_shadow(vae.first_stage_model, dict(vae.first_stage_model.state_dict()))
    return Decoder(
        network=network,
        process_output=vae.process_output,
        video=getattr(vae, "latent_dim", 2) == 3,
        factor=int(vae.spacial_compression_encode()),
    )


def make_samples(
    value: ValidationValue,
    patcher: ModelPatcher,
    denoiser: LoadedDenoiser,
    folder: Path,
    training: TrainingConfig,
    *,
    is_other: bool = False,
    texts: TrainedTexts | None = None,
) -> Samples:
    """What makes the samples of a run in `folder`, with a MODEL that is another one than the trained one if `is_other`. `texts` is a
    CLIP that is trained. Node thread: calls the model's `extra_conds`."""
    vae, asked, model = HELD.of(value).vae, value.validation, patcher.model
    check_vae(model, vae, VALIDATION)
    decoder = open_decoder(vae)
    channels = int(model.latent_format.latent_channels)
    cache, factor = Cache(cache_folder()), decoder.factor
    fed = {**denoiser.settings.conditions}
    if "guidance" in fed:  # as users of the model set it, which is not what it is fed while training
        fed["guidance"] = asked.model_guidance

    def inputs(prompt: str, size: Size, seen: str, keys: Sequence[str]) -> dict[str, Any]:
        text = unpack(cache.get(text_key(prompt, value.text, seen)))
        check_unpacked(model, text, VALIDATION)
        latents = [cache.get(key)["latents"].unsqueeze(0) for key in keys]
        given = (text, Geometry.whole(size), fed, factor, channels, latents)
        if latents:
            check_accepts_references(model, *given)
        made = network_inputs(model, *given)
        return {name: _normal(item) for name, item in made.items()}

    check_skip_layers("skip_layers", asked.skip_layers, denoiser.module, denoiser.family)
    to_raw = latent_normaliser(model, inverse=True)
    sets = value.references or (("", ()),)
    usual = usual_cfg(denoiser.settings.told, denoiser.family)
    shots = []
    for image in asked_images(asked, prompts_of_value(value), asked.width, len(sets)):
        said, seen = image.prompt, sets[image.references]
        pair = texts_of(asked, said)
        if texts is not None and not seen[1]:  # a model whose CLIP is trained refuses references below
            positive, negative = texts.pair(*pair, Geometry.whole(image.size))
        else:
            positive, negative = ({"samples": [inputs(text, image.size, *seen)]} for text in pair)
        shot = Shot(
            prompt=said,
            positive=positive,
            negative=negative,
            settings=sample_settings(asked, usual, said),
            seed=image.seed,
            shape=(channels, image.size[1] // factor, image.size[0] // factor),
        )
        shots.append(shot)
    return Samples(
        every=sample_interval(asked, training),
        folder=folder / "samples",
        denoiser=texts.whole if texts else denoiser,
        decode=lambda latents: decoder(to_raw(latents)),
        shots=shots,
        device=torch.device(patcher.load_device),
        is_other=is_other,
        forming=Forming(name=folder.name, count=len(shots), latent_format=model.latent_format, emit=emit),
    )


def _normal(value: Any) -> Any:
    """Inference tensors as normal ones."""
    if isinstance(value, Tensor):
        with torch.inference_mode(False):
            return value.clone()
    return [_normal(item) for item in value] if isinstance(value, list) else value
