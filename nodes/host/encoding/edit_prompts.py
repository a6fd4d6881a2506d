"""How the text encoder of an edit model reads prompts beside reference images, as ComfyUI's own nodes for it do."""

from collections.abc import Sequence

from torch import Tensor

from ....trainer.errors import ConfigError
from ....trainer.families.common.qwen_text import EDIT_HEAD, TEMPLATE_TAIL
from ....trainer.families.qwen_image import ANNOUNCE, VARIANTS
from ...sockets.names import ALONE, AUTO
from ..comfy_types import Clip

PLUS = "qwen-image-edit-plus"
PICTURE = "<|vision_start|><|image_pad|><|vision_end|>"
"""Stands for a picture in a prompt; the tokenizer puts it there."""


def chosen_reading(asked: str, clip: Clip, shown: int) -> str:
    """The reading for `edit_prompts` = `asked`, where `shown` reference images are shown together at most.

    Raises ConfigError for a reading that this text encoder, or the number of images, does not allow.
    """
    tokenizer = type(clip.tokenizer)
    sees = any(cls.__name__ == "QwenImageTokenizer" for cls in tokenizer.__mro__)
    if asked == AUTO:
        return PLUS if sees and shown else ALONE
    if asked == ALONE:
        return ALONE
    if not sees:
        raise ConfigError(
            f"edit_prompts = {asked!r}: this text encoder ({tokenizer.__name__}) is shown no images; connect Qwen-Image's, or choose {AUTO}"
        )
    if not shown:
        raise ConfigError(f"edit_prompts = {asked!r}: there are no reference images; give some, or choose {AUTO}")
    if shown > (most := VARIANTS[asked].references):
        raise ConfigError(
            f"edit_prompts = {asked!r}: {shown} reference images are shown together, and this model looks at {most} at most"
        )
    return asked


def text_pixels(reading: str) -> int:
    """As in `EncoderIdentity`."""
    return 0 if reading == ALONE else VARIANTS[reading].text_pixels


def tokens_beside(clip: Clip, reading: str, prompt: str, pictures_CHW: Sequence[Tensor]) -> object:
    """Tokens of a prompt and its pictures, RGB in [-1, 1], sides multiples of 28 pixels."""
    images = [((picture + 1) / 2).movedim(0, -1).unsqueeze(0) for picture in pictures_CHW]
    if reading not in ANNOUNCE:
        return clip.tokenize(prompt, images=images)
    announced = "".join(ANNOUNCE[reading].format(i + 1) + PICTURE for i in range(len(images)))
    return clip.tokenize(announced + prompt, images=images, llama_template=f"{EDIT_HEAD}{{}}{TEMPLATE_TAIL}")
