"""What travels along the wires: frozen, JSON-serialisable, versioned. Paths, digests and settings; no tensors, no threads."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...trainer.config.run import (
    DatasetConfig,
    GuidanceConfig,
    MemoryConfig,
    NetworkConfig,
    ObjectiveConfig,
    OptimizerConfig,
    Precision,
    ReportTo,
    ScheduleConfig,
    ValidationConfig,
)
from ...trainer.types import EncoderIdentity, Example, Geometry

VERSION = 1


class SocketValue:
    """A record that a wire carries."""

    def to_json(self) -> str:
        return json.dumps({"version": VERSION, **asdict(self)}, sort_keys=True)  # type: ignore[call-overload]


@dataclass(frozen=True, kw_only=True)
class DatasetValue(SocketValue):
    sets: tuple[DatasetConfig, ...]
    notes: tuple[str, ...] = ()
    """What a file of sets holds that was taken otherwise than written, or not at all."""


@dataclass(frozen=True, kw_only=True)
class CacheValue(SocketValue):
    """A data set whose images and texts are in the cache."""

    folder: str
    listing: str
    """File in the cache that lists the examples; named after their digest."""
    digest: str
    vae: str
    text: str
    """Identities of the encoders."""
    factor: int
    """Pixels per latent row or column."""
    resolution: int
    text_pixels: int = 0
    """As in the engine's EncoderIdentity."""
    trigger: str = ""
    """First trigger word of the datasets, for the LoRA file's metadata."""

    @property
    def identity(self) -> EncoderIdentity:
        return EncoderIdentity(vae=self.vae, text=self.text, text_pixels=self.text_pixels)


@dataclass(frozen=True, kw_only=True)
class RunValue(SocketValue):
    name: str
    directory: str


@dataclass(frozen=True, kw_only=True)
class CheckpointsValue(SocketValue):
    """LoRA files to compare; labels for people."""

    files: tuple[tuple[str, str], ...]
    """(label, path)."""
    include_base: bool
    directory: str
    """Where sheets and strips of these are written."""
    title: str
    steps: tuple[int, ...] = ()
    """Of the files, where a run saved them; empty for files that were chosen by name."""


@dataclass(frozen=True, kw_only=True)
class GuidanceValue(SocketValue):
    settings: tuple[GuidanceConfig, ...]


@dataclass(frozen=True, kw_only=True)
class SheetValue(SocketValue):
    folder: str
    """Holds cells/ and the sheets made of them."""
    name: str
    """<name>.json in the folder; named after its content."""
    title: str


@dataclass(frozen=True, kw_only=True)
class NetworkValue(SocketValue):
    network: NetworkConfig


@dataclass(frozen=True, kw_only=True)
class OptimizerValue(SocketValue):
    optimizer: OptimizerConfig
    schedule: ScheduleConfig


@dataclass(frozen=True, kw_only=True)
class ObjectiveValue(SocketValue):
    objective: ObjectiveConfig


@dataclass(frozen=True, kw_only=True)
class MemoryValue(SocketValue):
    memory: MemoryConfig
    precision: Precision
    quantize: str
    yield_max_s: float


@dataclass(frozen=True, kw_only=True)
class ValidationValue(SocketValue):
    """Prompts of the samples, whose encodings are in the cache, and how the validation loss is measured."""

    validation: ValidationConfig
    """The settings under the command line's names; the prompts of a library are among its prompts."""
    vae: str
    text: str
    """Identities of the encoders."""
    report_to: ReportTo = "none"
    """Where curves are also written, as in the engine's OutputConfig."""
    references: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """Per set of reference images: digest of what the text encoder sees of it ("" = nothing), and where the cache has their
    latents."""


def example_to_json(example: Example) -> dict[str, Any]:
    data = asdict(example)
    shown = [str(path) for path in example.references]
    return {**data, "references": shown, **{name: str(data[name]) if data[name] else None for name in ("path", "mask")}}


def example_from_json(data: Mapping[str, Any]) -> Example:
    paths = {name: Path(data[name]) if data[name] else None for name in ("path", "mask")}
    shown = tuple(Path(path) for path in data["references"])
    sizes = {name: tuple(data["geometry"][name]) for name in ("original", "resized", "target")}
    geometry = Geometry(**{**data["geometry"], **sizes})
    return Example(**{**data, **paths, "references": shown, "captions": tuple(data["captions"]), "geometry": geometry})
