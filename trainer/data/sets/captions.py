"""The caption of an image: what is varied from visit to visit, and every text that can come of it.

The order is: wildcards, then tags are dropped and shuffled, then trigger, prefix and suffix are put around. Every choice is
asked of a `CaptionChoice`, so the same code makes the plain form, a random one, and, trying all answers, all of them.
"""

import math
import random
import re
from collections.abc import Sequence
from typing import Protocol

from ...seeding import Key, derive, uniform
from ...types import CaptionForms, Example

_BRACES = re.compile(r"\{([^{}]*)\}")
_OPEN, _CLOSE = "\ue000", "\ue001"
"""Stand for {{ and }} while wildcards are replaced: two characters that no text uses (Unicode keeps them for private use)."""


class CaptionChoice(Protocol):
    """Who decides."""

    def below(self, count: int) -> int:
        """A number from 0 to count - 1."""
        ...

    def chance(self, probability: float) -> bool: ...


class PlainCaption:
    """The caption as it was written: the first of every wildcard, no tag moved or dropped."""

    def below(self, count: int) -> int:
        return 0

    def chance(self, probability: float) -> bool:
        return False


class Drawn:
    """A function of the seed, the keys, and how many choices were made before."""

    def __init__(self, seed: int, *keys: Key) -> None:
        self._source = random.Random(derive(seed, *keys))

    def below(self, count: int) -> int:
        return int(self._source.random() * count)

    def chance(self, probability: float) -> bool:
        return self._source.random() < probability


class _Replay:
    """Answers as given, then 0; remembers how many answers each question had."""

    def __init__(self, answers: Sequence[int]) -> None:
        self.answers, self.counts = list(answers), list[int]()

    def below(self, count: int) -> int:
        self.counts.append(count)
        if len(self.answers) < len(self.counts):
            self.answers.append(0)
        return self.answers[len(self.counts) - 1]

    def chance(self, probability: float) -> bool:
        return False


def render(text: str, forms: CaptionForms, choice: CaptionChoice) -> str:
    """One text made of a caption."""
    if forms.wildcards:
        text = _without_wildcards(text, choice)
    if forms.shuffle or forms.tag_dropout:
        text = _rearranged(text, forms, choice)
    if forms.secondary_separator:
        text = text.replace(forms.secondary_separator, _joint(forms.tag_separator))
    return " ".join(part for part in (forms.before, text, forms.after) if part)


def _without_wildcards(text: str, choice: CaptionChoice) -> str:
    """Innermost braces first, so that wildcards may hold wildcards."""
    text = text.replace("{{", _OPEN).replace("}}", _CLOSE)
    found = 1
    while found:

        def pick(match: re.Match[str]) -> str:
            options = match[1].split("|")
            return options[choice.below(len(options))] if len(options) > 1 else match[1]

        text, found = _BRACES.subn(pick, text)
    return text.replace(_OPEN, "{").replace(_CLOSE, "}")


def _rearranged(text: str, forms: CaptionForms, choice: CaptionChoice) -> str:
    start, tags, end = _parts(text, forms)
    kept = [tag for tag in tags if not (forms.tag_dropout and choice.chance(forms.tag_dropout))]
    if forms.shuffle:
        for place in range(len(kept) - 1):  # Fisher-Yates; always choosing 0 leaves the order
            other = place + choice.below(len(kept) - place)
            kept[place], kept[other] = kept[other], kept[place]
    return _joint(forms.tag_separator).join([*start, *kept, *end])


def _parts(text: str, forms: CaptionForms) -> tuple[list[str], list[str], list[str]]:
    """Tags that stay in front, tags that may move, tags that stay at the end."""
    if forms.keep_separator and forms.keep_separator in text:
        parts = [split_tags(part, forms.tag_separator) for part in text.split(forms.keep_separator, 2)]
        return parts[0], parts[1], parts[2] if len(parts) > 2 else []
    tags = split_tags(text, forms.tag_separator)
    return tags[: forms.keep_tokens], tags[forms.keep_tokens :], []


def split_tags(text: str, separator: str) -> list[str]:
    return [tag for part in text.split(separator) if (tag := part.strip())]


def _joint(separator: str) -> str:
    return separator if separator.isspace() else f"{separator} "


def forms_of(text: str, forms: CaptionForms, limit: int) -> list[str] | None:
    """Everything that can come of a caption, the plain form first, each as often as it is likely.

    None if there are more than `limit`, or if they are not equally likely (dropout).
    """
    if forms.tag_dropout:
        return None
    if forms.shuffle and math.factorial(min(len(_parts(text, forms)[1]), 9)) > limit:
        return None  # not to be found out by trying
    found: list[str] = []
    answers: list[int] = []
    while len(found) <= limit:
        replay = _Replay(answers)
        found.append(render(text, forms, replay))
        answers = _following(replay)
        if not answers:
            return found
    return None


def _following(replay: _Replay) -> list[int]:
    """The next answers to try, counting up from the last question; [] after the last."""
    answers = replay.answers[: len(replay.counts)]
    while answers:
        last = answers.pop()
        if last + 1 < replay.counts[len(answers)]:
            return [*answers, last + 1]
    return []


def variants(forms: CaptionForms, limit: int, seed: int) -> tuple[tuple[str, ...], bool]:
    """(the texts to encode in advance, whether that is every possible one): at most `limit` for each caption.

    Where there are more, the plain form and `limit` - 1 draws by the seed and the caption's own text: independent of
    the other images, so that adding one changes no text of the others.
    """
    texts: list[str] = []
    complete = True
    for text in forms.texts:
        all_of_it = forms_of(text, forms, limit)
        if all_of_it is None:
            complete = False
            all_of_it = _some_forms(text, forms, limit, seed)
        texts += all_of_it
    return tuple(texts), complete


def _some_forms(text: str, forms: CaptionForms, limit: int, seed: int) -> list[str]:
    """The plain form and draws. Without dropout all orders are equally likely, so that a second time means nothing."""
    found = [render(text, forms, PlainCaption())]
    for number in range(8 * limit):
        drawn = render(text, forms, Drawn(seed, "caption variant", text, number))
        if forms.tag_dropout or drawn not in found:
            found.append(drawn)
        if len(found) == limit:
            break
    return found


def plain(forms: CaptionForms) -> tuple[str, ...]:
    """Every caption as it was written."""
    return tuple(render(text, forms, PlainCaption()) for text in forms.texts)


def caption_at(example: Example, seed: int, *keys: Key) -> str:
    """The text of one visit: a function of the seed and the keys."""
    share = uniform(seed, *keys, "caption")
    if example.live is None:
        return example.captions[int(share * len(example.captions))]
    text = example.live.texts[int(share * len(example.live.texts))]
    return render(text, example.live, Drawn(seed, *keys, "caption form"))
