"""Texts as FLUX.2 reads them: three layers of a language model, Qwen3 for Klein and Mistral Small 3 for dev."""

from typing import TYPE_CHECKING

from torch import nn

from .chat_text import ChatText, quarters

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

KLEIN_TEMPLATE = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
DEV_TEMPLATE = (
    "[SYSTEM_PROMPT]You are an AI that reasons about image descriptions. You give structured responses focusing on object"
    " relationships, object\nattribution and actions without speculation.[/SYSTEM_PROMPT][INST]{}[/INST]"
)


def klein_text(module: nn.Module, tokenizer: "PreTrainedTokenizerBase", length: int) -> ChatText:
    """Qwen3's layers 9, 18 and 27 of 36, at the prompt and at the padding behind it."""
    return ChatText(
        module, tokenizer, template=KLEIN_TEMPLATE, max_tokens=length, layers=quarters(module), padding="tokens"
    )


def dev_text(module: nn.Module, tokenizer: "PreTrainedTokenizerBase", length: int) -> ChatText:
    """Mistral's layers 10, 20 and 30 of 40; a text that does not fill its length gets zeros before it, as in ComfyUI."""
    return ChatText(
        module,
        tokenizer,
        template=DEV_TEMPLATE,
        max_tokens=length,
        layers=quarters(module),
        padding="zeros",
        begins=True,
    )
