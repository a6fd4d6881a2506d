"""How ComfyUI's text encoder reads a prompt together with reference images, as ComfyUI's own nodes for edit models do."""

from collections.abc import Sequence

from torch import Tensor

from ....trainer.errors import ConfigError, did_you_mean
from ....trainer.families import edit_variants
from ...sockets.names import ALONE, AUTO
from ..comfy_types import Clip


def chosen_reading(asked: str, clip: Clip, shown: int) -> str:
    """The reading for `edit_prompts` = `asked`, where a prompt has at most `shown` reference images.

    A reading is the name of an edit model's variant, or ALONE. AUTO is the variant that takes the most images, where the
    text encoder sees images and there are some. Raises ConfigError for a reading that this text encoder, or the number of
    images, does not allow.
    """
    tokenizer = type(clip.tokenizer)
    known = edit_variants()
    classes = {cls.__name__ for cls in tokenizer.__mro__}
    seen = {name: variant for name, (variant, edit) in known.items() if edit.tokenizer in classes}
    if asked == AUTO:
        return max(seen, key=lambda name: seen[name].references) if seen and shown else ALONE
    if asked == ALONE:
        return ALONE
    if asked not in known:
        raise ConfigError(f"edit_prompts = {asked!r}: {did_you_mean(asked, [AUTO, ALONE, *known])}")
    if asked not in seen:
        raise ConfigError(
            f"edit_prompts = {asked!r}: this text encoder ({tokenizer.__name__}) takes no images; connect the edit model's own, or choose {AUTO}"
        )
    if not shown:
        raise ConfigError(f"edit_prompts = {asked!r}: there are no reference images; give some, or choose {AUTO}")
    if shown > (most := seen[asked].references):
        raise ConfigError(
            f"edit_prompts = {asked!r}: a prompt has {shown} reference images, and this model accepts {most} at most"
        )
    return asked


def text_pixels(reading: str) -> int:
    """The side in pixels of a square with the area of an image that the text encoder sees; 0 where it sees none."""
    return 0 if reading == ALONE else edit_variants()[reading][0].text_pixels


def tokens_beside(clip: Clip, reading: str, prompt: str, images_CHW: Sequence[Tensor]) -> object:
    """Tokens of a prompt and its images, which are RGB in [-1, 1] with sides of multiples of 28 pixels."""
    images = [((image + 1) / 2).movedim(0, -1).unsqueeze(0) for image in images_CHW]
    _, edit = edit_variants()[reading]
    if not edit.announcement:
        return clip.tokenize(prompt, images=images)
    announced = "".join(edit.announcement.format(i + 1) + edit.image_token for i in range(len(images)))
    return clip.tokenize(announced + prompt, images=images, llama_template=edit.template)
