"""What other packers and other pack lengths would give, from the real lengths of segments."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from spacepatch.inspection.counting import numbers
from spacepatch.inspection.folders import read_batches
from spacepatch.packers import ALL_PACKERS, NEEDS_SCIPY
from spacepatch.pipeline.forecast import fill_at
from spacepatch.pipeline.placement import Lengths, Placement

MOST_SHARDS, MOST_SEGMENTS = 64, 100_000
"""Looked at: they bound the time, and no clock does, so that the page stays the same."""
FACTORS = (0.25, 0.5, 0.75, 1, 1.5, 2, 4)
"""Pack lengths, as multiples of the one there is."""
LONGEST = 1 << 20

COLUMNS = ["segment_id", "num_tokens", "num_kept", "grid_thw", "tubelet_size", "patch_size"]


@dataclass(frozen=True, slots=True)
class Shard:
    """The segments of one shard, in which each packer begins anew."""

    lengths: Lengths
    rows: np.ndarray
    """``(n,)`` int64: grid rows of each, or 1 of what is never cut."""

    @property
    def tokens(self) -> int:
        return int(self.lengths.tokens.sum())


def choose_shards(shards: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of `summarize`, evenly spread where there are too many to look at all."""
    wanted = min(len(shards), MOST_SHARDS)
    chosen = [shards[part * len(shards) // wanted] for part in range(wanted)]
    while len(chosen) > 1 and sum(shard["segments"] for shard in chosen) > MOST_SEGMENTS:
        chosen = chosen[::2]
    return chosen


def read_shard(table: Path, *, is_cut: bool) -> Shard:
    """The lengths in one shard's table of segments, in the order of their ids: a drawn one, like
    that in which a plan has them. As they lie in packs, next-fit would find the same packs again.

    Args:
        is_cut: whether a shorter pack would take fewer rows of a segment.
    """
    columns: list[list[np.ndarray]] = [[], [], []]
    names: list[str] = []
    for batch in read_batches(table, COLUMNS):
        kept, grids = numbers(batch, "num_kept"), batch.column("grid_thw").flatten().to_numpy()
        patches = batch.column("patch_size").flatten().to_numpy().reshape(-1, 2)
        rows = grids.reshape(-1, 3)[:, 0].astype(np.int64)
        is_whole = (kept == numbers(batch, "num_tokens")) & is_cut
        # Packs hold tokens of one width: of one patch, since all else is the same for all.
        widths = numbers(batch, "tubelet_size").astype(np.int64) * patches.prod(axis=1)
        parts = (kept.astype(np.int64), widths, np.where(is_whole, rows, 1))
        for column, part in zip(columns, parts, strict=True):
            column.append(part)
        names += batch.column("segment_id").to_pylist()
    order = np.argsort(np.array(names))
    tokens, widths, rows = (np.concatenate(column)[order] for column in columns)
    return Shard(Lengths(tokens, tokens // rows, widths), rows)


def try_packers(shards: Sequence[Shard], placement: Placement) -> dict[str, int]:
    """By the word of each quick packer, the packs that it makes of these segments."""
    plain = replace(placement, cut_to_fit=False, balance=None, window=None)
    found = {}
    for name in ALL_PACKERS:
        if name not in NEEDS_SCIPY:
            other = replace(plain, packer=name)
            found[name] = sum(sum(other.count(shard.lengths).values()) for shard in shards)
    return found


def try_lengths(
    shards: Sequence[Shard], *, pack_length: int, max_segments: int | None
) -> list[tuple[int, int, float]]:
    """Packs of other lengths: each with how many there would be, and their fill.

    What is longer than a pack is cut into the most grid rows that fit, as a plan does; where a row
    does not fit, there is no such pack.
    """
    spans = [span for shard in shards for span in _spans(shard)]
    tokens = sum(shard.tokens for shard in shards)
    found = []
    for length in _candidates(pack_length):
        packs = _packs_at(spans, length, max_segments)
        if packs:
            found.append((length, packs, tokens / (packs * length)))
    return found


def _candidates(pack_length: int) -> Iterable[int]:
    lengths = {max(1, round(pack_length * factor)) for factor in FACTORS}
    return sorted(length for length in lengths if length <= LONGEST or length == pack_length)


def _packs_at(
    spans: Sequence[Counter[tuple[int, int]]], length: int, max_segments: int | None
) -> int | None:
    packs = 0
    for span in spans:
        found = fill_at(span, length, max_segments)
        if found is None:
            return None
        packs += found[0]
    return packs


def _spans(shard: Shard) -> list[Counter[tuple[int, int]]]:
    """Of each token width (rows, tokens a row), and how many of each."""
    return [
        Counter(zip(shard.rows[items].tolist(), shard.lengths.cells[items].tolist(), strict=True))
        for _, items in shard.lengths.by_width()
    ]
