"""How deep and how large a text may be before a parser is given it: some take time that grows with the square of either."""

import re

MAX_CHARACTERS = 16_000_000
MAX_DEPTH = 200
_BRACKETS = re.compile(r"[\[{(]+|[\])}]+")


def refuse_bombs(text: str) -> str:
    """The text itself. Raises ValueError for one that no person and no trainer writes. Brackets in quoted texts count too."""
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"{len(text):,} characters are more than {MAX_CHARACTERS:,}")
    depth = 0
    for found in _BRACKETS.finditer(text):
        step = len(found[0])
        depth = depth + step if found[0][0] in "[{(" else max(depth - step, 0)
        if depth > MAX_DEPTH:
            raise ValueError(f"brackets lie more than {MAX_DEPTH} deep in each other")
    return text
