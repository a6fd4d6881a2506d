"""Values of links between nodes: frozen and JSON-serialisable. They hold paths, digests and settings, never tensors or threads."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from ...trainer.config.checks import known_values
from ...trainer.config.prompt_library import Prompt
from ...trainer.config.run import (
    BaseLoraConfig,
    DatasetConfig,
    GuidanceConfig,
    Matmul,
    MemoryConfig,
    NetworkConfig,
    ObjectiveConfig,
    OptimizerConfig,
    OutputConfig,
    Precision,
    Quantize,
    ReportTo,
    ScheduleConfig,
    ValidationConfig,
    check_packing,
    packing_of,
)
from ...trainer.config.section import require
from ...trainer.types import (
    CaptionWarmup,
    EncoderIdentity,
    Example,
    Geometry,
    ImageVariant,
    Presence,
    PreserveRule,
    SliderRule,
)

VERSION = 1


class SocketValue:
    """The value of a link."""

    def to_json(self) -> str:
        """JSON with sorted keys and the version of the format."""
        return json.dumps({"version": VERSION, **asdict(self)}, sort_keys=True)  # type: ignore[call-overload]


@dataclass(frozen=True, kw_only=True)
class DatasetValue(SocketValue):
    """Datasets that are trained on together."""

    sets: tuple[DatasetConfig, ...]
    notes: tuple[str, ...] = ()
    """Options of a dataset file that are interpreted differently here, or ignored."""


@dataclass(frozen=True, kw_only=True)
class CacheValue(SocketValue):
    """Datasets whose images and captions are encoded in the cache."""

    folder: str
    listing: str
    """File in the cache that lists the examples; named after their digest."""
    digest: str
    vae: str
    """Identity of the VAE that encoded the images."""
    text: str
    """Identity of the text encoder."""
    factor: int
    """Pixels per latent row or column."""
    resolution: int
    text_pixels: int = 0
    """Side in pixels of the square area at which the text encoder got reference images; 0 if it got none."""
    trigger: str = ""
    """Trigger words of the datasets, separated by commas, for the LoRA file's metadata and for scores."""
    encoding_bytes: int = 0
    """Predicted memory while the cache was filled; 0 where nothing was missing or it was not predicted."""

    @property
    def identity(self) -> EncoderIdentity:
        """Both encoders, as cache keys are made of them."""
        return EncoderIdentity(vae=self.vae, text=self.text, text_pixels=self.text_pixels)


@dataclass(frozen=True, kw_only=True)
class RunValue(SocketValue):
    """A run, by its name and folder."""

    name: str
    directory: str


@dataclass(frozen=True, kw_only=True)
class CheckpointsValue(SocketValue):
    """LoRA files to compare, with the labels that people read."""

    files: tuple[tuple[str, str], ...]
    """(label, path)."""
    include_base: bool
    directory: str
    """Folder in which sweeps of them are written."""
    title: str
    steps: tuple[int, ...] = ()
    """Training step of each file that a run saved; empty for files that were chosen by name."""
    base_loras: tuple[BaseLoraConfig, ...] = ()
    """Files that belong to the base of the run, in all cells."""
    patches: str = ""
    """Digest of the LoRAs that were loaded into the MODEL of the run; "" for none."""
    clip_patches: str = ""
    """The same of the CLIP that the run trained."""


@dataclass(frozen=True, kw_only=True)
class GuidanceValue(SocketValue):
    """Guidance settings that a sweep compares."""

    settings: tuple[GuidanceConfig, ...]


@dataclass(frozen=True, kw_only=True)
class SheetValue(SocketValue):
    """A sweep that has been rendered."""

    folder: str
    """Folder with cells/ and the records of the sweeps that use them."""
    name: str
    """The record is <name>.json in the folder; its name is a digest of its content."""
    title: str


@dataclass(frozen=True, kw_only=True)
class BaseLoraValue(SocketValue):
    """Base LoRAs of LoomBaseLora, in their order."""

    loras: tuple[BaseLoraConfig, ...]
    """By their full paths."""


@dataclass(frozen=True, kw_only=True)
class NetworkValue(SocketValue):
    """Settings of LoomNetwork. LoomTrain sets the rank."""

    network: NetworkConfig


@dataclass(frozen=True, kw_only=True)
class OptimizerValue(SocketValue):
    """Settings of LoomOptimizer. LoomTrain sets the learning rate."""

    optimizer: OptimizerConfig
    schedule: ScheduleConfig


@dataclass(frozen=True, kw_only=True)
class ObjectiveValue(SocketValue):
    """Settings of LoomObjective."""

    objective: ObjectiveConfig


@dataclass(frozen=True, kw_only=True)
class MemoryValue(SocketValue):
    """Settings of LoomMemory; `yield_max_s` is the longest pause for queued prompts in seconds, 0 for no limit."""

    memory: MemoryConfig
    precision: Precision
    quantize: Quantize
    yield_max_s: float
    matmul: Matmul = "off"

    def __post_init__(self) -> None:
        for name, kind in (("precision", Precision), ("quantize", Quantize), ("matmul", Matmul)):
            value, known = getattr(self, name), list(get_args(kind))
            require(value in known, name, value, known_values(value, known))
        check_packing(self.quantize, self.matmul)
        require(self.yield_max_s >= 0, "yield_max_s", self.yield_max_s, "use 0 for no limit, or a number of seconds")

    @property
    def packing(self) -> str:
        """What the weights of Linears are packed to, as a value of `quantize`."""
        return packing_of(self.quantize, self.matmul)


@dataclass(frozen=True, kw_only=True)
class ValidationValue(SocketValue):
    """Prompts of the samples, whose encodings are in the cache, and how the validation loss is measured."""

    validation: ValidationConfig
    """The settings under the command line's names; the prompts of a library are among its prompts."""
    vae: str
    """Identity of the VAE that decodes the samples."""
    text: str
    """Identity of the text encoder of the prompts."""
    report_to: ReportTo = "none"
    """Where curves are also written, as in OutputConfig."""
    tracker_project: str = OutputConfig.tracker_project
    tracker_run: str = ""
    prompts: tuple[Prompt, ...] = ()
    """The same prompts with their names and options of their own."""
    references: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """Per set of reference images: digest of what the text encoder gets of them ("" for nothing), and the cache keys of their
    latents."""

    @property
    def trackers(self) -> dict[str, Any]:
        """Where curves are also written, as options of the [output] table."""
        return {name: getattr(self, name) for name in ("report_to", "tracker_project", "tracker_run")}


def example_to_json(example: Example) -> dict[str, Any]:
    """An example as plain data, with paths as text."""
    data = asdict(example)
    shown = [str(path) for path in example.references]
    return {**data, "references": shown, **{name: str(data[name]) if data[name] else None for name in ("path", "mask")}}


def example_from_json(data: Mapping[str, Any]) -> Example:
    """The inverse of `example_to_json`."""
    paths = {name: Path(data[name]) if data[name] else None for name in ("path", "mask")}
    shown = tuple(Path(path) for path in data["references"])
    sizes = {name: tuple(data["geometry"][name]) for name in ("original", "resized", "target")}
    geometry = Geometry(**{**data["geometry"], **sizes})
    more = {"references": shown, "captions": tuple(data["captions"]), "geometry": geometry}
    return Example(**{**data, **paths, **more, **_course_from_json(data)})


def _course_from_json(data: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of an example that say how it changes in the course of a run; lists of early versions have none of them."""
    warmup, presence = data.get("warmup"), data.get("presence")
    if warmup:
        stages = tuple(tuple(tuple(forms) for forms in caption) for caption in warmup["stages"])
        warmup = CaptionWarmup(**{**warmup, "stages": stages, "lengths": tuple(warmup["lengths"])})
    return {
        "variants": tuple(ImageVariant(**one) for one in data.get("variants", ())),
        "warmup": warmup or None,
        "timestep_range": tuple(data["timestep_range"]) if data.get("timestep_range") else None,
        "presence": Presence(**presence) if presence else None,
        "preserve": PreserveRule(**data["preserve"]) if data.get("preserve") else None,
        "slider": SliderRule(**data["slider"]) if data.get("slider") else None,
    }
