"""Pictures that are smooth, as real ones are, and codecs that were fitted to them."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from spacepatch.latents.fitting import FitReport, fit_codec
from spacepatch.latents.linear import LinearCodec, codec_bytes, cut_blocks

BLOCK = (2, 3, 5)
DEPTH = 90


def video(frames: int, height: int, width: int, *, seed: int = 0) -> np.ndarray:
    """``(T, H, W, 3)`` uint8: a random walk along every axis, and a little noise."""
    random = np.random.default_rng(seed)
    walk = random.normal(size=(frames, height, width, 3))
    for axis in range(3):
        walk = np.cumsum(walk, axis)
    walk = walk / np.abs(walk).max() * 110 + 128 + random.normal(scale=4, size=walk.shape)
    return np.clip(np.rint(walk), 0, 255).astype(np.uint8)


def blocks_of(frames: np.ndarray, block: tuple[int, int, int] = BLOCK) -> np.ndarray:
    cells = cut_blocks(frames, block)
    return cells.reshape(-1, cells.shape[-1])


@cache
def fitted(**settings: Any) -> tuple[LinearCodec, FitReport]:
    """Fitted to 3,000 blocks of 2 x 3 x 5 pixels."""
    return fit_codec(blocks_of(video(20, 60, 75)), block=BLOCK, **{"channels": 12} | settings)


def written(folder: Path, **settings: Any) -> Path:
    path = folder / "codec.safetensors"
    path.write_bytes(codec_bytes(fitted(**settings)[0]))
    return path
