"""Curves as IMAGEs."""

from collections.abc import Sequence

from torch import Tensor

from ....trainer.config.run import ScheduleConfig
from ....trainer.drawing.plots import ACCENT, as_image, new_figure, rate_plot
from ....trainer.training.schedule import lr_factor
from ....trainer.types import Record
from ..encoding.images import to_image

INK, PALE, SECOND = "#1c1e22", "#b9c9ea", "#c2582b"


def curve_image(schedule: ScheduleConfig, steps: int) -> Tensor:
    """The learning rate over the steps, as a share of its peak."""
    factors = [lr_factor(step, steps, schedule) for step in range(steps)]
    return to_image(as_image(rate_plot(factors, schedule.kind)))


def smoothed(values: Sequence[float], share: float = 0.95) -> list[float]:
    """Exponential average without the pull towards zero at the start."""
    out, average, weight = [], 0.0, 0.0
    for value in values:
        average, weight = share * average + (1 - share) * value, share * weight + 1 - share
        out.append(average / weight)
    return out


def loss_image(lines: Sequence[Record], title: str) -> Tensor:
    """Loss per step, raw and smoothed, and the validation loss where it was measured, with the base's as a line."""
    figure, axes = new_figure()
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
    return to_image(as_image(figure))
