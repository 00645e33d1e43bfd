"""Small pictures of a segment's frames, with holes where tokens were dropped."""

from __future__ import annotations

import io
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from spacepatch.shards import PackMembers
from spacepatch.tubelets import cell_order, join_tubelets, merge_of

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
    offset, kept, grid_t, grid_h, grid_w, tubelet_size, *patch = pack.segments[number].tolist()
    tokens, places = pack.tokens[offset : offset + kept], pack.positions[offset : offset + kept]
    merge = merge_of(row["order"])
    order = cell_order(grid_h, grid_w, merge=merge)
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    frames = []
    for t in spread(grid_t, most):
        own = places[:, 0] == t
        cells = places[own, 1].astype(np.int64) * grid_w + places[own, 2]
        whole = np.zeros((grid_h * grid_w, tokens.shape[1]), tokens.dtype)
        whole[place[cells]] = tokens[own]
        made = join_tubelets(
            whole,
            grid_thw=(1, grid_h, grid_w),
            tubelet_size=tubelet_size,
            patch_size=(patch[0], patch[1]),
            layout=row["layout"],
            merge=merge,
            halo=row["halo"],
        )
        is_there = np.zeros(grid_h * grid_w, bool)
        is_there[cells] = True
        when = f"{row['seconds'][t]:.2f} s, row {t}"
        frames.append((when, made[0, ..., :3], is_there.reshape(grid_h, grid_w)))
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
