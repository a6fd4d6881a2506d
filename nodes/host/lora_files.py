"""LoRA files that ComfyUI lists: inspected, resized, merged. New files go into models/loras/lora_loom."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

from ...trainer.errors import ConfigError, LoomError
from ...trainer.lora_tools.base_keys import check_one_family, recognise
from ...trainer.lora_tools.base_layers import layers_table, listed_layers
from ...trainer.lora_tools.convert import convert
from ...trainer.lora_tools.factors import open_lora
from ...trainer.lora_tools.inspect import inspect, modules_of, to_text
from ...trainer.lora_tools.merge import merge_loras
from ...trainer.lora_tools.resize import Keep, resize
from ...trainer.storage.names import check_name
from ...trainer.storage.tensor_file import TensorFile
from .comfy_types import Clip, ModelPatcher
from .paths import find_lora, is_inside, lora_folder, lora_root
from .progress import Bar

MAKERS = {"resize", "merge", "convert", "extract"}
"""Tools whose entries in the metadata `loom.history` these nodes write."""


def stamps(names: Sequence[object]) -> str:
    """A text that changes with the content of the files. A name that comes over a link is not known yet and stands for itself."""
    found = []
    for name in names:
        try:
            facts = find_lora(str(name)).stat()
            found.append(f"{name} {facts.st_mtime_ns} {facts.st_size}")
        except (LoomError, OSError):
            found.append(f"{name}")
    return "; ".join(found)


def inspected(name: str, model: ModelPatcher | None = None, clip: Clip | None = None) -> str:
    """The report of `lora-loom inspect`, with the modules that ComfyUI matches in a given MODEL or CLIP."""
    path = find_lora(name)
    head, _, rest = to_text(inspect(path), path).partition("\n")
    lines = [head, recognise(path).text()]
    if model is not None or clip is not None:
        lines.append(_matching(path, model, clip))
    text = "\n".join([*lines, rest])
    if model is None:
        return text
    layers = listed_layers(model.model.diffusion_model, {})
    return f"{text}\n\n{layers_table('the connected model', layers, {})}"


def _matching(path: Path, model: ModelPatcher | None, clip: Clip | None) -> str:
    from comfy.lora import model_lora_keys_clip, model_lora_keys_unet

    known: dict[str, object] = {}
    if model is not None:
        known = model_lora_keys_unet(model.model, known)
    if clip is not None:
        known = model_lora_keys_clip(clip.cond_stage_model, known)
    modules, unknown = modules_of(TensorFile(path))
    lost = sorted(key for key in modules if key not in known)
    connected = " and ".join(word for word, given in (("model", model), ("CLIP", clip)) if given is not None)
    line = f"in the connected {connected} ComfyUI matches {len(modules) - len(lost)} of {len(modules)} modules"
    return line + "".join(f"\n  not matched: {key}" for key in [*lost, *unknown])


class NewFileInputs(TypedDict):
    """The inputs of a node that writes a LoRA file: what is kept of each module, and where the file goes."""

    rank: int
    method: str
    amount: float
    dtype: str
    save_as: str


class ResizeInputs(NewFileInputs):
    """The inputs of LoomLoraResize."""

    lora_name: str


class MergeInputs(NewFileInputs):
    """The inputs of LoomLoraMerge."""

    lora_1: str
    weight_1: float
    lora_2: str
    weight_2: float


class ConvertedFile(TypedDict):
    """The inputs of LoomLoraConvert that every workflow has."""

    lora_name: str
    format: str
    dtype: str
    save_as: str


class ConvertInputs(ConvertedFile, total=False):
    """The inputs of LoomLoraConvert. A workflow of an earlier version lacks family."""

    family: str


def converted(inputs: ConvertInputs) -> tuple[str, str]:
    """Returns (name of the new file, report). Raises LoomError before anything is written."""
    source, target = find_lora(inputs["lora_name"]), new_file(inputs["save_as"], [inputs["lora_name"]])
    done = convert(
        source,
        target,
        inputs["format"],
        family=inputs.get("family", "auto"),
        dtype=inputs["dtype"],
        progress=Bar().update,
    )
    return listed(target), done.text()


def resized(inputs: ResizeInputs) -> tuple[str, str]:
    """Returns (name of the new file, report). Raises LoomError before anything is written."""
    source, target = find_lora(inputs["lora_name"]), new_file(inputs["save_as"], [inputs["lora_name"]])
    done = resize(source, target, keep_of(inputs), inputs["dtype"], Bar().update)
    return listed(target), done.text()


def merged(inputs: MergeInputs) -> tuple[str, str]:
    """Returns (name of the new file, report). Raises LoomError before anything is written."""
    sources = [(find_lora(inputs["lora_1"]), inputs["weight_1"]), (find_lora(inputs["lora_2"]), inputs["weight_2"])]
    target = new_file(inputs["save_as"], [inputs["lora_1"], inputs["lora_2"]])
    check_one_family([path for path, weight in sources if weight])
    is_exact = not inputs["rank"] and not inputs["amount"] and inputs["method"] == "rank"
    done = merge_loras(sources, target, None if is_exact else keep_of(inputs), inputs["dtype"], Bar().update)
    return listed(target), done.text()


def keep_of(inputs: NewFileInputs) -> Keep:
    """The singular values to keep. Raises ConfigError for settings that do not fit together."""
    return Keep(rank=inputs["rank"], method=inputs["method"], amount=inputs["amount"])


def new_file(save_as: str, sources: Sequence[str]) -> Path:
    """The path of a new LoRA. Raises ConfigError for a name outside the folder, and for an existing file that is not ours."""
    path = lora_folder() / f"{check_name(save_as)}.safetensors"
    if not is_inside(path, lora_root()):
        raise ConfigError(f"save_as = {save_as!r} is outside {lora_root()}: use another name")
    if any(find_lora(name).resolve() == path.resolve() for name in sources):
        raise ConfigError(f"save_as = {save_as!r} is one of the source files: use another name")
    if path.exists() and not _is_ours(path):
        raise ConfigError(f"save_as = {save_as!r}: {path} exists and was not made by this node: use another name")
    return path


def _is_ours(path: Path) -> bool:
    try:
        history = json.loads(open_lora(path).metadata.get("loom.history", "[]"))
        return bool(history) and history[-1]["tool"] in MAKERS
    except (LoomError, ValueError, KeyError, TypeError):
        return False


def listed(path: Path) -> str:
    """The name of a LoRA file as LoraLoader lists it."""
    return str(path.relative_to(lora_root()))
