"""Frames of latents and codes, by the encoder that a user gives."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from spacepatch.config import RunConfig
from spacepatch.inspection.decoding import decode_segments
from spacepatch.report.samples import MOST_OF_PACK, Sampled
from spacepatch.report.thumbnails import Film, thumbnails

MOST_DECODED = 20
"""Segments: an encoder takes its time for each."""
FRAMES = 4
"""Of each."""


def decode_films(folder: Path, packs: Sequence[Sampled], config: RunConfig) -> dict[str, Film]:
    """By segment_id, the frames of the first segments of each pack.

    Args:
        config: where the encoder is and how it computes.

    Raises:
        ConfigError: it cannot decode.
        EncodeError: it is not the encoder of the dataset.
        ShardError: no finished dataset, or a damaged one.
    """
    each = max(1, MOST_DECODED // max(len(packs), 1))
    # An encoder decodes whole grids.
    whole = [
        [row for row in pack.rows[:MOST_OF_PACK] if row["num_kept"] == row["num_tokens"]]
        for pack in packs
    ]
    rows = [row for pack in whole for row in pack[:each]]
    if not rows:
        return {}
    decoded = decode_segments(
        folder,
        num_segments=len(rows),
        config=config,
        roots={},
        chosen=rows,
        make_again=False,
        num_shown=FRAMES,
    )
    films = {}
    for segment, row in zip(decoded.segments, rows, strict=True):
        frames = segment.found.decoded_frames
        if frames is not None:
            there = np.ones(row["grid_thw"][1:], bool)
            films[segment.segment_id] = thumbnails(
                [
                    (f"{time:.2f} s", frame, there)
                    for time, frame in zip(segment.seconds, frames, strict=True)
                ]
            )
    return films
