"""The hosts of the command line: progress with ETA for people, JSON lines for programs, a graceful stop on Ctrl-C."""

import json
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TextIO, cast

from ..eta import Eta, duration

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

    from ..runs.run_folder import RunFolder
    from ..types import StepResult

SMOOTHING = 0.98
"""Share of the previous value in the moving average of the loss that is displayed."""
LOSSES = {
    "held_out": "validation loss",
    "held_out_ema": "validation loss (EMA)",
    "held_out_even": "at even levels",
    "held_out_even_ema": "at even levels (EMA)",
    "held_out_base": "base",
    "drift": "drift from the base",
}
"""{key in the metrics: what it is called in the log}."""


ENDINGS = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
"""Windows has no SIGHUP."""


HANG_UP = getattr(signal, "SIGHUP", None)


class StopSignal:
    """Catches SIGINT, SIGTERM and SIGHUP: the first requests a stop, the second says that it is under way, the third ends the
    process. A closed terminal (SIGHUP) is told of by several programs and counts as one."""

    TEXT = "stopping after this step and saving a checkpoint"
    AGAIN = "still stopping; press once more to quit without saving"

    def __init__(self, text: str = TEXT) -> None:
        self.text, self.received, self._count = text, 0, 0
        self._previous = {number: signal.signal(number, self._note) for number in ENDINGS}

    def _note(self, number: int, frame: FrameType | None) -> None:
        is_first, self.received = not self.received, number
        self._count += number != HANG_UP
        if self._count >= 2:
            self.restore()
        if is_first or number != HANG_UP:
            with suppress(OSError):  # of a closed terminal nothing is left to write to
                sys.stderr.write(f"\n{self.text if is_first else self.AGAIN}\n")

    def restore(self) -> None:
        """Put the previous signal handlers back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)


class LastingStream:
    """A text stream of this process that is written to as long as somebody reads: a terminal that was closed, or a program that ended,
    does not end a run."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Returns the number of characters, written or not."""
        with suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Does nothing where nobody reads any more."""
        with suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class JsonHost:
    """A host that prints one JSON object per line on standard output. `folder`, where it exists, receives the log too."""

    def __init__(self, stop: StopSignal | None = None, folder: "RunFolder | None" = None) -> None:
        self.stop, self.folder = stop, folder
        self.eta = Eta()

    def _seconds_left(self, name: str, done: int, total: int) -> dict[str, float]:
        left = self.eta.left(name, done, total)
        return {} if left is None else {"seconds_left": round(left, 1)}

    def _emit(self, event: str, **values: object) -> None:
        stream = LastingStream(sys.stdout)
        stream.write(json.dumps({"event": event, **values}) + "\n")
        stream.flush()

    def stage(self, name: str, done: int, total: int) -> None:
        """Progress before or after training."""
        self._emit("stage", name=name, done=done, total=total, **self._seconds_left(name, done, total))

    def step(self, result: "StepResult", total: int) -> None:
        """An optimizer step was taken."""
        self._emit("step", total=total, **asdict(result), **self._seconds_left("training", result.step, total))

    def log(self, text: str) -> None:
        """A message for the user."""
        if self.folder is not None and self.folder.path.is_dir():
            self.folder.log(text)
        self._emit("log", text=text)

    def measured(self, step: int, values: Mapping[str, float]) -> None:
        """Validation losses were measured."""
        self._emit("measured", step=step, **values)

    def saved(self, step: int, lora: Path) -> None:
        """A checkpoint was saved."""
        self._emit("saved", step=step, lora=str(lora))

    def sampled(self, step: int, pictures: Sequence[Path]) -> None:
        """Sample images were generated."""
        self._emit("sampled", step=step, pictures=[str(picture) for picture in pictures])

    def between_steps(self) -> bool:
        """The command line never pauses a run."""
        return False

    def between_passes(self) -> bool:
        """A signal ends measurements and samples too."""
        return self.should_stop()

    def should_stop(self) -> bool:
        """Whether a signal has requested a stop."""
        return self.stop is not None and bool(self.stop.received)

    def should_save(self) -> bool:
        """The command line requests no checkpoints of its own."""
        return False

    def should_sample(self) -> bool:
        """The command line requests no samples of its own."""
        return False


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


class QuietHost(JsonHost):
    """A host that prints nothing: for calls from Python, and for all but the first of several processes."""

    def _emit(self, event: str, **values: object) -> None:
        pass


WIDE = 100
"""Columns of a terminal from which on the elapsed time and the learning rate have their place as well."""


def make_progress(console: "Console") -> "RichProgress":
    """Progress bars with count, time left and, on a wide terminal, time elapsed; each task has a field `note`. They are drawn on a terminal only.

    No column is cut: the bar takes what the others leave.
    """
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.table import Column

    def whole() -> Column:
        return Column(no_wrap=True)

    elapsed: list[ProgressColumn] = [TimeElapsedColumn(table_column=whole())] if console.width >= WIDE else []
    columns = (
        TextColumn("{task.description}", markup=False, table_column=whole()),
        BarColumn(bar_width=None, table_column=Column(ratio=1, min_width=4)),
        MofNCompleteColumn(table_column=whole()),
        *elapsed,
        TextColumn("ETA"),
        TimeRemainingColumn(compact=True, table_column=whole()),
        TextColumn("{task.fields[note]}", markup=False, table_column=whole()),
    )
    return Progress(*columns, console=console, disable=not console.is_terminal, expand=True)


class ConsoleHost(JsonHost):
    """A host that draws progress bars on a terminal, and prints a line every few seconds elsewhere."""

    INTERVAL_S = 10.0

    def __init__(self, stop: StopSignal, folder: "RunFolder | None" = None) -> None:
        super().__init__(stop, folder)
        from rich.console import Console

        self.console = Console(file=cast(TextIO, LastingStream(sys.stderr)))
        self.progress = make_progress(self.console)
        self.tasks: dict[str, TaskID] = {}
        self.smooth_loss = 0.0
        self.last_line = 0.0

    def __enter__(self) -> "ConsoleHost":
        self.progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.progress.stop()

    def _advance(self, name: str, done: int, total: int, note: str = "") -> None:
        if name not in self.tasks:
            self.tasks[name] = self.progress.add_task(name, total=total, note="")
        self.progress.update(self.tasks[name], completed=done, total=total, note=note)
        left = self.eta.left(name, done, total)
        if not self.console.is_terminal and (done == total or time.monotonic() - self.last_line > self.INTERVAL_S):
            self.last_line = time.monotonic()
            eta = f"  ETA {duration(left)}" if left is not None and done < total else ""
            self.console.print(f"{name}: {done}/{total} {note}{eta}", highlight=False, markup=False)

    def stage(self, name: str, done: int, total: int) -> None:
        self._advance(name, done, total)

    def step(self, result: "StepResult", total: int) -> None:
        share = SMOOTHING if self.smooth_loss else 0.0
        self.smooth_loss = share * self.smooth_loss + (1 - share) * result.loss
        rate = f"lr {result.learning_rate:.2e}  " if self.console.width >= WIDE else ""
        note = f"loss {self.smooth_loss:.4f}  {rate}{result.seconds:.2f} s/step"
        self._advance("training", result.step, total, note)

    def log(self, text: str) -> None:
        if self.folder is not None and self.folder.path.is_dir():
            self.folder.log(text)
        self.console.print(text, highlight=False, markup=False)

    def measured(self, step: int, values: Mapping[str, float]) -> None:
        losses = ", ".join(f"{LOSSES.get(name, name)} {value:.5f}" for name, value in values.items())
        self.log(f"step {step}: {losses}")

    def saved(self, step: int, lora: Path) -> None:
        self.log(f"step {step}: saved {lora.name}")

    def sampled(self, step: int, pictures: Sequence[Path]) -> None:
        self.log(f"step {step}: generated {_count(len(pictures), 'sample image')}")
