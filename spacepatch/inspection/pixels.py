"""Check the pixel tokens of a pack that lie beside those of an encoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from spacepatch.inspection.findings import Report
from spacepatch.inspection.segments import Row
from spacepatch.tubelets import merge_of, token_width

PIXELS, PIXEL_SEGMENTS = "pixels.npy", "pixel_segments.npy"

COLUMNS = ("offset", "num_kept", "T", "H", "W", "tubelet_size", "patch_h", "patch_w")

Tubelet = tuple[int, int, int]
"""(frames, height, width)."""


def check_pixels(
    arrays: dict[str, np.ndarray],
    rows: Sequence[Row],
    *,
    tubelet: Tubelet | None,
    report: Report,
    at: Callable[[int], Report],
) -> tuple[int, Tubelet] | None:
    """Report where the pixel members disagree with the frames of a pack's segments.

    Args:
        arrays: the npy members that could be read.
        tubelet: that all pixel tokens have; None: it is not known, and the first segment says it.

    Returns:
        The number of pixel tokens and their tubelet; None: they cannot be counted.
    """
    table, pixels = arrays.get(PIXEL_SEGMENTS), arrays.get(PIXELS)
    if table is None or pixels is None:
        return None  # reported with the members
    if table.dtype != np.int32 or table.shape != (len(rows), 8) or not len(rows):
        report(f"{PIXEL_SEGMENTS} is {table.dtype} {table.shape}, not int32 ({len(rows)}, 8)")
        return None
    found = table.astype(np.int64)
    if tubelet is None:
        tubelet = int(found[0, 5]), int(found[0, 6]), int(found[0, 7])
        if min(tubelet) < 1:
            report(f"{PIXEL_SEGMENTS}: its tubelet is {tubelet}")
            return None
    expected, offset = [], 0
    for place, row in enumerate(rows):
        grid = _grid_of(row, tubelet)
        if grid is None:
            patch = "x".join(map(str, tubelet))
            at(place)(f"size {tuple(row['size'])} has no whole pixel tokens of {patch}")
            return None
        count = grid[0] * grid[1] * grid[2]
        expected.append([offset, count, *grid, *tubelet])
        offset += count
    for place, column in np.argwhere(found != np.array(expected))[:3]:
        at(place)(
            f"{PIXEL_SEGMENTS} has {COLUMNS[column]} {found[place, column]}, its frames make "
            f"{expected[place][column]}"
        )
    shape = offset, token_width(tubelet[0], tubelet[1:])
    if pixels.dtype != np.uint8 or pixels.shape != shape:
        report(f"{PIXELS} is {pixels.dtype} {pixels.shape}, not uint8 {shape}")
        return None
    return offset, tubelet


def _grid_of(row: Row, tubelet: Tubelet) -> Tubelet | None:
    """All frames of a segment in tubelets, the last of which repeats one; None: a side does not
    divide."""
    merge = merge_of(row["order"])
    height, width = row["size"]
    if height % (tubelet[1] * merge) or width % (tubelet[2] * merge):
        return None
    return -(-len(row["frame_pts"]) // tubelet[0]), height // tubelet[1], width // tubelet[2]
