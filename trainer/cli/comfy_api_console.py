"""Output of the commands that use a ComfyUI server: JSON lines for programs, progress bars and text for people."""

import time
from dataclasses import asdict
from typing import TYPE_CHECKING

from ..comfy_api.submit import Result
from .console import JsonHost, StopSignal, make_progress

if TYPE_CHECKING:
    from rich.progress import TaskID


class JsonWatcher(JsonHost):
    """Prints one JSON object per line on standard output."""

    def progress(self, label: str, what: str, done: int, total: int, note: str) -> None:
        """`done` of `total` of a node or run `what` of the prompt `label` are finished."""
        self._emit("progress", label=label, what=what, done=done, total=total, note=note)

    def finished(self, result: Result, done: int, total: int) -> None:
        """A prompt has ended; it is number `done` of `total`."""
        self._emit("prompt", done=done, total=total, **asdict(result))


class ConsoleWatcher(JsonWatcher):
    """Draws two progress bars on a terminal: the prompts, and the node that runs now. Elsewhere it prints a line every few seconds."""

    INTERVAL_S = 10.0

    def __init__(self, stop: StopSignal) -> None:
        super().__init__(stop)
        from rich.console import Console

        self.console = Console(stderr=True)
        self.bars = make_progress(self.console)
        self.tasks: dict[str, TaskID] = {}
        self.current = ("", "")
        self.last_line = 0.0

    def __enter__(self) -> "ConsoleWatcher":
        self.bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bars.stop()

    def log(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def progress(self, label: str, what: str, done: int, total: int, note: str) -> None:
        """Advance the bar of the node that runs now. It is reset when another node or prompt starts."""
        name = f"{label}: {what}" if label else what
        if "now" not in self.tasks:
            self.tasks["now"] = self.bars.add_task(name, total=total, note=note)
        elif self.current != (label, what):
            self.bars.reset(self.tasks["now"], description=name, completed=done, total=total, note=note, visible=True)
        self.current = (label, what)
        self.bars.update(self.tasks["now"], completed=done, total=total, note=note)
        if not self.console.is_terminal and time.monotonic() - self.last_line > self.INTERVAL_S:
            self.last_line = time.monotonic()
            self.log(f"{name} {done}/{total} {note}".rstrip())

    def finished(self, result: Result, done: int, total: int) -> None:
        if "now" in self.tasks and done == total:
            self.bars.update(self.tasks["now"], visible=False)
        if total > 1:
            if "all" not in self.tasks:
                self.tasks["all"] = self.bars.add_task("prompts", total=total, note="")
            self.bars.update(self.tasks["all"], completed=done)
        self.log(summary(result))
        for node, text in result.texts.items():
            self.log(f"  output of node {node}: {text}")


def summary(result: Result) -> str:
    """One line about a prompt: its error, or its files and the time."""
    name = f"{result.label}: " if result.label else ""
    if result.error:
        return f"{name}failed: {result.error}"
    files = ", ".join(result.files) or "no files"
    return f"{name}{files}, reused" if result.reused else f"{name}{files}, {result.seconds:.1f} s"
