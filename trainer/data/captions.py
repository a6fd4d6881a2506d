"""Where the caption of an image comes from."""

from collections.abc import Callable
from pathlib import Path

from ..errors import DataError

SIDECARS = (".txt", ".caption")


def sidecar(image: Path) -> Path | None:
    """The caption file beside an image, if there is one."""
    return next((file for suffix in SIDECARS if (file := image.with_suffix(suffix)).is_file()), None)


def _from_sidecar(image: Path) -> str:
    file = sidecar(image)
    if file is None:
        return ""
    try:
        return file.read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8 text: save it as UTF-8") from error


def _from_filename(image: Path) -> str:
    """The name without its extension, underscores as spaces."""
    return image.stem.replace("_", " ").strip()


def _from_folder(image: Path) -> str:
    """The folder's name, without kohya's leading number of repeats ("10_mycat" is "mycat")."""
    name = image.parent.name
    number, underscore, rest = name.partition("_")
    return (rest if underscore and number.isdecimal() else name).replace("_", " ").strip()


READERS: dict[str, Callable[[Path], str]] = {
    "sidecar": _from_sidecar,
    "filename": _from_filename,
    "folder": _from_folder,
    "fixed": lambda image: "",
}


def read_caption(image: Path, kind: str, fallback: str, trigger: str) -> str:
    """The caption with the trigger word before it. Raises DataError if there is none, saying what to do."""
    text = READERS[kind](image) or fallback
    if not text.strip():
        remedy = {
            "sidecar": f"write {image.with_suffix('.txt').name} beside it, or set dataset.caption for images without one",
            "filename": "give it a name that describes it, or set dataset.captions to another source",
            "folder": "put it in a folder named after what it shows, or set dataset.captions to another source",
            "fixed": "set dataset.caption",
        }[kind]
        raise DataError(f"{image} has no caption: {remedy}")
    return f"{trigger} {text}".strip() if trigger.strip() else text
