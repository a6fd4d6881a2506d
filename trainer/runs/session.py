"""What one run needs (`Session`), who follows it (`Host`) and what comes out (`Outcome`); `execute.py` does the work.

The command line and ComfyUI's nodes fill the same three records: a `RunPlan`, a `Backend` and the `RunData`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ..data.clip import ImageEncoder
from ..data.sample_scores import SampleScores
from ..diffusion.denoiser import Denoiser
from ..diffusion.timesteps import ResolutionShift
from ..distributed.processes import ALONE, Processes
from ..errors import LoomError, RunOutOfMemoryError, StoppedError
from ..full.model_file import ModelFile
from ..lora.base_lora import LaidLoras
from ..lora.state_dict import Arithmetic, reference_arithmetic
from ..training.held_out import HeldOut
from ..training.loop import Batches
from ..training.step import LossSettings
from ..types import Batch, Record, StepResult
from ..weights.devices import DTYPES, out_of_memory, out_of_memory_remedy
from .plan import RunPlan
from .run_folder import RunFolder


class Host(Protocol):
    """Whoever runs a session: it hears of everything and is asked whether to go on."""

    def stage(self, name: str, done: int, total: int) -> None:
        """Progress of something before or after training."""
        ...

    def step(self, result: StepResult, total: int) -> None: ...

    def log(self, text: str) -> None: ...

    def measured(self, step: int, values: Mapping[str, float]) -> None:
        """The validation loss was measured: "held_out" and, at evenly spread levels, "held_out_even"; the same with "_ema" of
        the average where there is one; after the first step "held_out_base", which the base without a LoRA has. And "drift": how far the base's
        predictions for prompts without the trigger have moved."""
        ...

    def saved(self, step: int, lora: Path) -> None: ...

    def sampled(self, step: int, images: Sequence[Path]) -> None: ...

    def between_steps(self) -> bool:
        """Called after every step; may block, e.g. while the host is busy. True: something is asked for, call again after."""
        ...

    def between_passes(self) -> bool:
        """Called between micro-batches, measured images and sampling steps; may block as well. True: a stop is asked for."""
        ...

    def should_stop(self) -> bool:
        """Asked before every step; True saves a checkpoint and ends the session."""
        ...

    def should_save(self) -> bool:
        """Asked after every step; True saves a checkpoint and goes on."""
        ...

    def should_sample(self) -> bool:
        """Asked after every step; True makes the samples and goes on."""
        ...


class Again(Protocol):
    """Makes a run again where memory ran out."""

    def execute(self, session: "Session", host: Any) -> "Outcome":
        """As `runs.execute`, from the last checkpoint as often as memory runs out and there is something left that takes less."""
        ...

    def run_errand(self) -> None:
        """Do what only the host's own thread may do, if anything is to be done."""
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
    """Makes sample images of the validation prompts with the current weights."""

    @property
    def every(self) -> int:
        """Steps between samples; 0 only on request."""
        ...

    def using(self, trained: Callable[[], Mapping[str, Tensor]]) -> AbstractContextManager[None]:
        """A context in which `render` has the current weights. `trained` gives the tensors of the LoRA's file, for samples that another
        model makes than the one that is trained."""
        ...

    def paths(self, step: int, kind: str = "") -> list[Path]:
        """Where `render` puts the samples of a step."""
        ...

    def render(self, step: int, kind: str = "", should_stop: Callable[[], bool] = lambda: False) -> list[Path]:
        """Files of the samples; `kind` goes into their names. `should_stop` is asked after every sampling step."""
        ...


@dataclass(frozen=True, kw_only=True)
class Backend:
    """The frozen network as a front end has loaded it, with what depends on it."""

    denoiser: Denoiser
    architecture: str
    """Name of the model's variant, for the LoRA file's metadata."""
    compute_dtype: torch.dtype
    shift: float | ResolutionShift
    """The family's shift of trained noise levels."""
    init: Mapping[str, Tensor] = field(default_factory=dict)
    """Tensors of the LoRA file to start from, under the network's own keys."""
    base_loras: LaidLoras = field(default_factory=LaidLoras)
    """The frozen LoRAs that the denoiser computes with."""
    rate_scales: Mapping[str, float] = field(default_factory=dict)
    """{beginning of module paths: factor on the learning rate}."""
    layout: LoraFileFormat | None = None
    """Another layout for the LoRA files than the one that is trained in."""
    arithmetic: Arithmetic = reference_arithmetic
    """What a host computes from a LoRA file; inside ComfyUI it is ComfyUI itself."""
    check_files: Callable[[], None] = lambda: None
    """Asked after every step; raises ModelFileError if a file that the base model is mapped from was written to."""
    model_file: ModelFile | None = None
    """How the files of a full fine-tune are written; None for a LoRA."""
    about: Record = field(default_factory=dict)
    """Entries of run.json that say what the base model is and which of its layers train."""


@dataclass(frozen=True, kw_only=True)
class RunData:
    """What a run trains on and is measured by."""

    training: Batches
    held_out: Sequence[Batch]
    """One image each; empty without images set aside."""
    images: int
    """Number of training images."""
    resolution: int
    """Side of a square of the area that images are resized to, in pixels."""
    files: Sequence[Path] = ()
    """Images of what is learnt, which samples are compared with; a class's own images are none of them."""
    encoder: ImageEncoder | None = None
    """What a front end compares images with in place of the CLIP of `validation.clip_score`."""


@dataclass(frozen=True, kw_only=True)
class Session:
    """A run ready to train, complete when it is made. `assemble` makes it."""

    plan: RunPlan
    folder: RunFolder
    backend: Backend
    modules: list[str]
    """Paths of the network's modules that get an adapter."""
    batches: Batches
    held_out: HeldOut
    loss: LossSettings
    metadata: Mapping[str, Any]
    """Arguments of `lora.metadata.describe` that are known before training."""
    samples: SampleRenderer | None = None
    scores: SampleScores = field(default_factory=SampleScores)
    processes: Processes = ALONE
    """All processes execute equal sessions; those of the others have a `ReadOnlyRunFolder` as folder."""

    @property
    def denoiser(self) -> Denoiser:
        return self.backend.denoiser

    @property
    def lora_dtype(self) -> torch.dtype:
        return DTYPES[self.plan.output.dtype]

    @property
    def publish_folder(self) -> Path | None:
        """Folder where LoRA files appear too, e.g. models/loras/lora_loom."""
        return Path(self.plan.output.loras).expanduser() if self.plan.output.loras else None

    @property
    def main(self) -> bool:
        """Whether this is the process that writes and speaks for all."""
        return self.processes.rank == 0


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result of a session: how it ended, at which step, and the LoRA file that it wrote."""

    state: str
    """finished or stopped."""
    step: int
    lora: Path
    """The last LoRA file."""
    max_relative_error: float
    """Largest relative difference between the file's effect in a host and that of the trained weights."""
    best: Mapping[str, Any] | None = None
    """Step, loss, LoRA file, runner-up and reason of what the validation loss recommends; none without measurements."""


@contextmanager
def naming_what_is_kept(folder: RunFolder, host: Host) -> Iterator[None]:
    """An error inside the block is logged with the checkpoint that the run goes on from; memory that ran out is an RunOutOfMemoryError that says so."""
    try:
        yield
    except StoppedError:
        raise
    except Exception as error:
        if what := out_of_memory(error):
            raise RunOutOfMemoryError(f"out of {what}: {out_of_memory_remedy()}. {folder.kept()}") from error
        with suppress(LoomError):  # the disk may be full, and the problem at hand is the one to report
            host.log(folder.kept())
        raise
