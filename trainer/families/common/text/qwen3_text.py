"""Texts as models read them that have Qwen3 as their text encoder: hidden states of a chat template with the prompt in it.

L tokens, D width.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..encoders import device_of
from ..family import Text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Qwen3Text:
    """The layers of Qwen3's hidden states that a model reads, one behind the other, at the prompt's own length."""

    def __init__(
        self,
        module: nn.Module,
        tokenizer: "PreTrainedTokenizerBase",
        *,
        template: str,
        max_tokens: int,
        layers: tuple[int, ...] = (-2,),
    ) -> None:
        """`template` holds {} for the prompt; `layers` index transformers' hidden states, whose first are the embeddings."""
        self.module, self.tokenizer, self.template = module, tokenizer, template
        self.max_tokens, self.layers = max_tokens, layers

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> list[Text]:
        """One at a time, so that nothing depends on what it is batched with. "text" is (L, D * layers)."""
        return [{"text": self._read(self.template.format(prompt))} for prompt in prompts]

    def _read(self, wording: str) -> torch.Tensor:
        tokens = self.tokenizer([wording], max_length=self.max_tokens, truncation=True, return_tensors="pt")
        ids_1L = tokens["input_ids"].to(device_of(self.module))
        hidden = self.module(ids_1L, output_hidden_states=True).hidden_states
        return torch.cat([hidden[layer][0] for layer in self.layers], dim=-1).float().cpu()
