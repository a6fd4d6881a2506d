"""Saliency of an image without a network: the spectral residual of Hou & Zhang, "Saliency Detection: A Spectral Residual
Approach" (CVPR 2007).

The part of the log spectrum that exceeds its own local average belongs to what is unusual in the image. Only the sums over
columns and rows are kept per image; they suffice to position a crop of any size.
"""

from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...types import Size

BINS = 16
"""Number of sums over columns, and of sums over rows. A crop is positioned to a sixteenth of the image, then interpolated."""
SIDE = 64
"""Side in pixels of the square that is analysed, as in the paper. Half of it misplaces crops around small objects."""
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
    """Returns (H, W) saliency, not negative; all zero for a blank image."""
    spectrum = np.fft.rfft2(grey_HW - grey_HW.mean())  # the input is real: the other half mirrors this one
    amplitude = np.abs(spectrum)
    if amplitude.max() < 1e-6:
        return np.zeros_like(grey_HW)
    log = np.log(amplitude + 1e-9 * amplitude.max())
    residual = spectrum / np.exp(_mean_3x3(log))  # exp(residual) at the old phase
    saliency: Floats = np.fft.irfft2(
        np.fft.rfft2(np.fft.irfft2(residual, grey_HW.shape) ** 2) * _gaussian(*grey_HW.shape)
    )
    return saliency.clip(0)


def _mean_3x3(half_HW: Floats) -> Floats:
    """Mean of each value of a half spectrum and its eight neighbours. Beyond its edges the spectrum is mirrored."""
    whole = np.concatenate([_mirrored(half_HW[:, 1:2]), half_HW, _mirrored(half_HW[:, -2:-1])], axis=1)
    down: Floats = whole + np.roll(whole, 1, 0) + np.roll(whole, -1, 0)
    mean: Floats = (down[:, :-2] + down[:, 1:-1] + down[:, 2:]) / 9
    return mean


def _mirrored(column_H1: Floats) -> Floats:
    """The column (H, 1) of the negative frequency."""
    return np.roll(column_H1[::-1], 1, 0)


@cache
def _gaussian(height: int, width: int) -> Floats:
    """The transfer function of the Gaussian blur over a half spectrum, (height, width // 2 + 1)."""
    transfer: Floats = np.exp(
        -2 * (np.pi * _BLUR) ** 2 * (np.fft.fftfreq(height)[:, None] ** 2 + np.fft.rfftfreq(width) ** 2)
    )
    return transfer


def _bytes(sums: Floats) -> bytes:
    """The sums (16,), scaled so that the largest is 255."""
    top = float(sums.max())
    return bytes((sums * (255 / top)).round().astype(np.uint8)) if top > 0 else bytes(BINS)


def crop_position(sums: str, resized: Size, target: Size) -> tuple[float, float]:
    """The crop that keeps most saliency, as shares of the spare pixels (see `Buckets.geometry`). `sums` is what `focus` returns.

    Among equally good positions the one nearest the middle is chosen.
    """
    columns, rows = bytes.fromhex(sums)[:BINS], bytes.fromhex(sums)[BINS:]
    return _share(columns, resized[0], target[0]), _share(rows, resized[1], target[1])


def _share(sums: bytes, whole: int, part: int) -> float:
    """Finds, in one direction, the position of the window of `part` out of `whole` pixels that holds most of the sum."""
    spare = whole - part
    if spare <= 0 or not any(sums):
        return 0.5
    edges = np.linspace(0, whole, len(sums) + 1)
    below = np.concatenate([[0.0], np.cumsum(np.frombuffer(sums, dtype=np.uint8), dtype=np.float64)])
    starts = np.arange(spare + 1)
    held = np.interp(starts + part, edges, below) - np.interp(starts, edges, below)
    best = np.flatnonzero(held >= held.max() - 1e-9)
    return float(best[np.abs(best - spare / 2).argmin()]) / spare
