"""What a sweep compares: a LoRA at a strength, or the base; and which cells of two of them belong together."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..types import Cell

RowKey = tuple[str, float]
"""(digest of the LoRA, "" for the base; strength)."""
BASE_KEY: RowKey = ("", 0.0)


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A LoRA at a strength, or the base."""

    key: RowKey
    label: str
    step: int | None
    cells: tuple[Cell, ...]


def candidates(cells: Sequence[Cell]) -> list[Candidate]:
    """The LoRAs of a sweep at each of their strengths, and the base, in the order of the cells."""
    groups: dict[RowKey, list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.settings["lora"], cell.strength), []).append(cell)
    strengths = {key[1] for key in groups if key[0]}
    return [
        Candidate(
            key=key,
            label=members[0].checkpoint
            + (f", strength {key[1]:g}" if key[0] and (len(strengths) > 1 or key[1] != 1) else ""),
            step=members[0].step,
            cells=tuple(members),
        )
        for key, members in groups.items()
    ]


def setting_of(cell: Cell) -> tuple[str | int, ...]:
    """Everything that makes a cell except LoRA and strength: equal for the same cell of two candidates."""
    recipe = cell.settings
    rest = tuple(str(recipe.get(name)) for name in ("size", "steps", "sampler", "scheduler"))
    return (cell.prompt, cell.negative, cell.reference, cell.seed, cell.guidance, *rest)
