"""Which modules a run trains: those it was begun with, whatever the preset that named them means by now."""

from collections.abc import Callable

from torch import nn

from ..lora.targets import has_modules
from .run_folder import RunFolder


def modules_of_run(folder: RunFolder, network: nn.Module, resolve: Callable[[], list[str]]) -> list[str]:
    """Paths of the modules that get an adapter: as the run on disk has them, of a new run as `resolve` finds them.

    A record that does not fit the network is of another base; `resolve` then lets the comparison of settings say so.
    """
    recorded = folder.recorded_modules()
    return recorded if recorded and has_modules(network, recorded) else resolve()
