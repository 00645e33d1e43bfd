"""Frames as they are shown: at a size to be seen, with the grid, gaps and masked tokens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from spacepatch.inspection.decoded import DecodedSegment

LEAST_SIDE = 128
"""Pixels of a frame as it is shown; smaller ones are shown larger, by a whole number."""
LEAST_CELL = 8
"""Pixels of a cell, for its borders to be drawn: they would hide what is in smaller ones."""
LINE = 56
"""Levels by which a line is brighter than what it crosses, or darker."""
CHECKS, CHECK_SIDE = (176, 216), 4
"""The greys of a gap, and the side of their squares."""
MASKED = 0.35
"""What is left of the light of a masked token."""


@dataclass(frozen=True, slots=True)
class Scale:
    """How large frames are shown: smaller or larger by a whole number."""

    shrink: int = 1
    enlarge: int = 1

    @classmethod
    def of(cls, size: tuple[int, int], *, most_side: int) -> Scale:
        """For frames of (h, w) pixels."""
        longest = max(size)
        if longest > most_side:
            return cls(shrink=-(-longest // most_side))
        return cls(enlarge=max(1, min(LEAST_SIDE, most_side) // longest))

    def apply(self, frame: np.ndarray) -> np.ndarray:
        """``(H, W, 3)`` to ``(H', W', 3)`` uint8, a copy."""
        if self.shrink > 1:
            from PIL import Image

            return np.array(Image.fromarray(frame).reduce(self.shrink))
        return frame.repeat(self.enlarge, axis=0).repeat(self.enlarge, axis=1)

    def __str__(self) -> str:
        return f"1/{self.shrink}" if self.shrink > 1 else f"{self.enlarge}x"


def marked(frame: np.ndarray, segment: DecodedSegment, number: int, *, grid: bool) -> np.ndarray:
    """The same with its tokens' borders, gaps and masked tokens.

    Args:
        frame: ``(H', W', 3)`` uint8, at any scale; is changed.
        number: which frame of the segment it is.
        grid: whether borders are drawn; not those of cells below `LEAST_CELL`.
    """
    kept, visible = kept_at(segment, number), segment.found.visible
    height, width = frame.shape[:2]
    ys, xs = (
        np.round(np.arange(count + 1) * (side / count)).astype(int)
        for count, side in zip(kept.shape, (height, width), strict=True)
    )
    down, across = np.diff(ys), np.diff(xs)

    def pixels(of_cells: np.ndarray) -> np.ndarray:
        return of_cells.repeat(down, axis=0).repeat(across, axis=1)

    if visible is not None:
        masked = pixels(kept & ~visible[row_of(segment, number)])
        frame[masked] = (frame[masked] * MASKED).astype(np.uint8)
    if grid and min(down.min(), across.min()) >= LEAST_CELL:
        lines = np.zeros((height, width), bool)
        lines[ys[1:-1]] = True
        lines[:, xs[1:-1]] = True
        over = frame[lines].astype(int)
        bright = over.mean(axis=1, keepdims=True) >= 128
        frame[lines] = np.clip(over + np.where(bright, -LINE, LINE), 0, 255)
    return with_gaps(frame, pixels(~kept))


def with_gaps(frame: np.ndarray, gaps: np.ndarray) -> np.ndarray:
    """The same, checkered where ``(H', W')`` `gaps` is true; is changed."""
    height, width = gaps.shape
    down, across = np.arange(height) // CHECK_SIDE, np.arange(width) // CHECK_SIDE
    squares = (down[:, None] + across) % 2
    frame[gaps] = np.array(CHECKS, np.uint8)[squares[gaps], None]
    return frame


def kept_at(segment: DecodedSegment, number: int) -> np.ndarray:
    """``(H, W)`` bool: which cells of a frame's grid row have a token."""
    kept = segment.found.kept
    assert kept is not None, "frames were asked for"
    cells: np.ndarray = kept[row_of(segment, number)]
    return cells


def row_of(segment: DecodedSegment, number: int) -> int:
    """The grid row that a frame lies in."""
    return int(np.searchsorted(segment.row_starts, number, side="right")) - 1
