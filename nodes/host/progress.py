"""ComfyUI's progress bar, for the node's own thread."""

from typing import Protocol


class ComfyProgressBar(Protocol):
    """What is used of comfy.utils.ProgressBar."""

    def update_absolute(self, value: int, total: int) -> None:
        """Show `value` of `total`. Raises ComfyUI's interrupt if the user has pressed Cancel."""


class Bar:
    """The progress bar of the node that runs."""

    def __init__(self) -> None:
        from comfy.utils import ProgressBar

        self._bar: ComfyProgressBar = ProgressBar(1)

    def update(self, done: int, total: int) -> None:
        """Show progress; nothing for a total of 0. Cancel takes effect here: ComfyUI raises its interrupt."""
        if total:
            self._bar.update_absolute(done, total)
