"""What a decoder is asked for: which pictures of which source, and by which rules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from spacepatch.data import VideoInfo


@dataclass(frozen=True, slots=True)
class Request:
    """The arguments of `spacepatch.decode.decode_pictures`, for the decoder that it chooses."""

    uri: str
    info: VideoInfo
    indices: np.ndarray
    """(n,) strictly increasing presentation indices of the wanted frames."""
    pts: np.ndarray
    """(n,) int64: their times as probed."""
    offset: int | None
    num_bytes: int | None
    on_picture: Callable[[], None]
    interlaced: str
    max_pixels: int
    trust_input: bool
    untagged: str
    keyframes: np.ndarray | None = None
    """(k, 2) int64: index and time of keyframes, increasing, of each wanted frame the last one that
    is not after it among them; None: unknown."""

    def of(self, wanted: slice) -> Request:
        """The same for some of the frames."""
        return replace(self, indices=self.indices[wanted], pts=self.pts[wanted])
