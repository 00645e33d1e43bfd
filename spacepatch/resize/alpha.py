"""Transparency: colour multiplied by alpha and back, and pictures on a background."""

from __future__ import annotations

import numpy as np

RGB = tuple[int, int, int]
"""(red, green, blue), 0 to 255."""


def premultiply(planes: np.ndarray) -> np.ndarray:
    """Multiply colour by alpha, the form in which transparent pictures are scaled.

    What hides under alpha 0 becomes 0, and bleeds nowhere.

    Args:
        planes: ``(4, h, w)`` uint16, straight R, G, B and A; 65535 is white and opaque.

    Returns:
        ``(4, h, w)`` uint16. 8-bit numbers (times 257) come back from `unpremultiply` unharmed.
    """
    made = planes.copy()
    share = planes[3] * np.float32(1 / 65535)
    for channel in range(3):
        product = planes[channel] * share
        product += 0.5
        made[channel] = product
    return made


def unpremultiply(planes: np.ndarray) -> np.ndarray:
    """Divide colour by alpha again: the inverse of `premultiply`, 0 where alpha is 0.

    Colour beyond its alpha (a kernel may ring) becomes white.
    """
    alpha = planes[3].astype(np.uint32)
    straight = np.minimum(planes[:3], alpha) * np.uint32(65535)
    straight += alpha // 2
    straight //= np.maximum(alpha, 1)
    return np.concatenate([straight.astype(np.uint16), planes[3:]])


def composite(colour: np.ndarray, alpha: np.ndarray, background: int | np.ndarray) -> np.ndarray:
    """Lay a picture on a background, rounded half up.

    Args:
        colour: uint8, straight.
        alpha: uint8 that broadcasts to it, 255 is opaque.
        background: 0 to 255, an integer or uint8 that broadcasts to it.

    Returns:
        uint8 of the shape of `colour`.
    """
    mixed = colour * alpha.astype(np.uint16)
    if np.any(background):
        mixed += (255 - alpha) * np.asarray(background, np.uint16)
    mixed += 127
    mixed //= 255
    return mixed.astype(np.uint8)
