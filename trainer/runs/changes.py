"""What keeps a run from being continued, in words."""

import re
from collections.abc import Sequence

from ..config.aliases import current_tree
from ..config.dataset import DatasetConfig
from ..config.toml import differences, to_dict
from ..types import Record

DIGESTS = {
    "facts.model": "the base model has other weights",
    "facts.encoders": "the text encoders, tokenizers or the VAE are others",
    "facts.text": "the CLIP is another one",
    "facts.vae": "the VAE is another one",
    "facts.data": "the images, captions or masks are others",
    "facts.init": "network.init_from is another LoRA",
}
"""{what a run keeps a digest of: how a change of it is said}."""
_HEX = re.compile(r"\b[0-9a-f]{16,}\b")


def in_words(line: str) -> str:
    """A difference as a person can read it: a digest says only that something is another; what stands beside it is shown.

    The name of a fact is left out where the sentence says what it is.
    """
    name, separator, values = line.partition(": ")
    if name not in DIGESTS:
        return line
    before, _, after = values.partition(" -> ")
    beside = [_HEX.sub("", value).strip("' ") for value in (before, after)]
    is_other = _HEX.findall(before) != _HEX.findall(after) or beside[0] == beside[1]
    said = [DIGESTS[name]] if is_other else []
    if beside[0] != beside[1]:
        said.append(" -> ".join(value or "nothing" for value in beside))
    return f"{'' if is_other else name + separator}{', '.join(said)}"


def all_in_words(lines: Sequence[str]) -> str:
    """The differences as one line; "" for none."""
    return "; ".join(in_words(line) for line in lines)


def changed_sets(old: Record, new: Record) -> list[str]:
    """Returns lines "dataset.0.repeats: 1 -> 2", or one that says that the files themselves must have changed.

    A run of the graph keeps how many images its cache had: "(6 -> 7 images)".
    """
    counts = [(config.get("cache") or {}).get("images") for config in (old, new)]
    if None not in counts and counts[0] != counts[1]:
        return [f"({counts[0]} -> {counts[1]} images)"]
    # An option that the run's version did not have yet counts as it is by default.
    plain = to_dict(DatasetConfig(folder="x"))
    before, after = (
        {str(i): {**plain, **d} for i, d in enumerate(current_tree(c).get("dataset") or [])} for c in (old, new)
    )
    return differences(before, after, "dataset.") or ["(images, captions or masks in the folders changed)"]
