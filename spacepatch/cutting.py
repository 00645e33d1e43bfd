"""Fill packs with clips that may be cut between grid rows, so that few tokens are padding."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice

import numpy as np

from spacepatch.items_left import ItemsLeft
from spacepatch.packing import Ints, check_cap, check_lengths

Piece = tuple[int, int, int]
"""(item, start_row, stop_row): rows [start_row, stop_row) of an item."""

CanCut = Callable[[int, int], bool] | None
"""Called with (item, row): may a piece of the item stop before `row`? None: always."""

CANDIDATES = 100
"""Of the longest items, those that are looked at for a cut."""


def pack_cut_to_fit(
    lengths: Ints,
    row_lengths: Ints,
    *,
    pack_length: int,
    max_segments: int | None = None,
    can_cut: CanCut = None,
) -> list[list[Piece]]:
    """Fill packs with clips that may be cut between grid rows, so that few tokens are padding.

    A pack takes the longest item left, then again and again the longest that fits. The gap at its
    end (or its last slot) takes the first rows of a longer item, whose others go on as an item.

    * A gap of up to 1 % of the pack stays open, and no cut leaves less than that of an item
      (but where an item longer than a pack has no other cut).
    * Of the 100 longest items, the longest that closes the gap to within 1 % is cut, else the one
      that leaves the least of it. Ties by index.
    * Items longer than a pack come first. Nothing is cut once the rest fits one more pack whole.

    So every pack but the last two lacks less than 1 % and one row (the longest of all), as far as
    `can_cut` and `max_segments` allow it. A pack holds at most one piece of an item.

    Args:
        lengths: ``(n,)`` tokens of each item, a multiple of its row length; may exceed the pack.
        row_lengths: ``(n,)`` tokens in one row (one step in t) of each item, in [1, pack_length].
        max_segments: Most pieces in one pack.
        can_cut: Where an item may be cut, see `CanCut`.

    Returns:
        For each pack its pieces, in order of placement. Every row of every item stands in exactly
        one piece, and never in an earlier pack than the rows before it.
    """
    cap = check_cap(max_segments, pack_length=pack_length)
    values = check_lengths(lengths)
    row_values = check_lengths(row_lengths, most=pack_length, name="row_lengths")
    if values.size != row_values.size:
        raise ValueError(f"{values.size} lengths, but {row_values.size} row_lengths")
    for bad in np.flatnonzero(values % row_values):
        raise ValueError(
            f"lengths[{bad}] = {values[bad]}: no multiple of its rows, {row_values[bad]}"
        )
    left = ItemsLeft(values, pack_length)
    cuts = _Cuts(left, row_values, can_cut)
    num_rows = (values // row_values).tolist()
    num_tokens, num_items = int(values.sum()), values.size
    spare = pack_length // 100
    longest = left.longest()
    packs: list[list[Piece]] = []
    while num_items:
        pack: list[Piece] = []
        rests: list[tuple[int, int]] = []  # (tokens, item) of those cut for this pack, not for it
        free = pack_length
        if longest > pack_length:
            longest = left.longest()
        while free and len(pack) < cap:
            tokens = left.longest_up_to(free)
            cut = None
            if not pack and longest > pack_length:
                cut = cuts.best(free, spare) or cuts.best(free, 0)
                if cut is None:
                    tokens, item = next(left.longest_first())
                    raise ValueError(f"item {item}: can_cut lets no piece of {tokens} tokens fit")
            elif not tokens or len(pack) == cap - 1:
                # The last slot is for closing the gap too, unless slots are scarcer than tokens.
                closes = not tokens or num_tokens * cap > num_items * pack_length
                is_many = num_tokens > tokens + pack_length or num_items > cap + 1
                if closes and is_many and free - tokens > spare:
                    cut = cuts.best(free, spare)
                    cut = cut if cut and cut[2] > tokens else None
            if cut is not None:
                length, item, tokens = cut
                left.take(length, item)
                pack.append(cuts.cut(item, tokens))
                rests.append((length - tokens, item))
                free -= tokens
                num_tokens -= tokens
            elif tokens:
                # What fits longest does so again, as long as there is one of that length.
                most = min(free // tokens, max(1, cap - 1 - len(pack)))
                items = left.take_first(tokens, most)
                starts = cuts.next_rows
                pack += [(item, starts[item], num_rows[item]) for item in items]
                free -= tokens * len(items)
                num_tokens -= tokens * len(items)
                num_items -= len(items)
            else:
                break
        packs.append(pack)
        for tokens, item in rests:
            left.put_back(tokens, item)
    return packs


class _Cuts:
    """Where items are cut, and what for."""

    def __init__(self, left: ItemsLeft, row_values: np.ndarray, can_cut: CanCut) -> None:
        self.next_rows = [0] * row_values.size
        """By item, the row that what is left of it begins with."""
        self._left, self._can_cut = left, can_cut
        self._rows = row_values.tolist()
        self._distinct_rows = np.unique(row_values).tolist()
        self._most: dict[int, int] = {}

    def best(self, free: int, spare: int) -> tuple[int, int, int] | None:
        """(length, item, tokens) of the cut that best fills `free` and leaves `spare`."""
        found: tuple[int, int, int] | None = None
        most_tokens, most_possible = 0, self._most_possible(free)
        for length, item in islice(self._left.longest_first(), CANDIDATES):
            if length <= free or free - most_tokens <= spare or most_tokens == most_possible:
                break
            row = self._rows[item]
            for num_rows in range(min(free, length - spare) // row, most_tokens // row, -1):
                if self._can_cut is None or self._can_cut(item, self.next_rows[item] + num_rows):
                    most_tokens = num_rows * row
                    found = length, item, most_tokens
                    break
        return found

    def cut(self, item: int, tokens: int) -> Piece:
        """The first tokens of what is left of an item."""
        start = self.next_rows[item]
        self.next_rows[item] = start + tokens // self._rows[item]
        return item, start, self.next_rows[item]

    def _most_possible(self, free: int) -> int:
        """No item has more tokens in whole rows that fit: which, where rows are of few lengths,
        ends the search among items that are alike."""
        if len(self._distinct_rows) > CANDIDATES:
            return free
        if free not in self._most:
            self._most[free] = max(free // row * row for row in self._distinct_rows)
        return self._most[free]
