"""A LoRA on the text encoders too: base model and encoders as one denoiser, which encodes its captions in every step.

Keys in files are kohya's, lora_te_…, lora_te1_… and lora_te2_…, which ComfyUI applies to CLIP.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn

from ..base_model import Base
from ..config.run import NetworkConfig, OptimizerConfig, TextConfig
from ..diffusion.denoiser import Denoiser, Targets
from ..diffusion.objectives import Objective
from ..errors import ConfigError
from ..families.common.encoder_files.parts import parts_of
from ..families.common.family import Text, TrainableText
from ..types import Conditioning

NETWORK = "network"
"""Name of the denoiser among the modules."""
TEXT_MODULES = re.compile(r"(^|\.)encoder\.layers\.\d+\.(self_attn\.(q|k|v|out)_proj|mlp\.fc[12])$")
"""Attention and feed-forward layers, the target modules of sd-scripts' LoRA on CLIP."""


Condition: TypeAlias = Callable[[Sequence[Text], Conditioning], Conditioning]
"""Makes the network's conditioning of encoded captions and what else a batch has."""


class TextModules(nn.ModuleDict):
    """Text encoders by their names in LoRA files: te, te1, te2."""


def text_key(path: str) -> str:
    """Key in a LoRA file of a module path such as "te1.text_model.encoder.layers.0.mlp.fc1", with or without text_model."""
    name, inner = path.split(".", 1)
    return f"lora_{name}_text_model_" + inner.removeprefix("text_model.").replace(".", "_")


def text_targets(name: str, module: nn.Module, depth: int, unread: int = 0) -> list[str]:
    """Sorted paths of the target modules of a text encoder with `depth` layers, without those of its last `unread` ones."""
    idle = re.compile(rf"(^|\.)layers\.({'|'.join(str(i) for i in range(depth - unread, depth)) or 'none'})\.")
    found = (path for path, part in module.named_modules() if isinstance(part, nn.Linear) and TEXT_MODULES.search(path))
    return sorted(f"{name}.{path}" for path in found if not idle.search(path))


def unread_layers(base: Base, name: str, depth: int) -> int:
    """Number of a text encoder's last layers whose output the model does not use: no gradient would reach them."""
    settings = base.settings
    lacking = max(0, settings.clip_depth - depth) and 1
    layer = base.reading.clip_skip or settings.clip_layer
    return 0 if name in settings.text_pooled else max(0, layer - 1 - lacking)


def text_skeleton(base: Base) -> TextModules:
    """The structure of the text encoders without their weights."""
    parts = parts_of(base.source)
    with torch.device("meta"):
        return TextModules({name: parts.skeleton(part) for name, part in base.settings.text_parts.items()})


@dataclass(kw_only=True)
class TextView:
    """Text encoders in the form that a LoRA file is applied to."""

    family: str
    module: nn.Module

    def file_key(self, module_path: str) -> str:
        """Key of a module in a LoRA file."""
        return text_key(module_path)


@dataclass(kw_only=True)
class WithText:
    """A denoiser that encodes its captions itself; its conditioning holds captions, and what `condition` needs besides, instead of
    encodings."""

    inner: Denoiser
    module: nn.Module
    text: TrainableText | None
    """The loaded text encoders; None in a skeleton, which has no weights."""
    condition: Condition

    @property
    def family(self) -> str:
        return self.inner.family

    @property
    def objective(self) -> Objective:
        return self.inner.objective

    @property
    def target_presets(self) -> Mapping[str, Targets]:
        return self.inner.target_presets

    def predict(self, noisy_BCHW: Tensor, sigma_B: Tensor, conditioning: Conditioning) -> Tensor:
        assert self.text is not None
        made = self.condition(self.text.read(conditioning["captions"]), conditioning)
        placed = {n: value.to(noisy_BCHW.device) if isinstance(value, Tensor) else value for n, value in made.items()}
        return self.inner.predict(noisy_BCHW, sigma_B, placed)

    def file_key(self, module_path: str) -> str:
        inner = module_path.removeprefix(f"{NETWORK}.")
        return self.inner.file_key(inner) if inner != module_path else text_key(module_path)


def together(inner: Denoiser, networks: Mapping[str, nn.Module]) -> nn.ModuleDict:
    """Network and text encoders as one module, under the first names of adapter paths."""
    return nn.ModuleDict({NETWORK: inner.module, **networks})


def with_text(inner: Denoiser, base: Base, text: TrainableText | None = None, guidance: float = 1.0) -> WithText:
    """Denoiser and text encoders as one; without `text` it is a skeleton, which has no weights."""
    modules = text.networks() if text is not None else dict(text_skeleton(base).items())

    def condition(texts: Sequence[Text], conditioning: Conditioning) -> Conditioning:
        return base.family.condition(texts, conditioning["geometries"], guidance)

    return WithText(inner=inner, module=together(inner, modules), text=text, condition=condition)


def load_with_text(inner: Denoiser, base: Base, guidance: float) -> WithText:
    """Denoiser and text encoders as one, the encoders on the device; the VAE that is loaded with them is freed."""
    return with_text(inner, base, cast(TrainableText, base.load_encoders().text), guidance)


def all_targets(network_targets: list[str], skeleton: WithText, base: Base, text: TextConfig) -> list[str]:
    """Paths of the target modules in denoiser and text encoders as one."""
    texts: list[str] = []
    for name in text.rates(base.settings.text_parts):
        module: Any = skeleton.module.get_submodule(name)
        depth = int(module.config.num_hidden_layers)
        texts += text_targets(name, module, depth, unread_layers(base, name, depth))
    return joined_targets(network_targets, texts, text)


def joined_targets(network_targets: Sequence[str], texts: Sequence[str], text: TextConfig) -> list[str]:
    """Paths in network and text encoders as one; the network's are left out where the text encoders are trained alone."""
    return [*([] if text.alone else [f"{NETWORK}.{path}" for path in network_targets]), *texts]


def rate_scales(text: TextConfig, optimizer: OptimizerConfig, names: Sequence[str]) -> dict[str, float]:
    """Returns {first part of a module path: factor on the learning rate}; empty where no text encoder is trained.

    `names` are those of the model's text encoders in LoRA files."""
    return {f"{name}.": rate / optimizer.rate for name, rate in text.rates(names).items()}


def check_text_training(
    text: TextConfig, optimizer: OptimizerConfig, network: NetworkConfig, names: Sequence[str], model: str
) -> None:
    """Raise ConfigError where a LoRA on the text encoders of these names cannot be trained as asked. `model` is for the message."""
    if text.alone:
        _refuse_modules(network)
    second = any(name.endswith("2") for name in names)
    if text.learning_rate_2 >= 0 and names and not second:
        raise ConfigError(
            f"text.learning_rate_2 = {text.learning_rate_2}: {model} has one text encoder; leave it out (-1)"
        )
    if not text.is_trained:
        return
    option = "learning_rate" if text.learning_rate else "learning_rate_2"
    problem, rates = "", text.rates(names)
    if not names:
        problem = f"the text encoders of {model} are not trained; leave it out"
    elif optimizer.learning_rate == "find":
        problem = "optimizer.learning_rate = 'find' looks for one rate alone; use auto or a number"
    elif optimizer.entry.finds_rate and any(rate != optimizer.rate for rate in rates.values()):
        problem = f"{optimizer.name} finds one rate for all; use optimizer.learning_rate here too"
    if problem:
        raise ConfigError(f"text.{option} = {getattr(text, option)}: {problem}")


def _refuse_modules(network: NetworkConfig) -> None:
    """Raise ConfigError for a choice among the modules of a base model that gets no adapter at all."""
    for name, usual in (("target_modules", "default"), ("exclude_modules", "")):
        if (given := getattr(network, name)) != usual:
            raise ConfigError(
                f"network.{name} = {given!r} would have no effect: text.alone trains the text encoders alone, in all of their layers; leave it out, or switch text.alone off"
            )
