"""What the links of a queued graph say before anything of it has run."""

from collections.abc import Iterator

from ....trainer.errors import ConfigError, LoomError
from ..comfy_types import Graph
from ..paths import run_folder
from .records import summary
from .server import REGISTRY

TRAIN = "LoomTrain"
LORA_NAME = 1
"""The output of LoomTrain that a loader takes."""


def refuse_early_loaders(graph: Graph | None, cache: str | None) -> None:
    """Raise ConfigError if a LoomTrain that reads this LoomCache gives its `lora_name` to a node that would run before the file exists.

    In background mode LoomTrain returns at once. A run of that name that has finished has its file.
    """
    for number, inputs in _trains(graph or {}, str(cache)):
        if inputs.get("mode", "background") != "background" or _is_finished(inputs.get("name")):
            continue
        if reader := next(_readers(graph or {}, number), None):
            raise ConfigError(
                f"{reader} reads lora_name of Loom Train LoRA (node {number}), which returns before the LoRA is trained: "
                "link lora_name of Loom Wait for Run instead, or set mode to wait"
            )


def _trains(graph: Graph, cache: str) -> Iterator[tuple[str, dict[str, object]]]:
    for number, node in graph.items():
        if node["class_type"] == TRAIN and _source(node["inputs"].get("cache")) == (cache, 0):
            yield number, node["inputs"]


def _readers(graph: Graph, train: str) -> Iterator[str]:
    for number, node in graph.items():
        if any(_source(value) == (train, LORA_NAME) for value in node["inputs"].values()):
            yield f"{node['class_type']} (node {number})"


def _source(value: object) -> tuple[str, object] | None:
    return (str(value[0]), value[1]) if isinstance(value, list) and len(value) == 2 else None


def _is_finished(name: object) -> bool:
    try:
        return isinstance(name, str) and summary(run_folder(name), REGISTRY)["state"] == "finished"
    except LoomError:
        return False
