"""One pack as tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from spacepatch.shards import PackMembers
from spacepatch.tubelets import cells_of_rows, merge_of

STACKED = (
    "tokens",
    "segment_ids",
    "positions",
    "seconds",
    "run_lengths",
    "visible",
    "pixels",
    "pixel_segment_ids",
    "pixel_positions",
)
"""Tensors of one row a token: of one shape in all padded packs."""


def to_tensors(
    pack: PackMembers, *, length: int | None, pixel_length: int | None
) -> dict[str, Any]:
    """See `PackDataset.__getitem__`.

    Args:
        length: to fill tokens up to with zeros; None: they stay as many as they are.
        pixel_length: the same of pixel tokens.
    """
    described = pack.document["segments"]
    grids, lengths = pack.segments[:, 2:5], pack.segments[:, 1]
    # Of each token: where the rows of its segment start among the rows of all, and its own t.
    first_row = np.repeat(np.cumsum(grids[:, 0]) - grids[:, 0], lengths)
    row_seconds = np.concatenate([segment["seconds"] for segment in described])
    seconds = row_seconds[first_row + pack.positions[:, 0]]
    # Not every dataset has them.
    optional = {
        name: _padded(array, length, dtype)
        for name, array, dtype in (
            ("run_lengths", pack.run_lengths, np.int32),
            ("visible", pack.visible, np.bool_),
        )
        if array is not None
    }
    tokens = _padded(pack.tokens, length, pack.tokens.dtype)
    return {
        # The same bits: numpy has no bfloat16.
        "tokens": tokens.view(torch.bfloat16) if pack.token_dtype == "bfloat16" else tokens,
        "segment_ids": _padded(pack.segment_ids, length, np.int32),
        "positions": _padded(pack.positions, length, np.int32),
        "seconds": _padded(seconds, length, np.float64),
        **optional,
        "cu_seqlens": _borders(lengths),
        "max_seqlen": int(lengths.max()),
        "num_tokens": len(pack.tokens),
        "grid_thw": torch.from_numpy(grids.astype(np.int32)),
        "patch": torch.from_numpy(pack.segments[:, 5:8].astype(np.int32)),
        "segments": described,
        **_pixel_tensors(pack, length=pixel_length),
    }


def _pixel_tensors(pack: PackMembers, *, length: int | None) -> dict[str, Any]:
    """Of the pixel tokens beside others; nothing where there are none."""
    if pack.pixels is None or pack.pixel_segments is None:
        return {}
    grids, lengths = pack.pixel_segments[:, 2:5], pack.pixel_segments[:, 1]
    merge = merge_of(pack.document["order"])
    places = [
        np.unravel_index(cells_of_rows(np.arange(t), h, w, merge=merge).astype(np.int64), (t, h, w))
        for t, h, w in grids.tolist()
    ]
    ids = np.repeat(np.arange(1, len(lengths) + 1), lengths)
    positions = np.concatenate([np.stack(place, axis=-1) for place in places])
    return {
        "pixels": _padded(pack.pixels, length, np.uint8),
        "pixel_segment_ids": _padded(ids, length, np.int32),
        "pixel_positions": _padded(positions, length, np.int32),
        "pixel_cu_seqlens": _borders(lengths),
        "pixel_max_seqlen": int(lengths.max()),
        "num_pixel_tokens": len(pack.pixels),
        "pixel_grid_thw": torch.from_numpy(grids.astype(np.int32)),
        "pixel_patch": torch.from_numpy(pack.pixel_segments[:, 5:8].astype(np.int32)),
    }


def _borders(lengths: np.ndarray) -> torch.Tensor:
    """(S + 1,) int32: where each of S segments begins, and where the last one ends."""
    return torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))


def _padded(array: np.ndarray, length: int | None, dtype: Any) -> torch.Tensor:
    """A copy with zeros at its end: the map is read-only, and not ours once the shard is closed."""
    out = np.zeros((len(array) if length is None else length, *array.shape[1:]), dtype)
    out[: len(array)] = array
    return torch.from_numpy(out)
