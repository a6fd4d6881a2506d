"""What ComfyUI makes of a LoRA file: its own key map and weight arithmetic, module by module, on the CPU.

Only names are read from the model and only single weights are computed with: nothing is loaded, so the training thread may
do this.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ....trainer.config.aliases import log_note
from ....trainer.errors import ModelFileError
from ....trainer.families.common.lora_names import is_text_encoder
from ....trainer.lora.host_formula import changed_shape, group_by_module
from ....trainer.lora.state_dict import Arithmetic, Change
from ..comfy_types import BaseModel, Clip

RESHAPED = ".reshape_weight"
"""Tells of a weight that ComfyUI widens before it adds the change."""


def known_keys(model: BaseModel, clip: Clip | None = None) -> Mapping[str, object]:
    """Returns {module key in LoRA files: what of the model, and of a CLIP, it changes}."""
    from comfy.lora import model_lora_keys_clip, model_lora_keys_unet

    keys: dict[str, object] = model_lora_keys_unet(model, {})
    return keys if clip is None else model_lora_keys_clip(clip.cond_stage_model, keys)


def loaded_by_host(tensors: Mapping[str, Tensor], keys: Mapping[str, object]) -> Mapping[object, object]:
    """Returns {what is changed: ComfyUI's adapter object}. Raises ModelFileError for half a pair."""
    from comfy.lora import load_lora

    try:
        loaded: Mapping[object, object] = load_lora({name: tensor.cpu() for name, tensor in tensors.items()}, keys)
    except KeyError as error:  # of a pair it looks for the second without asking
        raise ModelFileError(f"ComfyUI cannot read the LoRA, which lacks {error}") from error
    return loaded


def check_fits_model(model: BaseModel, tensors: Mapping[str, Tensor], name: str) -> None:
    """Raise ModelFileError for a LoRA of which ComfyUI would apply nothing to this model, or that has weights of other sizes.

    ComfyUI says of the first that keys are not loaded, of the second an error in its log, and samples without them. Modules that it
    leaves out beside others are logged.
    """
    from comfy.lora_convert import convert_lora

    key_map = known_keys(model)
    modules, unknown = group_by_module(convert_lora(tensors))  # files of Black Forest Labs and USO get other names
    reshaped = {key.removesuffix(RESHAPED) for key in unknown if key.endswith(RESHAPED)}
    mine = {key: parts for key, parts in modules.items() if not is_text_encoder(key)}
    lost = sorted(key for key in mine if key not in key_map)
    if mine and len(lost) == len(mine):
        raise ModelFileError(
            f"{name}: ComfyUI matches none of its {len(mine)} modules in this model ({type(model).__name__}), first {lost[0]}: it was made for another model"
        )
    if lost:
        log_note(
            f"{name}: {len(lost)} of its {len(mine)} modules are not in this model and are left out, first {lost[0]}"
        )
    shapes = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items() if tensor.dtype.is_floating_point}
    for key, parts in mine.items():
        target = key_map.get(key)
        native, offset = (target[0], target[1]) if isinstance(target, tuple) else (target, None)
        shape, made = shapes.get(str(native)), changed_shape(parts)
        if shape is None or made is None or key in reshaped:
            continue
        rows = offset[2] if offset else shape[0]
        if made != (rows, math.prod(shape[1:])):
            raise ModelFileError(
                f"{name}: {key} is made for a weight of {made[0]} rows and {made[1]} columns, this model's has {(rows, *shape[1:])}: it was made for a model of another size"
            )


def host_arithmetic(model: BaseModel, clip: Clip | None = None) -> Arithmetic:
    """How ComfyUI reads LoRA files for this model, and for a CLIP that is trained with it. The function raises ModelFileError for a file of which ComfyUI would ignore a part."""
    key_map = known_keys(model, clip)

    def read(tensors: Mapping[str, Tensor]) -> Change:
        modules, unknown = group_by_module(tensors)
        unmatched = [*unknown, *(key for key in modules if key not in key_map)]
        loaded = loaded_by_host(tensors, key_map)
        unmatched += [key for key in modules if key in key_map and key_map[key] not in loaded]
        if unmatched:
            raise ModelFileError(f"ComfyUI would ignore {len(unmatched)} keys of the saved LoRA, first {unmatched[0]}")
        return lambda key, base: _change(key, base, key_map, loaded)

    return read


def _change(key: str, base: Tensor, key_map: Mapping[str, object], loaded: Mapping[object, object]) -> Tensor:
    from comfy.lora import calculate_weight

    if key not in key_map or key_map[key] not in loaded:
        raise ModelFileError(f"the saved LoRA lacks {key}")
    patch = (1.0, loaded[key_map[key]], 1.0, None, None)
    with torch.no_grad():
        patched: Tensor = calculate_weight([patch], base.clone(), key, intermediate_dtype=base.dtype)
    return patched - base
