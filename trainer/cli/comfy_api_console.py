"""What a person or a program sees of prompts and runs on a server."""

import time
from dataclasses import asdict
from typing import Any

from ..comfy_api.submit import Result
from .console import JsonHost, StopSignal, make_progress


class JsonWatcher(JsonHost):
    """One JSON object per line on standard output."""

    def progress(self, label: str, what: str, done: int, total: int, note: str) -> None:
        self._emit("progress", label=label, what=what, done=done, total=total, note=note)

    def finished(self, result: Result, done: int, total: int) -> None:
        self._emit("prompt", done=done, total=total, **asdict(result))


class ConsoleWatcher(JsonWatcher):
    """Bars on a terminal: the prompts, and what the server works on. Elsewhere a line every few seconds."""

    INTERVAL_S = 10.0

    def __init__(self, stop: StopSignal) -> None:
        super().__init__(stop)
        from rich.console import Console

        self.console = Console(stderr=True)
        self.bars = make_progress(self.console)
        self.tasks: dict[str, Any] = {}
        self.shown = ("", "")
        self.spoke = 0.0

    def __enter__(self) -> "ConsoleWatcher":
        self.bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bars.stop()

    def log(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def progress(self, label: str, what: str, done: int, total: int, note: str) -> None:
        """The bar of what works now; another node or prompt starts it anew."""
        name = f"{label}: {what}" if label else what
        if "now" not in self.tasks:
            self.tasks["now"] = self.bars.add_task(name, total=total, note=note)
        elif self.shown != (label, what):
            self.bars.reset(self.tasks["now"], description=name, completed=done, total=total, note=note, visible=True)
        self.shown = (label, what)
        self.bars.update(self.tasks["now"], completed=done, total=total, note=note)
        if not self.console.is_terminal and time.monotonic() - self.spoke > self.INTERVAL_S:
            self.spoke = time.monotonic()
            self.log(f"{name} {done}/{total} {note}".rstrip())

    def finished(self, result: Result, done: int, total: int) -> None:
        if "now" in self.tasks and done == total:
            self.bars.update(self.tasks["now"], visible=False)
        if total > 1:
            if "all" not in self.tasks:
                self.tasks["all"] = self.bars.add_task("prompts", total=total, note="")
            self.bars.update(self.tasks["all"], completed=done)
        self.log(words(result))
        for node, text in result.texts.items():
            self.log(f"  node {node} says: {text}")


def words(result: Result) -> str:
    """One line about a prompt."""
    name = f"{result.label}: " if result.label else ""
    if result.error:
        return f"{name}failed: {result.error}"
    files = ", ".join(result.files) or "no files"
    return f"{name}{files}, as before" if result.reused else f"{name}{files}, {result.seconds:.1f} s"
