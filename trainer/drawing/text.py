"""Text in images: wrapping without loss, lines in any script, and the colours of grids and contact sheets."""

import re
from collections.abc import Sequence

from PIL import ImageDraw

from .fonts import font, length, runs

RGB = tuple[int, int, int]
INK: RGB = (28, 30, 34)
MUTED: RGB = (104, 108, 116)
PAPER: RGB = (255, 255, 255)
LINE: RGB = (222, 224, 228)
BEST: RGB = (214, 104, 20)
LEADING = 1.35
"""Line height as a multiple of the font size."""

_LINE_END = re.compile("\r\n|[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]")


def wrap(text: str, width: int, size: int, *, bold: bool = False) -> list[str]:
    """The text in lines of at most `width` pixels. Longer words are divided."""
    lines = []
    for paragraph in _LINE_END.split(text):
        line = ""
        for word in _breakable(paragraph, width, size, bold):
            joined = f"{line} {word}".strip()
            if line and length(joined, size, bold=bold) > width:
                lines.append(line)
                line = word
            else:
                line = joined
        lines.append(line)
    return lines


def _breakable(text: str, width: int, size: int, bold: bool) -> list[str]:
    words = []
    for word in text.split():
        rest = word
        while (whole := length(rest, size, bold=bold)) > width and len(rest) > 1:
            keep = max(1, int(len(rest) * width / whole))
            while keep > 1 and length(rest[:keep], size, bold=bold) > width:
                keep -= 1
            words.append(rest[:keep])
            rest = rest[keep:]
        words.append(rest)
    return words


def write(
    pen: ImageDraw.ImageDraw, lines: Sequence[str], x: int, y: int, size: int, colour: RGB, *, bold: bool = False
) -> int:
    """Draw lines below each other from (x, y). Returns the y below the last line."""
    for line in lines:
        left, base = float(x), y + font(size, bold=bold).getmetrics()[0]
        for face, part in runs(line, size, bold=bold):
            pen.text((left, base), part, fill=colour, font=face, anchor="ls")
            left += face.getlength(part)
        y += round(size * LEADING)
    return y
