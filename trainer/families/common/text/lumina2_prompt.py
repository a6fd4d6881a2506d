"""What Lumina2 reads before a prompt, for its text encoder and for graphs."""

from ..family import PromptEncoding

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
