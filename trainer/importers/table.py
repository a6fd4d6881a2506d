"""The options of another trainer, and what each is here: one row of a CSV file in `tables/` for each."""

import csv
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, get_args

How = Literal["exact", "converted", "nearly", "needless", "none"]
"""exact: the same option. converted: the same after a calculation. nearly: with a difference, which the note says. needless:
nothing depends on it here. none: there is no such thing here."""
HOWS: tuple[How, ...] = get_args(How)
FOLDER = Path(__file__).parent / "tables"
TRAINERS = {
    "simpletuner": "SimpleTuner",
    "sd_scripts": "kohya's sd-scripts",
    "ai_toolkit": "ai-toolkit",
    "onetrainer": "OneTrainer",
    "musubi_tuner": "musubi-tuner",
    "diffusion_pipe": "diffusion-pipe",
    "accelerate": "accelerate",
}
"""{name of the table: how people call the trainer}."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """An option of another trainer."""

    part: str
    """The file or the part of a file that it stands in, such as config or data."""
    option: str
    aliases: tuple[str, ...]
    default: str
    """Its value where it is left out, as it is written in that trainer."""
    ours: tuple[str, ...]
    """The options here that it decides, such as training.steps."""
    value: str
    """What `ours` becomes where the option is a switch that is on."""
    how: How
    meaning: str
    note: str


@cache
def rows(trainer: str) -> tuple[Row, ...]:
    """All options of a trainer. Raises OSError for one without a table."""
    with (FOLDER / f"{trainer}.csv").open(encoding="utf-8", newline="") as file:
        return tuple(_row(line) for line in csv.DictReader(file))


def by_name(trainer: str, parts: Iterable[str]) -> dict[str, Row]:
    """Returns {name, or former name: its row} of some parts; of a name in several of them, the row of the last."""
    found: dict[str, Row] = {}
    for part in parts:
        for row in rows(trainer):
            if row.part == part:
                found |= dict.fromkeys(_names(row), row)
    return found


def _names(row: Row) -> Iterator[str]:
    yield row.option
    for alias in row.aliases:
        yield alias.removeprefix("--")


def _row(line: dict[str, str]) -> Row:
    ours, _, value = line["ours"].partition(" = ")
    how = line["how"]
    if how not in HOWS:
        raise ValueError(f"{line['option']}: how = {how!r} is none of {', '.join(HOWS)}")
    return Row(
        part=line["part"],
        option=line["option"],
        aliases=tuple(line["aliases"].split()),
        default=line["default"],
        ours=tuple(re.findall(r"[\w.]+", ours)),
        value=value.strip('"'),
        how=how,
        meaning=line["meaning"],
        note=line["note"],
    )
