"""Fonts for text in images: DejaVu Sans, which is always available, and the system's fonts for scripts that it lacks."""

from functools import cache, lru_cache
from itertools import groupby
from pathlib import Path
from unicodedata import category

from PIL import ImageFont

Face = ImageFont.FreeTypeFont
LIKELY = (
    "notosanscjk", "notosanssc", "notosansjp", "notosanskr", "sourcehansans", "droidsansfallback", "wqy", "msyh", "yugoth",
    "meiryo", "malgun", "pingfang", "hiragino", "applesdgothic", "arialuni", "notosans", "unifont",
)  # fmt: skip
"""Beginnings of the names of the system's fonts that are tried first, because they cover most scripts that DejaVu lacks."""


@lru_cache
def font(size: int, *, bold: bool = False) -> Face:
    """DejaVu Sans, which comes with matplotlib, at a size in pixels. It has Latin, Greek, Cyrillic and more."""
    return ImageFont.truetype(str(_shipped(bold=bold)), size)


def _shipped(*, bold: bool) -> Path:
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name


def runs(text: str, size: int, *, bold: bool = False) -> list[tuple[Face, str]]:
    """The text as parts with the same font. Characters that no font has are left to DejaVu, which draws a box.

    Line ends, control characters and halves of surrogate pairs, at which Pillow's layout fails, become spaces.
    """
    usual = font(size, bold=bold)
    text = "".join(" " if category(letter) in ("Cc", "Cs", "Zl", "Zp") else letter for letter in text)
    if text.isascii():
        return [(usual, text)]
    named = groupby(text, lambda letter: _file_for(ord(letter)))
    return [(_other(file, size) if file else usual, "".join(part)) for file, part in named]


def length(text: str, size: int, *, bold: bool = False) -> float:
    """Width of a text in pixels."""
    return sum(face.getlength(part) for face, part in runs(text, size, bold=bold))


@lru_cache
def _other(file: str, size: int) -> Face:
    return ImageFont.truetype(file, size)


@cache
def _file_for(letter: int) -> str:
    """The font file for a character; "" for DejaVu."""
    if letter in letters_of(str(_shipped(bold=False))) or chr(letter).isspace():
        return ""
    return next((file for file in system_fonts() if letter in letters_of(file)), "")


@cache
def letters_of(file: str) -> frozenset[int]:
    """The code points that a font file covers; empty for a file that cannot be read."""
    from fontTools.ttLib import TTFont, TTLibError  # comes with matplotlib

    try:
        with TTFont(file, fontNumber=0, lazy=True) as opened:
            return frozenset(opened.getBestCmap() or ())
    except (OSError, TTLibError, AssertionError, KeyError, ValueError):  # font folders may contain damaged files
        return frozenset()


@cache
def system_fonts() -> tuple[str, ...]:
    """The system's font files, with those first that probably cover many scripts."""
    from matplotlib.font_manager import findSystemFonts

    def rank(file: str) -> tuple[int, str]:
        stem = Path(file).stem.lower().replace("-", "").replace("_", "")
        return next((place for place, name in enumerate(LIKELY) if stem.startswith(name)), len(LIKELY)), file

    return tuple(sorted(findSystemFonts(), key=rank))
