"""The base LoRAs of a run in ComfyUI: those that were loaded into its MODEL, and the files of LoomBaseLora, read by ComfyUI's own
key map."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from ....trainer.config.aliases import no_note
from ....trainer.config.model import BaseLoraConfig
from ....trainer.config.toml import parse
from ....trainer.errors import ConfigError, ModelFileError
from ....trainer.families.common.lora_names import is_text_encoder
from ....trainer.lora.base_lora import BaseLora, BaseLoraIdentity, OfRows, change_of, weight_shape
from ....trainer.lora.host_formula import group_by_module, refuse_broken
from ....trainer.lora.kinds.foreign import refuse_foreign
from ....trainer.storage.fingerprint import tensors_digest
from ....trainer.storage.tensor_file import read_lora
from ....trainer.types import Record
from ....trainer.weights.changes import FrozenChange
from ..comfy_types import BaseModel, Clip, Graph, ModelPatcher
from .denoiser import PREFIX
from .lora_check import known_keys, loaded_by_host
from .patches import Patch, check_readable, patches_digest, patches_of, without_patches
from .sharing.share_storage import share


def read_base_loras(patcher: ModelPatcher, asked: Sequence[BaseLoraConfig], loaders: str = "") -> tuple[BaseLora, ...]:
    """What is patched into the MODEL, as a base LoRA that is always on, then the files. Only names and shapes of the network are read.

    `loaders` names the files of the loaders before LoomTrain, as far as they are known. Raises ModelFileError, which names the
    LoRA, for one that does not fit the network in every key and shape.
    """
    network = patcher.model.diffusion_model
    found = [_of_model(patcher, network, loaders)] if patcher.patches else []
    return (*found, *(_of_file(patcher.model, network, one) for one in asked))


def _of_model(patcher: ModelPatcher, network: nn.Module, loaders: str) -> BaseLora:
    identity = BaseLoraIdentity(file=loaders, digest=patches_digest(patcher), strength=1.0, use="always")
    return BaseLora(identity=identity, changes=_changes(list(patches_of(patcher)), network, identity.name))


def read_clip_loras(clip: Clip | None, loaders: str = "") -> tuple[BaseLora, ...]:
    """What is patched into a CLIP that is trained, as a base LoRA that is always on. `loaders` names the files, as far as they are known.

    Raises ModelFileError for a kind that cannot be computed next to the weights.
    """
    if clip is None or not clip.patcher.patches:
        return ()
    digest = patches_digest(clip.patcher)
    identity = BaseLoraIdentity(file=loaders, digest=digest, strength=1.0, use="always", on_clip=True)
    return (
        BaseLora(
            identity=identity, changes=_changes([*patches_of(clip.patcher)], clip.cond_stage_model, identity.name)
        ),
    )


def _of_file(model: BaseModel, network: nn.Module, asked: BaseLoraConfig) -> BaseLora:
    path = Path(asked.file)
    what, tensors = f"base LoRA {path.name}", read_lora(path)
    refuse_broken(tensors, what)
    patches = _patches(model, tensors, asked.strength, what)
    identity = BaseLoraIdentity(file=path.name, digest=tensors_digest(tensors), strength=asked.strength, use=asked.use)
    return BaseLora(identity=identity, changes=_changes(patches, network, what))


def _patches(model: BaseModel, tensors: Mapping[str, Tensor], strength: float, what: str) -> list[Patch]:
    modules, unknown = group_by_module(tensors)
    refuse_foreign(unknown, what)
    keys = known_keys(model)
    if texts := sorted(key for key in modules if is_text_encoder(key) and key not in keys):
        raise ConfigError(
            f"{what} changes the text encoder too ({len(texts)} modules, first {texts[0]}): load it with LoraLoader instead, and connect its MODEL to LoomTrain and its CLIP to LoomCache, and to clip of LoomTrain where the text encoders are trained too"
        )
    if lost := sorted(key for key in (*modules, *unknown) if key not in keys):
        raise ModelFileError(
            f"{what}: {len(lost)} of its {len(modules) + len(unknown)} modules are not in this {type(model).__name__} model, first {lost[0]}: it was made for another model"
        )
    found = []
    for target, adapter in loaded_by_host(tensors, keys).items():
        key, rows, function = (*target, None, None)[:3] if isinstance(target, tuple) else (target, None, None)
        found.append(Patch(key=key, strength=strength, adapter=adapter, rows=rows, function=function))
    return found


def _changes(patches: Sequence[Patch], network: nn.Module, what: str) -> dict[str, list[FrozenChange]]:
    found: dict[str, list[FrozenChange]] = {}
    for patch in patches:
        check_readable(patch, what)
        path = patch.key.removeprefix(PREFIX).removesuffix(".weight")
        found.setdefault(path, []).append(_change(patch, network.get_submodule(path), f"{what}: {path}"))
    return found


@torch.inference_mode(False)
def _change(patch: Patch, layer: nn.Module, where: str) -> FrozenChange:
    parts = {name: share(tensor) for name, tensor in patch.parts.items()}  # a loader node's are inference tensors
    if patch.rows is None:
        return change_of(parts, layer, patch.strength, where)
    _, first, count = patch.rows
    inner = change_of(parts, layer, patch.strength, where, rows=count)
    return OfRows(inner=inner, offset=first, shape=weight_shape(layer, where))


def loader_names(graph: Graph | None, node_id: object, link: Literal["model", "clip"] = "model") -> str:
    """The files of the LoRA loaders between a model loader and the input `model` or `clip` of a node, "a.safetensors at 0.8, …"; "" where
    the graph does not say it. Loaders that have several LoRAs in a widget of their own are not known."""
    names: list[str] = []
    node, seen = str(node_id), set[str]()
    while graph and node in graph and node not in seen:
        seen.add(node)
        inputs = graph[node]["inputs"]
        if isinstance(name := inputs.get("lora_name"), str):
            strength = inputs.get(f"strength_{link}", 1.0)
            names.append(f"{Path(name).name} at {strength:g}" if isinstance(strength, int | float) else Path(name).name)
        above = inputs.get(link)
        if not isinstance(above, list):
            break
        node = str(above[0])
    return ", ".join(reversed(names))


def recorded_below(record: Record) -> tuple[tuple[BaseLoraConfig, ...], str, str]:
    """Returns (the files that a run was trained on, digest of the LoRAs that its MODEL had, that of its trained CLIP) by its run.json; ""
    for none."""
    files = [
        parse(one, BaseLoraConfig, no_note) for one in record.get("config", {}).get("model", {}).get("base_lora", [])
    ]
    every = record.get("base_loras", [])
    known = [one for one in every if not one.get("on_clip")]
    on_clip = next((one["digest"] for one in every if one.get("on_clip")), "")
    return tuple(files), known[0]["digest"] if len(known) > len(files) else "", on_clip


def check_clip_loras(clip: Clip, patches: str) -> None:
    """Raise ConfigError for a CLIP without the LoRAs that the one of a run had; `patches` is their digest, "" for none."""
    if patches and patches_digest(clip.patcher) != patches:
        raise ConfigError(
            "the run was trained on a CLIP with LoRAs loaded into it, and this CLIP does not have the same ones: connect the CLIP that clip of its LoomTrain was given"
        )


def with_base(patcher: ModelPatcher, files: Sequence[BaseLoraConfig], patches: str) -> ModelPatcher:
    """The MODEL with all that belongs to the base of a run: the files of use "always", unless they are loaded into it already.

    `patches` is the digest of the LoRAs that the run's MODEL had. Raises ConfigError for a MODEL with others.
    """
    plain = without_patches(patcher)
    on = [one for one in files if one.use == "always" and one.strength]
    if patches and patches_digest(patcher) != patches:
        raise ConfigError(
            "the run was trained on a MODEL with LoRAs loaded into it, and this MODEL does not have the same ones: connect the MODEL that its LoomTrain was given"
        )
    if on and not patches and patcher.patches:
        whole = _loaded(plain, on)
        if patches_digest(whole) == patches_digest(patcher):
            return patcher
        raise ConfigError(
            f"the run was trained on {', '.join(Path(one.file).name for one in on)}, and this MODEL has other LoRAs: connect the plain MODEL"
        )
    return _loaded(patcher, on)


def _loaded(patcher: ModelPatcher, files: Sequence[BaseLoraConfig]) -> ModelPatcher:
    import comfy.sd

    for one in files:
        patcher, _ = comfy.sd.load_lora_for_models(patcher, None, read_lora(one.file), one.strength, 0)
    return patcher
