"""The base LoRAs of a run from the command line: read, and fitted to the network's layers before any weight is loaded."""

from pathlib import Path

from ..base_model import Base
from ..config.model import BaseLoraConfig
from ..config.network import BY_BASE
from ..config.run import NetworkConfig, TrainConfig
from ..diffusion.denoiser import Denoiser
from ..errors import ConfigError, ModelFileError
from ..families.common.lora_names import is_text_encoder
from ..lora.base_lora import BaseLora, BaseLoraIdentity, change_of
from ..lora.host_formula import group_by_module, refuse_broken
from ..lora.patch import match_modules
from ..storage.fingerprint import tensors_digest
from ..storage.tensor_file import read_lora
from .layouts import Formats


def read_base_loras(config: TrainConfig, base: Base, network: Denoiser) -> tuple[BaseLora, ...]:
    """Those of `model.base_lora`, in their order. `network` may be without weights.

    Raises ConfigError or ModelFileError, which names the file, for one that does not fit the network in every key and shape.
    """
    asked = config.model.base_lora
    if asked and config.memory.shard:
        raise ConfigError(
            "model.base_lora does not go with memory.shard: use one GPU, or merge the base LoRA into the base (merge-base)"
        )
    refuse_training_loras(config.network, asked)
    return tuple(_read(one, base, network) for one in asked)


def refuse_training_loras(network: NetworkConfig, asked: tuple[BaseLoraConfig, ...]) -> None:
    """Raises ConfigError where the change depends on the weights that it is trained on, and these are not there in use."""
    names = [one.file for one in asked if one.use == "training"]
    if names and network.kind in BY_BASE:
        raise ConfigError(
            f"network.kind = {network.kind!r} does not go with a base LoRA for training only ({names[0]}): what it does depends on the weights that it was trained on; use lora"
        )


def _read(asked: BaseLoraConfig, base: Base, network: Denoiser) -> BaseLora:
    name, tensors = Path(asked.file).name, read_lora(asked.file)
    what = f"base LoRA {name}"
    refuse_broken(tensors, what)
    if texts := sorted(key for key in group_by_module(tensors)[0] if is_text_encoder(key)):
        raise ConfigError(
            f"{what} changes the text encoder too ({len(texts)} modules, first {texts[0]}), and a base LoRA changes the denoiser only: use one that was trained without text encoder, or merge it into the checkpoint (lora-loom merge-base) and train on that"
        )
    try:
        matched = match_modules(network, Formats(family=base.family, denoiser=network).native(tensors))
    except ModelFileError as error:
        raise ModelFileError(f"{what}: {error}") from error
    return BaseLora(
        identity=BaseLoraIdentity(file=name, digest=tensors_digest(tensors), strength=asked.strength, use=asked.use),
        changes={
            path: [change_of(parts, network.module.get_submodule(path), asked.strength, f"{what}: {path}")]
            for path, parts in matched.items()
        },
    )
