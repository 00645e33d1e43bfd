"""Do the members of a pack agree with one another?"""

from __future__ import annotations

from typing import Any

import numpy as np

from spacepatch.errors import ShardError

_COLUMNS = 8
_MOST_SECONDS = 1e15
_MEND = "run spacepatch verify, then tokenize again"


def check_segments(table: np.ndarray, num_tokens: int | None, where: str) -> None:
    """`segments.npy` against the number of tokens; None: there are none yet.

    Raises:
        ShardError: it is no table of segments that lie one behind the other and hold the tokens.
    """
    if table.ndim != 2 or table.shape[1] != _COLUMNS or table.dtype != np.int32 or not len(table):
        raise ShardError(
            f"{where}: segments.npy is {table.dtype} {table.shape}, not int32 (S, 8); {_MEND}"
        )
    lengths = table[:, 1].astype(np.int64)
    fits = (lengths > 0) & (lengths <= table[:, 2:5].astype(np.int64).prod(axis=1))
    wanted = lengths.sum() if num_tokens is None else num_tokens
    if not fits.all() or (table[:, 2:] <= 0).any() or lengths.sum() != wanted:
        raise ShardError(f"{where}: segments.npy does not fit the {wanted} tokens; {_MEND}")
    if not np.array_equal(table[:, 0], np.cumsum(lengths) - lengths):
        raise ShardError(
            f"{where}: segments.npy: segments do not lie one behind the other; {_MEND}"
        )


def check_rows(rows: np.ndarray | None, num_tokens: int, member: str, where: str) -> None:
    """A member with a whole number a token."""
    if rows is not None and (rows.shape != (num_tokens,) or rows.dtype.kind not in "iu"):
        raise ShardError(
            f"{where}: {member} is {rows.dtype} {rows.shape} for {num_tokens} tokens; {_MEND}"
        )


def check_positions(positions: np.ndarray, table: np.ndarray, where: str) -> None:
    """Each token in the grid of its segment."""
    grids = np.repeat(table[:, 2:5], table[:, 1], axis=0)
    fits = positions.shape == grids.shape and positions.dtype.kind in "iu"
    if not fits or (positions < 0).any() or (positions >= grids).any():
        raise ShardError(f"{where}: positions lie beyond the grids of their segments; {_MEND}")


def check_pixels(pixels: np.ndarray, table: np.ndarray, num_segments: int, where: str) -> None:
    """The pixel tokens beside others: a whole grid of each segment."""
    if pixels.ndim != 2 or pixels.dtype != np.uint8:
        raise ShardError(
            f"{where}: pixels.npy is {pixels.dtype} {pixels.shape}, not uint8 (P, D); {_MEND}"
        )
    check_segments(table, len(pixels), f"{where}: pixels")
    whole = table[:, 1] == table[:, 2:5].astype(np.int64).prod(axis=1)
    if len(table) != num_segments or not whole.all():
        raise ShardError(f"{where}: pixel_segments.npy: not a whole grid of each segment; {_MEND}")


def check_document(document: dict[str, Any], table: np.ndarray, where: str) -> None:
    """The segments of pack.json against those of `segments.npy`."""
    segments = document.get("segments")
    if (
        not isinstance(segments, list)
        or len(segments) != len(table)
        or not all(map(_agrees, segments, table.tolist()))
        or not isinstance(document.get("order"), str)
    ):
        raise ShardError(f"{where}: pack.json does not agree with segments.npy; {_MEND}")


def check_references(document: dict[str, Any], where: str) -> None:
    """What pack.json says of how to make the tokens of its segments again."""
    for segment in document["segments"]:
        words = [segment.get(key) for key in ("source", "source_id")]
        numbers = [segment.get(key) for key in _REFERENCE_NUMBERS]
        checksum = segment.get("tokens_crc32c", "")
        if (
            not all(isinstance(word, str) for word in words)
            or not all(type(number) is int for number in numbers)
            or not (checksum is None or (type(checksum) is int and 0 <= checksum < 2**32))
        ):
            raise ShardError(f"{where}: pack.json does not say how to make its tokens; {_MEND}")


_REFERENCE_NUMBERS = ("clip", "view", "source_root", "clip_start_pts", "clip_stop_pts")


def _agrees(segment: Any, row: list[int]) -> bool:
    return (
        isinstance(segment, dict)
        and isinstance(segment.get("segment_id"), str)
        and [segment.get("offset"), segment.get("num_kept")] == row[:2]
        and _are_seconds(segment.get("seconds"), row[2])
    )


def _are_seconds(seconds: Any, num_rows: int) -> bool:
    return (
        isinstance(seconds, list)
        and len(seconds) == num_rows
        and all(type(value) in (int, float) and abs(value) < _MOST_SECONDS for value in seconds)
    )
