"""How close frames are to others: PSNR, and SSIM as its authors define it."""

from __future__ import annotations

import math

import numpy as np

PEAK = 255.0
WINDOW = 11
"""Side of SSIM's window: of frames that are smaller it says nothing."""
SIGMA = 1.5
C1, C2 = (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2


def _gaussian() -> np.ndarray:
    """``(WINDOW,)``: the window is its product with itself; the sum is 1."""
    distances = np.arange(WINDOW) - WINDOW // 2
    weights = np.exp(-np.square(distances) / (2 * SIGMA**2))
    return np.asarray(weights / weights.sum())


WEIGHTS = _gaussian()


def squared_error(a: np.ndarray, b: np.ndarray) -> int:
    """The sum of squared differences of all values of two uint8 arrays of one shape, exact."""
    _check(a, b)
    # Frame by frame: a clip in int64 is eight times the clip.
    return sum(
        int(np.square(one.astype(np.int64) - other).sum()) for one, other in zip(a, b, strict=True)
    )


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of ``(T, H, W, 3)`` uint8 frames against others, over all of
    their values; infinite where they are equal."""
    return psnr_of(squared_error(a, b), a.size)


def psnr_of(error: int, num_values: int) -> float:
    """`psnr` of a sum of squared errors over so many values."""
    return 10 * math.log10(PEAK**2 * num_values / error) if error else math.inf


def ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Structural similarity of ``(T, H, W, 3)`` uint8 frames to others, at most 1.

    Formula 13 of Wang, Bovik, Sheikh and Simoncelli, "Image quality assessment: from error
    visibility to structural similarity" (2004), with their window (11 x 11, Gaussian, sigma 1.5)
    and constants, in every channel by itself, at every place where the window lies within the
    frame; the mean of all.

    Raises:
        ValueError: frames smaller than the window, or of different shapes.
    """
    _check(a, b)
    if 0 in a.shape or min(a.shape[1:3]) < WINDOW:
        raise ValueError(f"frames are {a.shape}: at least one of {WINDOW} x {WINDOW} is needed")
    return sum(_ssim_of_frame(one, other) for one, other in zip(a, b, strict=True)) / len(a)


def _ssim_of_frame(a: np.ndarray, b: np.ndarray) -> float:
    x, y = a.astype(np.float64), b.astype(np.float64)
    mean_x, mean_y, xx, yy, xy = _windowed(np.stack([x, y, x * x, y * y, x * y]))
    both, squares = mean_x * mean_y, mean_x**2 + mean_y**2
    likeness = (2 * both + C1) * (2 * (xy - both) + C2)
    return float((likeness / ((squares + C1) * (xx + yy - squares + C2))).mean())


def _windowed(maps: np.ndarray) -> np.ndarray:
    """``(N, H, W, C)``: the weighted mean of every whole window; 10 rows and columns fewer."""
    height, width = maps.shape[1] - WINDOW + 1, maps.shape[2] - WINDOW + 1
    rows = sum(weight * maps[:, k : k + height] for k, weight in enumerate(WEIGHTS))
    return np.asarray(sum(weight * rows[:, :, k : k + width] for k, weight in enumerate(WEIGHTS)))


def _check(a: np.ndarray, b: np.ndarray) -> None:
    if a.shape != b.shape or a.dtype != np.uint8 or b.dtype != np.uint8:
        raise ValueError(f"{a.dtype} {a.shape} and {b.dtype} {b.shape} are not uint8 of one shape")
