"""Optimizers, schedules and dtypes that several trainers name alike."""

import csv
from functools import cache
from typing import Any

from ..choices import CLASS_PATH
from .table import FOLDER
from .translation import Translation

DECAYING = ("adamw", "adamw8bit", "paged_adamw8bit", "ademamix", "ademamix8bit")
"""Optimizers with a weight decay of 0.01 where nothing is said; others have none."""


def usual_decay(ours: str) -> float:
    """The weight decay of an optimizer, by our name, where nothing is said."""
    return 0.01 if ours in DECAYING else 0.0


@cache
def _table() -> dict[tuple[str, str], tuple[str, str]]:
    """{(trainer or "", name): (our name, difference)}."""
    with (FOLDER / "optimizers.csv").open(encoding="utf-8", newline="") as file:
        return {(row["trainer"], row["theirs"]): (row["ours"], row["difference"]) for row in csv.DictReader(file)}


def our_optimizer(trainer: str, name: str) -> tuple[str, str]:
    """Returns (our name or the path of a class, the difference, or ""); our name is "" for an optimizer that is not here."""
    word = "".join(letter for letter in name.rpartition(".")[2].lower() if letter.isalnum())
    table = _table()
    ours, difference = table.get((trainer, word)) or table.get(("", word)) or ("", "")
    if ours:
        return ours, difference
    return (name, "") if CLASS_PATH.fullmatch(name) else ("", "")


def put_optimizer(translation: Translation, option: str, name: str) -> str:
    """Set the optimizer; one that is not here becomes adamw. Returns our name."""
    ours, difference = our_optimizer(translation.trainer, name)
    if ours:
        translation.put("optimizer.name", ours, option, nearly=difference)
        return ours
    difference = f"there is no {name} here; adamw takes its place, whose learning rate is another"
    translation.put("optimizer.name", "adamw", option, nearly=difference)
    return "adamw"


def put_arguments(
    translation: Translation, arguments: dict[str, Any], *options: str, decay: float | None = None
) -> None:
    """Set weight decay and further arguments of the optimizer. `decay` is the weight decay where the arguments have none."""
    arguments = dict(arguments)
    decay = arguments.pop("weight_decay", decay)
    arguments.pop("lr", None)
    if decay is not None:
        translation.put("optimizer.weight_decay", float(decay), *options)
    fits = {key: value for key, value in arguments.items() if _fits(value)}
    if fits:
        translation.put("optimizer.options", {**translation.settings.get("optimizer.options", {}), **fits}, *options)
    left = [f"{key} = {value!r}" for key, value in arguments.items() if key not in fits]
    if left:
        translation.notes.append(
            f"optimizer.options: {', '.join(left)} is none of a number, a text and a list of numbers; it is left out"
        )
    translation.say("exact", *options)


def _fits(value: Any) -> bool:
    is_list = isinstance(value, list) and all(isinstance(one, int | float) for one in value)
    return is_list or isinstance(value, int | float | str)
