"""What one run needs (`Session`), who runs it (`Host`) and what comes out (`Outcome`); `execute.py` does the work.

The command line and ComfyUI's nodes both end in the same session. What differs between them, how a network and its batches
come about and who is told of progress, is in the fields of these classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ..config.run import NetworkConfig, OptimizerConfig, ScheduleConfig, TrainingConfig, ValidationConfig
from ..diffusion.denoiser import Denoiser
from ..distributed.processes import ALONE, Processes
from ..lora.state_dict import Arithmetic, reference_arithmetic
from ..training.held_out import HeldOut
from ..training.loop import Batches
from ..training.step import LossSettings
from ..types import StepResult
from .run_folder import RunFolder


class Host(Protocol):
    """Whoever runs a session: told of everything, asked whether to go on."""

    def stage(self, name: str, done: int, total: int) -> None:
        """Progress of something before or after training."""
        ...

    def step(self, result: StepResult, total: int) -> None: ...

    def log(self, text: str) -> None: ...

    def measured(self, step: int, values: Mapping[str, float]) -> None:
        """A held-out loss was measured."""
        ...

    def saved(self, step: int, lora: Path) -> None: ...

    def sampled(self, step: int, pictures: Sequence[Path]) -> None: ...

    def between_steps(self) -> bool:
        """Called after every step; may block, e.g. while the host is busy. True: something is asked for, call again after."""
        ...

    def should_stop(self) -> bool:
        """Asked before every step; True saves a checkpoint and ends the session."""
        ...

    def should_save(self) -> bool:
        """Asked after every step; True saves a checkpoint and goes on."""
        ...

    def should_sample(self) -> bool:
        """Asked after every step; True renders the validation prompts and goes on."""
        ...


class LoraFileFormat(Protocol):
    """Another program's names for a LoRA file."""

    @property
    def format(self) -> str: ...

    def write(self, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]: ...

    def read(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The same adapter under the names that are trained."""
        ...


class SampleRenderer(Protocol):
    """Renders the validation prompts with the adapter as it is."""

    @property
    def every(self) -> int:
        """Steps between renderings; 0 only on request."""
        ...

    def render(self, step: int, kind: str = "") -> list[Path]:
        """Pictures of the adapter as it is; `kind` goes into their names."""
        ...


@dataclass(kw_only=True)
class Session:
    folder: RunFolder
    denoiser: Denoiser
    targets: list[str]
    batches: Batches
    held_out: HeldOut
    loss: LossSettings
    network: NetworkConfig
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    training: TrainingConfig
    validation: ValidationConfig
    compute_dtype: torch.dtype
    lora_dtype: torch.dtype
    metadata: Mapping[str, Any]
    """Arguments of `lora.metadata.describe` that are known before training."""
    publish_folder: Path | None = None
    """Folder where LoRA files appear too, e.g. models/loras/lora_loom."""
    report: str = "none"
    """Where curves are also written: none, tensorboard or wandb."""
    prefetch: int = 1
    """Batches that are read while a step computes."""
    previews: SampleRenderer | None = None
    init: Mapping[str, Tensor] = field(default_factory=dict)
    """Tensors of a LoRA file to start from."""
    rate_scales: Mapping[str, float] = field(default_factory=dict)
    """{beginning of module paths: factor on the learning rate}."""
    layout: "LoraFileFormat | None" = None
    """Another layout for the LoRA files than the one that is trained in."""
    arithmetic: Arithmetic = reference_arithmetic
    """What a host computes from a LoRA file; inside ComfyUI it is ComfyUI itself."""
    processes: Processes = ALONE
    """All processes execute equal sessions; those of the others have an `ReadOnlyRunFolder` as folder."""
    sharded: bool = False
    """The base is split over the processes: none can compute without the others."""

    @property
    def main(self) -> bool:
        return self.processes.rank == 0


@dataclass(frozen=True, kw_only=True)
class Outcome:
    state: str
    """finished or stopped."""
    step: int
    lora: Path
    """The last LoRA file."""
    max_relative_error: float
    """Largest relative difference between the file's effect in a host and the trained one."""
    best: Mapping[str, Any] | None = None
    """Step, loss, LoRA file, runner-up and reason of what the held-out loss recommends; none without measurements."""
