"""Curves as IMAGEs, drawn by matplotlib without a display."""

import io
from collections.abc import Sequence
from typing import Any

from PIL import Image
from torch import Tensor

from ....trainer.config.run import ScheduleConfig
from ....trainer.training.schedule import lr_factor
from ....trainer.types import Record
from ..encoding.images import to_image

INK, ACCENT, PALE, SECOND = "#1c1e22", "#3b6fd4", "#b9c9ea", "#c2582b"


def _figure() -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.6), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    return figure, axes


def _image(figure: Any) -> Tensor:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return to_image(Image.open(buffer))


def curve_image(schedule: ScheduleConfig, steps: int) -> Tensor:
    """The learning rate over the steps, as a share of its peak."""
    figure, axes = _figure()
    drawn = sorted({round(i * (steps - 1) / 999) for i in range(1000)})
    axes.plot(drawn, [lr_factor(step, steps, schedule) for step in drawn], color=ACCENT)
    axes.set(xlabel="step", ylabel="share of the learning rate", ylim=(0, 1.05), title=schedule.kind)
    return _image(figure)


def smoothed(values: Sequence[float], share: float = 0.95) -> list[float]:
    """Exponential average without the pull towards zero at the start."""
    out, average, weight = [], 0.0, 0.0
    for value in values:
        average, weight = share * average + (1 - share) * value, share * weight + 1 - share
        out.append(average / weight)
    return out


def loss_image(lines: Sequence[Record], title: str) -> Tensor:
    """Loss per step, raw and smoothed, and the validation loss where it was measured, with the base's as a line."""
    figure, axes = _figure()
    losses = [(line["step"], line["loss"]) for line in lines if "loss" in line]
    if losses:
        steps, values = zip(*losses, strict=True)
        axes.plot(steps, values, color=PALE, linewidth=0.8, label="loss")
        axes.plot(steps, smoothed(values), color=ACCENT, label="smoothed")
    held_out = [(line["step"], line["held_out"]) for line in lines if "held_out" in line]
    if held_out:
        axes.plot(*zip(*held_out, strict=True), color=SECOND, marker="o", markersize=3, label="validation")
        if held_out[0][0] == 0:
            axes.axhline(held_out[0][1], color=SECOND, linestyle="--", linewidth=1, label="validation, base")
    if losses or held_out:
        axes.legend(frameon=False)
    else:
        axes.text(0.5, 0.5, "no step taken yet", ha="center", va="center", color=INK, transform=axes.transAxes)
    axes.set(xlabel="step", ylabel="loss", title=title)
    return _image(figure)
