"""The seam between the engine and a network: what every backend offers to training and to sampling."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from ..types import Conditioning
from .objectives import Objective


@dataclass(frozen=True)
class Targets:
    """Which modules get an adapter: those whose path matches `pattern` (a regular expression, matched anywhere), or `paths`."""

    pattern: str = ""
    description: str = ""
    paths: frozenset[str] | None = None
    """Exact paths, in place of the pattern."""

    def hold(self, path: str) -> bool:
        """Whether the module of this path is among them."""
        return re.search(self.pattern, path) is not None if self.paths is None else path in self.paths


class Denoiser(Protocol):
    """A frozen network behind one call. Latents are model space, unpacked; 4-D even for video-shaped families."""

    @property
    def family(self) -> str:
        """flux, sdxl, …; for a model without a family file, ComfyUI's class name."""
        ...

    @property
    def module(self) -> nn.Module:
        """What adapters are injected into; frozen."""
        ...

    @property
    def objective(self) -> Objective:
        """What the network predicts."""
        ...

    @property
    def target_presets(self) -> Mapping[str, Targets]:
        """{name: target modules}, "default" among them."""
        ...

    def predict(self, noisy_BCHW: Tensor, sigma_B: Tensor, conditioning: Conditioning) -> Tensor:
        """What `objective.target` returns, fp32, for noisy latents as `objective.add_noise` makes them."""
        ...

    def file_key(self, module_path: str) -> str:
        """Name of a module of `module` in a saved LoRA, without `.lora_A.weight` and the like."""
        ...
