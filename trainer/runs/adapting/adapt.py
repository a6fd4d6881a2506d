"""`memory.on_oom = "adapt"`: where memory runs out, a run goes on from its last checkpoint with the next setting that takes less
memory and gives the same LoRA, bit for bit: it recomputes more, keeps that in RAM, has less of the base on the device."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass

from ...config.run import MemoryConfig
from ...errors import ConfigError, LoomError, RunOutOfMemoryError
from ...memory_plan.base_sizes import BaseSizes
from ...types import Record
from ...weights.devices import give_back, out_of_memory
from ...weights.streaming import StreamSettings, stream_settings
from ..execute import execute
from ..run_folder import RunFolder
from ..session import Host, Outcome, Session
from .levers import next_lever


@dataclass(kw_only=True)
class Remade:
    """A run that can be made again with other settings of memory."""

    make: Callable[[MemoryConfig], Session]
    """Loads what the run needs. What an earlier session held is free by then."""
    sizes: Callable[[], BaseSizes]
    """How large the base is on its device."""
    stream: StreamSettings | None
    """How the base is streamed by the settings that were asked for."""


def as_begun(folder: RunFolder, asked: MemoryConfig) -> MemoryConfig:
    """The settings that a run which is continued has come to, if it is asked for the same ones as before; else these."""
    record: Record = (folder.read() if folder.exists() else {}).get("adapted") or {}
    if asked.on_oom == "adapt" and record.get("asked") == asdict(asked):
        with suppress(LoomError, TypeError, KeyError):  # a record of another version
            return MemoryConfig(**record["memory"])
    return asked


def execute_adapting(remade: Remade, asked: MemoryConfig, folder: RunFolder, host: Host) -> Outcome:
    """`execute` as often as memory runs out and there is a setting left that takes less. Raises RunOutOfMemoryError where there is none."""
    if asked.on_oom == "stop":
        return execute(remade.make(asked), host)
    memory, taken = as_begun(folder, asked), []
    if memory != asked:
        taken = list(folder.read()["adapted"]["taken"])
        host.log(f"as memory ran out before: {', '.join(one['setting'] for one in taken)}")
    while True:
        try:
            return execute(remade.make(memory), host)
        except Exception as error:
            if not isinstance(error, RunOutOfMemoryError) and not out_of_memory(error):
                raise
            stream = remade.stream if memory == asked else stream_settings(memory.base, memory.vram_gb)
            lever = next_lever(memory, remade.sizes(), stream)
            if lever is None:
                tried = f" These were tried: {', '.join(one['setting'] for one in taken)}." if taken else ""
                raise RunOutOfMemoryError(
                    f"{error}.{tried} Nothing is left that takes less memory and gives the same LoRA"
                ) from error
        # The error is gone, and with its frames everything that the session held.
        give_back()
        memory = lever.memory
        taken.append({"step": folder.saved_step() or 0, "setting": lever.setting})
        _tell(folder, host, asked, memory, taken)


def _tell(folder: RunFolder, host: Host, asked: MemoryConfig, memory: MemoryConfig, taken: list[Record]) -> None:
    step, setting = taken[-1]["step"], taken[-1]["setting"]
    start = f"from the checkpoint of step {step}" if step else "from the start"
    host.log(f'memory ran out: the run goes on {start} with {setting} (memory.on_oom = "adapt"; the LoRA is the same)')
    folder.update(adapted={"asked": asdict(asked), "memory": asdict(memory), "taken": taken})


def adapted_text(record: Record) -> list[str]:
    """What a run took where memory ran out, by its run.json; [] where it never did."""
    taken = (record.get("adapted") or {}).get("taken", [])
    return [f"memory ran out: went on from step {one['step']} with {one['setting']}" for one in taken]


def refuse_adapting(memory: MemoryConfig, processes: int) -> None:
    """Raise ConfigError for several processes: memory runs out in one of them, and the others wait for it."""
    if memory.on_oom == "adapt" and processes > 1:
        raise ConfigError(
            f"memory.on_oom = 'adapt' with {processes} processes: memory runs out in one of them alone; use 'stop', and the settings of `lora-loom plan`"
        )
