"""When the validation loss ends a run early, and which step it recommends."""

import math
from collections.abc import Collection, Sequence

from ..config.run import TrainingConfig, ValidationConfig
from ..data.sample_scores import likeness_text, recorded_likeness
from ..errors import ConfigError
from ..types import Example, Record


def selected_loss(line: Record) -> float:
    """The validation loss of what the LoRA file holds: of the average where there is one."""
    return float(line["held_out_ema"] if "held_out_ema" in line else line["held_out"])


def lowest(lines: Sequence[Record]) -> tuple[int, float, int]:
    """Returns (step of the lowest validation loss, that loss, measurements since). Raises ValueError without a measurement."""
    measured = [line for line in lines if "held_out" in line]
    if not measured:
        raise ValueError("no validation loss was measured")
    best = min(range(len(measured)), key=lambda i: selected_loss(measured[i]))
    return int(measured[best]["step"]), selected_loss(measured[best]), len(measured) - 1 - best


def recommended(lines: Sequence[Record], steps: Collection[int]) -> Record | None:
    """Which of the steps with a LoRA file to take by the validation loss alone, with the reason and the runner-up; None if
    fewer than two steps were measured. The step is None, with the reason, where nothing leads: the lowest losses are equal, or
    the base is as good. `likeness` is how alike the samples of the lowest step are to the training images, None where they were not
    compared; it decides nothing. `lora-loom score` says how sure a lead is."""
    losses = {int(line["step"]): selected_loss(line) for line in lines if "held_out" in line and int(line["step"]) > 0}
    ranked = sorted((loss, step) for step, loss in losses.items() if step in steps)
    if len(ranked) < 2:
        return None
    (loss, step), (second, runner_up), last = ranked[0], ranked[1], max(losses)
    reason = f"step {step} has the lowest validation loss ({loss:.5f}) of {len(ranked)} measured LoRA files; runner-up: step {runner_up} ({second:.5f})"
    if last not in (step, runner_up):
        reason += f"; the last step, {last}, has {losses[last]:.5f}"
    base = next((selected_loss(line) for line in lines if "held_out" in line and int(line["step"]) == 0), None)
    leads = True
    if base is not None and (base <= loss or _is_equal(base, loss)):
        leads, reason = False, f"{reason}; but the base without a LoRA has {base:.5f}, which none of them beats"
    elif _is_equal(loss, second):
        leads, reason = (
            False,
            f"no difference: steps {step} and {runner_up} both have the lowest validation loss, {loss:.5f}",
        )
    alike = {point["step"]: point for point in recorded_likeness(lines)}
    if step in alike:
        other = f", those of step {runner_up} {likeness_text(alike[runner_up])}" if runner_up in alike else ""
        reason += f"; image similarity of the samples of step {step} to the training images: {likeness_text(alike[step])}{other}"
    found = {"lowest": step, "held_out": loss, "runner_up": runner_up, "reason": reason, "likeness": alike.get(step)}
    return {"step": step if leads else None, **found}


def _is_equal(one: float, other: float) -> bool:
    """Whether two losses are the same to the digits that are printed, or nearly so."""
    return f"{one:.5f}" == f"{other:.5f}" or math.isclose(one, other, rel_tol=1e-4)


def is_exhausted(lines: Sequence[Record], patience: int) -> bool:
    """Whether the last `patience` measurements all failed to go below the lowest before them. A function of the record
    alone, so a continued run stops where the unbroken one did."""
    return patience > 0 and any("held_out" in line for line in lines) and lowest(lines)[2] >= patience


def keeps_lows(training: TrainingConfig, validation: ValidationConfig) -> bool:
    """Whether every new low of the validation loss has its LoRA file: after an early stop the step before it got worse is
    wanted, and so it is where the best one becomes the run's file."""
    return bool(validation.patience) or training.keep_best


def check_measured(training: TrainingConfig, validation: ValidationConfig, held_out: Sequence[Example]) -> None:
    """Raise ConfigError for what decides by the validation loss where no images are set aside."""
    asked = [f"validation.patience = {validation.patience}"] if validation.patience else []
    asked += ["training.keep_best = true"] if training.keep_best else []
    if asked and not held_out:
        raise ConfigError(
            f"{' and '.join(asked)} needs a validation loss: set images aside (data.validation_split, "
            "or a set with role = 'validation')"
        )
