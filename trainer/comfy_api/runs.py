"""The runs of a ComfyUI server that has this pack: list, look, act, follow. Speaks the pack's own routes."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from ..errors import RunError, ServerError, StoppedError
from ..storage.names import check_name, safe_name
from ..types import ACTIVE
from .client import Answer, ComfyServer

Json = dict[str, Any]
ROUTE = "/lora_loom/runs"
REACHED: dict[str, Callable[[Json], bool]] = {
    "pause": lambda run: run["state"] == "paused" or run["state"] not in ACTIVE,
    "resume": lambda run: run["state"] in ACTIVE - {"paused", "stopping"},
    "stop": lambda run: run["state"] not in ACTIVE,
}
"""{action: whether a run has come to what was asked for}."""
SETTLE_S = 30.0
"""How long to wait for that: a step in flight is finished first."""
POLL_S = 1.0


class Follower(Protocol):
    """Whoever follows a run."""

    def log(self, text: str) -> None: ...

    def progress(self, label: str, what: str, done: int, total: int, note: str) -> None: ...

    def should_stop(self) -> bool: ...


class RemoteRuns:
    """Raises ServerError for a server without this pack, RunError with the server's words for what it refuses."""

    def __init__(self, server: ComfyServer) -> None:
        self.server = server

    def all(self) -> list[Json]:
        """Summaries, the newest first."""
        runs: list[Json] = self._checked(self.server.get(ROUTE))["runs"]
        return runs

    def get(self, name: str) -> Json:
        """One run with its files and checkpoints."""
        return self._checked(self.server.get(f"{ROUTE}/{check_name(name)}"))

    def metrics(self, name: str, since: int = 0) -> list[Json]:
        """Lines with step, loss, learning_rate, …, after a step."""
        lines: list[Json] = self._checked(self.server.get(f"{ROUTE}/{check_name(name)}/metrics", since=since))["metrics"]  # fmt: skip
        return lines

    def act(self, name: str, action: str, *, should_stop: Callable[[], bool] = lambda: False) -> Json:
        """pause, resume, stop, save or sample; returns the run once it has got there, or as it is after half a minute."""
        self._checked(self.server.post(f"{ROUTE}/{check_name(name)}/{action}", {}))
        deadline, reached = time.monotonic() + SETTLE_S, REACHED.get(action, _at_once)
        while True:
            run = self.get(name)
            if reached(run) or time.monotonic() >= deadline or should_stop():
                return run
            time.sleep(POLL_S / 4)

    def follow(self, name: str, watcher: Follower, samples: Path | None = None) -> Json:
        """Until nobody trains it any more, or the watcher wants to stop; new sample pictures go into a folder."""
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
        """Follow runs to their ends, one after the other, and download their LoRA files into <folder>/<run>/.

        Raises RunError for one that did not finish, StoppedError if the watcher stops: the runs themselves go on.
        """
        files: list[Path] = []
        for name in names:
            run = self.follow(name, watcher)
            if run["state"] in ACTIVE:
                raise StoppedError(f"no longer watching {name}, which goes on: lora-loom runs follow {name}")
            if run["state"] != "finished":
                told = f": {run['error']}" if run.get("error") else ""
                raise RunError(f"{name}: {run['state']} at step {run['step']} of {run['total']}{told}")
            for file in run["loras"]:
                target = folder / check_name(name) / safe_name(file)
                self.server.download(f"{ROUTE}/{name}/files/{file}", target)
                files.append(target)
        return files

    def _fetch(self, name: str, file: str, folder: Path | None) -> str:
        """Where a picture of a run is now: in the folder, or only on the server."""
        if folder is None:
            return file
        target = folder / Path(file).name
        self.server.download(f"{ROUTE}/{name}/files/{file}", target)
        return str(target)

    def _checked(self, answer: Answer) -> Json:
        if answer.status == 200 and isinstance(answer.data, dict):
            return answer.data
        if isinstance(answer.data, dict) and "error" in answer.data:
            raise RunError(str(answer.data["error"]))
        raise ServerError(f"{self.server.url} has no LoRA Loom ({answer.status}): install this pack into its custom_nodes")  # fmt: skip


def _at_once(run: Json) -> bool:
    return True


def _note(run: Json, lines: list[Json]) -> str:
    """Loss, pace and what is left, as far as they are known."""
    losses = [line["loss"] for line in lines if "loss" in line]
    loss = losses[-1] if losses else run.get("loss")
    parts = [f"loss {loss:.4f}"] if loss is not None else []
    if run.get("seconds"):
        parts.append(f"{run['seconds']:.2f} s/step")
    return "  ".join(parts)
