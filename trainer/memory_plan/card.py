"""The device that a run is planned for: its memory, and how fast it multiplies."""

import os
import time
from dataclasses import dataclass

import torch

from ..errors import ConfigError
from ..weights.streaming import GB

SIMULATED = "LORA_LOOM_VRAM_GB"
"""Environment variable: a run is planned for a card of so many GB (1e9 bytes), whatever device is here."""
SWITCH = "LORA_LOOM_PLAN"
"""Environment variable: "0" leaves the prediction out of runs. `lora-loom plan` makes it all the same."""
CONTEXT = round(0.8 * GB)
"""Bytes that the CUDA context and libraries take on a card."""
SLACK = 0.07
"""Share by which an allocator holds more than what is asked of it (3 to 7 % seen)."""

EASE, EASE_IN_RAM = 0.8, 0.5
"""Shares of what is free, on a card and in RAM, up to which a run recomputes nothing by itself."""
IN_RAM = ("cpu", "mps")
"""Devices whose memory is RAM."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """A device's memory in bytes."""

    name: str
    free: int | None
    """What a run may take; None where nothing limits it, as on a CPU."""
    slack: float = 0.0
    """Share on top of what a run asks for."""
    ram: int = 0
    """Bytes of RAM that are free, where a run computes in RAM."""

    def fits(self, need: int) -> bool:
        """Whether so much certainly goes on the device."""
        return self.free is None or need * (1 + self.slack) <= self.free

    def has_ease(self, base: int, rest: int) -> bool:
        """Whether a step that recomputes nothing goes on the device so easily that a prediction may be off by a tenth, and kernels may
        want some for themselves. In RAM, where the base lies anyway, half of what is free is left to everything else."""
        if self.free is None:
            return rest <= self.ram * EASE_IN_RAM
        return (base + rest) * (1 + self.slack) <= self.free * EASE

    def room(self, need: int) -> int:
        """Bytes left for the base beside everything else, which needs so much."""
        assert self.free is not None
        return round(self.free / (1 + self.slack)) - need


def card_of(device: torch.device, reclaimable: int = 0) -> Card:
    """The device, or the card that LORA_LOOM_VRAM_GB simulates. `reclaimable`: bytes in use that a host gives back for the run."""
    is_gpu = device.type == "cuda"
    slack, context = (SLACK, CONTEXT) if is_gpu else (0.0, 0)
    if simulated := _simulated():
        return Card(name=f"a simulated card of {simulated / GB:g} GB", free=simulated - context, slack=slack)
    if is_gpu:
        free, _ = torch.cuda.mem_get_info(device)
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return Card(name=torch.cuda.get_device_name(device), free=free + unused + reclaimable, slack=slack)
    return Card(name=str(device), free=None, ram=_free_ram() if device.type in IN_RAM else 0)


def _free_ram() -> int:
    import psutil

    return int(psutil.virtual_memory().available)


def _simulated() -> int:
    """Bytes; 0 without the variable. Raises ConfigError for what is no size."""
    text = os.environ.get(SIMULATED, "")
    if not text:
        return 0
    try:
        size = float(text)
    except ValueError:
        size = 0.0
    if not 0 < size < 1e6:
        raise ConfigError(f"{SIMULATED} = {text!r}: give the size of a card in GB, e.g. 12")
    return round(size * GB)


def is_wanted() -> bool:
    """Whether runs are planned."""
    return os.environ.get(SWITCH, "1") != "0"


EFFICIENCY = (0.2, 0.5)
"""Shares of the device's matrix rate that training steps of published trainers reach."""


def seconds(flop: int, rate: float) -> tuple[float, float]:
    """Returns (fewest, most) seconds of so much arithmetic; `rate` is that of large matrix products, FLOP/s."""
    return flop / rate / EFFICIENCY[1], flop / rate / EFFICIENCY[0]


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Returns FLOP/s of a large matrix product on this device, measured in under a tenth of a second; 0 where it has no room for one."""
    try:
        return _matrix_rate(device, dtype)
    except torch.cuda.OutOfMemoryError:
        return 0.0


def _matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    side = 4096 if device.type == "cuda" else 512
    a, b = (torch.ones(side, side, device=device, dtype=dtype) for _ in range(2))
    fastest = float("inf")
    for _ in range(4):
        started = time.perf_counter()
        product = a @ b
        float(product[0, 0])  # waits for the device
        fastest = min(fastest, time.perf_counter() - started)
    return 2 * side**3 / fastest
