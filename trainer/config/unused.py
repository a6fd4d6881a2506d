"""Options that would have no effect with the others: they are refused, so that no setting is ignored silently.

A run of the command line checks this before anything is loaded. Nodes show all their inputs at once and are not checked.
"""

from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass, fields
from typing import Any

from ..errors import ConfigError
from .run import (
    DataConfig,
    DatasetConfig,
    GuidanceConfig,
    MemoryConfig,
    ModelConfig,
    ObjectiveConfig,
    OutputConfig,
    Section,
    TrainConfig,
    ValidationConfig,
    one_of,
)

Rule = tuple[type[Section], str, tuple[str, ...], Callable[[Any], bool], str]

SKIPS = ("skip_layer_scale", "skip_layer_start", "skip_layer_end")
RULES: tuple[Rule, ...] = (
    (ModelConfig, "model", ("dtype",), lambda c: c.packing == "none", "a quantised base has its own format"),
    (MemoryConfig, "memory", ("vae_batch_size",), lambda c: c.cache == "disk", "cache = 'online' encodes one by one"),
    (ObjectiveConfig, "objective", ("multires_noise_discount",), lambda c: c.multires_noise_iterations, "no resolution gets more noise"),
    (ObjectiveConfig, "objective", ("scheduled_sampling_probability", "scheduled_sampling_ramp_steps", "scheduled_sampling_strategy"),
     lambda c: c.scheduled_sampling_max_step_offset, "nothing is rolled out"),
    (ObjectiveConfig, "objective", ("soft_min_snr",), lambda c: c.min_snr_gamma, "only min_snr_gamma has a corner"),
    (DataConfig, "data", ("min_side", "max_side"), lambda c: c.buckets == "kohya", "only buckets = 'kohya' has it"),
    (DataConfig, "data", ("upscale",), lambda c: c.buckets != "off", "buckets = 'off' always fills the square"),
    (DatasetConfig, "dataset", ("repeats", "weight", "caption_dropout", "flip", "shuffle_tags", "tag_dropout"), lambda c: c.role != "validation",
     "validation images are only measured"),
    (DatasetConfig, "dataset", ("random_brightness", "random_contrast", "random_saturation", "random_hue", "random_rotation"),
     lambda c: c.role != "validation", "validation images are only measured, as they are"),
    (DatasetConfig, "dataset", ("caption_dropout_every_n_epochs", "token_warmup_step", "probability", "timestep_range", "start_step", "end_step", "start_epoch", "end_epoch"),
     lambda c: c.role != "validation", "validation images are only measured"),
    (DatasetConfig, "dataset", ("token_warmup_min",), lambda c: c.token_warmup_step, "captions do not grow"),
    (DatasetConfig, "dataset", ("image_variants",), lambda c: c.changes_images or c.crop == "random", "images never change"),
    (DatasetConfig, "dataset", ("teacher",), lambda c: c.role != "validation", "validation images are only measured"),
    (DatasetConfig, "dataset", ("class_prompt",), lambda c: c.role != "regularisation", "regularisation images are the class"),
    (DatasetConfig, "dataset", ("slider_scale",), lambda c: c.slider_positive, "only slider_positive and slider_negative read it"),
    (DatasetConfig, "dataset", ("strength",), lambda c: c.role != "validation", "validation images are measured at strength 1"),
    (DatasetConfig, "dataset", ("masks",), lambda c: not c.slider_positive, "a slider of prompts learns from the whole image"),
    (DatasetConfig, "dataset", ("teacher_weight", "teacher_share"), lambda c: c.role == "train" and c.teacher == "base",
     "only role = 'train' with teacher = 'base' reads it"),
    (DatasetConfig, "dataset", ("recursive",), lambda c: not c.only_listed, "only_listed takes the images that the table names"),
    (DatasetConfig, "dataset", ("layout",), lambda c: not c.only_listed, "only_listed takes the images that the table names"),
    (DatasetConfig, "dataset", ("metadata",), lambda c: c.captions == "metadata" or c.only_listed, "only captions = 'metadata' reads it"),
    (DatasetConfig, "dataset", ("file_field",), lambda c: c.captions in ("auto", "metadata") or c.only_listed,
     "only captions = 'metadata' reads a table"),
    (DatasetConfig, "dataset", ("caption_field",), lambda c: c.captions in ("auto", "metadata", "json"),
     "only captions = 'metadata' and 'json' have fields"),
    (DatasetConfig, "dataset", ("keep_tokens", "keep_separator"), lambda c: c.shuffle_tags or c.tag_dropout or c.token_warmup_step,
     "no tag is moved or dropped"),
    (DatasetConfig, "dataset", ("tag_separator",), lambda c: c.shuffle_tags or c.tag_dropout or c.secondary_separator or c.token_warmup_step,
     "captions are not taken apart"),
    (DatasetConfig, "dataset", ("caption_variants",), lambda c: c.varies, "captions never change"),
    (DatasetConfig, "dataset", ("aspects",), lambda c: c.buckets in ("inherit", "pixel_area", "pixel"),
     "only buckets = 'pixel_area' and 'pixel' have shapes"),
    (DatasetConfig, "dataset", ("size_metric",), lambda c: c.min_size or c.max_size, "nothing is measured"),
    (DatasetConfig, "dataset", ("min_side", "max_side"), lambda c: c.buckets in ("inherit", "kohya"),
     "only buckets = 'kohya' has it"),
    (ValidationConfig, "validation", ("sample_every", "negative_prompt", "references", "seed", "sample_steps", "guidance_scale", "model_guidance", "model", "width",
     "height", "same_seed", "sizes", "sampler", "scheduler", "guidance_rescale", "skip_layers", "clip_score"), lambda c: c.prompts or c.prompt_library, "no prompt is rendered"),
    (ValidationConfig, "validation", ("width", "height"), lambda c: not c.sizes, "sizes decides"),
    (ValidationConfig, "validation", SKIPS, lambda c: c.skip_layers, "no layer is skipped"),
    (GuidanceConfig, "sweep.guidance", SKIPS, lambda c: c.skip_layers, "no layer is skipped"),
    (OutputConfig, "output", ("hub_checkpoints", "hub_private"), lambda c: c.hub_repo, "nothing is pushed"),
    (OutputConfig, "output", ("tracker_project",), lambda c: c.report_to == "wandb", "only report_to = 'wandb' has projects"),
    (OutputConfig, "output", ("tracker_run",), lambda c: c.report_to == "wandb" or c.tracker_dir, "only report_to = 'wandb' and tracker_dir have names"),
    (OutputConfig, "output", ("tracker_dir",), lambda c: c.report_to == "tensorboard", "only report_to = 'tensorboard' has such a folder"),
)  # fmt: skip


def rules_of_choices(section: Section) -> Iterator[tuple[str, str]]:
    """Returns (option, reason) of the options that the chosen values do not read but other values of the same tables do."""
    for chosen in fields(section):  # type: ignore[arg-type]
        table = one_of(type(section), chosen.name)
        if table is None:
            continue
        entry = table.entry(getattr(section, chosen.name))
        every = [*table.choices.values(), *([table.by_path] if table.by_path else [])]
        for option in dict.fromkeys(name for choice in every for name in choice.options):
            if entry is not None and option not in entry.options:
                readers = [repr(value) for value, choice in table.table.items() if option in choice.options]
                readers += ["the path of a class"] if table.by_path and option in table.by_path.options else []
                yield option, f"only {chosen.name} = {' or '.join(readers)} reads it"


@dataclass(frozen=True)
class Unused:
    """An option that is set and would have no effect."""

    section: Section
    place: str
    """The table of the TOML file that it stands in."""
    option: str
    reason: str

    def text(self) -> str:
        """The option with its value, the reason and the remedy."""
        value = getattr(self.section, self.option)
        return f"{self.place}.{self.option} = {value!r} would do nothing: {self.reason}; leave it out, or change that"


def unused_options(config: TrainConfig) -> list[Unused]:
    """Every option that is set and would have no effect with the others."""
    unused = [
        Unused(section, section.table, name, reason)
        for section in _sections(config)
        for name, reason in rules_of_choices(section)
    ]
    unused += [
        Unused(section, place, name, reason)
        for section in _sections(config)
        for kind, place, names, used, reason in RULES
        if type(section) is kind and not used(section)
        for name in names
    ]
    return [one for one in unused if getattr(one.section, one.option) != _default(type(one.section), one.option)]


def refuse_unused_options(config: TrainConfig) -> None:
    """Raise ConfigError naming every option that is set and would have no effect."""
    problems = [one.text() for one in unused_options(config)]
    if problems:
        raise ConfigError("; ".join(problems))


def _sections(config: TrainConfig) -> Iterator[Section]:
    for field in fields(config):
        value = getattr(config, field.name)
        yield from (one for one in (value if isinstance(value, tuple) else (value,)) if isinstance(one, Section))
    yield from config.sweep.guidance


def _default(kind: type[Section], name: str) -> Any:
    field = next(field for field in fields(kind) if field.name == name)  # type: ignore[arg-type]
    return field.default if field.default_factory is MISSING else field.default_factory()
