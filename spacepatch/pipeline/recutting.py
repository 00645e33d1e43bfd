"""Bring the tokens of a stored segment to another layout, order or patch size."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np

from spacepatch.config import RunConfig
from spacepatch.errors import ConfigError
from spacepatch.pipeline.segments import visible_of
from spacepatch.shards import SegmentContent
from spacepatch.tubelets import (
    cell_order,
    cells_of_rows,
    change_layout,
    cut_tubelets,
    grid_shape,
    join_tubelets,
    merge_of,
)


def relay_segment(stored: SegmentContent, config: RunConfig) -> SegmentContent:
    """The same tokens with their values, and themselves, in another order."""
    row = stored.row
    _, grid_h, grid_w = row["grid_thw"]
    place = np.argsort(cell_order(grid_h, grid_w, merge=config.merge))
    cells = grid_h * grid_w
    kept = stored.kept.astype(np.int64)
    order = np.argsort(kept // cells * cells + place[kept % cells], kind="stable")
    halo = row["halo"]
    patch_h, patch_w = (side + 2 * halo for side in row["patch_size"])
    channels = stored.tokens.shape[1] // (row["tubelet_size"] * patch_h * patch_w)
    tokens = change_layout(
        stored.tokens[order],
        token_shape=(channels, row["tubelet_size"], patch_h, patch_w),
        before=row["layout"],
        after=config.layout,
    )
    lengths = stored.run_lengths
    return _content_of(
        row,
        tokens,
        stored.kept[order].astype(np.uint32),
        config,
        run_lengths=None if lengths is None else lengths[order],
    )


def recut_segment(stored: SegmentContent, config: RunConfig) -> SegmentContent:
    """The frames of a segment of which nothing was dropped, cut into patches that divide them; its
    id and times are the new ones already."""
    row = stored.row
    size, (height, width) = config.patches[0][0], config.patches[0][1:]
    grid = row["grid_thw"]
    rows = stored.kept[:: grid[1] * grid[2]] // (grid[1] * grid[2])
    frames = join_tubelets(
        stored.tokens,
        grid_thw=(len(rows), grid[1], grid[2]),
        tubelet_size=row["tubelet_size"],
        patch_size=tuple(row["patch_size"]),
        layout=row["layout"],
        merge=merge_of(row["order"]),
        halo=row["halo"],
    )
    num_frames = len(row["frame_pts"])
    padded = row["padded_frames"]
    if size != row["tubelet_size"]:
        frames, padded = _fill_tail(frames[:num_frames], size, row)
        rows = np.arange(len(frames) // size)
    cut_grid = new_grid(num_frames, tuple(row["size"]), config)
    tokens = cut_tubelets(
        frames,
        tubelet_size=size,
        patch_size=(height, width),
        layout=config.layout,
        merge=config.merge,
        halo=row["halo"],
    )
    kept = cells_of_rows(rows, *cut_grid[1:], merge=config.merge)
    pts = np.array(row["frame_pts"])
    changed = row | {
        "num_tokens": math.prod(cut_grid),
        "num_kept": len(kept),
        "grid_thw": cut_grid,
        "padded_frames": padded,
        "tubelet_size": size,
        "patch_size": (height, width),
        "seconds": [float(int(time) * Fraction(row["time_base"])) for time in pts[::size]],
    }
    return _content_of(changed, tokens, kept, config, run_lengths=None)


def _fill_tail(frames: np.ndarray, size: int, row: dict[str, Any]) -> tuple[np.ndarray, int]:
    """Fill the last tubelet as the tail policy says; returns the frames and how many were added."""
    missing = -len(frames) % size
    last = frames[-1:] if row["tail"] == "repeat" else np.zeros_like(frames[-1:])
    return np.concatenate([frames, *[last] * missing]), missing


def check_divides(source: str, size: tuple[int, int], config: RunConfig) -> None:
    """Raise a `ConfigError` where the patches do not divide a frame of (h, w) pixels."""
    _, height, width = config.patches[0]
    unit = height * config.merge, width * config.merge
    if size[0] % unit[0] or size[1] % unit[1]:
        raise ConfigError(
            f"patch {config.patch}: frames of {source} are {size[0]}x{size[1]} (h x w), no "
            f"multiple of {unit[0]}x{unit[1]}: tokenize again, or take a patch that divides them"
        )


def _content_of(
    row: dict[str, Any],
    tokens: np.ndarray,
    kept: np.ndarray,
    config: RunConfig,
    *,
    run_lengths: np.ndarray | None,
) -> SegmentContent:
    """A segment to be written: its row as the new settings have it, and its mask anew."""
    return SegmentContent(
        row | {"layout": config.layout, "order": config.order},
        tokens,
        kept,
        run_lengths,
        visible_of(config.effective(), row, kept),
    )


def new_grid(num_frames: int, size: tuple[int, int], config: RunConfig) -> tuple[int, int, int]:
    """The grid of a clip in the new patches."""
    tubelet_size, height, width = config.patches[0]
    return grid_shape(
        num_frames,
        size,
        tubelet_size=tubelet_size,
        patch_size=(height, width),
        tail=config.tail,
    )
