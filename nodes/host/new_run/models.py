"""What a file that ComfyUI lists as a base model is, read from its header, without loading it."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

import torch

from ....trainer.errors import LoomError
from ....trainer.families.common.source import names_of_file
from ....trainer.known_models.row import Told, tell
from ....trainer.known_models.rows import ROWS
from ....trainer.storage.tensor_file import TensorFile
from ..base_files import find_base
from ..comfy_types import BaseModel
from ..sweep.sampler_names import base_names

logger = logging.getLogger("lora_loom")

NO_NETWORK = "disable_unet_model_creation"
"""Entry of a configuration by which ComfyUI makes a model without its network."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What was read of a file. Everything is empty for one that ComfyUI does not know."""

    model_class: str = ""
    """Its class of comfy.model_base."""
    config: Mapping[str, object] = field(default_factory=dict)
    """The configuration of its network."""
    names: tuple[str, ...] = ()
    """What it is called."""
    told: Told | None = None


def seen_in(name: str) -> Seen:
    """The model behind a name of the list (checkpoints/a.safetensors). Raises LoomError for another name, and for a damaged file."""
    path = find_base(name)
    file = TensorFile(path)
    try:
        model_class, config = detected(file.shapes(), file.metadata)
    except Exception as error:  # noqa: BLE001 - ComfyUI's detection indexes what it expects; a file of another kind is an unknown model
        logger.info("LoRA Loom: ComfyUI does not know %s (%s: %s)", name, type(error).__name__, error)
        return Seen()
    names = names_of_file(path)
    return Seen(model_class=model_class, config=config, names=tuple(names), told=tell(ROWS, model_class, config, names))


def previews_of(model: str, seen: Seen) -> list[str]:
    """Base models with few steps that can make the samples of this one: the same network, as Z-Image Turbo for Z-Image.

    None for a model that has few steps itself. Only headers are read, and only of files that may be such a model by their name.
    """
    if seen.told is None or seen.told.row.distilled != "no":
        return []
    return [name for name in base_names() if name != model and _is_fast(name, seen)]


def _is_fast(name: str, seen: Seen) -> bool:
    by_name = tell(ROWS, seen.model_class, seen.config, [PurePath(name).stem])
    if by_name is None or by_name.row.distilled != "steps":
        return False
    try:
        other = seen_in(name)
    except LoomError:  # damaged: said where it is chosen
        return False
    told = other.told
    is_alike = (other.model_class, other.config) == (seen.model_class, seen.config)
    return is_alike and told is not None and told.row.distilled == "steps"


def detected(shapes: Mapping[str, tuple[int, ...]], metadata: Mapping[str, str]) -> tuple[str, dict[str, object]]:
    """Returns (class of comfy.model_base, configuration of its network) by ComfyUI's own detection, which looks at shapes.

    Raises LoomError for a model that it does not know, and whatever it raises itself.
    """
    model = without_network(shapes, metadata)
    config = {name: value for name, value in model.model_config.unet_config.items() if name != NO_NETWORK}  # type: ignore[attr-defined]
    return type(model).__name__, config


def without_network(shapes: Mapping[str, tuple[int, ...]], metadata: Mapping[str, str]) -> BaseModel:
    """What ComfyUI would load of a file of such tensors, without its network: its class, configuration and latent format.

    Raises LoomError for a model that it does not know, and whatever its detection raises itself.
    """
    from comfy import model_detection

    state = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    prefix = model_detection.unet_prefix_from_state_dict(state)
    prefix = prefix if any(key.startswith(prefix) for key in state) else ""
    found = model_detection.model_config_from_unet(state, prefix, metadata=dict(metadata))
    if found is None:
        raise LoomError("its shapes are those of no model")
    found.unet_config[NO_NETWORK] = True
    found.set_inference_dtype(torch.float32, None)
    model: BaseModel = found.get_model(_Numbers(state), prefix)
    return model


class _Numbers(dict[str, torch.Tensor]):
    """Tensors without numbers, but for the few that a class reads to tell its variant: zeros of their shape."""

    def __getitem__(self, key: str) -> torch.Tensor:
        return torch.zeros(super().__getitem__(key).shape)

    def get(self, key: str, default: Any = None) -> Any:
        """As `dict.get`, which would not go through `__getitem__`."""
        try:
            return self[key]
        except KeyError:
            return default
