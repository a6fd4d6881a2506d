"""Options that would do nothing beside the others: refused, so that no setting is ignored without a word.

Asked for at the start of a headless run. The forms of ComfyUI show all fields at once and are not asked.
"""

from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any

from ..errors import ConfigError
from .run import (
    DataConfig,
    DatasetConfig,
    GuidanceConfig,
    MemoryConfig,
    ModelConfig,
    NetworkConfig,
    ObjectiveConfig,
    ScheduleConfig,
    Section,
    TrainConfig,
    ValidationConfig,
)

Rule = tuple[type[Section], str, tuple[str, ...], Callable[[Any], bool], str]

RULES: tuple[Rule, ...] = (
    (ModelConfig, "model", ("dtype",), lambda c: c.quantize == "none", "a quantised base has its own format"),
    (NetworkConfig, "network", ("lokr_factor",), lambda c: c.kind == "lokr", "only kind = 'lokr' has one"),
    (ScheduleConfig, "schedule", ("cycles",), lambda c: c.kind == "restarts", "only kind = 'restarts' has cycles"),
    (ScheduleConfig, "schedule", ("power",), lambda c: c.kind == "polynomial", "only kind = 'polynomial' has one"),
    (ScheduleConfig, "schedule", ("min_lr_ratio",), lambda c: c.kind != "constant", "kind = 'constant' never falls"),
    (ObjectiveConfig, "objective", ("logit_mean", "logit_std"), lambda c: c.timestep_sampling in ("auto", "logit_normal"),
     "only timestep_sampling = 'logit_normal' has one"),
    (ObjectiveConfig, "objective", ("mode_scale",), lambda c: c.timestep_sampling == "mode", "only timestep_sampling = 'mode' has one"),
    (ObjectiveConfig, "objective", ("beta",), lambda c: c.timestep_sampling == "beta", "only timestep_sampling = 'beta' has it"),
    (ObjectiveConfig, "objective", ("huber_delta",), lambda c: c.loss != "mse", "loss = 'mse' has none"),
    (MemoryConfig, "memory", ("vae_batch_size",), lambda c: c.cache == "disk", "cache = 'online' encodes one by one"),
    (DataConfig, "data", ("min_side", "max_side"), lambda c: c.buckets == "kohya", "only buckets = 'kohya' has it"),
    (DataConfig, "data", ("upscale",), lambda c: c.buckets != "off", "buckets = 'off' always fills the square"),
    (DatasetConfig, "dataset", ("repeats", "weight", "caption_dropout", "flip", "shuffle_tags", "tag_dropout"), lambda c: c.role != "validation",
     "validation images are only measured"),
    (DatasetConfig, "dataset", ("teacher",), lambda c: c.role == "regularisation", "only role = 'regularisation' has one"),
    (DatasetConfig, "dataset", ("metadata",), lambda c: c.captions == "metadata", "only captions = 'metadata' reads it"),
    (DatasetConfig, "dataset", ("file_field",), lambda c: c.captions in ("auto", "metadata"),
     "only captions = 'metadata' reads a table"),
    (DatasetConfig, "dataset", ("caption_field",), lambda c: c.captions in ("auto", "metadata", "json"),
     "only captions = 'metadata' and 'json' have fields"),
    (DatasetConfig, "dataset", ("keep_tokens", "keep_separator"), lambda c: c.shuffle_tags or c.tag_dropout,
     "no tag is moved or dropped"),
    (DatasetConfig, "dataset", ("tag_separator",), lambda c: c.shuffle_tags or c.tag_dropout or c.secondary_separator,
     "captions are not taken apart"),
    (DatasetConfig, "dataset", ("caption_variants",), lambda c: c.varies, "captions never change"),
    (DatasetConfig, "dataset", ("aspects",), lambda c: c.buckets in ("inherit", "pixel_area", "pixel"),
     "only buckets = 'pixel_area' and 'pixel' have shapes"),
    (DatasetConfig, "dataset", ("size_metric",), lambda c: c.min_size or c.max_size, "nothing is measured"),
    (DatasetConfig, "dataset", ("min_side", "max_side"), lambda c: c.buckets in ("inherit", "kohya"),
     "only buckets = 'kohya' has it"),
    (ValidationConfig, "validation", ("sample_every", "negative_prompt", "references", "seed", "sample_steps", "guidance_scale", "width",
     "height"), lambda c: c.prompts or c.prompt_library, "no prompt is rendered"),
    (GuidanceConfig, "sweep.guidance", ("eta", "norm_threshold", "momentum"), lambda c: c.method == "apg",
     "only method = 'apg' has it"),
)  # fmt: skip


def refuse_unused_options(config: TrainConfig) -> None:
    """Raise ConfigError naming every option that is set and would have no effect."""
    problems = [
        f"{place}.{name} = {getattr(section, name)!r} would do nothing: {reason}; leave it out, or change that"
        for section in _sections(config)
        for kind, place, names, used, reason in RULES
        if type(section) is kind and not used(section)
        for name in names
        if getattr(section, name) != _default(kind, name)
    ]
    if problems:
        raise ConfigError("; ".join(problems))


def _sections(config: TrainConfig) -> Iterator[Section]:
    for field in fields(config):
        value = getattr(config, field.name)
        yield from value if isinstance(value, tuple) else [value]
    yield from config.sweep.guidance


def _default(kind: type[Section], name: str) -> Any:
    return next(field.default for field in fields(kind) if field.name == name)  # type: ignore[arg-type]
