"""Count what a report shows besides `summarize`: sizes before and after, errors, fill of packs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from spacepatch.inspection.counting import count_bins, numbers
from spacepatch.inspection.folders import read_batches

SIDES = (0, 32, 64, 96, 128, 160, 192, 224, 256, 320, 384, 480, 576, 720, 1080, 1440, 2160)
"""Pixels of the shorter side of a picture."""
ERRORS = (0, 1e-9, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16)
"""How far the ratio of a frame's sides is from its source's."""
FILLS = (0, 0.5, 0.7, 0.8, 0.9, 0.94, 0.96, 0.98, 0.99, 0.995, 1.0)
"""Of packs."""
IN_PACKS = (1, 2, 3, 4, 6, 9, 17, 33, 65, 129, 257, 513, 1025)
"""Segments of a pack."""

COLUMNS = ["shard", "pack", "num_kept", "size", "aspect_error"]

Rows = list[tuple[str, int]]
"""What each bin holds, and how many."""


class SegmentCounts:
    """Of the segments of some tables: memory stays as it is, however many there are."""

    def __init__(self, pack_length: int) -> None:
        self._pack_length = pack_length
        self._sides = np.zeros(len(SIDES) + 1, np.int64)
        self._errors = np.zeros(len(ERRORS) + 1, np.int64)
        self._fills = np.zeros(len(FILLS) + 1, np.int64)
        self._in_packs = np.zeros(len(IN_PACKS) + 1, np.int64)
        self._open: tuple[tuple[int, int] | None, int, int] = (None, 0, 0)
        """The pack that the next segments may be of, its tokens and segments so far."""

    def add_table(self, table: Path) -> None:
        """Segments in the order of shards and packs.

        Raises:
            ShardError: the table is missing or damaged.
        """
        for batch in read_batches(table, COLUMNS):
            sizes = batch.column("size").flatten().to_numpy().reshape(-1, 2)
            self.add_segments(sizes, numbers(batch, "aspect_error"))
            shards, packs, tokens = (numbers(batch, name) for name in COLUMNS[:3])
            self.add_places(shards, packs, tokens)
        self.close()

    def add_segments(self, sizes: np.ndarray, errors: np.ndarray) -> None:
        """Sizes ``(n, 2)`` and aspect errors ``(n,)``."""
        self._sides += count_bins(sizes.min(axis=1).astype(np.float64), SIDES)
        self._errors += count_bins(errors.astype(np.float64), ERRORS)

    def add_places(self, shards: np.ndarray, packs: np.ndarray, tokens: np.ndarray) -> None:
        """Of the next segments, ``(n,)`` each; a pack may begin in one call and end in another."""
        if not len(tokens):
            return
        changes = np.flatnonzero((np.diff(shards) != 0) | (np.diff(packs) != 0)) + 1
        starts = np.concatenate([[0], changes])
        sums = np.add.reduceat(tokens.astype(np.int64), starts)
        counts = np.diff(np.append(starts, len(tokens)))
        key, before, held = self._open
        if key == (int(shards[0]), int(packs[0])):
            sums[0] += before
            counts[0] += held
        else:
            self.close()
        self._count_packs(sums[:-1], counts[:-1])
        self._open = (int(shards[-1]), int(packs[-1])), int(sums[-1]), int(counts[-1])

    def close(self) -> None:
        """Count the last pack, to which no more segments come."""
        key, tokens, segments = self._open
        if key is not None:
            self._count_packs(np.array([tokens]), np.array([segments]))
        self._open = None, 0, 0

    def _count_packs(self, tokens: np.ndarray, segments: np.ndarray) -> None:
        self._fills += count_bins(tokens / self._pack_length, FILLS)
        self._in_packs += count_bins(segments.astype(np.float64), IN_PACKS)

    @property
    def sides(self) -> Rows:
        return _sides(self._sides)

    @property
    def errors(self) -> Rows:
        ranges = [f"{100 * low:g}–{100 * high:g}%" for low, high in pairwise(ERRORS[1:])]
        ranges[0] = f"up to {100 * ERRORS[2]:g}%"
        return _named(self._errors, ["none", *ranges, f"{ERRORS[-1]:.0%} and more"])

    @property
    def fills(self) -> Rows:
        ranges = [f"{100 * low:g}–{100 * high:g}%" for low, high in pairwise(FILLS)]
        return _named(self._fills, [*ranges, "100%"])

    @property
    def in_packs(self) -> Rows:
        ranges = [
            f"{low}" if high == low + 1 else f"{low}–{high - 1}" for low, high in pairwise(IN_PACKS)
        ]
        return _named(self._in_packs, [*ranges, f"{IN_PACKS[-1]} and more"])


def source_sides(table: Path) -> Rows:
    """Of the sources that segments were made of, by the shorter side of their display size."""
    counts = np.zeros(len(SIDES) + 1, np.int64)
    for batch in read_batches(table, ["display_size", "num_segments"]):
        kept = batch.filter(batch.column("num_segments").fill_null(0).cast("bool"))
        sizes = kept.column("display_size").drop_null().flatten().to_numpy().reshape(-1, 2)
        counts += count_bins(sizes.min(axis=1).astype(np.float64), SIDES)
    return _sides(counts)


def sides_of(sizes: Iterable[Sequence[int]]) -> Rows:
    """The same of sizes (h, w) at hand."""
    shorter = np.array([min(size) for size in sizes], np.float64)
    return _sides(count_bins(shorter, SIDES))


def rows_of(bins: Sequence[dict[str, Any]]) -> Rows:
    """A histogram of `summarize`, whose ranges are written shorter; what has no value is last, if
    there is any."""
    rows, others = [], []
    for entry in bins:
        low, high, count = entry["from"], entry["to"], int(entry["count"])
        if low is None:
            others += [(str(entry["range"]), count)] * (count > 0)
        else:
            rows.append((str(entry["range"]) if high is None else f"{low:,g}–{high:,g}", count))
    return trimmed(rows) + others


def trimmed(rows: Rows) -> Rows:
    """The rows between the first and the last that count anything."""
    held = [place for place, (_, count) in enumerate(rows) if count]
    return rows[held[0] : held[-1] + 1] if held else []


def _sides(counts: np.ndarray) -> Rows:
    ranges = [f"{low:,}–{high:,}" for low, high in pairwise(SIDES)]
    return _named(counts, [*ranges, f"{SIDES[-1]:,} and more"])


def _named(counts: np.ndarray, names: Sequence[str]) -> Rows:
    """The last count is of what has no value, which nothing here lacks."""
    return trimmed(list(zip(names, counts[:-1].tolist(), strict=True)))
