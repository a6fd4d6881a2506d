"""A CLIP for the demo base: what text nodes, LoRA loaders and our own nodes ask of ComfyUI's CLIP, over a transformers model.

ComfyUI's class expects a tokenizer and a network of its own; the demo's words and widths are not among them.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from ....trainer.families.common.encoders import ClipText, penultimate
from ..comfy_types import ComfyConditioning, KeyPatches

Tokens: TypeAlias = dict[str, list[list[tuple[float, ...]]]]
"""ComfyUI's tokens: {encoder: batches of (token, weight), or (token, weight, number of the word)}."""


class TextPatcher(Protocol):
    """What is used of ComfyUI's patcher over the text encoder."""

    @property
    def model(self) -> "DemoText":
        """The text encoder."""

    def clone(self) -> "TextPatcher":
        """The same text encoder with patches of its own."""

    def add_patches(self, patches: object, strength_patch: float, strength_model: float) -> object:
        """Add patches; returns the keys that were patched."""

    def get_key_patches(self, filter_prefix: str | None = None) -> KeyPatches:
        """Original weights and their patches."""

    def model_state_dict(self) -> Mapping[str, Tensor]:
        """The weights of the text encoder."""


class DemoText(nn.Module):
    """The encoder under the names by which LoRA files address it (clip_l.transformer.text_model…)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.clip_l = nn.Module()
        self.clip_l.transformer = network

    @property
    def network(self) -> nn.Module:
        """The transformers model."""
        return self.get_submodule("clip_l.transformer")


class DemoClip:
    """Penultimate hidden states and the projected pooled vector, as the engine reads this encoder."""

    def __init__(self, patcher: TextPatcher, tokenizer: Callable[..., Any]) -> None:
        self.patcher, self.tokenizer = patcher, tokenizer
        self.cond_stage_model: DemoText = patcher.model
        self.layer_idx: int | None = None
        self.tokenizer_options: dict[str, object] = {}
        self.use_clip_schedule = False

    @classmethod
    def of(cls, network: nn.Module, tokenizer: Callable[..., Any]) -> "DemoClip":
        import comfy.model_management as management
        from comfy.model_patcher import ModelPatcher

        patcher = ModelPatcher(
            DemoText(network),
            load_device=management.text_encoder_device(),
            offload_device=management.text_encoder_offload_device(),
        )
        return cls(patcher, tokenizer)

    def clone(self, **options: object) -> "DemoClip":
        """Shares the weights; patches added to it leave this one as it is."""
        other = DemoClip(self.patcher.clone(), self.tokenizer)
        other.layer_idx, other.tokenizer_options = self.layer_idx, dict(self.tokenizer_options)
        return other

    def add_patches(self, patches: object, strength_patch: float = 1.0, strength_model: float = 1.0) -> object:
        """Add patches to the text encoder, as LoRA loaders do; returns the keys that were patched."""
        return self.patcher.add_patches(patches, strength_patch, strength_model)

    def get_key_patches(self) -> KeyPatches:
        """Original weights and their patches."""
        return self.patcher.get_key_patches()

    def clip_layer(self, layer_idx: int) -> None:
        """-1 the last layer, -2 the one before; the default is -2, as SD3 reads CLIP."""
        self.layer_idx = layer_idx

    def load_model(self, tokens: object = None) -> TextPatcher:
        """Have ComfyUI load the text encoder."""
        import comfy.model_management as management

        management.load_models_gpu([self.patcher])
        return self.patcher

    def tokenize(self, text: str, return_word_ids: bool = False, **options: object) -> Tokens:
        """ComfyUI's form: one batch of (token, weight). Weights in the prompt's syntax are not read."""
        reader = self._reader()
        ids = self.tokenizer(text, padding="max_length", max_length=reader.max_tokens, truncation=True)["input_ids"]
        return {"l": [[(token, 1.0, place) if return_word_ids else (token, 1.0) for place, token in enumerate(ids)]]}

    def encode_from_tokens(self, tokens: Tokens, return_pooled: bool = False, return_dict: bool = False) -> Any:
        """Hidden states (1, tokens, width); with the pooled vector as a pair or a dict, as in ComfyUI's CLIP."""
        self.load_model(tokens)
        ids = torch.tensor([[entry[0] for entry in batch] for batch in tokens["l"]])
        hidden, pooled = self._reader().of_tokens(ids)
        if return_dict:
            return {"cond": hidden, "pooled_output": pooled}
        return (hidden, pooled) if return_pooled else hidden

    def encode_from_tokens_scheduled(
        self, tokens: Any, unprojected: bool = False, add_dict: dict[str, object] | None = None, show_pbar: bool = True
    ) -> ComfyConditioning:
        """The CONDITIONING of tokens."""
        made = self.encode_from_tokens(tokens, return_dict=True)
        return [[made.pop("cond"), {**made, **(add_dict or {})}]]

    def encode(self, text: str) -> Any:
        """Hidden states of a text."""
        return self.encode_from_tokens(self.tokenize(text))

    def get_sd(self) -> dict[str, Tensor]:
        """The weights of the text encoder."""
        return dict(self.patcher.model_state_dict())

    def _reader(self) -> ClipText:
        reader = penultimate(self.cond_stage_model.network, self.tokenizer)
        if self.layer_idx is not None:
            reader.skip = -self.layer_idx
        return reader
