"""The values of a sweep's axes, in the syntax of XYZ plots: `1,2,3`, `0.7-1.3 [4]`, `-1--1 [8]`."""

import math
import re
from collections.abc import Collection

from ..errors import ConfigError, did_you_mean
from ..seeding import derive

_NUMBER = r"-?\d{1,300}(?:\.\d{1,300})?"
_RANGE = re.compile(rf"^\s*({_NUMBER})\s*-\s*({_NUMBER})\s*\[\s*(\d{{1,12}})\s*\]\s*$")
MAX_VALUES = 1000
MAX_SEED = 2**32


def parse_numbers(name: str, text: str) -> list[float]:
    """The numbers of "0.7,1" or "0.7-1.3 [4]" (4 values, both ends included). Raises ConfigError naming the option `name`."""
    if match := _RANGE.match(text):
        low, high, count = float(match[1]), float(match[2]), int(match[3])
        _check_count(name, text, count)
        return [low] if count == 1 else [low + (high - low) * i / (count - 1) for i in range(count)]
    try:
        values = [float(part) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise ConfigError(f'{name} = {text!r}: write numbers as "1", "0.7,1" or "0.7-1.3 [4]"') from error
    if not values or not all(math.isfinite(value) for value in values):
        raise ConfigError(f'{name} = {text!r}: write at least one number, e.g. "1"')
    return values


def parse_seeds(name: str, text: str, seed: int) -> list[int]:
    """The seeds of "0,1", "5-8 [4]", or "-1--1 [8]" for 8 random seeds, which are derived from `seed`. Raises ConfigError."""
    match = _RANGE.match(text)
    if match and match[1] == match[2] == "-1":
        _check_count(name, text, int(match[3]))
        return [derive(seed, "sweep seed", i) % MAX_SEED for i in range(int(match[3]))]
    seeds = [round(value) for value in parse_numbers(name, text)]
    return [derive(seed, "sweep seed", i) % MAX_SEED if value == -1 else value for i, value in enumerate(seeds)]


def parse_counts(name: str, text: str) -> list[int]:
    """The whole numbers of "10,20" or "10-30 [3]", from 1. Raises ConfigError."""
    values = parse_numbers(name, text)
    if any(value < 1 or value != round(value) for value in values):
        raise ConfigError(f'{name} = {text!r}: write whole numbers from 1, e.g. "10,20"')
    return [round(value) for value in values]


def parse_samplers(
    name: str, text: str, samplers: Collection[str], schedulers: Collection[str]
) -> list[tuple[str, str]]:
    """The pairs (sampler, scheduler) of "euler/normal, dpmpp_2m/karras". Raises ConfigError for an unknown name."""
    pairs = []
    for part in (part.strip() for part in text.split(",") if part.strip()):
        sampler, slash, scheduler = (piece.strip() for piece in part.partition("/"))
        if not slash:
            raise ConfigError(f'{name} = {text!r}: {part!r} has no scheduler; write "euler/normal, dpmpp_2m/karras"')
        for word, known in ((sampler, samplers), (scheduler, schedulers)):
            if word not in known:
                raise ConfigError(f"{name} = {text!r}: {did_you_mean(word, list(known))}")
        pairs.append((sampler, scheduler))
    return pairs


def _check_count(name: str, text: str, count: int) -> None:
    if not 1 <= count <= MAX_VALUES:
        raise ConfigError(f"{name} = {text!r}: use 1 to {MAX_VALUES} values")
