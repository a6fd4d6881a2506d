"""Reference images of edit models for samples and sweeps: one image, or several that are used together."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..base_model import Base
from ..config.toml import digest
from ..data.batches import PickedExample
from ..data.cache.online import Items
from ..data.images.load import check_readable, file_digest
from ..errors import ConfigError, DataError
from ..types import named_references, references_in


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Images that an edit model uses together, in this order."""

    digest: str
    """Digest of the files' contents."""
    paths: tuple[Path, ...]

    @property
    def label(self) -> str:
        return " + ".join(path.name for path in self.paths)


def read_references(option: str, given: Sequence[str | Sequence[str]]) -> tuple[Reference, ...]:
    """The sets of reference images of an option. Raises DataError for a file that is not a readable image, ConfigError for two
    sets of one name."""
    sets = [(one,) if isinstance(one, str) else one for one in given]
    found = []
    for number, names in enumerate(sets):
        if not names:
            raise ConfigError(f"{option}[{number}] is empty: name the images that are used together")
        paths = tuple(Path(name).expanduser() for name in names)
        for path in paths:
            if not path.is_file():
                raise DataError(f"{option}: {path} is not a file")
            check_readable(path)
        contents = [file_digest(path) for path in paths]
        found.append(Reference(digest=contents[0] if len(contents) == 1 else digest(contents), paths=paths))
    labels = [reference.label for reference in found]
    if len(set(labels)) != len(labels):
        raise ConfigError(f"{option} = {list(given)}: two have the same file name, which labels them; rename one")
    return tuple(found)


def check_reference_use(option: str, given: Sequence[str | Sequence[str]], base: Base) -> None:
    """Raise ConfigError if `option` uses more images together than the base accepts."""
    most = max((1 if isinstance(one, str) else len(one) for one in given), default=0)
    able = base.settings.references
    if most <= able:
        return
    editors = [name for name, variant in base.family.variants.items() if variant.references >= most]
    name = f"{base.family.name} {base.variant}"
    if base.settings.unread_references:
        raise ConfigError(f"{option}: {name} gets no reference images: {base.settings.unread_references}. Leave it out")
    if not able:
        remedy = f"set model.variant = {editors[0]!r} if the file is one" if editors else "use an edit model"
        raise ConfigError(f"{option}: {name} does not accept reference images; leave it out, or {remedy}")
    remedy = f"set model.variant = {editors[-1]!r} if the file is one" if editors else "leave some out"
    raise ConfigError(f"{option} uses {most} images together, and {name} accepts {able} at most: {remedy}")


def check_references(option: str, given: Sequence[str | Sequence[str]], base: Base) -> None:
    """Raise what `check_reference_use` and `read_references` raise, before anything is loaded."""
    check_reference_use(option, given, base)
    read_references(option, given)


def unused_references(option: str, given: Sequence[str | Sequence[str]], base: Base) -> str:
    """A note for an edit model that gets no reference images; "" for one that gets some, and for other models."""
    if not base.settings.references or any(given):
        return ""
    name = f"{base.family.name} {base.variant}"
    return (
        f"{name} is an edit model and {option} names no images: it works from the text alone, as the plain model does"
    )


def batch_references(
    items: Items, picks: Sequence[PickedExample], to_model: Callable[[Tensor], Tensor]
) -> dict[str, Tensor]:
    """Returns {"reference", "reference_2", …: (B, C, h, w) in model space}; a batch has as many for every image."""
    if not picks[0].view.example.references:
        return {}
    raw_CHW = [references_in(items.get(pick.key)) for pick in picks]
    return named_references([to_model(torch.stack(column)) for column in zip(*raw_CHW, strict=True)])
