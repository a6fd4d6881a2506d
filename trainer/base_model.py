"""A base model that was inspected but not loaded: source, family, variant, device."""

from contextlib import AbstractContextManager
from dataclasses import dataclass, fields, replace
from functools import cached_property

import torch

from . import families
from .config.run import ModelConfig, ObjectiveConfig, TextConfig
from .diffusion.denoiser import Denoiser
from .diffusion.objectives import with_zero_terminal_snr
from .distributed.sharding import shard
from .errors import ConfigError, LoomError, reading
from .families.common.encoder_files.parts import check_vae, parts_of
from .families.common.family import DEFAULT_PROMPT_ENCODING, Encoders, Family, Loading, PromptEncoding, Variant
from .families.common.modules import AS_STORED
from .families.common.source import Source, open_source
from .known_models.row import V_PREDICTION, distillation_note, tell, warning_of
from .known_models.rows import ROWS
from .storage.fingerprint import files_identity
from .storage.leases import leased
from .storage.mapped_files import watch
from .types import EncoderIdentity
from .weights.attention import AUTO, check_attention, use_attention
from .weights.devices import DTYPES, choose_device, compute_dtype, storage_dtype
from .weights.quantize import check_quantize
from .weights.streaming import StreamSettings, stream_base


@dataclass(frozen=True, kw_only=True)
class Base:
    """A base model on disk and what was read off its headers."""

    source: Source
    family: Family
    variant: str
    device: torch.device
    reading: PromptEncoding = DEFAULT_PROMPT_ENCODING
    encoder_dtype: str = "auto"
    """`text.dtype`."""
    encoder_quantize: str = "none"
    """`text.quantize`."""
    zero_terminal_snr: bool = False
    """Whether the noise levels are rescaled so that the highest is pure noise; epsilon and v models only."""
    is_stated: bool = False
    """Whether settings or its folder say which member of its family it is."""

    @cached_property
    def settings(self) -> Variant:
        """What distinguishes this variant of the family."""
        variant = self.family.variants[self.variant]
        if self.reading.t5_attention_mask:
            variant = replace(variant, by_length=True)
        if not self.zero_terminal_snr:
            return variant
        return replace(variant, objective=with_zero_terminal_snr(variant.objective))

    def _load(self, loading: Loading) -> Denoiser:
        """The family's denoiser, with the noise levels of this base."""
        denoiser = self.family.load_denoiser(self.source, self.variant, loading)
        if self.zero_terminal_snr:
            vars(denoiser)["objective"] = self.settings.objective
        return denoiser

    def skeleton(self) -> Denoiser:
        """The network's structure without its weights."""
        with self._reading():
            return self._load(Loading(dtype=None, device=torch.device("meta")))

    def _reading(self) -> AbstractContextManager[None]:
        """Turns what libraries raise about its files into errors that name it."""
        return reading(f"base model {self.source.path}")

    def load_denoiser(
        self,
        config: ModelConfig,
        precision: str,
        *,
        sharded: bool = False,
        stream: StreamSettings | None = None,
        keep_originals: bool = False,
    ) -> Denoiser:
        """The frozen network on its device, in the dtype it is stored in or quantized, computing in the given precision.

        `sharded` splits it over the devices of all processes, without any of them holding the whole. `stream` leaves its
        weights in their file, and brings them block by block. `keep_originals`: see `Loading`. Raises ConfigError for a budget that is too small.
        """
        arithmetic = compute_dtype(precision, self.device)
        dtype = arithmetic if config.packing != "none" else storage_dtype(config.dtype, self.device)
        loading = Loading(
            dtype=dtype,
            device=torch.device("cpu") if sharded else self.device,
            compute_dtype=arithmetic,
            quantize=config.quantize,
            matmul=config.matmul,
            keep_originals=keep_originals,
            stream=stream,
        )
        files = self.source.denoiser_files
        with self._reading(), leased(files):
            denoiser = self._load(loading)
            watch(denoiser.module, files)
        use_attention(denoiser.module, config.attention)
        if sharded:
            shard(denoiser.module, self.device)
        return denoiser

    def structure(self, config: ModelConfig, precision: str) -> Denoiser:
        """The network as `load_denoiser` would make it, without its weights; what is to be quantized is not quantized yet."""
        arithmetic = compute_dtype(precision, self.device)
        dtype = arithmetic if config.packing != "none" else storage_dtype(config.dtype, self.device)
        loading = Loading(dtype=dtype, device=torch.device("meta"), compute_dtype=arithmetic)
        return self._load(loading)

    def check_stream(self, config: ModelConfig, precision: str, stream: StreamSettings) -> None:
        """Raise ConfigError for a budget that is too small. Reads headers only; of a base to be quantized nothing is known yet."""
        if config.packing == "none" and self.source.quanto_map is None:
            mapped = self.family.load_denoiser(self.source, self.variant, AS_STORED)
            arithmetic, dtype = compute_dtype(precision, self.device), storage_dtype(config.dtype, self.device)
            stream_base(mapped.module, stream, torch.device("meta"), dtype, arithmetic)

    @property
    def text_dtype(self) -> torch.dtype:
        """dtype of the text encoders."""
        if self.encoder_dtype != "auto":
            return DTYPES[self.encoder_dtype]
        return torch.float32 if self.device.type == "cpu" else torch.bfloat16

    def load_encoders(self, *, tiled: bool = False, structure: bool = False) -> Encoders:
        """Text encoders and VAE on the device; with `tiled` the VAE encodes large images in overlapping tiles. A `structure`
        has no weights."""
        device = torch.device("meta") if structure else self.device
        loading = Loading(dtype=self.text_dtype, device=device, quantize=self.encoder_quantize)
        with reading(f"what encodes for the base model {self.source.path}"):
            encoders = self.family.load_encoders(self.source, self.variant, loading, self.reading)
        if tiled:
            encoders.image.use_tiles()
        return encoders

    def warnings(self, *, adapter: bool = False, guided: bool = False) -> list[str]:
        """What must be said before this base is trained. `adapter`: it has a base LoRA for training only; `guided`: it is trained with
        a guided loss."""
        settings = self.settings
        notes = [note] if (note := self._distillation(adapter=adapter, guided=guided)) else []
        if self.zero_terminal_snr and settings.objective.name == "epsilon":
            notes.append(
                "objective.zero_terminal_snr: at pure noise an epsilon model has nothing to predict (arXiv 2305.08891); it is made for v models"
            )
        if settings.objective.name == "epsilon" and V_PREDICTION.search(self.source.path.stem):
            other = next((one for one in self.family.variants if one == f"{self.variant}-v"), "")
            notes.append(
                f"{self.source.path.name} is named after v-prediction, and nothing in the file says it, so it is trained as an epsilon model: set model.variant = {other!r} if it is one"
            )
        return [f"warning: {note}" for note in notes]

    def _distillation(self, *, adapter: bool, guided: bool) -> str:
        """By its row in the table of known models, which its names tell, unless settings or its folder say what it is."""
        settings, name = self.settings, f"{self.family.name} {self.variant}"
        if self.is_stated and any(variant.distilled == "steps" for variant in self.family.variants.values()):
            embedded = settings.guidance_embedding
            return distillation_note(name, settings.distilled, takes_guidance=embedded, adapter=adapter, guided=guided)
        comfy = self.family.comfy
        config = {**comfy.told_by, "guidance_embed": settings.guidance_embedding}
        rows = (tell(ROWS, one, config, self.source.names) for one in comfy.model_classes)
        told = next(filter(None, rows), None)
        note = warning_of(told, self.source.names, name, adapter=adapter, guided=guided)
        unsure = told is not None and told.by == "nothing" and len(self.family.variants) > 1
        return note + (f", or set model.variant: {', '.join(self.family.variants)}" if note and unsure else "")

    def check_guidance(self, name: str, value: float, default: float) -> None:
        """Raise ConfigError for a guidance value that this base would not be fed. `name` is the option's."""
        if value != default and not self.settings.guidance_embedding:
            raise ConfigError(
                f"{name} = {value}: {self.family.name} {self.variant} takes no guidance value; leave it out"
            )

    def check_encoders(self) -> None:
        """Raise ModelFileError unless there is every text encoder, tokenizer and VAE that is needed. Reads no weights."""
        with self._reading():
            parts_of(self.source).check(self.family.needed_parts(self.source))
            check_vae(self.source, self.family.latent_space.channels)

    def identity(self) -> str:
        """Digest of the denoiser's weights."""
        return files_identity(self.source.denoiser_files, self.source.prefix)

    def encoder_identity(self, *, tiled: bool = False) -> EncoderIdentity:
        """Everything that decides what the encoders give for the same image or text."""
        parts = parts_of(self.source)
        options = {
            "family": self.family.name,
            "max_text_tokens": self.settings.max_text_tokens,
            "dtype": str(self.text_dtype),
        }
        options |= {name: getattr(self.reading, name) for name in self.settings.text_options}
        for name in ("prompt_weights", "t5_attention_mask"):  # came later: caches of before go on being found
            if not getattr(self.reading, name):
                options.pop(name, None)
        if self.encoder_quantize != "none":
            options["quantize"] = self.encoder_quantize
        if self.settings.text_pixels:
            options["variant"] = self.variant
        vae_options = {"channels": self.family.latent_space.channels, **({"tiled": True} if tiled else {})}
        return EncoderIdentity(
            vae=parts.vae_identity(vae_options),
            text=parts.text_identity(options),
            text_pixels=self.settings.text_pixels,
        )


def open_base(config: ModelConfig, text: TextConfig | None = None, objective: ObjectiveConfig | None = None) -> Base:
    """Raises ModelFileError or ConfigError; reads headers only. `objective` are the settings of the run that it is for."""
    with reading(f"model.base = {config.base!r}"):
        source = open_source(config.base, config.encoders, config.vae, config.tokenizers)
        family, variant = families.choose(config.family, config.variant, source)
    encoding = _encoding(text or TextConfig(), family, variant)
    if text is not None and text.quantize != "none":
        _check_quantized(text.quantize, family, variant)
    rescaled = objective is not None and objective.zero_terminal_snr
    if rescaled and family.variants[variant].objective.name == "flow":
        raise ConfigError(
            f"objective.zero_terminal_snr = True: {family.name} {variant} is a flow model, which begins at pure noise anyway; leave it out"
        )
    base = Base(
        source=source,
        family=family,
        variant=variant,
        device=choose_device(config.device),
        reading=encoding,
        encoder_dtype=text.dtype if text else "auto",
        encoder_quantize=text.quantize if text else "none",
        zero_terminal_snr=rescaled,
        is_stated=config.variant != "auto" or "is_distilled" in source.index,
    )
    if config.attention != AUTO:
        check_attention(config.attention, base.skeleton().module, base.device, f"{family.name} {variant}")
    return base


def _check_quantized(kind: str, family: Family, variant: str) -> None:
    """Raise ConfigError where no text encoder would be quantized, or the library is missing."""
    if family.variants[variant].text_parts:
        raise ConfigError(
            f"text.quantize = {kind!r} would do nothing: {family.name} has CLIP alone, which is not quantized; leave it out"
        )
    check_quantize(kind)


def _encoding(text: TextConfig, family: Family, variant: str) -> PromptEncoding:
    """Raises ConfigError for an option that would do nothing with this family."""
    plain, effective = PromptEncoding(), family.variants[variant].text_options
    wanted = {field.name: getattr(text, field.name) for field in fields(PromptEncoding)}
    for name, value in wanted.items():
        if value != getattr(plain, name) and name not in effective:
            why = "has none"
            if name == "t5_attention_mask":
                hides = family.variants[variant].hides_padding
                why = "never reads the padding of its text" if hides else "has no T5"
            raise ConfigError(f"text.{name} = {value!r} would do nothing: {family.name} {variant} {why}; leave it out")
    return PromptEncoding(**{**wanted, **dict.fromkeys(family.variants[variant].text_always, True)})


def usual_side(base: str) -> int:
    """Pixels of the side of a square that a base model is made for, by its headers: 1024 where they do not say it.

    diffusers' `sample_size` is in latents, of which one is 8 pixels in the networks that have it.
    """
    try:
        source = open_source(base)
        latents = (source.config or {}).get("sample_size")
        if isinstance(latents, int):
            return 8 * latents
        family, variant = families.choose("auto", "auto", source)
        return family.variants[variant].side
    except LoomError:  # told when the run is planned, with what to do about it
        return 1024
