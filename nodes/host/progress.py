"""The host's progress bar, for the node's own thread."""

from typing import Any


class Bar:
    def __init__(self) -> None:
        from comfy.utils import ProgressBar

        self._bar: Any = ProgressBar(1)

    def update(self, done: int, total: int) -> None:
        """Also where Cancel takes effect: the host raises its interrupt here."""
        if total:
            self._bar.update_absolute(done, total)
