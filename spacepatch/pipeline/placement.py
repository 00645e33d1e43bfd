"""Place segments in packs as the settings say: the same way in a plan and in a task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import NamedTuple

import numpy as np

from spacepatch.balancing import Spread, attention_costs, balance_packs
from spacepatch.config import RunConfig
from spacepatch.cutting import pack_cut_to_fit
from spacepatch.data import ClipSpec
from spacepatch.packers import ALL_PACKERS, NEEDS_SCIPY, check_least_squares, num_packs
from spacepatch.packing import lower_bound
from spacepatch.shards import Layout

Piece = tuple[int, int, int | None]
"""(item, first row, last row exclusive), rows counted among those that were kept; None: all."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """What of some clips decides how they are packed."""

    tokens: np.ndarray
    """(n,) int64: kept tokens of each."""
    cells: np.ndarray
    """(n,) int64: tokens in one grid row of each, before dropping."""
    widths: np.ndarray
    """(n,) int64: values in a token of each. A pack holds one width."""

    @classmethod
    def of(cls, clips: Sequence[ClipSpec], layout: Layout) -> Lengths:
        """As planned."""
        return cls(
            np.array([clip.num_kept for clip in clips], np.int64),
            np.array([clip.cells for clip in clips], np.int64),
            np.array([layout.width_of(clip) for clip in clips], np.int64),
        )

    @classmethod
    def join(cls, parts: Sequence[Lengths]) -> Lengths:
        return cls(
            np.concatenate([part.tokens for part in parts]),
            np.concatenate([part.cells for part in parts]),
            np.concatenate([part.widths for part in parts]),
        )

    def between(self, first: int, last: int) -> Lengths:
        """Of clips [first, last), without a copy."""
        return Lengths(self.tokens[first:last], self.cells[first:last], self.widths[first:last])

    def histograms(self) -> dict[int, dict[int, int]]:
        """By width, how many there are of each number of tokens."""
        found = {}
        for width, items in self.by_width():
            distinct, counts = np.unique(self.tokens[items], return_counts=True)
            found[width] = dict(zip(distinct.tolist(), counts.tolist(), strict=True))
        return found

    def units(self, divisors: np.ndarray) -> dict[int, int]:
        """By width, the largest number that divides all of ``(n,)`` `divisors` of that width."""
        return {width: int(np.gcd.reduce(divisors[own])) for width, own in self.by_width()}

    def by_width(self) -> list[tuple[int, np.ndarray]]:
        """(width, items of that width), the widest first."""
        if (self.widths == self.widths[:1]).all():
            return [(int(width), np.arange(self.widths.size)) for width in self.widths[:1]]
        widths = np.unique(self.widths)[::-1]
        return [(int(width), np.flatnonzero(self.widths == width)) for width in widths]


class Placed(NamedTuple):
    """Segments in packs."""

    packs: list[list[Piece]]
    """Those of the widest tokens first."""
    unbalanced: Spread | None
    """Of the attention costs of the packs as the packer made them; None: they are those."""


@dataclass(frozen=True, slots=True)
class Placement:
    """The settings of packing, as plain values."""

    pack_length: int
    packer: str
    window: int | None
    max_segments: int | None
    cut_to_fit: bool
    balance: str | None = None

    @classmethod
    def of(cls, config: RunConfig) -> Placement:
        return cls(
            config.pack_length,
            config.packer,
            config.window,
            config.max_segments,
            config.cut_to_fit,
            config.balance,
        )

    def check(self, units: Mapping[int, int]) -> None:
        """Refuse what the packer cannot pack, before anything is made to be packed.

        Args:
            units: by width, what each length is a multiple of, whatever is lost of it.

        Raises:
            ConfigError: nnlshp, whose matrix would be too large.
        """
        for unit in units.values() if self.packer == "nnlshp" else ():
            check_least_squares(
                np.array([unit]), pack_length=self.pack_length, max_segments=self.max_segments
            )

    def place(self, lengths: Lengths, can_cut: Callable[[int, int], bool] | None = None) -> Placed:
        """The pieces of each pack. Without `cut_to_fit` every piece is a whole segment."""
        packs: list[list[Piece]] = []
        unbalanced = None if self.balance is None else Spread()
        for _, items in lengths.by_width():
            tokens = lengths.tokens[items]
            placed = self._place(tokens, lengths.cells[items], items, can_cut)
            if unbalanced is not None:
                whole = [[item for item, _, _ in pack] for pack in placed]
                unbalanced += Spread.of(attention_costs(tokens, whole))
                even = balance_packs(
                    tokens, whole, pack_length=self.pack_length, max_segments=self.max_segments
                )
                placed = [[(item, 0, None) for item in pack] for pack in even]
            packs += [
                [(int(items[item]), first, last) for item, first, last in pack] for pack in placed
            ]
        return Placed(packs, unbalanced)

    def _place(
        self,
        tokens: np.ndarray,
        cells: np.ndarray,
        items: np.ndarray,
        can_cut: Callable[[int, int], bool] | None,
    ) -> Sequence[Sequence[Piece]]:
        if self.cut_to_fit:
            return pack_cut_to_fit(
                tokens.tolist(),
                cells.tolist(),
                pack_length=self.pack_length,
                max_segments=self.max_segments,
                can_cut=can_cut and (lambda item, row: can_cut(int(items[item]), row)),
            )
        packs = ALL_PACKERS[self.packer](
            tokens.tolist(),
            pack_length=self.pack_length,
            max_segments=self.max_segments,
            window=self.window,
        )
        return [[(item, 0, None) for item in pack] for pack in packs]

    def count(self, lengths: Lengths) -> dict[int, int]:
        """Packs of each width that `place` would make."""
        return {
            width: self._count(lengths.tokens[items], lengths.cells[items])
            for width, items in lengths.by_width()
        }

    def _count(self, tokens: np.ndarray, cells: np.ndarray) -> int:
        if self.cut_to_fit:
            return len(self._place(tokens, cells, np.arange(len(tokens)), None))
        return num_packs(
            tokens,
            packer=self.packer,
            pack_length=self.pack_length,
            max_segments=self.max_segments,
            window=self.window,
        )

    def lower_bound(self, lengths: Lengths) -> int:
        """Packs that no packer can do without: of each width, tokens / pack length."""
        return sum(
            lower_bound(int(lengths.tokens[items].sum()), pack_length=self.pack_length)
            for _, items in lengths.by_width()
        )


def cut_into_tasks(
    everything: Lengths,
    starts: np.ndarray,
    *,
    placement: Placement,
    token_bytes: Callable[[int], int],
    capacity: int,
    is_end: bool = True,
) -> list[tuple[int, int]]:
    """Cut a sequence of runs into tasks whose packs take at most `capacity` bytes.

    A border is chosen where the packs come out nearly full: of the last places that still fit,
    the one with the best fill, so that a shard's last pack is not half empty.

    Args:
        everything: the clips of all runs, one run after the other.
        starts: (runs + 1,) int64: the first clip of each run, and where the last one ends.
        token_bytes: of a token of so many values.
        capacity: bytes of a shard; a run that has more is a task all the same.
        is_end: whether no runs follow these; else only tasks that these would be in any case.

    Returns:
        [first, last) runs of each task.
    """
    num_runs = len(starts) - 1
    if num_runs == 0:
        return []
    # Borders are tried by the dozen. The packs of slow packers are near those of this one; those of
    # optimal are no more.
    trial = placement
    if placement.packer in NEEDS_SCIPY:
        trial = replace(placement, packer="best-fit-decreasing")

    def room_of(lengths: Lengths, placement: Placement) -> tuple[int, bool]:
        """Bytes of the packs, were they full; and whether no fewer would do."""
        counts = placement.count(lengths)
        room = sum(
            packs * token_bytes(width) * placement.pack_length for width, packs in counts.items()
        )
        return room, sum(counts.values()) == placement.lower_bound(lengths)

    widths, which = np.unique(everything.widths, return_inverse=True)
    bytes_of = np.array([token_bytes(width) for width in widths.tolist()], np.int64)
    num_bytes = np.concatenate([[0], np.cumsum(everything.tokens * bytes_of[which])])[starts]

    def lengths_of(first: int, last: int) -> Lengths:
        return everything.between(starts[first], starts[last])

    tasks: list[tuple[int, int]] = []
    first = 0
    while first < num_runs:
        last = int(np.searchsorted(num_bytes, num_bytes[first] + capacity, side="right")) - 1
        if last == num_runs and not is_end:
            break
        last = max(last, first + 1)

        @cache
        def packed(border: int, first: int = first) -> tuple[int, int, bool]:
            """As of `room_of`, and in between the bytes in the packs."""
            room, is_least = room_of(lengths_of(first, border), trial)
            return room, int(num_bytes[border] - num_bytes[first]), is_least

        # The furthest border that fits, near enough: packs grow with the runs.
        low, high = first + 1, last
        while low < high:
            middle = (low + high + 1) // 2
            if packed(middle)[0] <= capacity:
                low = middle
            else:
                high = middle - 1
        best, best_fill = low, -1.0
        for border in range(low, max(first, low - BORDERS_LOOKED_AT), -1):
            room, content, is_least = packed(border)
            if room > capacity:
                continue
            fill = content / room if room else 1.0
            if border == num_runs and is_least:
                best = border
                break
            if fill > best_fill:
                best, best_fill = border, fill
            if content < capacity * SMALLEST_SHARE:
                break
        while (
            placement.packer == "nnlshp"
            and best > first + 1
            and room_of(lengths_of(first, best), placement)[0] > capacity
        ):
            best = max(first + 1, best - max(1, (best - first) // 16))
        tasks.append((first, best))
        first = best
    return tasks


BORDERS_LOOKED_AT = 16
"""Candidates for the border of a task; more improve the fill by less than they cost."""
SMALLEST_SHARE = 0.75
"""Of a shard's capacity: a task is not cut below it for the sake of its fill."""
