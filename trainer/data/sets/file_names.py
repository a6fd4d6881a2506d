"""File names that say nothing about the image: those of cameras, phones, screenshots and downloads, counters and hashes."""

import re
from pathlib import Path

_CAMERA = (
    r"(p\d{7}|_?(img|dsc[fn]?|dcim|cimg|mvimg|pxl|gopr|gp|gx|dji|mov|vid|pict|imag|hpim|kif|scan|mg|l)_?e?[\s_-]*\d{3,})"
    r"([\s_.~-]*(\d+|wa\d+|mp|hdr|burst|cover|portrait|night|pano))*"
)
_PHRASES = (
    r"(screen ?shots?|bildschirmfoto|schermafbeelding|captura de pantalla|capture d.?.cran|スクリーンショット|截屏|截图|屏幕截图|snip|"
    r"whatsapp image|fb img|signal|photo|image|picture|pic|frame|file|download|downloads|unnamed|untitled|unbenannt|comfyui|received|temp|tmp|"
    r"微信图片|mmexport|wx camera)"
    r"[\s_-]*(\(?[\d\s._:@T-]*\)?|[\d\s._:-]*(at|um|om|à)?[\s._-]*[\d.:]+\s*(am|pm)?|wa\d+)*"
)
_HASH = r"[0-9a-f]{16}|[0-9a-f]{20}|[0-9a-f]{24}|[0-9a-f]{32}|[0-9a-f]{40}|[0-9a-f]{56}|[0-9a-f]{64}|[0-9a-f]{96}|[0-9a-f]{128}"
_UUID = r"\{?[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}\}?"
_MEANINGLESS = re.compile(rf"({_CAMERA}|{_PHRASES}|{_HASH}|{_UUID})", re.IGNORECASE)
_NUMBERS = re.compile(r"[\d\s_.,()@+:T-]*", re.IGNORECASE)
FEWEST_DIGITS = 4
"""A name of digits alone is a counter or a date from this many digits on. "7" may be what the image shows."""


def says_nothing(image: Path) -> bool:
    """Whether a file name cannot be a caption, such as IMG_2041, DSC0001, 0001, a hash, a UUID or "Screenshot 2024-05-01"."""
    stem = image.stem.strip()
    # Copies: "IMG_2041 (1)", "IMG_2041 - Copy", "IMG_2041-edited"
    stem = re.sub(
        r"[\s_-]*(\(\d+\)|copy|kopie|edited|bearbeitet|cropped|small|resized)$", "", stem, flags=re.IGNORECASE
    )
    spaced = stem.replace("_", " ").strip()
    if not _letters(stem):
        return sum(letter.isdecimal() for letter in stem) >= FEWEST_DIGITS and bool(_NUMBERS.fullmatch(stem))
    return any(_MEANINGLESS.fullmatch(name) for name in (stem, spaced))


def _letters(text: str) -> str:
    return "".join(letter for letter in text if letter.isalpha() and letter not in "Tt")
