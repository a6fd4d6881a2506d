"""What keeps a run from being continued, in words."""

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


def in_words(line: str) -> str:
    """A difference as a person can read it: of a digest nobody can tell what changed."""
    name, separator, _ = line.partition(": ")
    return f"{name}{separator}{DIGESTS[name]}" if name in DIGESTS else line


def changed_sets(old: Record, new: Record) -> list[str]:
    """Returns lines "dataset.0.repeats: 1 -> 2", or one that says that the files themselves must have changed."""
    # An option that the run's version did not have yet counts as it is by default.
    plain = to_dict(DatasetConfig(folder="x"))
    before, after = (
        {str(i): {**plain, **d} for i, d in enumerate(current_tree(c).get("dataset") or [])} for c in (old, new)
    )
    return differences(before, after, "dataset.") or ["(images, captions or masks in the folders changed)"]
