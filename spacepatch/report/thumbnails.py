"""Small pictures of a segment's frames, with holes where tokens were dropped."""

from __future__ import annotations

import io
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from spacepatch.shards import PackMembers
from spacepatch.stored_frames import frames_of_tokens, kept_cells

MOST_SIDE = 208
"""Pixels of a thumbnail; smaller frames are as they are."""
QUALITY = 68
"""Of WebP: some 4 kB a thumbnail."""


@dataclass(frozen=True, slots=True)
class Film:
    """Frames of a segment."""

    frames: tuple[dict[str, str], ...]
    """As of `ShownSegment`."""
    size: tuple[int, int] = (0, 0)
    """(h, w) of each, in pixels."""

    @property
    def num_bytes(self) -> int:
        return sum(len(frame["image"]) for frame in self.frames)


def draw_pixels(pack: PackMembers, number: int, row: dict[str, Any], *, most: int) -> Film:
    """The first frame of some grid rows of a segment of pixel tokens.

    Args:
        number: of the segment in the pack.
        row: of segments.parquet.
        most: how many frames.
    """
    offset, count, grid_t, height, width, tubelet_size, *patch = pack.segments[number].tolist()
    shown = np.array(spread(grid_t, most))
    span = slice(offset, offset + count)
    own = np.isin(pack.positions[span, 0], shown)
    t, h, w = pack.positions[span][own].astype(np.int64).T
    cells = (np.searchsorted(shown, t) * height + h) * width + w
    # As if the clip had these grid rows alone.
    row_of_shown = row | {
        "grid_thw": (len(shown), height, width),
        "num_tokens": len(shown) * height * width,
        "tubelet_size": tubelet_size,
        "patch_size": patch,
    }
    joined = frames_of_tokens(
        pack.tokens[span][own],
        cells,
        row=row_of_shown,
        token_dtype=pack.token_dtype,
        facts=None,
        encoder=None,
    )
    kept = kept_cells(cells, row_of_shown)
    frames = []
    for place, number_of_row in enumerate(shown.tolist()):
        frame = joined[place * tubelet_size, ..., :3]
        # Black, where it is transparent: lighter than what is beside it would show at the edges.
        frame[~kept[place].repeat(patch[0], axis=0).repeat(patch[1], axis=1)] = 0
        when = f"{row['seconds'][number_of_row]:.2f} s, row {number_of_row}"
        frames.append((when, frame, kept[place]))
    return thumbnails(frames)


def thumbnails(frames: Sequence[tuple[str, np.ndarray, np.ndarray]]) -> Film:
    """Small pictures of frames.

    Args:
        frames: of each the time that it is of, ``(H, W, 3)`` uint8, and ``(grid_h, grid_w)`` bool:
            which cells of the grid are there.
    """
    made, size = [], (0, 0)
    for when, frame, is_there in frames:
        image, size = _thumbnail(frame, is_there)
        missing = int((~is_there).sum())
        gaps = f", {missing} of {is_there.size} tokens missing" if missing else ""
        made.append(
            {
                "image": "data:image/webp;base64," + b64encode(image).decode(),
                "alt": f"Frame at {when}{gaps}",
                "caption": when + gaps,
            }
        )
    return Film(tuple(made), size)


def spread(count: int, most: int) -> list[int]:
    """The middles of equal parts of 0 .. `count` - 1."""
    wanted = min(count, most)
    return [(2 * part + 1) * count // (2 * wanted) for part in range(wanted)]


def _thumbnail(frame: np.ndarray, is_there: np.ndarray) -> tuple[bytes, tuple[int, int]]:
    from PIL import Image

    height, width = frame.shape[:2]
    shrink = max(1.0, max(height, width) / MOST_SIDE)
    size = max(1, round(width / shrink)), max(1, round(height / shrink))
    image = Image.fromarray(np.ascontiguousarray(frame)).resize(size, Image.Resampling.BOX)
    if not is_there.all():
        holes = Image.fromarray(is_there.astype(np.uint8) * 255)
        image.putalpha(holes.resize(size, Image.Resampling.NEAREST))
    content = io.BytesIO()
    image.save(content, "WEBP", quality=QUALITY, method=4)
    return content.getvalue(), (size[1], size[0])
