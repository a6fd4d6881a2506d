"""Skip-layer guidance of SD3.5: away from what the network predicts without some of its blocks.

guided + scale * (conditional - conditional without the blocks), between two shares of the schedule. It is what ComfyUI's node
SkipLayerGuidanceSD3 computes, which came with Stability AI's SD3.5 Medium; after perturbed-attention guidance (Ahn et al.,
arXiv 2403.17377). All predictions are denoised latents.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn

from ..errors import ConfigError
from .objectives import TRAIN_TIMESTEPS, Objective

STACKS = ("transformer_blocks", "joint_blocks")
"""Names of the list of joint blocks: in diffusers, in ComfyUI."""
FAMILY = "sd3"


@dataclass(frozen=True, kw_only=True)
class SkipLayers:
    """Which blocks are left out, how strongly that counts, and when, as shares of the schedule from its noisy end."""

    layers: tuple[int, ...]
    scale: float = 3.0
    start: float = 0.01
    end: float = 0.15

    def acts(self, objective: Objective, sigma: float) -> bool:
        """Whether a step at this noise level is guided by it."""
        return level(objective, self.end) <= sigma <= level(objective, self.start)


def level(objective: Objective, share: float) -> float:
    """The noise level at a share of the sampling schedule, from 0 (pure noise) to 1 (clean), as ComfyUI counts it."""
    import torch

    if share <= 0:
        return float("inf")
    return 0.0 if share >= 1 else float(objective.sigma_of(torch.tensor([(1 - share) * TRAIN_TIMESTEPS]))[0])


def joint_blocks(module: nn.Module) -> Sequence[nn.Module]:
    """The blocks of an SD3 network, of diffusers or of ComfyUI, also inside of another module. Raises ConfigError without any."""
    for part in module.modules():
        for name in STACKS:
            if isinstance(stack := getattr(part, name, None), nn.ModuleList):
                return list(stack)
    raise ConfigError("skip_layers: this network has no joint blocks; skip-layer guidance is made for SD3.5")


def check_skip_layers(option: str, layers: Sequence[int], module: nn.Module, family: str) -> None:
    """Raise ConfigError for a model of another family, and for blocks that it does not have. `option` is the name in the message."""
    if not layers:
        return
    if family.lower() != FAMILY:
        raise ConfigError(
            f"{option} = {list(layers)}: skip-layer guidance is made for SD3.5, not for {family}; leave it out"
        )
    count = len(joint_blocks(module))
    if any(not 0 <= layer < count for layer in layers):
        raise ConfigError(
            f"{option} = {list(layers)}: this model has blocks 0 to {count - 1}; 7, 8, 9 are usual for SD3.5 Medium"
        )


@contextmanager
def skipping(module: nn.Module, layers: Sequence[int]) -> Iterator[None]:
    """A context in which these blocks hand on text and image as they come."""
    chosen = [joint_blocks(module)[layer] for layer in layers]
    before = [vars(block).get("forward") for block in chosen]
    for block in chosen:
        vars(block)["forward"] = _handed_on
    try:
        yield
    finally:
        for block, forward in zip(chosen, before, strict=True):
            if forward is None:
                del vars(block)["forward"]
            else:
                vars(block)["forward"] = forward


def _handed_on(*args: Tensor, **named: Tensor) -> tuple[Tensor, Tensor]:
    """Text and image, in the order in which both networks return them."""
    if "hidden_states" in named:  # diffusers
        return named["encoder_hidden_states"], named["hidden_states"]
    return args[0], args[1]


def guided_by(skip: SkipLayers, module: nn.Module, predict: Callable[[], Tensor], conditional: Tensor) -> Tensor:
    """What is added to the guided prediction: scale * (conditional - the one without the blocks)."""
    with skipping(module, skip.layers):
        return skip.scale * (conditional - predict())
