"""What is kept of a distribution of latents: its mean, a draw from it, or mean and variance."""

from __future__ import annotations

import numpy as np

from spacepatch.randomness import Draws


def take_posterior(
    mean: np.ndarray, log_variance: np.ndarray, *, posterior: str, seed: tuple[object, ...]
) -> np.ndarray:
    """Reduce a normal distribution of each value to what is kept of it.

    Args:
        mean: ``(T, H, W, C)`` float32.
        log_variance: of the same shape: the natural logarithm of the variance.
        posterior: `mean`, `sample` (mean + standard deviation x a standard normal draw), or
            `mean_logvar` (both, the means first).
        seed: the key of the draws.

    Returns:
        ``(T, H, W, C)`` float32, or ``(T, H, W, 2 C)``.
    """
    if posterior == "mean":
        return mean
    if posterior == "mean_logvar":
        return np.concatenate([mean, log_variance], axis=-1)
    if not seed:
        # One draw for all clips would be a pattern that a model learns.
        raise ValueError("a sample needs the seed of its clip")
    deviation = np.exp(log_variance.astype(np.float64) / 2)
    made: np.ndarray = mean + deviation * standard_normal(
        Draws(*seed, "posterior"), mean.size
    ).reshape(mean.shape)
    return made.astype(np.float32)


def standard_normal(draws: Draws, num: int) -> np.ndarray:
    """``(num,)`` float64 of N(0, 1), two uniform draws each (Box and Muller, 1958)."""
    radius, angle = draws.uniforms(num), draws.uniforms(num)
    # 1 - u is never 0, which has no logarithm.
    return np.asarray(np.sqrt(-2 * np.log1p(-radius)) * np.cos(2 * np.pi * angle))
