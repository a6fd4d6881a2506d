"""Texts as models read them whose text encoder is a language model: hidden states of a chat template with the prompt in it.

L tokens, D width.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..encoders import device_of
from ..family import Text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class ChatText:
    """The layers of a language model's hidden states that a network reads, side by side."""

    def __init__(
        self,
        module: nn.Module,
        tokenizer: "PreTrainedTokenizerBase",
        *,
        template: str,
        max_tokens: int,
        layers: tuple[int, ...] = (-2,),
        padding: Literal["none", "tokens", "zeros"] = "none",
        begins: bool = False,
        head_tokens: int = 0,
        empty: str = "",
    ) -> None:
        """`template` holds {} for the prompt. `layers` index transformers' hidden states, whose first are the embeddings. `padding`
        fills a text up to `max_tokens`: with what the language model says at padding tokens behind it, or with zeros before it.
        `begins` puts the token that marks a beginning before the template. The first `head_tokens` are read and dropped; they
        do not count towards `max_tokens`. `empty` stands in for an empty prompt."""
        self.module, self.tokenizer, self.template = module, tokenizer, template
        self.max_tokens = min(max_tokens + head_tokens, tokenizer.model_max_length)
        self.layers, self.padding, self.begins, self.head_tokens = layers, padding, begins, head_tokens
        self.empty = empty

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> list[Text]:
        """One at a time, so that nothing depends on what it is batched with. "text" is (L, D * layers)."""
        return [{"text": self._read(self.template.format(prompt or self.empty))} for prompt in prompts]

    def _read(self, wording: str) -> Tensor:
        ids_1L = self._tokens(wording)
        mask_1L, missing = torch.ones_like(ids_1L), self.max_tokens - ids_1L.shape[1]
        if self.padding == "tokens":
            ids_1L = F.pad(ids_1L, (0, missing), value=int(self.tokenizer.pad_token_id))
            mask_1L = F.pad(mask_1L, (0, missing))
        device = device_of(self.module)
        output = self.module(input_ids=ids_1L.to(device), attention_mask=mask_1L.to(device), output_hidden_states=True)
        text_LD = torch.cat([output.hidden_states[layer][0, self.head_tokens :] for layer in self.layers], dim=-1)
        text_LD = text_LD.float().cpu()
        return F.pad(text_LD, (0, 0, missing, 0)) if self.padding == "zeros" else text_LD

    def _tokens(self, wording: str) -> Tensor:
        """Ids (1, L), cut to `max_tokens`."""
        if not self.begins:
            return self.tokenizer([wording], max_length=self.max_tokens, truncation=True, return_tensors="pt")[
                "input_ids"
            ]
        ids = self.tokenizer([wording], add_special_tokens=False)["input_ids"][0]
        return torch.tensor([[self.tokenizer.bos_token_id, *ids][: self.max_tokens]])


def quarters(module: nn.Module) -> tuple[int, int, int]:
    """The layers at a quarter, a half and three quarters of a language model's depth."""
    config: Any = module.config
    depth = int(config.get_text_config().num_hidden_layers)
    return depth // 4, depth // 2, depth * 3 // 4
