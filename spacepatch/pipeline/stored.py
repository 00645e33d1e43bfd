"""Segments as they lie in a shard, to be written anew."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from spacepatch.shards import PackMembers, SegmentContent


def contents_of(pack: PackMembers, rows: Sequence[dict[str, Any]]) -> list[SegmentContent]:
    """The segments of a pack: nothing of their tokens is copied.

    Args:
        rows: of segments.parquet, of all segments of the pack in their order.
    """
    contents = []
    pixels = [(slice(0), (0, 0, 0))] * len(rows)
    if pack.pixel_segments is not None:
        pixels = [
            (slice(offset, offset + count), (t, h, w))
            for offset, count, t, h, w, *_ in pack.pixel_segments.tolist()
        ]
    for row, (offset, num_kept, *_), (beside, grid) in zip(
        rows, pack.segments.tolist(), pixels, strict=True
    ):
        span = slice(offset, offset + num_kept)
        t, h, w = pack.positions[span].astype(np.int64).T
        kept = (t * row["grid_thw"][1] + h) * row["grid_thw"][2] + w
        contents.append(
            SegmentContent(
                row | {"extra": json.loads(row["extra"])},
                pack.tokens[span],
                kept.astype(np.uint32),
                None if pack.run_lengths is None else pack.run_lengths[span],
                None if pack.visible is None else pack.visible[span],
                None if pack.pixels is None else pack.pixels[beside],
                grid,
            )
        )
    return contents


def copied(content: SegmentContent) -> SegmentContent:
    """With arrays of its own: nothing holds the shard that it comes from."""
    return replace(
        content,
        tokens=content.tokens.copy(),
        run_lengths=None if content.run_lengths is None else content.run_lengths.copy(),
        visible=None if content.visible is None else content.visible.copy(),
        pixels=None if content.pixels is None else content.pixels.copy(),
    )
