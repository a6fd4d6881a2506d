"""Pictures that look alike: by the Hamming distance of their perceptual hashes, and the same colours in the same places.

A hash alone is not enough: that of a flat drawing has few coefficients that mean anything, so different drawings can share it.
"""

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

NEAR = 6
"""Bits of 64 that copies of a picture may differ in: re-encoding and resizing change up to about 4, other pictures 14 and more."""
SAME_COLOUR = 20
"""How much of 255 any field of a copy may differ in: re-encoding and resizing change up to about 5, a slight change of brightness 15."""
_BITS = 64
ROWS = 256
"""Compared with all others at a time: bounds the memory."""
_ONES = np.array([bin(value).count("1") for value in range(1 << 16)], dtype=np.uint8)


def near_duplicates(looks: Sequence[tuple[str, str]], most: int = NEAR) -> list[list[int]]:
    """Groups of numbers of pictures, given as (hash, colours), that are joined by distances up to `most`; the hash "" takes
    part in none.

    Two hashes that differ in at most `most` bits agree in at least one of `most` + 1 bands of bits, so only pictures that
    share a band are compared: exact, and about linear for sets of usual size.
    """
    known = [number for number, (fingerprint, _) in enumerate(looks) if fingerprint]
    different = sorted({looks[number] for number in known})  # blank pictures may all be the same
    places = {one: place for place, one in enumerate(different)}
    distinct = np.array([int(fingerprint, 16) for fingerprint, _ in different], dtype=np.uint64)
    colours = [np.frombuffer(bytes.fromhex(text), dtype=np.uint8).astype(np.int16) for _, text in different]
    parents = list(range(len(distinct)))
    edges = [_BITS * band // (most + 1) for band in range(most + 2)]
    for low, high in itertools.pairwise(edges):
        band = (distinct >> np.uint64(low)) & np.uint64((1 << (high - low)) - 1)
        order = np.argsort(band, kind="stable")
        for members in np.split(order, np.flatnonzero(np.diff(band[order])) + 1):
            for first, second in _near_pairs(distinct[members], most):
                one, other = int(members[first]), int(members[second])
                if np.abs(colours[one] - colours[other]).max(initial=0) <= SAME_COLOUR:
                    _join(parents, one, other)
    groups: dict[int, list[int]] = {}
    for number in known:
        groups.setdefault(_root(parents, places[looks[number]]), []).append(number)
    return [group for group in groups.values() if len(group) > 1]


def _near_pairs(values: "NDArray[np.uint64]", most: int) -> "list[list[int]]":
    """[[first, second], …]: all pairs of these that are near."""
    pairs: list[list[int]] = []
    for start in range(0, len(values), ROWS):
        apart = values[start : start + ROWS, None] ^ values[None, :]
        distance = np.zeros(apart.shape, dtype=np.uint8)
        for shift in (0, 16, 32, 48):
            distance += _ONES[(apart >> np.uint64(shift)) & np.uint64(0xFFFF)]
        near = np.argwhere(distance <= most) + np.array([start, 0])
        pairs += near[near[:, 0] < near[:, 1]].tolist()
    return pairs


def _root(parents: list[int], place: int) -> int:
    while parents[place] != place:
        parents[place] = parents[parents[place]]
        place = parents[place]
    return place


def _join(parents: list[int], first: int, second: int) -> None:
    low, high = sorted((_root(parents, first), _root(parents, second)))
    parents[high] = low
