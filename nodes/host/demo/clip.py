"""A CLIP for the demo base: what text nodes, LoRA loaders and our own nodes ask of ComfyUI's CLIP, over a transformers model.

ComfyUI's class expects a tokenizer and a network of its own; the demo's words and widths are not among them.
"""

from typing import Any

import torch
from torch import nn

from ....trainer.families.common.encoders import ClipText, penultimate


class DemoText(nn.Module):
    """The encoder under the names by which LoRA files address it (clip_l.transformer.text_model…)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.clip_l = nn.Module()
        self.clip_l.transformer = network

    @property
    def network(self) -> nn.Module:
        return self.get_submodule("clip_l.transformer")


class DemoClip:
    """Penultimate hidden states and the projected pooled vector, as the engine reads this encoder."""

    def __init__(self, patcher: Any, tokenizer: Any) -> None:
        self.patcher, self.tokenizer = patcher, tokenizer
        self.cond_stage_model: DemoText = patcher.model
        self.layer_idx: int | None = None
        self.tokenizer_options: dict[str, Any] = {}
        self.use_clip_schedule = False

    @classmethod
    def of(cls, network: nn.Module, tokenizer: Any) -> "DemoClip":
        import comfy.model_management as management
        from comfy.model_patcher import ModelPatcher

        patcher = ModelPatcher(
            DemoText(network),
            load_device=management.text_encoder_device(),
            offload_device=management.text_encoder_offload_device(),
        )
        return cls(patcher, tokenizer)

    def clone(self, **options: Any) -> "DemoClip":
        """Shares the weights; patches added to it leave this one as it is."""
        other = DemoClip(self.patcher.clone(), self.tokenizer)
        other.layer_idx, other.tokenizer_options = self.layer_idx, dict(self.tokenizer_options)
        return other

    def add_patches(self, patches: Any, strength_patch: float = 1.0, strength_model: float = 1.0) -> Any:
        return self.patcher.add_patches(patches, strength_patch, strength_model)

    def get_key_patches(self) -> Any:
        return self.patcher.get_key_patches()

    def clip_layer(self, layer_idx: int) -> None:
        """-1 the last layer, -2 the one before; the default is -2, as SD3 reads CLIP."""
        self.layer_idx = layer_idx

    def load_model(self, tokens: Any = None) -> Any:
        import comfy.model_management as management

        management.load_models_gpu([self.patcher])
        return self.patcher

    def tokenize(
        self, text: str, return_word_ids: bool = False, **options: Any
    ) -> dict[str, list[list[tuple[Any, ...]]]]:
        """ComfyUI's form: one batch of (token, weight). Weights in the prompt's syntax are not read."""
        reader = self._reader()
        ids = self.tokenizer(text, padding="max_length", max_length=reader.max_tokens, truncation=True)["input_ids"]
        return {"l": [[(token, 1.0, place) if return_word_ids else (token, 1.0) for place, token in enumerate(ids)]]}

    def encode_from_tokens(self, tokens: Any, return_pooled: Any = False, return_dict: bool = False) -> Any:
        self.load_model(tokens)
        ids = torch.tensor([[entry[0] for entry in batch] for batch in tokens["l"]])
        hidden, pooled = self._reader().of_tokens(ids)
        if return_dict:
            return {"cond": hidden, "pooled_output": pooled}
        return (hidden, pooled) if return_pooled else hidden

    def encode_from_tokens_scheduled(
        self, tokens: Any, unprojected: bool = False, add_dict: Any = None, show_pbar: bool = True
    ) -> list[Any]:
        made = self.encode_from_tokens(tokens, return_dict=True)
        return [[made.pop("cond"), {**made, **(add_dict or {})}]]

    def encode(self, text: str) -> Any:
        return self.encode_from_tokens(self.tokenize(text))

    def get_sd(self) -> dict[str, Any]:
        return dict(self.patcher.model_state_dict())

    def _reader(self) -> ClipText:
        reader = penultimate(self.cond_stage_model.network, self.tokenizer)
        if self.layer_idx is not None:
            reader.skip = -self.layer_idx
        return reader
