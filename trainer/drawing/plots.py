"""Curves as images, drawn by matplotlib without a display."""

import io
from collections.abc import Sequence
from typing import Any

from PIL import Image

ACCENT = "#3b6fd4"
POINTS = 2000
"""Points of a curve; a longer one is drawn through as many of its steps."""


def new_figure() -> tuple[Any, Any]:
    """An empty figure and its axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.6), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    return figure, axes


def png(figure: Any) -> bytes:
    """A figure as the content of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def as_image(figure: Any) -> Image.Image:
    """A figure as it looks."""
    return Image.open(io.BytesIO(png(figure)))


def rate_plot(factors: Sequence[float], title: str, peak: float | None = None) -> Any:
    """A figure of the learning rate at every step: `factors` of the peak, or the rate itself where the peak is known."""
    figure, axes = new_figure()
    last = len(factors) - 1
    steps = sorted({round(i * last / (POINTS - 1)) for i in range(POINTS)})
    axes.plot(steps, [factors[step] * (peak or 1.0) for step in steps], color=ACCENT)
    axes.set(xlabel="step", ylabel="learning rate" if peak else "share of the learning rate", title=title)
    axes.set_ylim(0, 1.05 * max(1.0, *factors) * (peak or 1.0))
    return figure
