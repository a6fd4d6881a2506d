"""CLIP's tokenizer, which no checkpoint holds: from a ComfyUI, a diffusers folder, or the vocabulary inside open_clip_torch."""

import gzip
import json
import tempfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import TYPE_CHECKING

from ....errors import ModelFileError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

COMFYUI = Path("comfy") / "sd1_tokenizer"
OPEN_CLIP = "open_clip/bpe_simple_vocab_16e6.txt.gz"
MERGES = 49152 - 256 - 2
"""Of the vocabulary's lines, the first of which is a heading: without the bytes and the two marks (open_clip's tokenizer)."""
START, END = "<|startoftext|>", "<|endoftext|>"
PACKAGE = Path(__file__).resolve().parents[4]


def clip_tokenizer(asked: str, *, pad: str = END) -> "PreTrainedTokenizerBase":
    """CLIP's tokenizer; `pad` stands behind a prompt's end. `asked` is model.tokenizers. Raises ModelFileError."""
    from transformers import CLIPTokenizer

    folder = find(asked)
    with tempfile.TemporaryDirectory() as scratch:
        if folder is None:
            write_files(read_vocabulary(_open_clip_file()), Path(scratch))
            folder = Path(scratch)
        marks = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": pad}
        try:
            return CLIPTokenizer.from_pretrained(folder, model_max_length=77, **marks)
        except Exception as error:  # the parser of its files raises plain Exception
            raise ModelFileError(f"cannot load the tokenizer in {folder}: {error or type(error).__name__}") from error


def find(asked: str) -> Path | None:
    """Returns the folder of CLIP's vocab.json; None for the vocabulary inside open_clip_torch. Raises ModelFileError where there is none."""
    places = list(_inside(Path(asked).expanduser())) if asked else [PACKAGE.parents[1] / COMFYUI]
    found = next(
        (place for place in places if (place / "vocab.json").is_file() or (place / "tokenizer.json").is_file()), None
    )
    if found is None and asked:
        raise ModelFileError(
            f"model.tokenizers: {asked} holds no CLIP tokenizer; give a ComfyUI folder, a diffusers folder, or the folder of vocab.json and merges.txt"
        )
    if found is None and _open_clip_file() is None:
        raise ModelFileError(
            "a whole checkpoint holds no tokenizer: set model.tokenizers to a ComfyUI folder or a diffusers folder (its tokenizer is read),"
            " or pip install open_clip_torch (its vocabulary is read)"
        )
    return found


def _inside(folder: Path) -> Iterator[Path]:
    yield from (folder, folder / COMFYUI, folder / "sd1_tokenizer", folder / "tokenizer")


def _open_clip_file() -> Path | None:
    """The vocabulary's file, found without importing the library."""
    try:
        path = Path(str(distribution("open_clip_torch").locate_file(OPEN_CLIP)))
    except PackageNotFoundError:
        return None
    return path if path.is_file() else None


def read_vocabulary(path: Path | None) -> list[tuple[str, str]]:
    """Returns the pairs of word pieces that are merged, in their order."""
    assert path is not None
    with gzip.open(path, "rt", encoding="utf-8") as file:
        lines = file.read().split("\n")[1 : MERGES + 1]
    return [(first, second) for first, second in (line.split() for line in lines)]


def write_files(merges: list[tuple[str, str]], folder: Path) -> None:
    """Writes vocab.json and merges.txt. The order of words is open_clip's: bytes, bytes that end a word, merged pieces, the two marks."""
    letters = list(_letters())
    words = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in merges), START, END]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _letters() -> Iterator[str]:
    """A visible character for every byte: itself where it is one, else the next from 256 on (GPT-2's byte pair encoding)."""
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    yield from map(chr, visible)
    yield from (chr(256 + i) for i in range(256 - len(visible)))
