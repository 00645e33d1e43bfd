"""The files that the frames of a segment become, by the words of `--format`."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial

import numpy as np

from spacepatch.encoding import beating
from spacepatch.videos import frame_times, write_mp4
from spacepatch.workers import beat


@dataclass(frozen=True, slots=True)
class Frames:
    """What of a segment becomes files."""

    frames: np.ndarray
    """``(n, H, W, C)`` uint8: the true ones; C is 3, or 4 with alpha."""
    numbers: Sequence[int]
    """Which of them: those of which a token is there."""
    pts: Sequence[int]
    time_base: Fraction


Files = dict[str, bytes]
"""By their names."""


def _as_png(made: Frames) -> Files:
    from PIL import Image

    files = {}
    for number in made.numbers:
        content = io.BytesIO()
        Image.fromarray(made.frames[number]).save(content, "PNG")
        files[f"{number:06d}.png"] = content.getvalue()
        beat()
    return files


def _as_mp4(made: Frames, *, lossless: bool) -> Files:
    if not made.numbers:
        return {}
    times = frame_times([made.pts[number] for number in made.numbers], made.time_base)
    content = io.BytesIO()
    frames = (made.frames[number] for number in made.numbers)
    with beating():
        write_mp4(content, frames, times=times, lossless=lossless)
    return {"frames.mp4": content.getvalue()}


FORMATS: dict[str, Callable[[Frames], Files]] = {
    "png": _as_png,
    "mp4": partial(_as_mp4, lossless=False),
    "mp4-lossless": partial(_as_mp4, lossless=True),
}
"""A PNG a frame, exact; an H.264 that everything plays, not exact; or one of the very same RGB."""

EXACT = ("png", "mp4-lossless")
"""From which the very same values are read again."""
