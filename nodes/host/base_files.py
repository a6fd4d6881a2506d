"""Checkpoints that ComfyUI lists: a LoRA extracted from two of them, and LoRAs merged into one."""

from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict

import folder_paths

from ...trainer.base_model import Base, open_base
from ...trainer.config.run import ModelConfig
from ...trainer.errors import ConfigError, LoomError
from ...trainer.lora_tools.with_base import extract_lora, merge_into_base
from ...trainer.storage.names import check_name
from ...trainer.storage.tensor_file import TensorFile
from .lora_files import NewFileInputs, keep_of, listed, new_file
from .paths import find_lora, is_inside
from .progress import Bar
from .sweep.sampler_names import BASE_FOLDERS

MARK = "loom.merged"
"""Entry of the metadata of files that a LoRA was merged into."""


class ExtractInputs(NewFileInputs):
    """The inputs of LoomLoraExtract."""

    base: str
    tuned: str


class MergeBaseInputs(TypedDict):
    """The inputs of LoomLoraMergeBase."""

    base: str
    lora_name: str
    strength: float
    skip_missing: bool
    save_as: str


def find_base(name: str) -> Path:
    """The file behind a name of the list: the folder's name in ComfyUI, /, the file's. Raises ConfigError for any other name."""
    folder, _, inner = name.partition("/")
    path = folder_paths.get_full_path(folder, inner) if folder in BASE_FOLDERS and inner else None
    if path is None:
        raise ConfigError(f"no base model {name!r}: choose one of the list ({' or '.join(BASE_FOLDERS)})")
    if Path(path).suffix != ".safetensors":
        raise ConfigError(
            f"{name!r} is no safetensors file, which is needed to read it tensor by tensor: convert it first"
        )
    return Path(path)


def _opened(name: str) -> Base:
    return open_base(ModelConfig(base=str(find_base(name)), device="cpu"))


def base_stamps(inputs: Mapping[str, object]) -> str:
    """A text that changes with the content of the files that a node names."""
    found = []
    for name, find in (("base", find_base), ("tuned", find_base), ("lora_name", find_lora)):
        if name in inputs:
            try:
                facts = find(str(inputs[name])).stat()
                found.append(f"{inputs[name]} {facts.st_mtime_ns} {facts.st_size}")
            except (LoomError, OSError):
                found.append(str(inputs[name]))
    return "; ".join(found)


def extracted(inputs: ExtractInputs) -> tuple[str, str]:
    """Returns (name of the new LoRA, report). Raises LoomError before anything is written."""
    target = new_file(inputs["save_as"], [])
    keep = keep_of(inputs)
    done = extract_lora(_opened(inputs["base"]), _opened(inputs["tuned"]), target, keep, inputs["dtype"], Bar().update)
    return listed(target), done.text()


def merged_into_base(inputs: MergeBaseInputs) -> tuple[str, str]:
    """Returns (name of the new checkpoint, report). Raises LoomError before anything is written."""
    base, lora = _opened(inputs["base"]), find_lora(inputs["lora_name"])
    folder, _, _ = inputs["base"].partition("/")
    root = Path(folder_paths.get_folder_paths(folder)[0])
    target = root / "lora_loom" / f"{check_name(inputs['save_as'])}.safetensors"
    if not is_inside(target, root):
        raise ConfigError(f"save_as = {inputs['save_as']!r} is outside {root}: use another name")
    if target.resolve() == find_base(inputs["base"]).resolve():
        raise ConfigError(f"save_as = {inputs['save_as']!r} is the base model itself: use another name")
    if target.exists() and not _is_merged(target):
        raise ConfigError(
            f"save_as = {inputs['save_as']!r}: {target} exists and was not made by this node: use another name"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    done = merge_into_base(base, [(lora, inputs["strength"])], target, Bar().update, partly=inputs["skip_missing"])
    return str(target.relative_to(root)), done.text()


def _is_merged(path: Path) -> bool:
    try:
        return MARK in TensorFile(path).metadata
    except LoomError:
        return False
