"""Sizes of images, as options name them."""

import re

from ..errors import ConfigError


def parse_sizes(name: str, text: str) -> list[tuple[int, int]]:
    """The sizes of "512x512, 768x512" as (width, height) in pixels. Raises ConfigError."""
    sizes = []
    for part in (part.strip() for part in text.split(",") if part.strip()):
        match = re.fullmatch(r"(\d+)\s*[xX]\s*(\d+)", part)
        if not match or not int(match[1]) or not int(match[2]):
            raise ConfigError(
                f'{name} = {text!r}: {part!r} is not a size; write widths and heights as "512x512, 768x512"'
            )
        sizes.append((int(match[1]), int(match[2])))
    return sizes
