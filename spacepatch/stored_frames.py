"""The frames of stored tokens: joined, and decoded where an encoder made them; gaps are grey."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from spacepatch.data import EncoderFacts
from spacepatch.encoding import beating, encoder_of
from spacepatch.errors import ConfigError, ShardError
from spacepatch.framerules import PIXELS
from spacepatch.latents.encoders import EncoderSettings
from spacepatch.token_dtypes import from_stored, to_stored
from spacepatch.tubelets import cells_of_rows, join_tubelets, merge_of

UNKNOWN = 128
"""Grey, where a token was dropped or a frame is lost."""

Row = Mapping[str, Any]
"""Of segments.parquet."""


def frames_of_tokens(
    tokens: np.ndarray,
    cells: np.ndarray,
    *,
    row: Row,
    token_dtype: str,
    facts: EncoderFacts | None,
    encoder: EncoderSettings | None,
) -> np.ndarray:
    """The frames of a segment, those that fill its last grid row included.

    An encoder decodes a whole grid: cells without a token are given the mean of the others (codes:
    0), so that what is decoded beside a gap is not quite what was encoded.

    Args:
        tokens: ``(n, D)``, as stored.
        cells: ``(n,)`` int64: raster index of each in the segment's grid.
        facts, encoder: of what made the tokens, both or none.

    Returns:
        ``(T, H, W, C)`` uint8, `UNKNOWN` where a token is missing; C is 3, or 4 with alpha.

    Raises:
        ConfigError: the encoder has no decoder.
    """
    grid = tuple(row["grid_thw"])
    merge = merge_of(row["order"])
    # In the order that they are stored in where none is dropped.
    order = cells_of_rows(np.arange(grid[0]), *grid[1:], merge=merge)
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    whole = np.empty((row["num_tokens"], tokens.shape[1]), tokens.dtype)
    whole[:] = UNKNOWN if facts is None else _likely_token(tokens, token_dtype, facts)
    whole[place[cells]] = tokens
    joined = join_tubelets(
        whole,
        grid_thw=grid,
        tubelet_size=row["tubelet_size"],
        patch_size=tuple(row["patch_size"]),
        layout=row["layout"],
        merge=merge,
        halo=row["halo"],
    )
    if facts is None or encoder is None:
        return joined
    values = from_stored(joined, token_dtype)
    if facts.kind == "codes":
        values = values.astype(np.int64)  # as `encode` returns them
    with beating():
        made = encoder_of(encoder).decode(values)
    if made is None:
        raise ConfigError(f"{facts.name}: has no decoder: give --encoder one with its decoder")
    kept = kept_cells(cells, row)
    if kept.all():
        return made
    height, width = patch_pixels(row, facts)
    starts = row_starts(row, facts)
    frames = made.copy()
    for t in np.flatnonzero(~kept.all(axis=(1, 2))):
        gaps = ~kept[t].repeat(height, axis=0).repeat(width, axis=1)
        frames[starts[t] : starts[t + 1], gaps] = UNKNOWN
    return frames


def frames_of_pixels(pixels: np.ndarray, columns: np.ndarray, *, row: Row) -> np.ndarray:
    """``(T, H, W, C)`` uint8: the frames of the pixel tokens beside those of an encoder.

    Args:
        pixels: ``(P, D)`` of the pack.
        columns: ``(8,)``: of `pixel_segments.npy`, those of the segment.

    Raises:
        ShardError: they do not fit their grid.
    """
    offset, count, t, h, w, *tubelet = columns.tolist()
    try:
        return join_tubelets(
            pixels[offset : offset + count],
            grid_thw=(t, h, w),
            tubelet_size=tubelet[0],
            patch_size=(tubelet[1], tubelet[2]),
            layout=row["layout"],
            merge=merge_of(row["order"]),
        )
    except ValueError as error:
        raise ShardError(f"its pixel tokens do not fit their grid ({error})") from None


def kept_cells(cells: np.ndarray, row: Row) -> np.ndarray:
    """``(T, H, W)`` bool: which cells of a segment's grid have a token."""
    kept = np.zeros(row["num_tokens"], bool)
    kept[cells] = True
    return kept.reshape(row["grid_thw"])


def row_starts(row: Row, facts: EncoderFacts | None) -> np.ndarray:
    """``(T + 1,)`` int64: the frame that each grid row begins with, and where they end, which is
    beyond the true frames where the tail was filled."""
    lattice = PIXELS if facts is None else facts.lattice
    return lattice.row_starts(row["grid_thw"][0], tubelet_size=row["tubelet_size"])


def patch_pixels(row: Row, facts: EncoderFacts | None) -> tuple[int, int]:
    """(h, w) in pixels of what a token covers of a frame."""
    height, width = row["patch_size"]
    return (height, width) if facts is None else (height * facts.stride[1], width * facts.stride[2])


def _likely_token(tokens: np.ndarray, token_dtype: str, facts: EncoderFacts) -> np.ndarray:
    """``(D,)``: what stands for a token that is missing."""
    if facts.kind == "codes" or not len(tokens):
        return np.zeros(tokens.shape[1], tokens.dtype)
    return to_stored(from_stored(tokens, token_dtype).mean(axis=0), token_dtype)
