"""Where a path in another trainer's file leads: those start from the folder that the trainer runs in, which is not known here."""

from pathlib import Path

LEVELS = 4
"""So many folders above the file are tried."""


def found_from(text: str, folder: Path) -> Path | None:
    """The file or folder that a path of a file in `folder` means: from that folder, else from one above it. None if none is there."""
    path = Path(text).expanduser()
    if path.is_absolute():
        return path if path.exists() else None
    above = [folder, *folder.absolute().parents[: LEVELS - 1]]
    return next((place / path for place in above if (place / path).exists()), None)
