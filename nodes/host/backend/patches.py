"""Patches of a MODEL's weights as ComfyUI keeps them, told apart: plain LoRA, LoHa and LoKr, which training can compute next to the
weights, and everything else, which it cannot. Attributes and dictionaries are read, nothing of ComfyUI is called."""

import hashlib
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ....trainer.errors import ModelFileError
from ..comfy_types import ModelPatcher

NAMES: Mapping[str, tuple[str, ...]] = {
    "lora": ("lora_up.weight", "lora_down.weight", "alpha", "lora_mid.weight", "dora_scale", "reshape_weight"),
    "loha": ("hada_w1_a", "hada_w1_b", "alpha", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2", "dora_scale"),
    "lokr": (
        "lokr_w1", "lokr_w2", "alpha", "lokr_w1_a", "lokr_w1_b", "lokr_w2_a", "lokr_w2_b", "lokr_t2", "dora_scale",
    ),
}  # fmt: skip
"""{name of ComfyUI's adapter class: what its `weights` are, in their order}."""
UNREAD = ("lora_mid.weight", "reshape_weight", "hada_t1", "hada_t2", "lokr_t2", "dora_scale")
"""Tensors that make another change of an adapter than its factors alone."""
DORA = "dora_scale"


@dataclass(frozen=True, kw_only=True)
class Patch:
    """One patch of one weight."""

    key: str
    """Of the state dict: diffusion_model.….weight."""
    strength: float
    adapter: Any
    """ComfyUI's adapter object, or tuples with tensors."""
    kept: float = 1.0
    """Strength of the weight itself: not 1 where models were merged."""
    rows: tuple[int, int, int] | None = None
    """(dimension, first, number) of the part that is changed; None for all."""
    function: object = None
    """What the change goes through before it is added."""

    @property
    def parts(self) -> dict[str, Tensor]:
        """{suffix: tensor} as in a LoRA file. For a readable patch only."""
        values = zip(NAMES[self.adapter.name], self.adapter.weights, strict=True)
        plain = {name: torch.tensor(float(v)) if name == "alpha" else v for name, v in values if v is not None}
        return {name: tensor.detach() for name, tensor in plain.items()}

    def problem(self) -> str:
        """Why it cannot be computed next to the weight; "" if it can."""
        names = NAMES.get(str(getattr(self.adapter, "name", "")))
        if names is None:
            return f"{kind_of(self.adapter)} ({self.key})"
        values = dict(zip(names, self.adapter.weights, strict=False))
        if len(names) != len(self.adapter.weights):
            return f"{self.adapter.name} of an unknown form ({self.key})"
        if odd := next((name for name in UNREAD if values.get(name) is not None), ""):
            return f"{'DoRA' if odd == DORA else f'{self.adapter.name} with {odd}'} ({self.key})"
        if self.kept != 1.0:
            return f"merged weights ({self.key})"
        if self.function is not None or (self.rows is not None and self.rows[0] != 0):
            return f"{self.adapter.name} of reordered rows ({self.key})"
        return (
            "" if self.key.endswith(".weight") else f"{self.adapter.name} of something else than a weight ({self.key})"
        )


def kind_of(adapter: object) -> str:
    """What people call a patch that is no adapter: diff, set, merged weights, or the name of its class."""
    if isinstance(adapter, tuple) and len(adapter) == 2 and isinstance(adapter[0], str):
        return adapter[0]
    if isinstance(adapter, tuple | list):
        return "merged weights"
    return str(getattr(adapter, "name", type(adapter).__name__))


def patches_of(patcher: ModelPatcher) -> Iterator[Patch]:
    """Every patch of a MODEL's weights, in ComfyUI's order."""
    for key, chain in patcher.patches.items():
        for strength, adapter, kept, rows, function in chain:
            yield Patch(
                key=key, strength=float(strength), adapter=adapter, kept=float(kept), rows=rows, function=function
            )


def patch_problems(patcher: ModelPatcher) -> list[str]:
    """The patches that training could not compute, by their kind and first weight, one of each kind."""
    found: dict[str, str] = {}
    for patch in patches_of(patcher):
        if problem := patch.problem():
            found.setdefault(problem.partition(" (")[0], problem)
    return list(found.values())


def check_readable(patch: Patch, what: str) -> None:
    """Raise ModelFileError, which names the kind, for a patch that cannot be computed next to the weights."""
    if problem := patch.problem():
        raise ModelFileError(
            f"{what} holds a kind of change that cannot be computed next to the weights: {problem}. Save the merged model to a file and train on that"
        )


def patches_digest(patcher: ModelPatcher) -> str:
    """The sha256 of what the patches of a MODEL are, strengths too; "" for a MODEL without."""
    if not patcher.patches:
        return ""
    whole = hashlib.sha256()
    for patch in sorted(patches_of(patcher), key=lambda patch: patch.key):  # stable: those of one weight stay in order
        whole.update(f"{patch.key} {patch.strength:g} {patch.rows} {patch.problem()}".encode())
        for name, tensor in sorted(({} if patch.problem() else patch.parts).items()):
            whole.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            whole.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return whole.hexdigest()


def without_patches(patcher: ModelPatcher) -> ModelPatcher:
    """The MODEL without patches of its weights: itself where it has none, else a clone."""
    if not patcher.patches:
        return patcher
    plain: Any = patcher.clone()
    plain.patches = {}
    plain.patches_uuid = uuid.uuid4()  # by which ComfyUI tells which patches are in the weights at the moment
    result: ModelPatcher = plain
    return result
