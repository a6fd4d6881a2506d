"""Text on pictures: a font that is on every machine, wrapping that loses nothing, the colours of our pages."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from PIL import ImageDraw, ImageFont

RGB = tuple[int, int, int]
INK: RGB = (28, 30, 34)
MUTED: RGB = (104, 108, 116)
PAPER: RGB = (255, 255, 255)
LINE: RGB = (222, 224, 228)
BEST: RGB = (214, 104, 20)
LEADING = 1.35
"""Line height over font size."""


@lru_cache
def font(size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans as matplotlib ships it: Latin, Greek, Cyrillic and more."""
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)


def wrap(text: str, width: int, size: int, *, bold: bool = False) -> list[str]:
    """Lines no wider than `width` pixels; words longer than that are cut."""
    face, lines = font(size, bold=bold), []
    for paragraph in text.split("\n"):
        line = ""
        for word in _breakable(paragraph, width, face):
            joined = f"{line} {word}".strip()
            if line and face.getlength(joined) > width:
                lines.append(line)
                line = word
            else:
                line = joined
        lines.append(line)
    return lines


def _breakable(text: str, width: int, face: ImageFont.FreeTypeFont) -> list[str]:
    words = []
    for word in text.split():
        rest = word
        while face.getlength(rest) > width and len(rest) > 1:
            keep = max(1, int(len(rest) * width / face.getlength(rest)))
            while keep > 1 and face.getlength(rest[:keep]) > width:
                keep -= 1
            words.append(rest[:keep])
            rest = rest[keep:]
        words.append(rest)
    return words


def write(
    pen: ImageDraw.ImageDraw, lines: Sequence[str], x: int, y: int, size: int, colour: RGB, *, bold: bool = False
) -> int:
    """Draw lines one below the other; returns the y below the last."""
    for line in lines:
        pen.text((x, y), line, fill=colour, font=font(size, bold=bold))
        y += round(size * LEADING)
    return y
