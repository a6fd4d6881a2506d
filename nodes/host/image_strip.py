"""A strip of an IMAGE batch or of a folder's images."""

import hashlib
import io
import tempfile
from pathlib import Path

from torch import Tensor

from ...trainer.errors import ConfigError, LoomError
from ...trainer.sweep.image_strip import image_strip, images_in
from .encoding.images import from_image, to_image
from .paths import preview, resolve_folder


def drawn_images(
    images: Tensor | None, folder: str, labels: str, per_row: int, title: str
) -> tuple[dict[str, str], Tensor]:
    """Returns (the strip as the frontend shows it, the strip as an IMAGE). Raises ConfigError for neither or both sources."""
    if (images is None) == (not folder.strip()):
        raise ConfigError("connect images, or name a folder: exactly one of them")
    lines = [line.strip() for line in labels.splitlines() if line.strip()]
    with tempfile.TemporaryDirectory() as temporary:
        paths = images_in(resolve_folder(folder, "folder")) if images is None else _written(images, Path(temporary))
        strip = image_strip(paths, lines, columns=per_row, title=title)
    buffer = io.BytesIO()
    strip.save(buffer, "png")
    content = buffer.getvalue()
    return preview(f"strip-{hashlib.sha256(content).hexdigest()[:16]}.png", content), to_image(strip)


def _written(images: Tensor, folder: Path) -> list[Path]:
    """The images of a batch (B, H, W, C) as files, which are named by their numbers from 1."""
    paths = []
    for number, image_HWC in enumerate(images, start=1):
        paths.append(folder / f"{number}.png")
        from_image(image_HWC).save(paths[-1])
    return paths


def state_of(folder: str) -> str:
    """A text that changes with the images of a folder."""
    if not folder.strip():
        return ""
    try:
        return "; ".join(f"{path} {path.stat().st_mtime_ns}" for path in images_in(resolve_folder(folder, "folder")))
    except (LoomError, OSError) as error:
        return str(error)
