"""Do the concepts of a LoRA stay apart? How much of one concept's images appears in answers to another one's trigger."""

import re
from collections.abc import Sequence

import numpy as np

from ..types import Array


def has_trigger(prompt: str, triggers: Sequence[str]) -> bool:
    """Whether one of the words stands in the prompt as a whole word."""
    return any(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", prompt, re.IGNORECASE) for word in triggers if word)


def concept_of(text: str, triggers: Sequence[str]) -> str:
    """The trigger that stands in a prompt or caption alone; "" where there is none, or several."""
    found = [word for word in dict.fromkeys(triggers) if has_trigger(text, [word])]
    return found[0] if len(found) == 1 else ""


def are_several(captions: Sequence[str], triggers: Sequence[str]) -> bool:
    """Whether the captions belong to two concepts or more."""
    return len({concept_of(text, triggers) for text in captions} - {""}) > 1


def bleed(
    prompts: Sequence[str], captions: Sequence[str], triggers: Sequence[str], likeness_NM: Array, among_MM: Array
) -> list[float | None]:
    """The bleed of each of N images made from `prompts`; None for a prompt without a trigger, or with several.

    For a prompt with trigger A it is the mean over the other concepts B of s(image, B) - s(A, B), with s the mean similarity
    to the training images of a concept: how much more an image looks like another concept than A's own training images do. It is
    0 or less for concepts that stay apart, however alike they are. M training images: `likeness_NM` is the similarity to them,
    `among_MM` that among themselves; their captions say which concept they belong to.
    """
    concepts: dict[str, list[int]] = {}
    for number, caption in enumerate(captions):
        if word := concept_of(caption, triggers):
            concepts.setdefault(word, []).append(number)
    found: list[float | None] = []
    for prompt, row_M in zip(prompts, likeness_NM, strict=True):
        own = concepts.get(concept_of(prompt, triggers))
        others = [places for places in concepts.values() if places is not own]
        excess = [float(row_M[other].mean() - among_MM[np.ix_(own, other)].mean()) for other in others] if own else []
        found.append(float(np.mean(excess)) if excess else None)
    return found


def bleed_caution(mean: float, low: float | None, high: float | None) -> str:
    """Words for a candidate whose concepts clearly run into each other; "" for the others."""
    if low is None or high is None or low <= 0:
        return ""
    return f"with one trigger its images look more like another concept than that trigger's own training images do (bleed {mean:.3g}, 95% interval {low:.3g} to {high:.3g})"


def listed(triggers: str) -> list[str]:
    """The trigger words of a text that separates them by commas."""
    return [word.strip() for word in triggers.split(",") if word.strip()]
