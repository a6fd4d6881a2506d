"""Configurations of other trainers in the graph: what they name is checked as the paths of a workflow are."""

from dataclasses import replace
from pathlib import Path

from ...trainer.choices import LR_SCHEDULES
from ...trainer.config.network import refuse_whole
from ...trainer.config.run import TrainConfig
from ...trainer.config.toml import load
from ...trainer.data.sets.checks import DatasetFile
from ...trainer.data.sets.dataset_file import Find, placed, read_dataset_file
from ...trainer.errors import ConfigError, DataError
from ...trainer.importers.finish import Imported
from ...trainer.importers.read import import_file, recognise
from ..sockets.values import MemoryValue, NetworkValue, ObjectiveValue, OptimizerValue
from .class_paths import check_class_path
from .paths import may_name, resolve_file

USUAL_RATE = 1e-4
"""Where the file leaves the learning rate to us."""


def content(name: str) -> str:
    """The content of a file that a workflow names, or the error."""
    try:
        return resolve_file(name, "path").read_text(encoding="utf-8", errors="replace")
    except (ConfigError, OSError) as error:
        return str(error)


def settings(
    name: str,
) -> tuple[NetworkValue, OptimizerValue, ObjectiveValue, MemoryValue, int, float, int, float, int, int, str]:
    """The settings of a configuration that a workflow names, and the report on it. Raises ConfigError."""
    file = resolve_file(name, "path")
    if file.suffix == ".toml" and recognise(file) is None:
        config, report = load(file), f"{file.name} is a configuration of LoRA Loom"
    else:
        done = import_file(file, may_name)
        config, report = done.config, done.text()
    refuse_whole(config.network)
    if config.network.init_from:
        report += (
            f"\n\nnetwork.init_from = {config.network.init_from}: choose it in Loom Network by its name in LoraLoader"
        )
    if config.schedule.kind not in LR_SCHEDULES:
        check_class_path("schedule.kind", config.schedule.kind)
    training = config.training
    return (
        NetworkValue(network=replace(config.network, init_from="")),
        OptimizerValue(optimizer=config.optimizer, schedule=config.schedule),
        ObjectiveValue(objective=config.objective),
        _memory(config),
        config.network.rank,
        USUAL_RATE if isinstance(config.optimizer.learning_rate, str) else config.optimizer.learning_rate,
        training.steps,
        training.epochs,
        training.batch_size,
        training.save_every,
        report,
    )


def _memory(config: TrainConfig) -> MemoryValue:
    return MemoryValue(
        memory=config.memory,
        precision=config.training.precision,
        quantize=config.model.quantize,
        yield_max_s=0.0,
        matmul=config.model.matmul,
    )


def read_datasets(file: Path, find: Find) -> DatasetFile:
    """The datasets of a dataset file, or of another trainer's configuration. `find` checks every path. Raises ConfigError, DataError."""
    kind = recognise(file)
    if kind is None or kind.is_dataset_file:
        return read_dataset_file(file, find)
    done = import_file(file, may_name)
    missing = done.config.dataset_files
    if missing:
        raise DataError(f"{file} names its datasets in {missing[0]}, which is not there or may not be used")
    return DatasetFile(sets=tuple(placed(one, file.parent, find) for one in done.config.dataset), notes=_notes(done))


def _notes(done: Imported) -> tuple[str, ...]:
    """What is said about the datasets: their options with a difference or without a counterpart, and the notes."""
    about = [one for one in done.taken if one.became in ("nearly", "none") and "dataset" in f"{one.option}{one.ours}"]
    return (*(one.text() for one in about), *done.notes)
