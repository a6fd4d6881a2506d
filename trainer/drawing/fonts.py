"""Fonts for text on pictures: one that is on every machine, and the system's own for writing that it does not have."""

from functools import cache, lru_cache
from itertools import groupby
from pathlib import Path

from PIL import ImageFont

Face = ImageFont.FreeTypeFont
LIKELY = (
    "notosanscjk", "notosanssc", "notosansjp", "notosanskr", "sourcehansans", "droidsansfallback", "wqy", "msyh", "yugoth",
    "meiryo", "malgun", "pingfang", "hiragino", "applesdgothic", "arialuni", "notosans", "unifont",
)  # fmt: skip
"""Of the system's fonts these are tried first: they have most of the writing that DejaVu lacks."""


@lru_cache
def font(size: int, *, bold: bool = False) -> Face:
    """DejaVu Sans as matplotlib ships it: Latin, Greek, Cyrillic and more."""
    return ImageFont.truetype(str(_shipped(bold=bold)), size)


def _shipped(*, bold: bool) -> Path:
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name


def runs(text: str, size: int, *, bold: bool = False) -> list[tuple[Face, str]]:
    """The text cut into parts that one font can write. What no font has is left to the first one, which draws a box."""
    usual = font(size, bold=bold)
    if text.isascii():
        return [(usual, text)]
    named = groupby(text, lambda letter: _file_for(ord(letter)))
    return [(_other(file, size) if file else usual, "".join(part)) for file, part in named]


def length(text: str, size: int, *, bold: bool = False) -> float:
    """Width in pixels."""
    return sum(face.getlength(part) for face, part in runs(text, size, bold=bold))


@lru_cache
def _other(file: str, size: int) -> Face:
    return ImageFont.truetype(file, size)


@cache
def _file_for(letter: int) -> str:
    """The font file for a character; "" for the usual one."""
    if letter in letters_of(str(_shipped(bold=False))) or chr(letter).isspace():
        return ""
    return next((file for file in system_fonts() if letter in letters_of(file)), "")


@cache
def letters_of(file: str) -> frozenset[int]:
    """The characters that a font file has; none for one that cannot be read."""
    from fontTools.ttLib import TTFont, TTLibError  # comes with matplotlib

    try:
        with TTFont(file, fontNumber=0, lazy=True) as opened:
            return frozenset(opened.getBestCmap() or ())
    except (OSError, TTLibError, AssertionError, KeyError, ValueError):  # a system may hold anything
        return frozenset()


@cache
def system_fonts() -> tuple[str, ...]:
    """Files of the system's fonts, those first that are likely to have much."""
    from matplotlib.font_manager import findSystemFonts

    def rank(file: str) -> tuple[int, str]:
        stem = Path(file).stem.lower().replace("-", "").replace("_", "")
        return next((place for place, name in enumerate(LIKELY) if stem.startswith(name)), len(LIKELY)), file

    return tuple(sorted(findSystemFonts(), key=rank))
