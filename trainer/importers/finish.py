"""From a translation to a checked configuration, its TOML with comments, and the list of what became of each option."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from ..config.network import WHOLE
from ..config.run import TrainConfig
from ..config.toml import parse
from ..config.unused import Unused, unused_options
from ..errors import ConfigError
from ..storage.names import check_name
from ..types import Record
from .models import UNETS
from .toml_text import toml_text
from .translation import TITLES, Became, DatasetTable, Taken, Translation

NO_FOLDER = "datasets/my-images"
"""Written where the file names no images: a run then says that this folder is missing."""
SAFE = "-_. "
"""Characters of a run's name besides letters and digits."""


@dataclass(frozen=True, kw_only=True)
class Imported:
    """A configuration of another trainer as ours."""

    trainer: str
    config: TrainConfig
    toml: str
    taken: tuple[Taken, ...]
    """One entry for each option of the file, in its order."""
    notes: tuple[str, ...]
    """What is to be known besides the options, such as what to download."""

    def counts(self) -> dict[Became, int]:
        """How many options were taken exactly, nearly, are needless, or have no counterpart."""
        counted = Counter(one.became for one in self.taken)
        return {became: counted[became] for became in TITLES}

    def text(self) -> str:
        """The list for a person: the options by what became of them, then the notes."""
        lines = [f"{self.trainer}: {len(self.taken)} options"]
        for became, title in TITLES.items():
            some = [one for one in self.taken if one.became == became]
            if some:
                lines += ["", f"{title} ({len(some)}):", *(f"  {one.text()}" for one in some)]
        if self.notes:
            lines += ["", "notes:", *(f"  {note}" for note in self.notes)]
        return "\n".join(lines)


def finish(translation: Translation) -> Imported:
    """Check what was translated and write it. Raises ConfigError if a value of the file cannot work."""
    translation.rest()
    _complete(translation)
    _take_apart(translation)
    config = parse(_tree(translation), TrainConfig)
    for _ in range(3):  # what is left out may leave another option without effect
        unused = unused_options(config)
        if not unused:
            break
        _leave_out(translation, config, unused)
        config = parse(_tree(translation), TrainConfig)
    taken = translation.everything()
    notes = tuple(dict.fromkeys(translation.notes))
    head = _head(translation, taken, notes)
    toml = toml_text(head, _tree(translation), translation.comments, translation.datasets)
    return Imported(trainer=translation.title, config=config, toml=toml, taken=taken, notes=notes)


def _take_apart(translation: Translation) -> None:
    """Leave out what does not go with other settings here, and say so."""
    settings = translation.settings
    left_out = {}
    if not settings.get("memory.gradient_checkpointing", True):
        why = "without gradient_checkpointing nothing is recomputed"
        left_out = dict.fromkeys(("memory.checkpoint", "memory.checkpoint_offload"), why)
    if settings.get("memory.base") == "stream" or settings.get("memory.vram_gb") or settings.get("memory.shard"):
        left_out["memory.compile"] = "a base that is streamed or split is not compiled here"
    for ours, why in left_out.items():
        if settings.pop(ours, None):
            for name, taken in translation.taken.items():
                if taken.ours == ours:
                    translation.taken[name] = replace(taken, became="none", ours="", note=why)


def run_name(*candidates: str) -> str:
    """The first candidate that is not empty, as a name that a run may have."""
    for candidate in candidates:
        kept = "".join(letter if letter.isalnum() or letter in SAFE else "-" for letter in candidate).strip(" .-")
        try:
            return check_name(kept)
        except ConfigError:
            continue
    return "imported"


def _complete(translation: Translation) -> None:
    """What a configuration must have and the file may not say."""
    settings = translation.settings
    if "name" not in settings:
        translation.put("name", run_name(""), why="the file gives no name")
    if "model.base" not in settings:
        translation.put("model.base", "models/base-model", why="the file names no base model: write its folder or file")
        translation.notes.append("model.base: the file names no base model; write the folder or file of yours")
    _targets(translation)
    if "training.ema_decay" not in settings:
        translation.put("training.ema_decay", 0.0, why=f"{translation.title} averages no weights here")
    if not translation.datasets and "dataset_files" not in settings:
        translation.datasets.append(
            DatasetTable(
                options={"folder": NO_FOLDER}, comments={"folder": "the file names no images: write your folder"}
            )
        )
        translation.notes.append("dataset.folder: the file names no images; write the folder of yours")
    for table in translation.datasets:
        for option, value in translation.for_datasets.items():
            if option not in table.options:
                table.options[option] = _rounded(value)
                table.comments[option] = translation.comments.get(f"dataset.{option}", "")


def _targets(translation: Translation) -> None:
    """Keep an adapter of a UNet to what other trainers adapt: `default` trains its convolutions, too."""
    settings = translation.settings
    named = "network.target_modules" in settings or settings.get("network.kind") == WHOLE or settings.get("text.alone")
    if settings.get("model.family") in UNETS and not named:
        translation.put("network.target_modules", "transformer", why=f"{translation.title} adapts no convolutions")


def _tree(translation: Translation) -> Record:
    tree: Record = {}
    order = [one.name for one in fields(TrainConfig)]
    for ours, value in sorted(translation.settings.items(), key=lambda item: order.index(item[0].partition(".")[0])):
        section, dot, option = ours.partition(".")
        if dot:
            tree.setdefault(section, {})[option] = _rounded(value)
        else:
            tree[section] = _rounded(value)
    if translation.datasets:
        tree["dataset"] = [table.options for table in translation.datasets]
    return tree


def _rounded(value: Any) -> Any:
    """A number without the noise in its last digits."""
    return float(f"{value:.12g}") if isinstance(value, float) else value


def _leave_out(translation: Translation, config: TrainConfig, unused: Sequence[Unused]) -> None:
    """Take out what would do nothing, which a run refuses, and say so."""
    for one in unused:
        if one.place == "dataset":
            number = next(number for number, table in enumerate(config.dataset) if table is one.section)
            translation.datasets[number].options.pop(one.option, None)
            translation.for_datasets.pop(one.option, None)
        else:
            translation.settings.pop(f"{one.place}.{one.option}", None)
        ours = f"{one.place}.{one.option}"
        note = f"{ours} would do nothing: {one.reason}"
        for name, taken in translation.taken.items():
            translation.taken[name] = _needless(taken, ours, note)
        translation.inner = [_needless(taken, ours, note) for taken in translation.inner]


def _needless(taken: Taken, ours: str, note: str) -> Taken:
    if taken.ours != ours or taken.became not in ("exact", "nearly"):
        return taken
    return replace(taken, became="needless", ours="", note=note)


def _head(translation: Translation, taken: Sequence[Taken], notes: Sequence[str]) -> list[str]:
    """The comment at the top of the file."""
    lines = [f"Imported from a configuration of {translation.title}. Behind each option stands what it was made of."]
    titles: Mapping[Became, str] = {one: TITLES[one] for one in ("nearly", "none")}
    for became, title in titles.items():
        some = [one.text() for one in taken if one.became == became]
        if some:
            lines += ["", f"{title}:", *(f"  {text}" for text in some)]
    if notes:
        lines += ["", "notes:", *(f"  {note}" for note in notes)]
    return lines
