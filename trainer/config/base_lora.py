"""The options of a base LoRA: a frozen LoRA under the one that is trained."""

from dataclasses import dataclass
from typing import Literal

from .section import Section, require


@dataclass(frozen=True, kw_only=True)
class BaseLoraConfig(Section, table="model.base_lora"):
    """A frozen LoRA under the one that is trained, one [[model.base_lora]] table each."""

    file: str
    """The LoRA file, in any key format that sweeps read. Every key must belong to the base model."""
    strength: float = 1.0
    """Strength at which it is computed; 0 leaves it out."""
    use: Literal["training", "always"] = "always"
    """always: in training, samples and sweeps; it has to be loaded together with the LoRA that is trained on it. training: only while training, as de-distillation adapters are meant; samples, sweeps and the saved file are without it."""

    def check(self) -> None:
        require(bool(self.file.strip()), "model.base_lora.file", self.file, "give a LoRA file (.safetensors)")
