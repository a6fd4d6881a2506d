"""Lumina2's text encoder, and what it reads before a prompt, which graphs need too."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..encoders import device_of
from ..family import PromptEncoding, Text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SYSTEM_PROMPT = (
    "You are an assistant designed to generate superior images with the superior degree of image-text alignment"
    " based on textual prompts or user prompts."
)
PROMPT_START = " <Prompt Start> "


def system_prompt(reading: PromptEncoding) -> str:
    """What stands before every prompt but the empty one; "" for nothing."""
    return SYSTEM_PROMPT if reading.system_prompt == "auto" else reading.system_prompt.strip()


def worded(prompt: str, system: str) -> str:
    """What the tokenizer is given."""
    return f"{system}{PROMPT_START}{prompt}" if prompt and system else prompt


class Lumina2Text:
    """Gemma-2's last but one hidden state of the system prompt and the prompt, at the prompt's own length.

    The empty prompt is encoded without the system prompt, as the samplers' unconditional side is.
    """

    def __init__(
        self, module: nn.Module, tokenizer: "PreTrainedTokenizerBase", *, max_tokens: int, system: str = SYSTEM_PROMPT
    ) -> None:
        self.module, self.tokenizer, self.system = module, tokenizer, system
        self.max_tokens = min(max_tokens, tokenizer.model_max_length)

    def wording(self, prompt: str) -> str:
        return worded(prompt, self.system)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> list[Text]:
        """One at a time, so that nothing depends on what it is batched with."""
        texts: list[Text] = []
        for prompt in prompts:
            tokens = self.tokenizer(
                [self.wording(prompt)], max_length=self.max_tokens, truncation=True, return_tensors="pt"
            )
            ids_1L = tokens["input_ids"].to(device_of(self.module))
            hidden = self.module(ids_1L, output_hidden_states=True).hidden_states[-2]
            texts.append({"text": hidden[0].float().cpu()})
        return texts
