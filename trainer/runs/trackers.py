"""Curves for other programs: TensorBoard and Weights & Biases, both optional. `metrics.jsonl` is written in any case."""

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from ..config.run import OutputConfig
from ..config.toml import digest
from ..errors import ConfigError
from ..hub.push import check_repo, token_note

SKIPPED = ("step", "held_out_parts")


class Tracker(Protocol):
    """A program that draws the curves of a run, such as TensorBoard. It receives numbers by name for each step."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class NoTracker:
    """The tracker of a run without one: it drops what it receives."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        pass

    def close(self) -> None:
        pass


class TensorBoard:
    """Events in a folder; what a continued run does again replaces what was there."""

    def __init__(self, folder: Path, step: int, output: OutputConfig) -> None:
        from torch.utils import tensorboard

        make: Any = tensorboard.SummaryWriter
        place = events_folder(folder, output)
        self._writer: Any = make(log_dir=str(place), purge_step=step + 1 if step else None)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WandB:
    """A run of a project, by the run's folder; WANDB_MODE=offline keeps it on this machine."""

    def __init__(self, folder: Path, step: int, output: OutputConfig) -> None:
        import wandb

        identity = digest(str(folder.resolve()))[:16]
        self._run: Any = wandb.init(
            project=output.tracker_project,
            name=output.tracker_run or folder.name,
            id=identity,
            resume="allow",
            dir=str(folder),
            reinit=True,
        )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


TRACKERS: dict[str, Callable[[Path, int, OutputConfig], Tracker]] = {"tensorboard": TensorBoard, "wandb": WandB}


def events_folder(folder: Path, output: OutputConfig) -> Path:
    """Where TensorBoard's events of the run in `folder` are written."""
    if not output.tracker_dir:
        return folder / "tensorboard"
    return Path(output.tracker_dir).expanduser() / (output.tracker_run or folder.name)


def check_output(output: OutputConfig, log: Callable[[str], None]) -> None:
    """Raise ConfigError for a tracker whose library is missing, or a repository without a name that it may have; note a missing token."""
    check_tracker(output.report_to)
    if output.hub_repo:
        check_repo(output.hub_repo)
        if note := token_note():
            log(f"note: output.hub_repo: {note}")


def check_tracker(kind: str) -> None:
    """Raise ConfigError if its library is not installed."""
    if kind != "none" and find_spec(kind) is None:
        raise ConfigError(
            f"output.report_to = {kind!r}: {kind} is not installed; pip install {kind}, or set it to 'none'"
        )


def open_tracker(output: OutputConfig, folder: Path, step: int, log: Callable[[str], None]) -> Tracker:
    """Opens the tracker of a run that stands at `step`. One that cannot be opened is reported and left out: it stops no run."""
    kind = output.report_to
    if kind == "none":
        return NoTracker()
    try:
        return TRACKERS[kind](folder, step, output)
    except Exception as error:  # noqa: BLE001 - training goes on without its network or its account
        log(f"{kind} cannot be written ({type(error).__name__}: {error}); training goes on without it")
        return NoTracker()
