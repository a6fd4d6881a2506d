"""What the links of a queued graph say before anything of it has run."""

import logging
from collections.abc import Iterator
from pathlib import PurePath

from ....trainer.errors import ConfigError, LoomError
from ....trainer.storage.tensor_file import TensorFile
from ..backend.denoiser import refuse_patches
from ..base_files import find_base
from ..comfy_types import BaseModel, Graph, ModelPatcher
from ..new_run.models import without_network
from ..paths import run_folder
from ..sweep.sampler_names import BASE_FOLDERS
from .records import summary
from .server import REGISTRY

logger = logging.getLogger("lora_loom")

TRAIN = "LoomTrain"
LORA_NAME = 1
"""The output of LoomTrain that a loader takes."""
FILES = ("ckpt_name", "unet_name", "model_name")
"""Inputs by which loaders of a MODEL, ComfyUI's and others', take a file."""


def models_to_train(graph: Graph | None, cache: str | None, model: ModelPatcher | None) -> list[BaseModel]:
    """The models that will be trained on what this LoomCache encodes, as far as they are known before they are loaded.

    `model` is what is linked to it. A LoomTrain whose MODEL comes of another loader is known by the header of that loader's file.
    Raises LoomError for links that cannot work, and for a `model` that training cannot follow.
    """
    nodes = graph or {}
    refuse_early_loaders(nodes, cache)
    here = nodes[str(cache)]["inputs"].get("model") if str(cache) in nodes else None
    found = []
    if model is not None:
        refuse_patches(model, way_of(nodes, here))
        found.append(model.model)
    linked = _chain(nodes, here)[-1:]
    for _, inputs in _trains(nodes, str(cache)):
        loader = _chain(nodes, inputs.get("model"))[-1:]
        if loader != linked and (read := next((_read(nodes[one]["inputs"]) for one in loader), None)):
            found.append(read)
    return found


def way_of(graph: Graph | None, link: object) -> str:
    """The nodes between a loader and what a MODEL is linked to, in words: "FreeU (node 12), HyperTile (node 13)"."""
    nodes = graph or {}
    between = reversed(_chain(nodes, link)[:-1])
    return ", ".join(f"{nodes[number]['class_type']} (node {number})" for number in between)


def _chain(graph: Graph, link: object) -> list[str]:
    """The node that a MODEL comes from, the one that this has it from, …, its loader."""
    chain: list[str] = []
    while (source := _source(link)) and source[0] in graph and source[0] not in chain:
        chain.append(source[0])
        link = graph[source[0]]["inputs"].get("model")
    return chain


def _read(inputs: dict[str, object]) -> BaseModel | None:
    """The model in the file that a loader names, without its network; None where that cannot be read."""
    for name in (inputs.get(one) for one in FILES):
        for folder in BASE_FOLDERS if isinstance(name, str) else ():
            try:
                file = TensorFile(find_base(f"{folder}/{name}"))
                return without_network(file.shapes(), file.metadata)
            except Exception as error:  # noqa: BLE001 - not ours to judge: the loader itself says what is wrong with its file
                logger.debug("LoRA Loom: %s is not known by its header: %s", PurePath(str(name)).name, error)
    return None


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
