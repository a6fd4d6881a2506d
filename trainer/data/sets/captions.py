"""Caption augmentation: how a caption varies each time its image is drawn, and every text that can result.

Wildcards are resolved first, then tags are dropped and shuffled, then trigger, prefix and suffix are added. Every choice is
made by a `CaptionChoice`, so the same code produces the plain form, a random form, and, by trying all choices, every form.
"""

import math
import random
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from ...config.dataset import DatasetConfig
from ...seeding import Key, derive, uniform
from ...types import CaptionForms, CaptionWarmup, Example

WARMUP_FORMS = 4
"""Forms of a caption that are encoded for each number of tags that it grows through."""
_BRACES = re.compile(r"\{([^{}]*)\}")
_OPEN, _CLOSE = "\ue000", "\ue001"
"""Placeholders for {{ and }} while wildcards are replaced: two characters that no text uses (Unicode's private use area)."""


class CaptionChoice(Protocol):
    """The source of the choices that `render` makes."""

    def below(self, count: int) -> int:
        """A number from 0 to count - 1."""
        ...

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        ...


class PlainCaption:
    """The choices of the plain form: the first option of every wildcard, no tag moved or dropped."""

    def below(self, count: int) -> int:
        return 0

    def chance(self, probability: float) -> bool:
        return False


class RandomCaption:
    """Random choices, determined by the seed, the keys, and the number of choices made before."""

    def __init__(self, seed: int, *keys: Key) -> None:
        self._source = random.Random(derive(seed, *keys))

    def below(self, count: int) -> int:
        return int(self._source.random() * count)

    def chance(self, probability: float) -> bool:
        return self._source.random() < probability


class _Replay:
    """The given choices, followed by zeros. It records how many options each choice had."""

    def __init__(self, choices: Sequence[int]) -> None:
        self.choices, self.counts = list(choices), list[int]()

    def below(self, count: int) -> int:
        self.counts.append(count)
        if len(self.choices) < len(self.counts):
            self.choices.append(0)
        return self.choices[len(self.counts) - 1]

    def chance(self, probability: float) -> bool:
        return False


def render(text: str, forms: CaptionForms, choice: CaptionChoice, most: int | None = None) -> str:
    """One form of a caption: `text` with its wildcards, tags, prefix and suffix resolved by `choice`.

    `most`: how many of its movable tags it has, the first ones; None: all.
    """
    if forms.wildcards:
        text = _without_wildcards(text, choice)
    if forms.shuffle or forms.tag_dropout or most is not None:
        text = _rearranged(text, forms, choice, most)
    if forms.secondary_separator:
        text = text.replace(forms.secondary_separator, _joint(forms.tag_separator))
    return " ".join(part for part in (forms.before, text, forms.after) if part)


def _without_wildcards(text: str, choice: CaptionChoice) -> str:
    """The text with a chosen option for every {a|b|c}. The innermost braces are replaced first, so wildcards may be nested."""
    text = text.replace("{{", _OPEN).replace("}}", _CLOSE)
    replaced = 1
    while replaced:

        def pick(match: re.Match[str]) -> str:
            options = match[1].split("|")
            return options[choice.below(len(options))] if len(options) > 1 else match[1]

        text, replaced = _BRACES.subn(pick, text)
    return text.replace(_OPEN, "{").replace(_CLOSE, "}")


def _rearranged(text: str, forms: CaptionForms, choice: CaptionChoice, most: int | None = None) -> str:
    """The text with the first of its movable tags, dropped and shuffled."""
    start, tags, end = _parts(text, forms)
    kept = [tag for tag in tags[:most] if not (forms.tag_dropout and choice.chance(forms.tag_dropout))]
    if forms.shuffle:
        for index in range(len(kept) - 1):  # Fisher-Yates; always choosing 0 keeps the order
            other = index + choice.below(len(kept) - index)
            kept[index], kept[other] = kept[other], kept[index]
    return _joint(forms.tag_separator).join([*start, *kept, *end])


def _parts(text: str, forms: CaptionForms) -> tuple[list[str], list[str], list[str]]:
    """Returns (tags that stay in front, tags that may move, tags that stay at the end)."""
    if forms.keep_separator and forms.keep_separator in text:
        parts = [split_tags(part, forms.tag_separator) for part in text.split(forms.keep_separator, 2)]
        return parts[0], parts[1], parts[2] if len(parts) > 2 else []
    tags = split_tags(text, forms.tag_separator)
    return tags[: forms.keep_tokens], tags[forms.keep_tokens :], []


def split_tags(text: str, separator: str) -> list[str]:
    """The stripped, non-empty tags of a caption."""
    return [tag for part in text.split(separator) if (tag := part.strip())]


def _joint(separator: str) -> str:
    return separator if separator.isspace() else f"{separator} "


def forms_of(text: str, forms: CaptionForms, limit: int) -> list[str] | None:
    """Every form of a caption, the plain one first, each repeated in proportion to its probability.

    None if there are more than `limit` forms, or if they are not equally likely (tag dropout).
    """
    if forms.tag_dropout:
        return None
    if forms.shuffle and math.factorial(min(len(_parts(text, forms)[1]), 9)) > limit:
        return None  # too many to enumerate
    texts: list[str] = []
    choices: list[int] = []
    while len(texts) <= limit:
        replay = _Replay(choices)
        texts.append(render(text, forms, replay))
        choices = _following(replay)
        if not choices:
            return texts
    return None


def _following(replay: _Replay) -> list[int]:
    """The next combination of choices, counting up from the last choice; [] after the last combination."""
    choices = replay.choices[: len(replay.counts)]
    while choices:
        last = choices.pop()
        if last + 1 < replay.counts[len(choices)]:
            return [*choices, last + 1]
    return []


def variants(forms: CaptionForms, limit: int, seed: int) -> tuple[tuple[str, ...], bool]:
    """Returns (the texts to encode in advance, whether these are all that can occur): at most `limit` for each caption.

    Where a caption has more forms, the plain one and `limit` - 1 random ones are used. They depend on the seed and the
    caption alone, so that adding an image changes no text of the others.
    """
    texts: list[str] = []
    complete = True
    for text in forms.texts:
        encoded = forms_of(text, forms, limit)
        if encoded is None:
            complete = False
            encoded = _some_forms(text, forms, limit, seed)
        texts += encoded
    return tuple(texts), complete


def _some_forms(text: str, forms: CaptionForms, limit: int, seed: int) -> list[str]:
    """The plain form and random ones. Without dropout all orders are equally likely, so duplicates are left out."""
    texts = [render(text, forms, PlainCaption())]
    for number in range(8 * limit):
        drawn = render(text, forms, RandomCaption(seed, "caption variant", text, number))
        if forms.tag_dropout or drawn not in texts:
            texts.append(drawn)
        if len(texts) == limit:
            break
    return texts


def plain(forms: CaptionForms) -> tuple[str, ...]:
    """The plain form of every caption: as it was written, with trigger, prefix and suffix."""
    return tuple(render(text, forms, PlainCaption()) for text in forms.texts)


def caption_at(example: Example, seed: int, *keys: Key) -> str:
    """The caption of one draw of an image, determined by the seed and the keys."""
    share = uniform(seed, *keys, "caption")
    if example.live is None:
        return example.captions[int(share * len(example.captions))]
    text = example.live.texts[int(share * len(example.live.texts))]
    return render(text, example.live, RandomCaption(seed, *keys, "caption form"))


def class_caption(example: Example, caption: str) -> str | None:
    """The caption without its trigger, of which the base knows something: the class prompt stands in the trigger's place.

    None where there is no such caption: for an image without these words, for the empty prompt, which caption dropout trains, and
    for a caption without the trigger where no class prompt is given.
    """
    if example.preserve is None or not caption:
        return None
    trigger, instead = example.preserve.trigger, example.preserve.class_prompt
    found = re.compile(rf"(?<!\w){re.escape(trigger)}(?!\w)") if trigger else None
    if found is None or not found.search(caption):
        return instead if instead and instead != caption else None
    text = found.sub(lambda _: instead, caption)
    return text if instead else _tidy(text)


def _tidy(text: str) -> str:
    """The text without the commas and spaces that a word which was taken out leaves."""
    parts = (" ".join(part.split()) for part in text.split(","))
    return ", ".join(part for part in parts if part)


def texts_of(example: Example) -> set[str]:
    """Every text that is encoded in advance for an example: its captions, the empty prompt and the captions that are held."""
    is_used = example.preserve is not None and (example.preserve.weight or example.role == "held_out")
    held = [class_caption(example, caption) for caption in example.texts] if is_used else []
    ends = (example.slider.positive, example.slider.negative) if example.slider is not None else ()
    return {"", *example.texts, *ends, *(text for text in held if text is not None)}


def warmup_of(forms: CaptionForms, config: DatasetConfig, seed: int) -> CaptionWarmup | None:
    """How the captions of an image grow in the first steps, with the texts to encode for that; None where they do not.

    Where they vary, `WARMUP_FORMS` forms of each length are used, or fewer if `caption_variants` is lower.
    """
    if not config.token_warmup_step:
        return None
    lengths = [len(_parts(render(text, _bare(forms), PlainCaption()), forms)[1]) for text in forms.texts]
    live = config.varies and not config.caption_variants
    count = min(WARMUP_FORMS, config.caption_variants) if config.varies else 1
    stages = [
        tuple(
            tuple(render(text, forms, RandomCaption(seed, "warm-up", text, tags, n), tags) for n in range(count))
            for tags in range(config.token_warmup_min, length)
        )
        for text, length in zip(forms.texts, lengths, strict=True)
    ]
    return CaptionWarmup(
        steps=config.token_warmup_step,
        least=config.token_warmup_min,
        stages=() if live else tuple(stages),
        lengths=tuple(lengths),
    )


def _bare(forms: CaptionForms) -> CaptionForms:
    """The same without what stands around a caption and without changes of its tags."""
    return replace(forms, before="", after="", shuffle=False, tag_dropout=0.0, secondary_separator="")


def warming_caption(example: Example, step: int, seed: int, *keys: Key) -> str:
    """The caption of one draw after `step` finished steps, while captions grow; determined as by `caption_at`."""
    warmup = example.warmup
    assert warmup is not None
    caption = int(uniform(seed, *keys, "caption") * len(warmup.lengths))
    tags = warmup.tags(caption, step)
    if tags >= warmup.lengths[caption]:
        return caption_at(example, seed, *keys)
    if example.live is not None:
        choice = RandomCaption(seed, *keys, "caption form")
        return render(example.live.texts[caption], example.live, choice, tags)
    forms = warmup.stages[caption][tags - warmup.least]
    return forms[int(uniform(seed, *keys, "caption form") * len(forms))]
