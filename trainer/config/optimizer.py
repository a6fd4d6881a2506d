"""Options of the optimizer and of its learning rate over the steps: the [optimizer] and [schedule] tables."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from ..choices import (
    LR_SCHEDULES,
    OPTIMIZER_CLASS,
    OPTIMIZERS,
    SCHEDULE_CLASS,
    OptimizerChoice,
    ScheduleChoice,
    entry_of,
)
from ..errors import ConfigError
from .checks import OneOf
from .section import Section, require


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Section, table="optimizer"):
    """How gradients change the adapter's weights."""

    name: Annotated[str, OneOf(OPTIMIZERS, by_path=OPTIMIZER_CLASS)] = "adamw"
    """Optimizer that updates the adapter's weights. Or the path of a class, e.g. pytorch_optimizer.ADOPT."""
    learning_rate: float | Literal["auto", "find"] = "auto"
    """Peak learning rate: 1e-4 to 5e-4 is usual for LoRA, 1e-3 for LoKr, a third to a tenth of that for lion, 1.0 for prodigy. auto: by the width of the network and the optimizer, 2e-4 to 5e-4 for real networks; run.json has the number, and a run keeps it. find: the best of three round that one, each tried for some steps before the run; below a tenth of its time from 1,000 steps on, said before."""
    weight_decay: float = 0.01
    """Decoupled weight decay: the share by which a step shrinks the weights, times the learning rate."""
    max_grad_norm: float = 1.0
    """Gradients whose L2 norm (all adapters together) is above this are scaled down to it; 0 switches clipping off."""
    options: dict[str, float | int | bool | str | list[float]] = field(default_factory=dict)
    """Further arguments of the optimizer's class, e.g. betas = [0.9, 0.99]."""

    def check(self) -> None:
        remedy = "use a number above 0 (1e-4 to 5e-4 is usual), auto or find"
        is_rate = isinstance(self.learning_rate, str) or self.learning_rate > 0
        require(is_rate, "optimizer.learning_rate", self.learning_rate, remedy)
        looks = self.learning_rate == "find" and self.entry.finds_rate
        require(not looks, "optimizer.learning_rate", "find", f"{self.name} finds its own rate: use auto or 1.0")
        require(self.weight_decay >= 0, "optimizer.weight_decay", self.weight_decay, "use 0 or more")
        for name, place in (("lr", "learning_rate"), ("weight_decay", "weight_decay")):
            require(name not in self.options, "optimizer.options", self.options, f"set optimizer.{place} instead")
        require(
            self.max_grad_norm >= 0, "optimizer.max_grad_norm", self.max_grad_norm, "use 0 (off) or more (1.0 is usual)"
        )

    @property
    def entry(self) -> OptimizerChoice:
        """What the name stands for."""
        entry = entry_of(OPTIMIZERS, self.name, OPTIMIZER_CLASS)
        assert entry is not None  # checked when this was made
        return entry

    @property
    def rate(self) -> float:
        """The learning rate as a number. Raises ConfigError for "auto" and "find", which become numbers when a network is known."""
        if isinstance(self.learning_rate, str):
            raise ConfigError(
                f"optimizer.learning_rate = {self.learning_rate!r} has no number before the base model is known"
            )
        return self.learning_rate


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig(Section, table="schedule"):
    """The learning rate over the steps of a run, as a factor on its peak."""

    kind: Annotated[str, OneOf(LR_SCHEDULES, by_path=SCHEDULE_CLASS)] = "constant"
    """Learning-rate schedule: how the rate falls after the warm-up, to min_lr_ratio at the last step. Or the path of a class, e.g. torch.optim.lr_scheduler.OneCycleLR, which gets options."""
    warmup: float = 0.0
    """Length of the linear warm-up: a share of all steps if below 1, else a number of steps."""
    cycles: int = 1
    """Number of cosines of restarts and warm_restarts, of waves of sine."""
    power: float = 1.0
    """Exponent of polynomial; 1 is linear, above 1 falls faster at first."""
    min_lr_ratio: float = 0.0
    """Learning rate at the end of the schedule, as a share of the peak."""
    cycle_warmup: float = 0.0
    """Warm-up of each cycle of warm_restarts: a share of the cycle if below 1, else a number of steps. In the first cycle warmup takes its place where it is set."""
    cycle_decay: float = 1.0
    """Factor on the peak from one cycle of warm_restarts to the next; 0.5 halves it."""
    cycle_growth: float = 1.0
    """Factor on the length from one cycle of warm_restarts to the next; 2 doubles it."""
    decay: float = 0.2
    """Length of the fall at the end of wsd: a share of the steps after the warm-up if below 1, else a number of steps. A checkpoint before it is always kept, and a run that gets more steps goes on from there."""
    timescale: int = 0
    """Steps after the warm-up in which inverse_sqrt falls to 0.71 of the peak; 0 takes the length of the warm-up, or 10000 without one."""
    options: dict[str, float | int | bool | str | list[float]] = field(default_factory=dict)
    """Arguments of a schedule that is named by the path of its class, which gets an optimizer with rate 1: rates are shares of the peak. The text "steps" stands for the number of steps after the warm-up."""

    @property
    def entry(self) -> ScheduleChoice:
        """What the kind stands for."""
        entry = entry_of(LR_SCHEDULES, self.kind, SCHEDULE_CLASS)
        assert entry is not None  # checked when this was made
        return entry

    def check(self) -> None:
        remedy = "use a share of the steps (0.1) or a number of steps (100)"
        require(self.warmup >= 0, "schedule.warmup", self.warmup, remedy)
        require(self.cycles >= 1, "schedule.cycles", self.cycles, "use 1 or more")
        require(self.power > 0, "schedule.power", self.power, "use a number above 0")
        require(
            0 <= self.min_lr_ratio <= 1,
            "schedule.min_lr_ratio",
            self.min_lr_ratio,
            "use 0 to 1, a share of the learning rate",
        )
        remedy = "use a share of the cycle (0.1) or a number of steps (50)"
        require(self.cycle_warmup >= 0, "schedule.cycle_warmup", self.cycle_warmup, remedy)
        for name in ("cycle_decay", "cycle_growth"):
            require(getattr(self, name) > 0, f"schedule.{name}", getattr(self, name), "use a number above 0")
        require(self.cycle_decay <= 1, "schedule.cycle_decay", self.cycle_decay, "use 1 or less")
        require(self.decay > 0, "schedule.decay", self.decay, "use a share of the steps (0.2) or a number of steps")
        require(self.timescale >= 0, "schedule.timescale", self.timescale, "use 0 (the warm-up) or a number of steps")
