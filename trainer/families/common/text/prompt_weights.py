"""Weights in prompts as ComfyUI reads them: (word) counts 1.1 times, (word:1.3) 1.3 times, \\( and \\) are parentheses."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Segment = tuple[str, float]
Token = tuple[int, float]
ESCAPES = {"\\(": ("\0\1", "("), "\\)": ("\0\2", ")")}
"""{as written: (what stands for it while a prompt is read, what it means)}."""
WORD_LENGTH = 8
"""Segments of fewer tokens are not cut by the end of a chunk; they begin the next one."""


def segments(prompt: str) -> list[Segment]:
    """A prompt in parts of equal weight. One without a partner stands for itself."""
    for written, (kept, _) in ESCAPES.items():
        prompt = prompt.replace(written, kept)
    return [(_meant(part), weight) for part, weight in _weighted(prompt, 1.0)]


def _meant(part: str) -> str:
    for kept, meant in ESCAPES.values():
        part = part.replace(kept, meant)
    return part


def escaped(prompt: str) -> str:
    """A literal prompt as ComfyUI must be given it."""
    for written, (_, meant) in ESCAPES.items():
        prompt = prompt.replace(meant, written)
    return prompt


def _weighted(text: str, weight: float) -> Iterator[Segment]:
    for part in _outermost(text):
        if not (part.startswith("(") and part.endswith(")") and len(part) > 1):
            yield part, weight
            continue
        inner, colon, number = part[1:-1].rpartition(":")
        given = _number(number) if colon and inner else None
        yield from _weighted(part[1:-1], weight * 1.1) if given is None else _weighted(inner, given)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _outermost(text: str) -> Iterator[str]:
    """What stands between parentheses, with them, and what stands around."""
    found, depth = "", 0
    for letter in text:
        if letter == "(":
            if depth == 0 and found:
                yield found
                found = ""
            depth += 1
        found += letter
        if letter == ")":
            depth -= 1
            if depth == 0:
                yield found
                found = ""
    if found:
        yield found


@dataclass(frozen=True, kw_only=True)
class Specials:
    """A tokenizer's own tokens."""

    start: int
    end: int
    pad: int


def lay_out(groups: Sequence[Sequence[Token]], room: int, specials: Specials) -> list[list[Token]]:
    """Segments of tokens in chunks of start, at most `room` tokens, end and padding."""
    chunks: list[list[Token]] = [[]]
    for group in groups:
        rest, is_long = list(group), len(group) >= WORD_LENGTH
        while len(rest) > (free := room - len(chunks[-1])):
            if is_long:
                chunks[-1] += rest[:free]
                rest = rest[free:]
            chunks.append([])
        chunks[-1] += rest
    return [_framed(chunk, room, specials) for chunk in chunks]


def _framed(chunk: list[Token], room: int, specials: Specials) -> list[Token]:
    padding = [(specials.pad, 1.0)] * (room - len(chunk))
    return [(specials.start, 1.0), *chunk, (specials.end, 1.0), *padding]


def emphasise(hidden_NLD: Tensor, empty_1LD: Tensor, weights_NL: Tensor) -> Tensor:
    """Hidden states as far from those of the empty prompt as the weights say, token by token."""
    weights_NL1 = weights_NL.to(hidden_NLD).unsqueeze(-1)
    return torch.where(weights_NL1 == 1, hidden_NLD, empty_1LD + (hidden_NLD - empty_1LD) * weights_NL1)
