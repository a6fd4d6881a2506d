"""Near-duplicate images: their perceptual hashes have a small Hamming distance, and their colours agree field by field.

The hash alone is not enough: for a flat drawing few of its coefficients carry information, so different drawings can share it.
"""

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

NEAR = 6
"""Bits of 64 in which near-duplicates may differ. Re-encoding and resizing change up to about 4; other images differ in 14 and more."""
SAME_COLOUR = 20
"""Difference of 255 that any colour field may have. Re-encoding and resizing change up to about 5, a slight change of brightness 15."""
_BITS = 64
ROWS = 256
"""Number of hashes that are compared with all others at a time. It bounds the memory."""
_ONES = np.array([bin(value).count("1") for value in range(1 << 16)], dtype=np.uint8)


def near_duplicates(fingerprints: Sequence[tuple[str, str]], most: int = NEAR) -> list[list[int]]:
    """Groups of indices of images that are connected by distances of at most `most` bits.

    Each image is given as (hash as 16 hex digits, mean colours as hex digits), as in `probe.ImageProbe`; images whose hash
    is "" are in no group. Two hashes that differ in at most `most` bits agree in at least one of `most` + 1 bands of bits,
    so only images that share a band are compared. The result is exact and the time about linear for usual set sizes.
    """
    known = [number for number, (fingerprint, _) in enumerate(fingerprints) if fingerprint]
    different = sorted({fingerprints[number] for number in known})  # many blank images can share one fingerprint
    positions = {pair: position for position, pair in enumerate(different)}
    distinct = np.array([int(fingerprint, 16) for fingerprint, _ in different], dtype=np.uint64)
    colours = [np.frombuffer(bytes.fromhex(text), dtype=np.uint8).astype(np.int16) for _, text in different]
    parents = list(range(len(distinct)))
    edges = [_BITS * band // (most + 1) for band in range(most + 2)]
    for low, high in itertools.pairwise(edges):
        band = (distinct >> np.uint64(low)) & np.uint64((1 << (high - low)) - 1)
        order = np.argsort(band, kind="stable")
        for members in np.split(order, np.flatnonzero(np.diff(band[order])) + 1):
            for first, second in _near_pairs(distinct[members], most):
                left, right = int(members[first]), int(members[second])
                if np.abs(colours[left] - colours[right]).max(initial=0) <= SAME_COLOUR:
                    _join(parents, left, right)
    groups: dict[int, list[int]] = {}
    for number in known:
        groups.setdefault(_root(parents, positions[fingerprints[number]]), []).append(number)
    return [group for group in groups.values() if len(group) > 1]


def _near_pairs(values: "NDArray[np.uint64]", most: int) -> "list[list[int]]":
    """[[first, second], …]: the index pairs of all hashes in (N,) that differ in at most `most` bits."""
    pairs: list[list[int]] = []
    for start in range(0, len(values), ROWS):
        apart = values[start : start + ROWS, None] ^ values[None, :]
        distance = np.zeros(apart.shape, dtype=np.uint8)
        for shift in (0, 16, 32, 48):
            distance += _ONES[(apart >> np.uint64(shift)) & np.uint64(0xFFFF)]
        near = np.argwhere(distance <= most) + np.array([start, 0])
        pairs += near[near[:, 0] < near[:, 1]].tolist()
    return pairs


def _root(parents: list[int], node: int) -> int:
    """The representative of a node's group (union-find with path halving)."""
    while parents[node] != node:
        parents[node] = parents[parents[node]]
        node = parents[node]
    return node


def _join(parents: list[int], first: int, second: int) -> None:
    """Merge the groups of two nodes."""
    low, high = sorted((_root(parents, first), _root(parents, second)))
    parents[high] = low
