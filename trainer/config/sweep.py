"""The options of a sweep: which images are made of the checkpoints, and how they are sampled."""

from dataclasses import dataclass, field
from typing import Annotated

from ..choices import GUIDANCE_METHODS, SAMPLERS, SCHEDULERS
from .checks import OneOf
from .section import Section, require


def check_skips(table: str, scale: float, start: float, end: float) -> None:
    """Raise ConfigError for a skip-layer guidance that cannot act."""
    require(scale > 0, f"{table}.skip_layer_scale", scale, "use a number above 0")
    remedy = f"use shares of the schedule, skip_layer_start = {start} < skip_layer_end <= 1"
    require(0 <= start < end <= 1, f"{table}.skip_layer_end", end, remedy)


@dataclass(frozen=True, kw_only=True)
class GuidanceConfig(Section, table="sweep.guidance"):
    """A guidance setting that a sweep compares with others."""

    label: str = ""
    """Name in the grid; empty makes one from the settings."""
    method: Annotated[str, OneOf(GUIDANCE_METHODS)] = "cfg"
    """Guidance method."""
    scale: float = 4.0
    """Guidance scale; 1 switches guidance off."""
    eta: float = 0.0
    """APG: share of the parallel part that stays; 1 is plain CFG."""
    norm_threshold: float = 0.0
    """APG: largest L2 norm of the guidance of an image; 0 sets no limit."""
    momentum: float = 0.0
    """APG: weight of the running average of the guidance; the paper uses negative values such as -0.5."""
    rescale: float = 0.0
    """How far the contrast of the guided image goes back to that of the unguided one, 0 to 1 (arXiv 2305.08891, phi); 0.7 is usual."""

    skip_layers: tuple[int, ...] = ()
    """Skip-layer guidance of SD3.5: cells also go away from what the network predicts without these blocks, such as [7, 8, 9] of Medium. Empty: off."""
    skip_layer_scale: float = 3.0
    """Strength of the skip-layer guidance; 2.5 to 3 is usual."""
    skip_layer_start: float = 0.01
    """Share of the schedule from which on it acts, counted from the noise."""
    skip_layer_end: float = 0.15
    """Share of the schedule up to which it acts."""

    def check(self) -> None:
        check_skips("guidance", self.skip_layer_scale, self.skip_layer_start, self.skip_layer_end)
        require(self.scale >= 0, "guidance.scale", self.scale, "use 0 or more (1 = off)")
        require(self.norm_threshold >= 0, "guidance.norm_threshold", self.norm_threshold, "use 0 (no limit) or more")
        require(0 <= self.rescale <= 1, "guidance.rescale", self.rescale, "use 0 (off) to 1")
        require(-1 < self.momentum < 1, "guidance.momentum", self.momentum, "use a number between -1 and 1")

    @property
    def name(self) -> str:
        """The label, or a name made of the method and its scale."""
        skips = f", skip {' '.join(map(str, self.skip_layers))} x {self.skip_layer_scale:g}" if self.skip_layers else ""
        rescale = f", rescale {self.rescale:g}" if self.rescale else ""
        return self.label or f"{self.method.upper()} {self.scale:g}{rescale}{skips}"


@dataclass(frozen=True, kw_only=True)
class SweepConfig(Section, table="sweep"):
    """The images that are made of the checkpoints, to compare them."""

    prompts: tuple[str, ...] = ()
    """Prompts of the cells."""
    prompt_library: str = ""
    """JSON file with more prompts, {"name": "prompt", …}; the names label the grid."""
    negative_prompt: str = ""
    """Negative prompt of every cell."""
    wildcards: bool = False
    """{a|b|c} in a prompt stands for one of the three, another one for each seed and the same for all checkpoints; {{ and }} stand for braces. A cell records the prompt that it was made of."""
    references: tuple[str | tuple[str, ...], ...] = ()
    """Reference images (files) for edit models; a cell is made of every prompt with each of them. Files in an inner list are used together."""
    seeds: str = "0"
    """Seeds: "0,1,2", or "-1--1 [4]" for four random ones (drawn from the run's seed)."""
    strengths: str = "1"
    """LoRA strengths: "1", "0.7,1", or "0.7-1.3 [4]" for four evenly spread ones."""
    guidance: tuple[GuidanceConfig, ...] = field(default_factory=lambda: (GuidanceConfig(),))
    """Guidance settings to compare, one [[sweep.guidance]] table each. Without one: CFG 4, or 1 for models that are distilled to it."""
    base: bool = True
    """Also makes the cells of the base model without a LoRA."""
    width: int = 0
    """Width of a cell in pixels; 0 takes data.resolution."""
    height: int = 0
    """Height of a cell in pixels; 0 takes data.resolution."""
    steps: int = 20
    """Sampling steps."""
    sampler: Annotated[str, OneOf(SAMPLERS)] = "euler"
    """Sampler: how one noise level leads to the next."""
    scheduler: Annotated[str, OneOf(SCHEDULERS)] = "normal"
    """Scheduler: how noise levels are spaced, named and computed as in ComfyUI."""
    sizes: str = ""
    """Several sizes to compare, "512x512, 768x512"; empty takes width and height."""
    step_counts: str = ""
    """Several numbers of sampling steps to compare, "10,20" or "10-30 [3]"; empty takes steps."""
    samplers: str = ""
    """Several samplers with their schedulers to compare, "euler/normal, dpmpp_2m/karras"; empty takes sampler and scheduler."""
    model_guidance: float = 3.5
    """Guidance value that guidance-distilled models (Flux dev) are fed in cells, as users of the model set it. Other models take none."""
    max_cells: int = 1000
    """A sweep of more cells than this estimates its time after two of them and asks whether to go on."""

    def check(self) -> None:
        require(self.steps >= 1, "sweep.steps", self.steps, "use 1 or more")
        require(self.max_cells >= 1, "sweep.max_cells", self.max_cells, "use 1 or more")
        remedy = "use 0 or more (3.5 is usual)"
        require(self.model_guidance >= 0, "sweep.model_guidance", self.model_guidance, remedy)
        require(self.width >= 0 and self.height >= 0, "sweep.width", (self.width, self.height), "use 0 or pixels")
