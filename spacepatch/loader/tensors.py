"""One pack as tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
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

STACKED_IF_FIXED = ("grid_thw", "patch", "cu_seqlens_padded", "pixel_grid_thw", "pixel_patch")
"""Tensors of one row a segment: of one shape with `fixed_shapes`."""

_NEARLY = 0.75
"""Share of the room from which on a pack takes all of it."""

Values = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class PackShape:
    """How many rows the tensors of a pack have."""

    length: int | None
    """Tokens, with zeros at the end; None: as many as there are."""
    pixel_length: int | None
    """The same of pixel tokens."""
    multiple: int = 1
    """Each segment begins at a multiple of so many tokens; between them is padding."""
    max_segments: int | None = None
    """Rows of what has one a segment, with zeros at the end; None: as many as there are."""
    room: int = 0
    """Tokens that memory is taken for where packs are nearly as long: of one size it is given out
    again as it is, of another the system has to clear pages, which made ragged packs a quarter
    slower."""


def to_tensors(pack: PackMembers, shape: PackShape, values: Values | None) -> dict[str, Any]:
    """See `PackDataset.__getitem__`; `values` makes numbers of tokens as stored."""
    described = pack.document["segments"]
    grids, lengths = pack.segments[:, 2:5], pack.segments[:, 1]
    borders = np.concatenate([[0], np.cumsum(lengths)])
    padded = np.concatenate([[0], np.cumsum(-(-lengths // shape.multiple) * shape.multiple)])
    # Of each token: where the rows of its segment start among the rows of all, and its own t.
    rows = np.repeat(np.cumsum(grids[:, 0], dtype=np.int64) - grids[:, 0], lengths)
    rows += pack.positions[:, 0]
    seconds = np.concatenate([segment["seconds"] for segment in described]).take(rows)
    length = int(padded[-1]) if shape.length is None else shape.length
    places: slice | np.ndarray = slice(int(borders[-1]))
    if shape.multiple > 1:
        places = np.arange(borders[-1]) + np.repeat(padded[:-1] - borders[:-1], lengths)
        described = [
            segment | {"offset": offset}
            for segment, offset in zip(described, padded.tolist(), strict=False)
        ]

    def put(array: np.ndarray, dtype: Any) -> torch.Tensor:
        return torch.from_numpy(_padded(array, length, dtype, places, shape.room))

    # Not every dataset has them.
    optional = {
        name: put(array, dtype)
        for name, array, dtype in (
            ("run_lengths", pack.run_lengths, np.int32),
            ("visible", pack.visible, np.bool_),
        )
        if array is not None
    }
    borders_padded = {}
    if shape.multiple > 1 or shape.max_segments is not None:
        longest = int(np.diff(padded).max())
        borders_padded = {
            "cu_seqlens_padded": _filled_borders(padded, length, shape.max_segments),
            # The padding at the end is a segment then, and may be as long as the pack.
            "max_seqlen_padded": longest if shape.max_segments is None else length,
        }
    return {
        "tokens": _tokens(pack, length, places, values, shape.room),
        "segment_ids": put(pack.segment_ids, np.int32),
        "positions": put(pack.positions, np.int32),
        "seconds": put(seconds, np.float64),
        **optional,
        "cu_seqlens": torch.from_numpy(borders.astype(np.int32)),
        "max_seqlen": int(lengths.max()),
        **borders_padded,
        "num_tokens": len(pack.tokens),
        "grid_thw": _rows(grids, shape.max_segments),
        "patch": _rows(pack.segments[:, 5:8], shape.max_segments),
        "segments": described,
        **_pixel_tensors(pack, shape),
    }


def _tokens(
    pack: PackMembers, length: int, places: slice | np.ndarray, values: Values | None, room: int
) -> torch.Tensor:
    if values is None:
        tokens = torch.from_numpy(_padded(pack.tokens, length, pack.tokens.dtype, places, room))
        # The same bits: numpy has no bfloat16.
        return tokens.view(torch.bfloat16) if pack.token_dtype == "bfloat16" else tokens
    stored = torch.from_numpy(np.array(pack.tokens))
    if pack.token_dtype == "bfloat16":
        stored = stored.view(torch.bfloat16)
    made = values(stored)
    # Padding is 0 whatever the constants are.
    out = made.new_zeros(length, *made.shape[1:])
    out[places if isinstance(places, slice) else torch.from_numpy(places)] = made
    return out


def _pixel_tensors(pack: PackMembers, shape: PackShape) -> dict[str, Any]:
    """Of the pixel tokens beside others; nothing where there are none."""
    if pack.pixels is None or pack.pixel_segments is None:
        return {}
    grids, lengths = pack.pixel_segments[:, 2:5], pack.pixel_segments[:, 1]
    merge = merge_of(pack.document["order"])
    cells = [
        np.unravel_index(cells_of_rows(np.arange(t), h, w, merge=merge).astype(np.int64), (t, h, w))
        for t, h, w in grids.tolist()
    ]
    ids = np.repeat(np.arange(1, len(lengths) + 1), lengths)
    positions = np.concatenate([np.stack(cell, axis=-1) for cell in cells])
    length = len(ids) if shape.pixel_length is None else shape.pixel_length
    places = slice(len(ids))
    return {
        "pixels": torch.from_numpy(_padded(pack.pixels, length, np.uint8, places)),
        "pixel_segment_ids": torch.from_numpy(_padded(ids, length, np.int32, places)),
        "pixel_positions": torch.from_numpy(_padded(positions, length, np.int32, places)),
        "pixel_cu_seqlens": torch.from_numpy(
            np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        ),
        "pixel_max_seqlen": int(lengths.max()),
        "num_pixel_tokens": len(pack.pixels),
        "pixel_grid_thw": _rows(grids, shape.max_segments),
        "pixel_patch": _rows(pack.pixel_segments[:, 5:8], shape.max_segments),
    }


def _filled_borders(padded: np.ndarray, length: int, max_segments: int | None) -> torch.Tensor:
    """``(S + 1,)`` int32, or ``(max_segments + 2,)``: then the padding at the end is a segment of
    its own, and what is left over has no tokens."""
    if max_segments is not None:
        rest = np.full(max_segments + 2 - len(padded), length)
        padded = np.concatenate([padded, rest])
    return torch.from_numpy(padded.astype(np.int32))


def _rows(table: np.ndarray, num_rows: int | None) -> torch.Tensor:
    """A copy in int32, with rows of zeros at its end."""
    out = np.zeros((len(table) if num_rows is None else num_rows, table.shape[1]), np.int32)
    out[: len(table)] = table
    return torch.from_numpy(out)


def _padded(
    array: np.ndarray, length: int, dtype: Any, places: slice | np.ndarray, room: int = 0
) -> np.ndarray:
    """A copy, zero where nothing is put: the map is read-only, and not ours once the shard is
    closed."""
    if isinstance(places, slice):
        rows = room if _NEARLY * room <= length < room else length
        # Zeroed in part: a full pack is written once.
        out = np.empty((rows, *array.shape[1:]), dtype)[:length]
        out[len(array) :] = 0
    else:
        out = np.zeros((length, *array.shape[1:]), dtype)
    out[places] = array
    return out
