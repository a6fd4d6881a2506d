"""Whether a run's loss says that it went wrong: it ends far above its start. `web/verdict.js` is the same for a run that trains."""

import math
from collections.abc import Sequence
from statistics import fmean

from ..types import Record
from .early_stopping import selected_loss

MUCH = 1.5
"""Times the start that a loss may end at."""
ENOUGH = 20
"""Training losses; with fewer, chance decides."""


def growth(lines: Sequence[Record]) -> float:
    """How many times its start the loss ends at, if that is far above it; else 0. `lines` are those of metrics.jsonl.

    The validation loss before the first step is the best start. The training loss is noisy, and a run may be lost at its second
    step, so that nearly all losses of the second half have to lie above the first one, or their mean above twice the mean of
    the first tenth.
    """
    measured = [(int(line["step"]), selected_loss(line)) for line in lines if "held_out" in line]
    if len(measured) > 1 and measured[0][0] == 0:
        ratio = measured[-1][1] / measured[0][1] if measured[0][1] > 0 else 0.0
        return ratio if ratio > MUCH else 0.0
    values = [loss for line in lines if isinstance(loss := line.get("loss"), float) and math.isfinite(loss)]
    if len(values) < ENOUGH:
        return 0.0
    tenth = math.ceil(len(values) / 10)
    begin, end = fmean(values[:tenth]), fmean(values[-tenth:])
    later = sorted(values[len(values) // 2 :])
    if later[int(0.02 * len(later))] > MUCH * values[0] > 0:
        return end / values[0]
    return end / begin if end > 2 * begin > 0 else 0.0


def growth_text(times: float) -> str:
    """The sentence for a log."""
    return f"the loss ended at {times:.1f} times its start: this LoRA is most likely worse than none. Lower optimizer.learning_rate, or take an earlier checkpoint"
