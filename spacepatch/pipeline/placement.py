"""Place segments in packs as the settings say: the same way in a plan and in a task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from spacepatch.config import RunConfig
from spacepatch.packing import PACKERS, count_packs, lower_bound, pack_cut_to_fit

Piece = tuple[int, int, int]
"""(item, first row, last row exclusive), rows counted among those that were kept."""


@dataclass(frozen=True, slots=True)
class Placement:
    """The settings of packing, as plain values."""

    pack_length: int
    packer: str
    window: int | None
    max_segments: int | None
    cut_to_fit: bool

    @classmethod
    def of(cls, config: RunConfig) -> Placement:
        return cls(
            config.pack_length, config.packer, config.window, config.max_segments, config.cut_to_fit
        )

    def place(
        self,
        lengths: Sequence[int],
        row_lengths: Sequence[int],
        can_cut: Callable[[int, int], bool] | None = None,
    ) -> list[list[Piece]]:
        """Pieces of each pack. Without `cut_to_fit` every piece is a whole segment.

        Args:
            lengths: tokens of each segment, in plan order.
            row_lengths: tokens in one grid row of each.
        """
        if self.cut_to_fit:
            return pack_cut_to_fit(
                lengths,
                row_lengths,
                pack_length=self.pack_length,
                max_segments=self.max_segments,
                can_cut=can_cut,
            )
        packs = PACKERS[self.packer](
            lengths,
            pack_length=self.pack_length,
            max_segments=self.max_segments,
            window=self.window,
        )
        return [[(item, 0, lengths[item] // row_lengths[item]) for item in pack] for pack in packs]

    def count(self, lengths: np.ndarray, row_lengths: np.ndarray) -> int:
        """Packs that `place` would make."""
        if not len(lengths):
            return 0
        if not self.cut_to_fit and self.packer.endswith("-decreasing"):
            return count_packs(
                np.bincount(lengths),
                pack_length=self.pack_length,
                packer=self.packer,
                max_segments=self.max_segments,
            )
        return len(self.place(lengths.tolist(), row_lengths.tolist()))


def cut_into_tasks(
    run_lengths: Sequence[np.ndarray],
    run_row_lengths: Sequence[np.ndarray],
    *,
    placement: Placement,
    packs_per_shard: int,
) -> list[tuple[int, int]]:
    """Cut a sequence of runs into tasks of at most `packs_per_shard` packs each.

    A border is chosen where the packs come out nearly full: of the last places that still fit,
    the one with the best fill, so that a shard's last pack is not half empty.

    Args:
        run_lengths: of each run the tokens of its clips.

    Returns:
        [first, last) runs of each task.
    """
    tasks: list[tuple[int, int]] = []
    totals = [int(lengths.sum()) for lengths in run_lengths]
    capacity = packs_per_shard * placement.pack_length
    first = 0
    while first < len(run_lengths):
        last, tokens = first, 0
        while last < len(totals) and tokens + totals[last] <= capacity:
            tokens += totals[last]
            last += 1
        last = max(last, first + 1)

        def packs_of(border: int, first: int = first) -> tuple[int, int]:
            lengths = np.concatenate(run_lengths[first:border])
            packs = placement.count(lengths, np.concatenate(run_row_lengths[first:border]))
            return packs, int(lengths.sum())

        # The furthest border that fits, near enough: packs grow with the runs.
        low, high = first + 1, last
        while low < high:
            middle = (low + high + 1) // 2
            if packs_of(middle)[0] <= packs_per_shard:
                low = middle
            else:
                high = middle - 1
        best, best_fill = low, -1.0
        for border in range(low, max(first, low - BORDERS_LOOKED_AT), -1):
            packs, tokens = packs_of(border)
            if packs > packs_per_shard:
                continue
            fill = tokens / (packs * placement.pack_length)
            if border == len(totals) and packs == lower_bound(
                tokens, pack_length=placement.pack_length
            ):
                best = border
                break
            if fill > best_fill:
                best, best_fill = border, fill
            if tokens < capacity * SMALLEST_SHARE:
                break
        tasks.append((first, best))
        first = best
    return tasks


BORDERS_LOOKED_AT = 16
"""Candidates for the border of a task; more improve the fill by less than they cost."""
SMALLEST_SHARE = 0.75
"""Of a shard's capacity: a task is not cut below it for the sake of its fill."""
