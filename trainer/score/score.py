"""Scores of a sheet: what each cell and each checkpoint is worth, which one to take, and how sure that is.

Pure: losses, pictures' features and norms come in, a `Score` goes out; `run_score.py` finds them. The held-out loss
decides where it is known, likeness to the training images elsewhere. Nothing is ever called best without the interval of
its lead.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..types import Shot
from .bootstrap import LEVEL, MIN_UNITS, RESAMPLES, Ranking, rank
from .image_statistics import Look, Nearest, nearest

Key = tuple[str, float]
"""(digest of the LoRA, "" for the base; strength)."""
BASE_KEY: Key = ("", 0.0)


@dataclass(frozen=True)
class Column:
    title: str
    unit: str
    better: str
    """lower, higher, or "" for a number that is neither."""


COLUMNS = {
    "held_out": Column("held-out loss", "mean squared error", "lower"),
    "training_likeness": Column("like the training images", "0 to 1", "higher"),
    "prompt_likeness": Column("like the prompt", "cosine", "higher"),
    "drift": Column("drift without the trigger", "1 - likeness to the base", "lower"),
    "copies": Column("near copies", "share of pictures", "lower"),
    "norm": Column("adapter norm", "Frobenius norm of all changes", ""),
    "growth": Column("norm growth", "times the checkpoint before", ""),
}


class PictureEncoder(Protocol):
    name: str

    def pictures(self, paths: Sequence[Path]) -> list[Any]:
        """Features of each picture, for `compare`."""
        ...

    def texts(self, prompts: Sequence[str]) -> list[Any]:
        """Features of each prompt; empty where the encoder knows no text."""
        ...

    def compare(self, first: Sequence[Any], second: Sequence[Any]) -> NDArray[np.float64]:
        """Likeness of each of N features to each of M, (N, M), 1 for equal ones."""
        ...


@dataclass(frozen=True, kw_only=True)
class Losses:
    """Held-out losses of candidates."""

    values: Mapping[Key, Sequence[Sequence[float]]]
    """{candidate: [[loss per noise level] per image]}, equal shapes."""
    source: str
    """How they came about, in words."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A LoRA at a strength, or the base."""

    key: Key
    label: str
    step: int | None
    shots: tuple[Shot, ...]


@dataclass(frozen=True, kw_only=True)
class Value:
    mean: float
    spread: float | None
    """Standard deviation over seeds; none with a single one, and for what has no seeds."""
    count: int
    """Seeds, or held-out images."""
    low: float | None = None
    high: float | None = None
    """For the measure that decides: interval of the paired distance to the leading candidate, added to that one's mean.
    The leading candidate's mean lies outside exactly where the lead is clear."""


@dataclass(frozen=True, kw_only=True)
class Row:
    label: str
    step: int | None
    values: dict[str, Value]
    """{column: value}; a measure that could not be taken is not there."""


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    choice: str
    """Label of the candidate to take; empty if there is no clear winner."""
    leading: str
    runner_up: str
    tied: tuple[str, ...]
    """Candidates that `leading` is not clearly better than."""
    measure: str
    text: str
    cautions: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Score:
    rows: tuple[Row, ...]
    """In the sheet's order."""
    recommendation: Recommendation | None
    cells: dict[str, dict[str, float]]
    """{cell id: {column: number}}."""
    best: tuple[str, ...]
    """Ids of the cells of the recommended candidate."""
    ranking: tuple[dict[str, Any], ...]
    notes: tuple[str, ...]
    """How each measure was taken, and which were not, with the remedy."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Everything a score is made from."""

    losses: Losses | None
    encoder: PictureEncoder
    looks: Mapping[str, Look]
    """{cell id: statistics}, for near copies."""
    features: Mapping[str, Any]
    """{cell id: the encoder's features}."""
    training_looks: Sequence[Look] = ()
    training_features: Sequence[Any] = ()
    training_names: Sequence[str] = ()
    prompt_features: Mapping[str, Any] = field(default_factory=dict)
    triggers: Sequence[str] = ()
    norms: Mapping[str, float] = field(default_factory=dict)
    """{digest of a LoRA: Frobenius norm of its changes at strength 1}."""
    notes: Sequence[str] = ()


def candidates(shots: Sequence[Shot]) -> list[Candidate]:
    """The sheet's LoRAs at their strengths, in its order."""
    groups: dict[Key, list[Shot]] = {}
    for shot in shots:
        groups.setdefault((shot.settings["lora"], shot.strength), []).append(shot)
    strengths = {key[1] for key in groups if key[0]}
    return [
        Candidate(
            key=key,
            label=members[0].checkpoint
            + (f", strength {key[1]:g}" if key[0] and (len(strengths) > 1 or key[1] != 1) else ""),
            step=step_of(members[0].checkpoint),
            shots=tuple(members),
        )
        for key, members in groups.items()
    ]


def step_of(label: str) -> int | None:
    """100 for "step 100", 0 for the base."""
    match = re.fullmatch(r"(?:.*/)?(?:step |.*-)(\d+)", label)
    return 0 if label == "base" else int(match[1]) if match else None


def setting_of(shot: Shot) -> tuple[Any, ...]:
    """What a cell shares with its counterparts under other candidates."""
    recipe = shot.settings
    rest = tuple(str(recipe.get(name)) for name in ("size", "steps", "sampler", "scheduler"))
    return (shot.prompt, shot.negative, shot.reference, shot.seed, shot.guidance, *rest)


def has_trigger(prompt: str, triggers: Sequence[str]) -> bool:
    """Whether one of the words stands in the prompt as a whole word."""
    return any(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", prompt, re.IGNORECASE) for word in triggers if word)


def score(shots: Sequence[Shot], evidence: Evidence) -> Score:
    """Raises ValueError for a sheet without cells."""
    if not shots:
        raise ValueError("a sheet without cells cannot be scored")
    found = candidates(shots)
    notes = [*evidence.notes, f"likeness by {evidence.encoder.name}"]
    cells: dict[str, dict[str, float]] = {shot.id: {} for shot in shots}
    _likeness(shots, evidence, cells, notes)
    _drift(shots, evidence, cells, notes)
    near = _copies(shots, evidence, cells)
    rankings = _rankings(found, evidence, cells, notes)
    rows = _rows(found, evidence, cells, rankings)
    recommendation = _recommend(rankings, _cautions(found, near, evidence)) if rankings else None
    choice = recommendation.choice if recommendation else ""
    best = next((candidate.shots for candidate in found if candidate.label == choice), ())
    return Score(
        rows=rows,
        recommendation=recommendation,
        cells=cells,
        best=tuple(shot.id for shot in best),
        ranking=tuple(asdict(place) for place in rankings[1].places) if rankings else (),
        notes=tuple(notes),
    )


def _likeness(shots: Sequence[Shot], evidence: Evidence, cells: dict[str, dict[str, float]], notes: list[str]) -> None:
    encoder, features = evidence.encoder, evidence.features
    if evidence.training_features:
        matrix_NM = encoder.compare([features[shot.id] for shot in shots], evidence.training_features)
        for shot, row in zip(shots, matrix_NM, strict=True):
            cells[shot.id]["training_likeness"] = float(row.mean())
    if evidence.prompt_features:
        for shot in shots:
            [[cosine]] = encoder.compare([features[shot.id]], [evidence.prompt_features[shot.prompt]])
            cells[shot.id]["prompt_likeness"] = float(cosine)
    else:
        notes.append("likeness to the prompt not measured: it needs a CLIP with its text encoder (--encoder FOLDER)")


def _drift(shots: Sequence[Shot], evidence: Evidence, cells: dict[str, dict[str, float]], notes: list[str]) -> None:
    """How far a cell is from the base's, where nothing asks for what was trained."""
    if not any(evidence.triggers):
        notes.append("drift not measured: name the trained word (--trigger), and sweep a prompt without it")
        return
    base = {setting_of(shot): shot for shot in shots if not shot.settings["lora"]}
    plain = [shot for shot in shots if not has_trigger(shot.prompt, evidence.triggers) and setting_of(shot) in base]
    if not plain:
        notes.append(
            "drift not measured: it needs the base in the sheet, and a prompt without " + " / ".join(evidence.triggers)
        )
    for shot in plain:
        pair = evidence.features[shot.id], evidence.features[base[setting_of(shot)].id]
        [[alike]] = evidence.encoder.compare(pair[:1], pair[1:])
        cells[shot.id]["drift"] = max(0.0, 1 - float(alike))


def _copies(shots: Sequence[Shot], evidence: Evidence, cells: dict[str, dict[str, float]]) -> dict[str, Nearest]:
    """{cell id: the training image it repeats}."""
    if not evidence.training_looks:
        return {}
    found = {shot.id: nearest(evidence.looks[shot.id], evidence.training_looks) for shot in shots}
    for cell, near in found.items():
        cells[cell]["copies"] = float(near.is_copy)
        cells[cell]["nearest_correlation"] = near.correlation
    return {cell: near for cell, near in found.items() if near.is_copy}


def units_of(losses_IL: Sequence[Sequence[float]]) -> list[float]:
    """One number per held-out image; with few images, one per image and noise level."""
    if len(losses_IL) >= MIN_UNITS:
        return [float(np.mean(row)) for row in losses_IL]
    return [value for row in losses_IL for value in row]


def _rankings(
    found: Sequence[Candidate], evidence: Evidence, cells: Mapping[str, Mapping[str, float]], notes: list[str]
) -> tuple[str, Ranking] | None:
    """(measure that decides, ranking by it); none where nothing can decide."""
    losses = evidence.losses
    measured = [c for c in found if losses is not None and c.key in losses.values]
    if losses is not None and len(measured) > 1:
        notes.append(f"held-out loss: {losses.source}; {_words(losses)}")
        if left := [candidate.label for candidate in found if candidate not in measured]:
            notes.append(f"held-out loss unknown, so not ranked: {', '.join(left)}")
        rows = [units_of(losses.values[candidate.key]) for candidate in measured]
        return "held_out", rank([candidate.label for candidate in measured], rows, lower_is_better=True)
    if not evidence.training_features:
        notes.append("nothing decides: neither a held-out loss nor the training images are known")
        return None
    notes.append("no held-out loss is known, so likeness to the training images decides; it also rewards copying")
    settings = set.intersection(*({setting_of(shot) for shot in candidate.shots} for candidate in found))
    triggered = {s for s in settings if has_trigger(s[0], evidence.triggers)} or settings
    order = sorted(triggered, key=str)
    if len(found) < 2 or not order:
        notes.append("nothing to rank: the sheet holds no two candidates with a cell in common")
        return None
    rows = []
    for candidate in found:
        by_setting = {setting_of(shot): cells[shot.id]["training_likeness"] for shot in candidate.shots}
        rows.append([by_setting[setting] for setting in order])
    return "training_likeness", rank([candidate.label for candidate in found], rows, lower_is_better=False)


def _words(losses: Losses) -> str:
    rows = next(iter(losses.values.values()))
    return f"{len(rows)} images x {len(rows[0])} noise levels, the same noise for all"


def _rows(
    found: Sequence[Candidate],
    evidence: Evidence,
    cells: Mapping[str, Mapping[str, float]],
    rankings: tuple[str, Ranking] | None,
) -> tuple[Row, ...]:
    rows: list[Row] = []
    before: dict[float, float] = {}
    for candidate in found:
        values: dict[str, Value] = {}
        if evidence.losses is not None and candidate.key in evidence.losses.values:
            rows_IL = evidence.losses.values[candidate.key]
            values["held_out"] = Value(mean=float(np.mean(rows_IL)), spread=None, count=len(rows_IL))
        for name in ("training_likeness", "prompt_likeness", "drift", "copies"):
            if by_seed := _by_seed(candidate.shots, cells, name):
                values[name] = _value(by_seed)
        digest, strength = candidate.key
        if digest in evidence.norms:
            norm = abs(strength) * evidence.norms[digest]
            values["norm"] = Value(mean=norm, spread=None, count=1)
            if before.get(strength):
                values["growth"] = Value(mean=norm / before[strength], spread=None, count=1)
            before[strength] = norm
        if rankings and candidate.label in rankings[1].leads:
            measure, ranking = rankings
            low, high = _against_first(candidate.label, measure, ranking)
            values[measure] = replace(values[measure], low=low, high=high)
        rows.append(Row(label=candidate.label, step=candidate.step, values=values))
    return tuple(rows)


def _against_first(label: str, measure: str, ranking: Ranking) -> tuple[float, float]:
    """Where the candidate lies if the first one lies at its mean: the paired interval, in the measure's own numbers."""
    sign = 1 if COLUMNS[measure].better == "lower" else -1
    _, low, high = ranking.leads[label]
    ends = [ranking.first.mean + sign * end for end in (low, high)]
    return min(ends), max(ends)


def _by_seed(shots: Sequence[Shot], cells: Mapping[str, Mapping[str, float]], name: str) -> list[float]:
    """Means over everything else, one per seed."""
    groups: dict[int, list[float]] = {}
    for shot in shots:
        if name in cells[shot.id]:
            groups.setdefault(shot.seed, []).append(cells[shot.id][name])
    return [float(np.mean(values)) for values in groups.values()]


def _value(numbers: Sequence[float]) -> Value:
    spread = float(np.std(numbers, ddof=1)) if len(numbers) > 1 else None
    return Value(mean=float(np.mean(numbers)), spread=spread, count=len(numbers))


def _cautions(found: Sequence[Candidate], near: Mapping[str, Nearest], evidence: Evidence) -> dict[str, list[str]]:
    """{candidate: what speaks against it}."""
    cautions: dict[str, list[str]] = {}
    for candidate in found:
        copies = [near[shot.id] for shot in candidate.shots if shot.id in near]
        if copies and candidate.key[0]:
            names = ", ".join(sorted({evidence.training_names[copy.index] for copy in copies})[:3])
            what = f"{len(copies)} of {len(candidate.shots)} pictures nearly copy training images ({names})"
            cautions.setdefault(candidate.label, []).append(what)
    return cautions


def _recommend(rankings: tuple[str, Ranking], cautions: Mapping[str, Sequence[str]]) -> Recommendation:
    measure, ranking = rankings
    column, first, second = COLUMNS[measure], ranking.places[0], ranking.places[1]
    lead, low, high = ranking.leads[second.name]
    sure = f"{LEVEL:.0%} interval {low:.3g} to {high:.3g}, {ranking.units} paired measurements"
    how = f"{'lowest' if column.better == 'lower' else 'highest'} {column.title} ({first.mean:.5g})"
    odds = f"first in {first.share_best:.0%} of {RESAMPLES:,} resamplings"
    if ranking.is_clear:
        text = f"recommended: {first.name}. It has the {how}; it leads the runner-up {second.name} by {lead:.3g} ({sure}), {odds}."
    elif ranking.units < MIN_UNITS:
        text = f"no clear winner: {first.name} has the {how}, but {ranking.units} measurements are too few to tell (at least {MIN_UNITS})."
    else:
        worst = ranking.leads[ranking.tied[0]]
        text = f"no clear winner: {first.name} has the {how}, but its lead over {ranking.tied[0]} may be chance ({LEVEL:.0%} interval {worst[1]:.3g} to {worst[2]:.3g}, {ranking.units} paired measurements), {odds}. Not told apart: {', '.join([first.name, *ranking.tied])}."
    concerned = (first.name, second.name) if ranking.is_clear else (first.name, *ranking.tied)
    return Recommendation(
        choice=first.name if ranking.is_clear else "",
        leading=first.name,
        runner_up=second.name,
        tied=ranking.tied,
        measure=measure,
        text=text,
        cautions=tuple(f"{name}: {caution}" for name in concerned for caution in cautions.get(name, ())),
    )
