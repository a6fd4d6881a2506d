"""Scores of a sweep: measures of each cell and each checkpoint, the checkpoint to take, and the confidence in that choice.

Pure: losses, features of images and norms come in, a `Score` goes out; `run.py` gathers them. The validation loss decides
where it is known, similarity to the training images elsewhere. No checkpoint is recommended unless the confidence interval
of its lead excludes 0.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

import numpy as np

from ..data.clip import Feature, ImageEncoder
from ..data.intervals import LEVEL, RESAMPLES, mean_interval
from ..types import Array, Cell, Json
from .bleed import are_several, bleed, bleed_caution, has_trigger
from .bootstrap import MIN_UNITS, Ranking, rank
from .candidates import Candidate, RowKey, candidates, setting_of
from .columns import COLUMNS
from .image_statistics import ImageFeatures, Nearest, nearest

SIMILARITY = "training_likeness"
INTERVALS = (SIMILARITY, "prompt_likeness", "drift", "bleed")
"""Measures whose mean has an interval of its own."""


@dataclass(frozen=True, kw_only=True)
class Losses:
    """Validation losses of candidates."""

    values: Mapping[RowKey, Sequence[Sequence[float]]]
    """{candidate: [[loss per noise level] per held-out image]}, equal shapes."""
    source: str
    """How they were measured, in words."""
    even: Mapping[RowKey, float] = field(default_factory=dict)
    """{candidate: mean loss at evenly spread noise levels}; empty with the ruler of version 0.1."""


@dataclass(frozen=True, kw_only=True)
class ScoreValue:
    """A measure of one candidate."""

    mean: float
    spread: float | None
    """Standard deviation over seeds; None with a single seed, and for a measure that does not depend on seeds."""
    count: int
    """Seeds, or held-out images."""
    low: float | None = None
    high: float | None = None
    """For the measure that decides: confidence interval of the paired difference to the leading candidate, added to the mean
    of that candidate. The mean of the leading candidate lies outside the interval exactly where the lead is clear. For the
    measures of `INTERVALS`: that of the mean, over the cells."""

    def text(self) -> str:
        """The mean with its interval, for a sentence."""
        has_interval = self.low is not None and self.high is not None
        return f"{self.mean:.3f}" + (
            f" ({LEVEL:.0%} interval {self.low:.3f} to {self.high:.3f})" if has_interval else ""
        )


@dataclass(frozen=True, kw_only=True)
class ScoreRow:
    """A candidate's line in the table."""

    label: str
    step: int | None
    values: dict[str, ScoreValue]
    """{column: value}; a measure that could not be taken is left out."""


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """Which candidate to take, and why."""

    choice: str
    """Label of the candidate to take; empty without a clear winner."""
    leading: str
    runner_up: str
    tied: tuple[str, ...]
    """Candidates that `leading` is not clearly better than."""
    measure: str
    text: str
    cautions: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Score:
    """All measures of a sweep with the recommendation."""

    rows: tuple[ScoreRow, ...]
    """In the order of the sweep."""
    recommendation: Recommendation | None
    cells: dict[str, dict[str, float]]
    """{cell id: {column: number}}."""
    best: tuple[str, ...]
    """Ids of the cells of the recommended candidate."""
    ranking: tuple[Json, ...]
    notes: tuple[str, ...]
    """How each measure was taken, and which could not be taken, with the remedy."""

    def to_dict(self) -> Json:
        """The score as plain data, for JSON."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Everything a score is made from."""

    losses: Losses | None
    encoder: ImageEncoder
    statistics: Mapping[str, ImageFeatures]
    """{cell id: statistics}, to find memorised images."""
    features: Mapping[str, Feature]
    """{cell id: features by `encoder`}."""
    training_statistics: Sequence[ImageFeatures] = ()
    training_features: Sequence[Feature] = ()
    training_names: Sequence[str] = ()
    training_captions: Sequence[str] = ()
    """In the order of `training_features`; empty where they are not known."""
    prompt_features: Mapping[str, Feature] = field(default_factory=dict)
    triggers: Sequence[str] = ()
    norms: Mapping[str, float] = field(default_factory=dict)
    """{digest of a LoRA: Frobenius norm of its changes at strength 1}."""
    notes: Sequence[str] = ()


def score(cells: Sequence[Cell], evidence: Evidence) -> Score:
    """Score the cells of a sweep. Raises ValueError without cells."""
    if not cells:
        raise ValueError("a sweep without cells cannot be scored")
    found = candidates(cells)
    notes = [*evidence.notes, f"similarity by {evidence.encoder.name}"]
    by_cell: dict[str, dict[str, float]] = {cell.id: {} for cell in cells}
    _similarity(cells, evidence, by_cell, notes)
    _drift(cells, evidence, by_cell, notes)
    near = _copies(cells, evidence, by_cell)
    rankings = _rankings(found, evidence, by_cell, notes)
    rows = _rows(found, evidence, by_cell, rankings)
    recommendation = _recommend(rankings, _cautions(found, near, evidence, rows), rows) if rankings else None
    choice = recommendation.choice if recommendation else ""
    best = next((candidate.cells for candidate in found if candidate.label == choice), ())
    return Score(
        rows=rows,
        recommendation=recommendation,
        cells=by_cell,
        best=tuple(cell.id for cell in best),
        ranking=tuple(asdict(place) for place in rankings[1].places) if rankings else (),
        notes=tuple(notes),
    )


def _similarity(
    cells: Sequence[Cell], evidence: Evidence, by_cell: dict[str, dict[str, float]], notes: list[str]
) -> None:
    encoder, features = evidence.encoder, evidence.features
    if evidence.training_features:
        matrix_NM = encoder.compare([features[cell.id] for cell in cells], evidence.training_features)
        for cell, row in zip(cells, matrix_NM, strict=True):
            by_cell[cell.id]["training_likeness"] = float(row.mean())
        _bleed(cells, evidence, matrix_NM, by_cell, notes)
    if evidence.prompt_features:
        for cell in cells:
            [[cosine]] = encoder.compare([features[cell.id]], [evidence.prompt_features[cell.prompt]])
            by_cell[cell.id]["prompt_likeness"] = float(cosine)
    else:
        notes.append("prompt similarity not measured: it needs a CLIP with its text encoder (--clip-model FOLDER)")


def _bleed(
    cells: Sequence[Cell], evidence: Evidence, matrix_NM: Array, by_cell: dict[str, dict[str, float]], notes: list[str]
) -> None:
    """How much of the other concepts a cell shows, where there are several."""
    if not are_several(evidence.training_captions, evidence.triggers):
        return
    among_MM = evidence.encoder.compare(evidence.training_features, evidence.training_features)
    prompts = [cell.prompt for cell in cells]
    found = bleed(prompts, evidence.training_captions, evidence.triggers, matrix_NM, among_MM)
    by_cell_found = {cell.id: value for cell, value in zip(cells, found, strict=True) if value is not None}
    for name, value in by_cell_found.items():
        by_cell[name]["bleed"] = value
    if not by_cell_found:
        notes.append(f"bleed not measured: sweep a prompt with each of {' / '.join(evidence.triggers)} alone")


def _drift(cells: Sequence[Cell], evidence: Evidence, by_cell: dict[str, dict[str, float]], notes: list[str]) -> None:
    """How far a cell is from the cell of the base, for prompts without a trigger word."""
    if not any(evidence.triggers):
        notes.append("drift not measured: name the trigger word, and sweep a prompt without it")
        return
    base = {setting_of(cell): cell for cell in cells if not cell.settings["lora"]}
    plain = [cell for cell in cells if not has_trigger(cell.prompt, evidence.triggers) and setting_of(cell) in base]
    if not plain:
        notes.append(
            "drift not measured: the sweep needs the base, and a prompt without " + " / ".join(evidence.triggers)
        )
    for cell in plain:
        pair = evidence.features[cell.id], evidence.features[base[setting_of(cell)].id]
        [[alike]] = evidence.encoder.compare(pair[:1], pair[1:])
        by_cell[cell.id]["drift"] = max(0.0, 1 - float(alike))


def _copies(cells: Sequence[Cell], evidence: Evidence, by_cell: dict[str, dict[str, float]]) -> dict[str, Nearest]:
    """Returns {cell id: the training image that the cell nearly copies}."""
    if not evidence.training_statistics:
        return {}
    found = {cell.id: nearest(evidence.statistics[cell.id], evidence.training_statistics) for cell in cells}
    for cell_id, near in found.items():
        by_cell[cell_id]["copies"] = float(near.is_copy)
        by_cell[cell_id]["nearest_correlation"] = near.correlation
    return {cell_id: near for cell_id, near in found.items() if near.is_copy}


def units_of(losses_IL: Sequence[Sequence[float]]) -> list[float]:
    """The paired measurements of a candidate: one per held-out image, or one per image and noise level with few images."""
    if len(losses_IL) >= MIN_UNITS:
        return [float(np.mean(row)) for row in losses_IL]
    return [value for row in losses_IL for value in row]


def _rankings(
    found: Sequence[Candidate], evidence: Evidence, by_cell: Mapping[str, Mapping[str, float]], notes: list[str]
) -> tuple[str, Ranking] | None:
    """Returns (measure that decides, ranking by it); None where no measure can decide."""
    losses = evidence.losses
    measured = [c for c in found if losses is not None and c.key in losses.values]
    if losses is not None and len(measured) > 1:
        notes.append(f"validation loss: {losses.source}; {_words(losses)}")
        if left := [candidate.label for candidate in found if candidate not in measured]:
            notes.append(f"validation loss unknown, so not ranked: {', '.join(left)}")
        rows = [units_of(losses.values[candidate.key]) for candidate in measured]
        return "held_out", rank([candidate.label for candidate in measured], rows, lower_is_better=True)
    if not evidence.training_features:
        notes.append("no recommendation: neither a validation loss nor the training images are known")
        return None
    notes.append(
        "no validation loss is known, so similarity to the training images decides; it also rewards memorised images"
    )
    settings = set.intersection(*({setting_of(cell) for cell in candidate.cells} for candidate in found))
    triggered = {s for s in settings if has_trigger(str(s[0]), evidence.triggers)} or settings
    order = sorted(triggered, key=str)
    if len(found) < 2 or not order:
        notes.append("nothing to rank: no two checkpoints of the sweep have a cell with the same settings")
        return None
    rows = []
    for candidate in found:
        by_setting = {setting_of(cell): by_cell[cell.id]["training_likeness"] for cell in candidate.cells}
        rows.append([by_setting[setting] for setting in order])
    return "training_likeness", rank([candidate.label for candidate in found], rows, lower_is_better=False)


def _words(losses: Losses) -> str:
    rows = next(iter(losses.values.values()))
    return f"{len(rows)} held-out images x {len(rows[0])} noise levels, the same noise for every checkpoint"


def _rows(
    found: Sequence[Candidate],
    evidence: Evidence,
    by_cell: Mapping[str, Mapping[str, float]],
    rankings: tuple[str, Ranking] | None,
) -> tuple[ScoreRow, ...]:
    rows: list[ScoreRow] = []
    before: dict[float, float] = {}
    for candidate in found:
        values: dict[str, ScoreValue] = {}
        if evidence.losses is not None and candidate.key in evidence.losses.values:
            rows_IL = evidence.losses.values[candidate.key]
            values["held_out"] = ScoreValue(mean=float(np.mean(rows_IL)), spread=None, count=len(rows_IL))
            if (even := evidence.losses.even.get(candidate.key)) is not None:
                values["held_out_even"] = ScoreValue(mean=even, spread=None, count=len(rows_IL))
        for name in ("training_likeness", "prompt_likeness", "drift", "bleed", "copies"):
            if by_seed := _by_seed(candidate.cells, by_cell, name):
                values[name] = _value(by_seed)
            each = [by_cell[cell.id][name] for cell in candidate.cells if name in by_cell[cell.id]]
            if name in INTERVALS and len(each) > 1:
                low, high = mean_interval(each)
                values[name] = replace(values[name], low=low, high=high)
        digest, strength = candidate.key
        if digest in evidence.norms:
            norm = abs(strength) * evidence.norms[digest]
            values["norm"] = ScoreValue(mean=norm, spread=None, count=1)
            if before.get(strength):
                values["growth"] = ScoreValue(mean=norm / before[strength], spread=None, count=1)
            before[strength] = norm
        if rankings and candidate.label in rankings[1].leads:
            measure, ranking = rankings
            low, high = _against_first(candidate.label, measure, ranking)
            values[measure] = replace(values[measure], low=low, high=high)
        rows.append(ScoreRow(label=candidate.label, step=candidate.step, values=values))
    return tuple(rows)


def _against_first(label: str, measure: str, ranking: Ranking) -> tuple[float, float]:
    """The confidence interval of the difference to the leading candidate, added to that candidate's mean."""
    sign = 1 if COLUMNS[measure].better == "lower" else -1
    _, low, high = ranking.leads[label]
    ends = [ranking.first.mean + sign * end for end in (low, high)]
    return min(ends), max(ends)


def _by_seed(cells: Sequence[Cell], by_cell: Mapping[str, Mapping[str, float]], name: str) -> list[float]:
    """One mean per seed, over all other settings."""
    groups: dict[int, list[float]] = {}
    for cell in cells:
        if name in by_cell[cell.id]:
            groups.setdefault(cell.seed, []).append(by_cell[cell.id][name])
    return [float(np.mean(values)) for values in groups.values()]


def _value(numbers: Sequence[float]) -> ScoreValue:
    spread = float(np.std(numbers, ddof=1)) if len(numbers) > 1 else None
    return ScoreValue(mean=float(np.mean(numbers)), spread=spread, count=len(numbers))


def _cautions(
    found: Sequence[Candidate], near: Mapping[str, Nearest], evidence: Evidence, rows: Sequence[ScoreRow]
) -> dict[str, list[str]]:
    """Returns {candidate: reasons against it}."""
    cautions: dict[str, list[str]] = {}
    for row in rows:
        if (value := row.values.get("bleed")) and (text := bleed_caution(value.mean, value.low, value.high)):
            cautions[row.label] = [text]
    for candidate in found:
        copies = [near[cell.id] for cell in candidate.cells if cell.id in near]
        if copies and candidate.key[0]:
            names = ", ".join(sorted({evidence.training_names[copy.index] for copy in copies})[:3])
            what = f"{len(copies)} of {len(candidate.cells)} images nearly copy training images ({names})"
            cautions.setdefault(candidate.label, []).append(what)
    return cautions


def _recommend(
    rankings: tuple[str, Ranking], cautions: Mapping[str, Sequence[str]], rows: Sequence[ScoreRow]
) -> Recommendation:
    measure, ranking = rankings
    column, first, second = COLUMNS[measure], ranking.places[0], ranking.places[1]
    lead, low, high = ranking.leads[second.name]
    sure = f"{LEVEL:.0%} interval {low:.3g} to {high:.3g}, {ranking.units} paired measurements"
    how = f"{'lowest' if column.better == 'lower' else 'highest'} {column.title} ({first.mean:.5g})"
    odds = f"first in {first.share_best:.0%} of {RESAMPLES:,} bootstrap resamples"
    if ranking.is_clear:
        text = f"recommended: {first.name}. It has the {how}; it leads the runner-up {second.name} by {lead:.3g} ({sure}), {odds}."
    elif ranking.units < MIN_UNITS:
        text = f"no clear winner: {first.name} has the {how}, but {ranking.units} paired measurements are too few (at least {MIN_UNITS} are needed)."
    else:
        worst = ranking.leads[ranking.tied[0]]
        text = f"no clear winner: {first.name} has the {how}, but its lead over {ranking.tied[0]} may be due to chance ({LEVEL:.0%} interval {worst[1]:.3g} to {worst[2]:.3g}, {ranking.units} paired measurements), {odds}. Not distinguishable: {', '.join([first.name, *ranking.tied])}."
    if measure != SIMILARITY:
        text += _similarity_said(rows, first.name, second.name)
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


def _similarity_said(rows: Sequence[ScoreRow], first: str, second: str) -> str:
    """A sentence on how alike the images of two candidates are to the training images; "" where that was not measured."""
    found = {row.label: row.values[SIMILARITY] for row in rows if SIMILARITY in row.values}
    if first not in found:
        return ""
    return (
        " Image similarity: "
        + ", ".join(f"{name} {found[name].text()}" for name in (first, second) if name in found)
        + "."
    )
