"""LoomBaseLora: frozen LoRAs under the one that is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from .node import InputTypes, LoomNode
from .settings import SETTINGS
from .sockets.names import BASE_LORA
from .widgets import link, widget

if TYPE_CHECKING:
    from .sockets.values import BaseLoraValue


class LoomBaseLora(LoomNode):
    """A base LoRA."""

    TITLE = "Loom Base LoRA"
    SEARCH_ALIASES = ("training adapter", "assistant lora", "de-distillation", "train on top of a lora", "turbo")
    CATEGORY = SETTINGS
    DESCRIPTION = "A frozen LoRA under the one that is trained: while training only, as training adapters for distilled models are meant, or always, to train on top of a LoRA. The saved file holds the new LoRA alone."
    RETURN_TYPES = (BASE_LORA,)
    RETURN_NAMES = ("base_loras",)
    OUTPUT_TOOLTIPS = ("Connect to Loom Train LoRA, or to another Loom Base LoRA.",)

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:
        from .host.sweep.sampler_names import lora_names

        return {
            "required": {
                "lora": (lora_names(), {"tooltip": "The LoRA file. Every key must belong to the model."}),
                "strength": widget("BaseLoraConfig", "strength", min=-20.0, max=20.0, step=0.01),
                "use": widget("BaseLoraConfig", "use"),
            },
            "optional": {"previous": link(BASE_LORA, "Another base LoRA. All of them are computed.")},
        }

    @classmethod
    def IS_CHANGED(cls, lora: str, **inputs: object) -> str:
        """The file's date and size: another content is another base."""
        from .host.lora_files import stamps

        return stamps([lora])

    def run(
        self, lora: str, strength: float, use: Literal["training", "always"], previous: BaseLoraValue | None = None
    ) -> tuple[BaseLoraValue]:
        from ..trainer.config.model import BaseLoraConfig
        from .host.paths import find_lora
        from .sockets.values import BaseLoraValue

        mine = BaseLoraConfig(file=str(find_lora(lora)), strength=strength, use=use)
        return (BaseLoraValue(loras=(*(previous.loras if previous else ()), mine)),)
