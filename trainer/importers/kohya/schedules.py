"""Learning-rate schedules as sd-scripts and musubi-tuner name them."""

from typing import Any

from .. import values
from ..translation import Translation

PLAIN = {
    "constant": "constant",
    "constant_with_warmup": "constant",
    "linear": "linear",
    "cosine": "cosine",
    "polynomial": "polynomial",
    "cosine_with_restarts": "restarts",
    "cosine_with_min_lr": "cosine",
    "inverse_sqrt": "inverse_sqrt",
    "warmup_stable_decay": "wsd",
    "rex": "rex",
}
GUIDES_CLASS = "CosineAnnealingWarmupRestarts"
"""A class that guides recommend: cosines one after another, each with a warm-up and a lower peak."""


def put_schedule(made: Translation) -> None:
    """Set the learning-rate schedule and its warm-up."""
    if made.has("lr_scheduler_type"):
        _of_class(made, made.text("lr_scheduler_type"))
        made.say(
            "needless",
            "lr_scheduler",
            "lr_scheduler_num_cycles",
            "lr_scheduler_power",
            "lr_warmup_steps",
            note="lr_scheduler_type decides",
        )
        return
    word = made.text("lr_scheduler", "constant").lower()
    kind = PLAIN.get(word, "")
    if kind:
        made.put("schedule.kind", kind, "lr_scheduler")
    else:
        kind = "constant"
        note = "the optimizer finds its own rate there" if word.startswith("adafactor") else f"there is no {word} here"
        made.put("schedule.kind", kind, "lr_scheduler", nearly=note)
    if kind == "restarts":
        made.put("schedule.cycles", made.whole("lr_scheduler_num_cycles", 1), "lr_scheduler_num_cycles")
    if kind == "polynomial":
        made.put("schedule.power", made.number("lr_scheduler_power", 1), "lr_scheduler_power")
    if made.has("lr_scheduler_min_lr_ratio") and kind != "constant":
        made.put("schedule.min_lr_ratio", made.number("lr_scheduler_min_lr_ratio"), "lr_scheduler_min_lr_ratio")
    if kind == "wsd":
        made.put("schedule.decay", made.number("lr_decay_steps", 0.2) or 0.2, "lr_decay_steps")
    if kind == "inverse_sqrt" and made.has("lr_scheduler_timescale"):
        made.put("schedule.timescale", made.whole("lr_scheduler_timescale"), "lr_scheduler_timescale")
    made.say("needless", "lr_scheduler_num_cycles", "lr_scheduler_power", note=f"{word} does not read it")
    warmup = made.number("lr_warmup_steps")
    if word == "constant":
        made.say("needless", "lr_warmup_steps", note="constant has no warm-up there; constant_with_warmup has")
    elif warmup:
        made.put("schedule.warmup", warmup, "lr_warmup_steps")
    else:
        made.say("exact", "lr_warmup_steps", ours="schedule.warmup")


def _of_class(made: Translation, name: str) -> None:
    arguments = values.pairs("lr_scheduler_args", made.get("lr_scheduler_args"))
    if name.endswith(GUIDES_CLASS):
        _warm_restarts(made, arguments)
        return
    path = name if "." in name else f"torch.optim.lr_scheduler.{name}"
    made.put("schedule.kind", path, "lr_scheduler_type")
    if arguments:
        made.put("schedule.options", arguments, "lr_scheduler_args")


def _warm_restarts(made: Translation, arguments: dict[str, Any]) -> None:
    """gamma_min_lr lowers its minimum from update to update, for which there is no option here."""
    steps, length = made.number("max_train_steps"), float(arguments.get("T_0", 0))
    nearly = "the rate falls by a law of its own within a cycle there"
    made.put("schedule.kind", "warm_restarts", "lr_scheduler_type", nearly=nearly)
    if steps and length:
        made.put("schedule.cycles", max(1, round(steps / length)), "lr_scheduler_args")
    else:
        made.notes.append("schedule.cycles: set it to the steps of the run divided by T_0")
    for theirs, ours in (
        ("warmup_steps", "schedule.warmup"),
        ("cycle_warmup", "schedule.cycle_warmup"),
        ("down_factor", "schedule.cycle_decay"),
    ):
        if theirs in arguments:
            made.put(ours, float(arguments[theirs]), "lr_scheduler_args")
    if arguments.get("gamma_min_lr", 1) != 1:
        made.notes.append(
            f"lr_scheduler_args: gamma_min_lr = {arguments['gamma_min_lr']} is left out; schedule.min_lr_ratio sets a minimum"
        )
