"""The report of a score: a table as text, CSV, and a plot over the steps."""

import csv
import io
from typing import TYPE_CHECKING

from .columns import COLUMNS
from .score import Score, ScoreRow, ScoreValue

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, ACCENT, PALE, SECOND = "#1c1e22", "#3b6fd4", "#b9c9ea", "#c2582b"


def shown_columns(score: Score) -> list[str]:
    """The measures that at least one candidate has, in the order of `COLUMNS`."""
    return [name for name in COLUMNS if any(name in row.values for row in score.rows)]


def to_text(score: Score) -> str:
    """Table, recommendation with runner-up, cautions, and how everything was measured."""
    names = shown_columns(score)
    heads = ["", *(COLUMNS[name].title for name in names)]
    lines = [[row.label, *(_cell(row.values.get(name)) for name in names)] for row in score.rows]
    widths = [max(len(line[i]) for line in (heads, *lines)) for i in range(len(heads))]
    table = [
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        for line in (heads, *lines)
    ]
    return "\n".join([*table, "", verdict(score), *(f"  ({note})" for note in score.notes)])


def verdict(score: Score) -> str:
    """The recommendation, its runner-up and the reasons against them."""
    chosen = score.recommendation
    if chosen is None:
        return "no recommendation: see the notes"
    return "\n".join([chosen.text, f"runner-up: {chosen.runner_up}", *(f"caution: {text}" for text in chosen.cautions)])


def _cell(value: ScoreValue | None) -> str:
    if value is None:
        return "-"
    text = f"{value.mean:.4g}"
    if value.spread is not None:
        text += f" ± {value.spread:.2g}"
    if value.low is not None and value.high is not None:
        text += f" [{value.low:.4g}, {value.high:.4g}]"
    return text


def to_csv(score: Score) -> str:
    """CSV with one line per candidate: mean, spread and count of every measure."""
    names = shown_columns(score)
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(
        ["candidate", "step", *(f"{name} {part}" for name in names for part in ("mean", "spread", "count"))]
    )
    for row in score.rows:
        writer.writerow([row.label, "" if row.step is None else row.step, *_numbers(row, names)])
    return buffer.getvalue()


def _numbers(row: ScoreRow, names: list[str]) -> list[float | str]:
    found: list[float | str] = []
    for name in names:
        value = row.values.get(name)
        found += (
            ["", "", ""] if value is None else [value.mean, "" if value.spread is None else value.spread, value.count]
        )
    return found


def plot(score: Score, title: str) -> bytes:
    """A PNG: one panel per measure over the steps; the base as a dashed line, the recommended candidate marked."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = [name for name in shown_columns(score) if name != "growth"]
    figure = Figure(figsize=(7.2, 1.1 + 2.1 * max(1, len(names))), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    for number, name in enumerate(names):
        _panel(figure.add_subplot(len(names), 1, number + 1), score, name)
    figure.suptitle(_heading(score, title), color=INK, fontsize=11)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _heading(score: Score, title: str) -> str:
    chosen = score.recommendation
    if chosen is None:
        return f"{title}: no recommendation"
    return (
        f"{title}: recommended {chosen.choice}, runner-up {chosen.runner_up}"
        if chosen.choice
        else f"{title}: no clear winner"
    )


def _panel(axes: "Axes", score: Score, name: str) -> None:
    column = COLUMNS[name]
    rows = [row for row in score.rows if name in row.values]
    trained = [row for row in rows if row.label != "base"]
    by_step = bool(trained) and all(row.step is not None for row in trained) and _is_one_strength(trained)
    places = [float(row.step or 0) if by_step else float(i) for i, row in enumerate(trained)]
    means = [row.values[name].mean for row in trained]
    if trained:
        axes.errorbar(
            places,
            means,
            yerr=_bars(trained, name, means),
            color=ACCENT,
            ecolor=PALE,
            elinewidth=4,
            marker="o",
            markersize=4,
            linestyle="-" if by_step else "none",
        )
    if base := next((row for row in rows if row.label == "base"), None):
        axes.axhline(base.values[name].mean, color=SECOND, linestyle="--", linewidth=1, label="base")
        axes.legend(
            frameon=False, fontsize=8, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.2
        )  # off the marks
    choice = score.recommendation.choice if score.recommendation else ""
    for row, place, mean in zip(trained, places, means, strict=True):
        if row.label == choice:
            axes.plot(
                [place],
                [mean],
                marker="o",
                markersize=11,
                markerfacecolor="none",
                markeredgecolor=SECOND,
                markeredgewidth=2,
            )
    if by_step:
        axes.set_xticks(places, [str(row.step) for row in trained])
        axes.set_xlabel("step", fontsize=8)
    else:
        axes.set_xticks(places, [row.label for row in trained], rotation=20, ha="right", fontsize=8)
        axes.set_xlabel("checkpoint", fontsize=8)
    wish = f" ({column.better} is better)" if column.better else ""
    axes.set_title(f"{column.title}{wish}", fontsize=9, loc="left", color=INK)
    axes.set_ylabel(column.unit, fontsize=8)
    axes.margins(0.06, 0.18)  # space for the mark at the last checkpoint
    if name == "copies":
        axes.set_ylim(-0.15, 1.05)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)


def _is_one_strength(rows: list[ScoreRow]) -> bool:
    steps = [row.step for row in rows]
    return len(set(steps)) == len(steps)


def _bars(rows: list[ScoreRow], name: str, means: list[float]) -> list[list[float]]:
    """Lengths below and above each mean: those of its confidence interval where it has one, else the spread."""
    below, above = [], []
    for row, mean in zip(rows, means, strict=True):
        value = row.values[name]
        spread = value.spread or 0.0
        below.append(max(0.0, mean - value.low) if value.low is not None else spread)
        above.append(max(0.0, value.high - mean) if value.high is not None else spread)
    return [below, above]
