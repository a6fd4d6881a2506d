"""Where an image draws the eye, without weights: the spectral residual of Hou & Zhang, "Saliency Detection: A Spectral
Residual Approach" (CVPR 2007).

What the logarithm of an image's spectrum has beyond its own local average is what is unusual in the image. Kept per image are
only the sums over columns and rows, from which a crop of any size finds its place.
"""

from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...types import Size

BINS = 16
"""Sums over columns, and as many over rows: a place is found to about a sixteenth of the image, then interpolated."""
SIDE = 64
"""Pixels of the square that is looked at, as in the paper; half of it misplaces crops around small things."""
_BLUR = 2.5
"""Standard deviation of the final smoothing in pixels, as in the paper."""

Floats = NDArray[np.float64]


def focus(small: Image.Image) -> str:
    """Saliency of a square thumbnail, summed over columns and then over rows: 2 x 16 bytes as hex digits."""
    grey = small.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)
    saliency = spectral_residual(np.asarray(grey, dtype=np.float64))
    sides = [saliency.sum(axis=axis).reshape(BINS, -1).sum(axis=1) for axis in (0, 1)]
    return "".join(_bytes(side).hex() for side in sides)


def spectral_residual(grey_HW: Floats) -> Floats:
    """(H, W) saliency, not negative. Nothing draws the eye in a blank image: all zero."""
    spectrum = np.fft.rfft2(grey_HW - grey_HW.mean())  # of real numbers: the other half mirrors this one
    amplitude = np.abs(spectrum)
    if amplitude.max() < 1e-6:
        return np.zeros_like(grey_HW)
    log = np.log(amplitude + 1e-9 * amplitude.max())
    turned = spectrum / np.exp(_mean_3x3(log))  # exp(residual) at the old phase
    found: Floats = np.fft.irfft2(np.fft.rfft2(np.fft.irfft2(turned, grey_HW.shape) ** 2) * _gaussian(*grey_HW.shape))
    return found.clip(0)


def _mean_3x3(half_HW: Floats) -> Floats:
    """Of each value and its eight neighbours in a half spectrum; beyond its edges the spectrum is mirrored."""
    whole = np.concatenate([_mirrored(half_HW[:, 1:2]), half_HW, _mirrored(half_HW[:, -2:-1])], axis=1)
    down: Floats = whole + np.roll(whole, 1, 0) + np.roll(whole, -1, 0)
    mean: Floats = (down[:, :-2] + down[:, 1:-1] + down[:, 2:]) / 9
    return mean


def _mirrored(column_H1: Floats) -> Floats:
    """The column of negative frequency."""
    return np.roll(column_H1[::-1], 1, 0)


@cache
def _gaussian(height: int, width: int) -> Floats:
    """What blurs, in a half spectrum."""
    made: Floats = np.exp(
        -2 * (np.pi * _BLUR) ** 2 * (np.fft.fftfreq(height)[:, None] ** 2 + np.fft.rfftfreq(width) ** 2)
    )
    return made


def _bytes(sums: Floats) -> bytes:
    top = float(sums.max())
    return bytes((sums * (255 / top)).round().astype(np.uint8)) if top > 0 else bytes(BINS)


def place(found: str, resized: Size, target: Size) -> tuple[float, float]:
    """Where to cut the spare pixels off, as shares (see `Buckets.geometry`), so that most saliency stays; the middle among equals."""
    columns, rows = bytes.fromhex(found)[:BINS], bytes.fromhex(found)[BINS:]
    return _share(columns, resized[0], target[0]), _share(rows, resized[1], target[1])


def _share(sums: bytes, whole: int, part: int) -> float:
    """Of one direction: the window of `part` of `whole` pixels that holds most of the sum."""
    spare = whole - part
    if spare <= 0 or not any(sums):
        return 0.5
    edges = np.linspace(0, whole, len(sums) + 1)
    below = np.concatenate([[0.0], np.cumsum(np.frombuffer(sums, dtype=np.uint8), dtype=np.float64)])
    starts = np.arange(spare + 1)
    held = np.interp(starts + part, edges, below) - np.interp(starts, edges, below)
    best = np.flatnonzero(held >= held.max() - 1e-9)
    return float(best[np.abs(best - spare / 2).argmin()]) / spare
