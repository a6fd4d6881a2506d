"""Where the largest face of an image is, by the detector that OpenCV's package brings: cascades of Haar features
(Viola & Jones, "Rapid Object Detection using a Boosted Cascade of Simple Features", CVPR 2001). Nothing is downloaded."""

import threading
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from ...errors import ConfigError
from ...types import Size
from .load import flatten, opened

SIDE = 640
"""Longest side in pixels at which faces are looked for."""
SMALLEST = 0.05
"""Side of the smallest face that is looked for, as a share of the longest side of its image."""
NONE = "none"
"""What `largest_face` returns where there is none."""
CASCADES = ("haarcascade_frontalface_alt2.xml", "haarcascade_profileface.xml")
"""Faces from the front, then from the side; the second is also tried on the mirror image."""
NEIGHBOURS = 5
"""Detections that must overlap for a face to count. Fewer find faces in patterns."""


@cache
def _cascades(thread: int) -> list[Any]:
    """The detectors of a thread: one of them must not be used by two at a time. Raises ConfigError with the remedy."""
    try:
        cv2 = import_module("cv2")
        made = [cv2.CascadeClassifier(str(Path(cv2.data.haarcascades) / name)) for name in CASCADES]
    except (ImportError, AttributeError):  # version 5 has neither the class nor the files
        made = []
    if not made or any(one.empty() for one in made):
        raise ConfigError(
            "dataset.crop = 'face' needs OpenCV 4, whose package brings its detector: "
            "pip install 'opencv-python-headless<5'; or use crop = 'saliency' or 'top'"
        )
    return made


def check_detector() -> None:
    """Raise ConfigError if no face can be looked for here."""
    _cascades(threading.get_ident())


def largest_face(path: Path, content: bytes) -> str:
    """The middle of the largest face as shares of width and height, such as "0.5000 0.2500", or `NONE`. Raises DataError."""
    with opened(path, content) as image:
        image.draft(None, (SIDE, SIDE))  # JPEG only
        image.load()
        flat = flatten(ImageOps.exif_transpose(image), (255, 255, 255)).convert("L")
    flat.thumbnail((SIDE, SIDE), Image.Resampling.BOX)
    found = _faces(flat)
    if not found:
        return NONE
    left, top, width, height = max(found, key=lambda box: (box[2] * box[3], box))
    return f"{(left + width / 2) / flat.width:.4f} {(top + height / 2) / flat.height:.4f}"


def _faces(grey: Image.Image) -> list[tuple[int, int, int, int]]:
    """Boxes (left, top, width, height) of the faces from the front; where there are none, of those from the side."""
    least = max(20, round(max(grey.size) * SMALLEST))

    def detected(detector: Any, image: Image.Image) -> list[tuple[int, int, int, int]]:
        boxes = detector.detectMultiScale(np.asarray(ImageOps.equalize(image)), 1.1, NEIGHBOURS, minSize=(least, least))
        return [(int(x), int(y), int(w), int(h)) for x, y, w, h in boxes]

    front, side = _cascades(threading.get_ident())
    mirrored = [(grey.width - x - w, y, w, h) for x, y, w, h in detected(side, ImageOps.mirror(grey))]
    return detected(front, grey) or [*detected(side, grey), *mirrored]


def face_position(face: str, resized: Size, target: Size) -> tuple[float, float] | None:
    """The crop that has the face as near its middle as the image allows, as shares of the spare pixels (see `Buckets.geometry`).

    `face` is what `largest_face` returns; None without a face.
    """
    if face in ("", NONE):
        return None
    shares = [float(part) for part in face.split()]
    at = []
    for share, whole, part in zip(shares, resized, target, strict=True):
        spare = whole - part
        at.append(min(max((share * whole - part / 2) / spare, 0.0), 1.0) if spare > 0 else 0.5)
    return at[0], at[1]
