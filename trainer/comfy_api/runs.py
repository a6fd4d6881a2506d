"""Training runs of a ComfyUI server that has this pack: list, control, follow and fetch them through the pack's routes."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, TypedDict, cast

from ..errors import RunError, ServerError, StoppedError
from ..storage.names import check_name, safe_name
from ..types import ACTIVE, Json
from .client import Answer, ComfyServer


class _RunFields(TypedDict):
    name: str
    state: str
    step: int
    total: int


class RunStatus(_RunFields, total=False):
    """A run as the server reports it."""

    loss: float | None
    eta: float | None
    """Seconds left."""
    error: str
    seconds: float
    """Per step."""
    samples: list[str]
    """Names of its sample images; only for a single run."""
    loras: list[str]
    """Names of its LoRA files; only for a single run."""


class Metrics(TypedDict, total=False):
    """A line of a run's metrics."""

    step: int
    loss: float
    learning_rate: float


ROUTE = "/lora_loom/runs"
REACHED: dict[str, Callable[[RunStatus], bool]] = {
    "pause": lambda run: run["state"] == "paused" or run["state"] not in ACTIVE,
    "resume": lambda run: run["state"] in ACTIVE - {"paused", "stopping"},
    "stop": lambda run: run["state"] not in ACTIVE,
}
"""{action: whether a run has reached the requested state}."""
SETTLE_S = 30.0
"""How long to wait for that state. A step that is being computed is finished first."""
POLL_S = 1.0
"""Pause between two requests while a run is followed."""


class Follower(Protocol):
    """Receives the progress of a run, and may stop following it."""

    def log(self, text: str) -> None:
        """A message for the user."""
        ...

    def progress(self, label: str, what: str, done: int, total: int, note: str) -> None:
        """The run `label` is in the state `what`, at step `done` of `total`."""
        ...

    def should_stop(self) -> bool:
        """True to stop following."""
        ...


class RemoteRuns:
    """The runs of a server. Calls raise ServerError if it does not have this pack, RunError with its message if it refuses."""

    def __init__(self, server: ComfyServer) -> None:
        self.server = server

    def all(self) -> list[RunStatus]:
        """All runs, the newest first."""
        return cast(list[RunStatus], self._checked(self.server.get(ROUTE))["runs"])

    def get(self, name: str) -> RunStatus:
        """One run with its files and checkpoints."""
        return cast(RunStatus, self._checked(self.server.get(f"{ROUTE}/{check_name(name)}")))

    def metrics(self, name: str, since: int = 0) -> list[Metrics]:
        """The metrics of all steps after `since`."""
        answer = self.server.get(f"{ROUTE}/{check_name(name)}/metrics", since=since)
        return cast(list[Metrics], self._checked(answer)["metrics"])

    def act(self, name: str, action: str, *, should_stop: Callable[[], bool] = lambda: False) -> RunStatus:
        """Request pause, resume, stop, save or sample. Returns the run once it has reached the state, or as it is after 30 s."""
        self._checked(self.server.post(f"{ROUTE}/{check_name(name)}/{action}", {}))
        deadline, reached = time.monotonic() + SETTLE_S, REACHED.get(action, _at_once)
        while True:
            run = self.get(name)
            if reached(run) or time.monotonic() >= deadline or should_stop():
                return run
            time.sleep(POLL_S / 4)

    def follow(self, name: str, watcher: Follower, samples: Path | None = None) -> RunStatus:
        """Follow a run until it ends or the watcher stops. New sample images are downloaded into the folder `samples`."""
        run, step = self.get(name), 0
        known = set() if samples else set(run["samples"])
        while True:
            lines = self.metrics(name, step)
            step = max([step, *(line["step"] for line in lines)])
            watcher.progress(name, run["state"], run["step"], run["total"], _note(run, lines))
            for file in [file for file in run["samples"] if file not in known]:
                known.add(file)
                watcher.log(f"sample: {self._fetch(name, file, samples)}")
            if run["state"] not in ACTIVE or watcher.should_stop():
                return run
            time.sleep(POLL_S)
            run = self.get(name)

    def collect(self, names: Sequence[str], watcher: Follower, folder: Path) -> list[Path]:
        """Follow runs until they end, one after the other, and download their LoRA files into <folder>/<run>/.

        Raises RunError if a run did not finish, StoppedError if the watcher stops; the runs themselves continue.
        """
        files: list[Path] = []
        for name in names:
            run = self.follow(name, watcher)
            if run["state"] in ACTIVE:
                raise StoppedError(f"no longer following {name}, which continues: lora-loom runs follow {name}")
            if run["state"] != "finished":
                cause = f": {run['error']}" if run.get("error") else ""
                raise RunError(f"{name}: {run['state']} at step {run['step']} of {run['total']}{cause}")
            for file in run["loras"]:
                target = folder / check_name(name) / safe_name(file)
                self.server.download(f"{ROUTE}/{name}/files/{file}", target)
                files.append(target)
        return files

    def _fetch(self, name: str, file: str, folder: Path | None) -> str:
        """The path of a sample image after downloading it; its name on the server if there is no folder."""
        if folder is None:
            return file
        target = folder / Path(file).name
        self.server.download(f"{ROUTE}/{name}/files/{file}", target)
        return str(target)

    def _checked(self, answer: Answer) -> Json:
        """The fields of a successful response. Raises RunError or ServerError for another."""
        if answer.status == 200 and isinstance(answer.data, dict):
            return answer.data
        if "error" in answer.fields:
            raise RunError(str(answer.fields["error"]))
        raise ServerError(f"{self.server.url} has no LoRA Loom ({answer.status}): install this pack into its custom_nodes")  # fmt: skip


def _at_once(run: RunStatus) -> bool:
    return True


def _note(run: RunStatus, lines: Sequence[Metrics]) -> str:
    """Loss and time per step, as far as they are known."""
    losses = [line["loss"] for line in lines if "loss" in line]
    loss = losses[-1] if losses else run.get("loss")
    parts = [f"loss {loss:.4f}"] if loss is not None else []
    if run.get("seconds"):
        parts.append(f"{run['seconds']:.2f} s/step")
    return "  ".join(parts)
