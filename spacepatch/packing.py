"""Assign variable-length sequences to packs."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from itertools import pairwise
from typing import Protocol

import numpy as np

Ints = Sequence[int] | np.ndarray
"""``(n,)`` integers, such as the token counts of n sequences."""

Piece = tuple[int, int, int]
"""(item, start_row, stop_row): rows [start_row, stop_row) of an item."""

CanCut = Callable[[int, int], bool] | None
"""Called with (item, row): may a piece of the item stop before `row`? None: always."""

Part = tuple[int, int]
"""(tokens, -item), the rest of an item: sorted, the longest, and of those the first, is last."""


class Packer(Protocol):
    """What every value of `PACKERS` is."""

    def __call__(
        self,
        lengths: Ints,
        *,
        pack_length: int,
        max_segments: int | None = None,
        window: int | None = None,
    ) -> list[list[int]]:
        """Assign every sequence to one pack.

        Args:
            lengths: ``(n,)`` ints, each in [1, pack_length].
            pack_length: Tokens that a pack holds.
            max_segments: Most sequences in one pack; None: as many as fit.
            window: Most packs that are open at once; only `first-fit` heeds it.

        Returns:
            For each pack, in order of opening, the indices into `lengths`, in order of placement.
            Every index stands in exactly one pack.
        """


def pack_next_fit(
    lengths: Ints, *, pack_length: int, max_segments: int | None = None, window: int | None = None
) -> list[list[int]]:
    """Fill one pack after the other, in the order given; see `Packer`. `window` is ignored."""
    cap = _check_cap(max_segments, pack_length=pack_length)
    packs: list[list[int]] = []
    free = slots = 0
    for index, length in enumerate(_check_lengths(lengths, most=pack_length).tolist()):
        if length > free or not slots:
            packs.append([])
            free, slots = pack_length, cap
        packs[-1].append(index)
        free -= length
        slots -= 1
    return packs


def pack_first_fit(
    lengths: Ints, *, pack_length: int, max_segments: int | None = None, window: int | None = None
) -> list[list[int]]:
    """Put each sequence, in the order given, into the oldest open pack that it fits; see `Packer`.

    A pack is full, and no longer open, once it has `max_segments` or less room than the shortest
    of all `lengths`. Where a pack must be opened and `window` packs are open (NaViT's buffer), the
    oldest of them is closed; None closes none. O(n log n).
    """
    cap = _check_cap(max_segments, pack_length=pack_length)
    values = _check_lengths(lengths, most=pack_length)
    if window is not None and window < 1:
        raise ValueError(f"window = {window}: must be at least 1")
    shortest = values.min(initial=pack_length)
    tree = _MaxTree(values.size)
    packs: list[list[int]] = []
    oldest = num_open = 0
    for index, length in enumerate(values.tolist()):
        pack = tree.first_at_least(length)
        if pack is None:
            if num_open == window:
                # A leaf holds the room of an open pack, and 0 for any other.
                while not tree.value(oldest):
                    oldest += 1
                tree.set(oldest, 0)
                num_open -= 1
            pack = len(packs)
            packs.append([])
            num_open += 1
            free = pack_length - length
        else:
            free = tree.value(pack) - length
        packs[pack].append(index)
        if free < shortest or len(packs[pack]) == cap:
            free = 0
            num_open -= 1
        tree.set(pack, free)
    return packs


def pack_first_fit_decreasing(
    lengths: Ints, *, pack_length: int, max_segments: int | None = None, window: int | None = None
) -> list[list[int]]:
    """First-fit, longest first, ties by index; see `Packer`. `window` is ignored. O(n log n)."""
    return _pack_decreasing("first-fit-decreasing", lengths, pack_length, max_segments)


def pack_best_fit_decreasing(
    lengths: Ints, *, pack_length: int, max_segments: int | None = None, window: int | None = None
) -> list[list[int]]:
    """Put each sequence, longest first, into the pack that it leaves fullest; see `Packer`.

    Ties between sequences go by index. Of packs with equal room, the one with the most segments
    is taken (its few slots suit long sequences, and the longest come now), then the oldest.
    `window` is ignored. O(n log n).
    """
    return _pack_decreasing("best-fit-decreasing", lengths, pack_length, max_segments)


PACKERS: dict[str, Packer] = {
    "next-fit": pack_next_fit,
    "first-fit": pack_first_fit,
    "first-fit-decreasing": pack_first_fit_decreasing,
    "best-fit-decreasing": pack_best_fit_decreasing,
}


def count_packs(
    histogram: Ints,
    *,
    pack_length: int,
    packer: str = "best-fit-decreasing",
    max_segments: int | None = None,
) -> int:
    """Count the packs that a decreasing packer makes, from how often each length occurs.

    Exactly ``len(PACKERS[packer](...))`` of the sequences, but the cost is that of the distinct
    lengths: milliseconds for millions of sequences.

    Args:
        histogram: ``(m,)`` ints; entry i is the number of sequences of length i, entry 0 is 0.
        packer: `best-fit-decreasing` or `first-fit-decreasing`.
    """
    if packer not in ("best-fit-decreasing", "first-fit-decreasing"):
        raise ValueError(
            f"packer {packer!r}: only best-fit-decreasing and first-fit-decreasing can count packs "
            "from a histogram; the others depend on the order of the sequences, which it lacks"
        )
    counts = _check_ints(histogram, name="histogram").tolist()
    for length, count in enumerate(counts):
        if count < 0 or (count and not 1 <= length <= pack_length):
            raise ValueError(f"histogram[{length}] = {count}: not a count of 1..{pack_length}")
    groups = [(length, count) for length, count in enumerate(counts) if count][::-1]
    return _place_groups(packer, groups, pack_length, max_segments)[0]


def lower_bound(lengths_or_total: int | Ints, *, pack_length: int) -> int:
    """Return ceil(tokens / pack_length) of ``(n,)`` lengths or their sum: none packs better."""
    return -(-int(np.sum(lengths_or_total)) // pack_length)


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
    cap = _check_cap(max_segments, pack_length=pack_length)
    values = _check_lengths(lengths)
    rows = _check_lengths(row_lengths, most=pack_length, name="row_lengths").tolist()
    if values.size != len(rows):
        raise ValueError(f"{values.size} lengths, but {len(rows)} row_lengths")
    for bad in np.flatnonzero(values % rows):
        raise ValueError(f"lengths[{bad}] = {values[bad]}: no multiple of its rows, {rows[bad]}")
    num_tokens = int(values.sum())
    left = sorted((length, -item) for item, length in enumerate(values.tolist()))
    next_rows = [0] * values.size
    spare = pack_length // 100
    packs: list[list[Piece]] = []
    while left:
        pack: list[Piece] = []
        rests: list[Part] = []  # of the items cut for this pack, and not for it
        free = pack_length
        while left and len(pack) < cap:
            index = bisect_left(left, (free + 1, -values.size)) - 1
            tokens = left[index][0] if index >= 0 else 0
            num_items = len(left) + len(rests)
            # The last slot is for closing the gap too, unless slots are scarcer than tokens.
            is_last = len(pack) == cap - 1 and num_tokens * cap > num_items * pack_length
            gap = free - tokens if index < 0 or is_last else 0
            if not pack and left[-1][0] > pack_length:
                cut = _best_cut(left, free, spare, rows, next_rows, can_cut)
                cut = cut or _best_cut(left, free, 0, rows, next_rows, can_cut)
                if cut is None:
                    tokens, item = left[-1][0], -left[-1][1]
                    raise ValueError(f"item {item}: can_cut lets no piece of {tokens} tokens fit")
                index, tokens = cut
            elif gap > spare and (num_tokens > tokens + pack_length or num_items > cap + 1):
                cut = _best_cut(left, free, spare, rows, next_rows, can_cut)
                if cut and cut[1] > tokens:
                    index, tokens = cut
            if index < 0:
                break
            length, negative_item = left.pop(index)
            item, start = -negative_item, next_rows[-negative_item]
            next_rows[item] += tokens // rows[item]
            pack.append((item, start, next_rows[item]))
            free -= tokens
            num_tokens -= tokens
            if length > tokens:
                rests.append((length - tokens, negative_item))
        packs.append(pack)
        for rest in rests:
            insort(left, rest)
    return packs


def _best_cut(
    left: list[Part], free: int, spare: int, rows: list[int], next_rows: list[int], can_cut: CanCut
) -> tuple[int, int] | None:
    """Return (index in `left`, tokens) of the cut that best fills `free` and leaves `spare`."""
    best: tuple[int, int] | None = None
    most_tokens = 0
    for index in range(len(left) - 1, max(len(left) - 101, -1), -1):
        length, item = left[index][0], -left[index][1]
        if length <= free or free - most_tokens <= spare:
            break
        for num_rows in range(min(free, length - spare) // rows[item], 0, -1):
            if num_rows * rows[item] <= most_tokens:
                break
            if can_cut is None or can_cut(item, next_rows[item] + num_rows):
                most_tokens = num_rows * rows[item]
                best = index, most_tokens
    return best


def _check_ints(values: Ints, *, name: str) -> np.ndarray:
    array = np.asarray(values)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise ValueError(f"{name}: must be (n,) integers, got {array.dtype} {array.shape}")
    return array.astype(np.int64)


def _check_lengths(lengths: Ints, most: int | None = None, name: str = "lengths") -> np.ndarray:
    """Return ``(n,)`` int64; a length below 1 or above `most` is an error that names it."""
    array = _check_ints(lengths, name=name)
    bad = (array < 1) | (False if most is None else array > most)
    if bad.any():
        index = bad.argmax()
        allowed = "at least 1" if most is None else f"in [1, {most}], the pack's tokens"
        raise ValueError(f"{name}[{index}] = {array[index]}: must be {allowed}")
    return array


def _check_cap(max_segments: int | None, *, pack_length: int) -> int:
    """Return the most segments in a pack: a segment is a token or more, so None is no limit."""
    cap = pack_length if max_segments is None else max_segments
    if pack_length < 1 or cap < 1:
        raise ValueError(f"pack_length = {pack_length}, max_segments = {cap}: must be at least 1")
    return cap


class _MaxTree:
    """A max segment tree: finds the leftmost leaf with at least some value in O(log n)."""

    def __init__(self, num_leaves: int) -> None:
        self._size = 1 << max(num_leaves - 1, 0).bit_length()
        # Node i has the children 2i and 2i + 1; the leaves are the last `_size` nodes. Zeroed
        # memory costs nothing until touched; a memoryview gives items faster than numpy does.
        self._nodes = np.zeros(2 * self._size, np.int64).data

    def value(self, leaf: int) -> int:
        return int(self._nodes[self._size + leaf])

    def set(self, leaf: int, value: int) -> None:
        nodes = self._nodes
        node = self._size + leaf
        nodes[node] = value
        while node > 1:
            sibling = nodes[node ^ 1]
            if sibling > value:  # max() would make first-fit a third slower
                value = sibling
            node >>= 1
            if nodes[node] == value:
                break
            nodes[node] = value

    def first_at_least(self, value: int) -> int | None:
        nodes = self._nodes
        if nodes[1] < value:
            return None
        node = 1
        while node < self._size:
            node *= 2
            if nodes[node] < value:
                node += 1
        return node - self._size


def _place_groups(
    packer: str, groups: list[tuple[int, int]], pack_length: int, max_segments: int | None
) -> tuple[int, list[tuple[int, int, int]]]:
    """Place sequences, given as (length, count), longest first, as `packer` does one by one.

    Sequences of one length fill equal packs alike, so this works on runs of neighbouring packs
    with equal room and slots: they are few, however many sequences there are.

    Returns:
        The number of packs, and in order of placement (start, num_packs, per_pack): the next
        num_packs * per_pack sequences go to packs [start, start + num_packs), pack after pack.
    """
    cap = _check_cap(max_segments, pack_length=pack_length)
    best_fit = packer == "best-fit-decreasing"
    # A run lies, with value `free`, at leaf `free` for best-fit and at leaf `start` for first-fit:
    # the leftmost leaf that is at least a length is the run that the packer wants.
    tree = _MaxTree(pack_length + 1 if best_fit else sum(count for _, count in groups))
    runs: dict[int, list[tuple[int, int, int, int]]] = {}
    num_packs = 0
    placements = []
    for length, count in groups:
        while count:
            leaf = tree.first_at_least(length)
            if leaf is None:
                start, size = num_packs, -(-count // min(pack_length // length, cap))
                slots, free = cap, pack_length
                num_packs += size
            else:
                slots, start, size, free = heappop(runs[leaf])
                if not runs[leaf]:
                    tree.set(leaf, 0)
            # The pack wanted first is wanted until it takes no more of this length, so packs are
            # filled one after the other: some to the end, then perhaps one in part, others not.
            per_pack = min(free // length, slots)
            num_full = min(count // per_pack, size)
            rest = count % per_pack if num_full < size else 0
            num_part = min(rest, 1)
            num_none = size - num_full - num_part
            for num, each in ((num_full, per_pack), (num_part, rest), (num_none, 0)):
                if num:
                    placements.append((start, num, each))
                    if slots > each and free > each * length:
                        run = (slots - each, start, num, free - each * length)
                        leaf = run[3] if best_fit else start
                        heappush(runs.setdefault(leaf, []), run)
                        tree.set(leaf, run[3])
                    count -= num * each
                    start += num
    return num_packs, placements


def _pack_decreasing(
    packer: str, lengths: Ints, pack_length: int, max_segments: int | None
) -> list[list[int]]:
    # Longest first; ties by index, so that equal inputs always pack alike.
    negative = -_check_lengths(lengths, most=pack_length)
    order = np.argsort(negative, kind="stable")
    distinct, counts = np.unique(negative, return_counts=True)
    groups = list(zip((-distinct).tolist(), counts.tolist(), strict=True))
    num_packs, placements = _place_groups(packer, groups, pack_length, max_segments)
    start, size, per_pack = np.array(placements, np.int64).reshape(-1, 3).T
    num_placed = size * per_pack
    rank = np.arange(order.size) - np.repeat(np.cumsum(num_placed) - num_placed, num_placed)
    pack_of = np.repeat(start, num_placed) + rank // np.repeat(per_pack, num_placed)
    indices = order[np.argsort(pack_of, kind="stable")].tolist()
    borders = np.cumsum(np.bincount(pack_of, minlength=num_packs)).tolist()
    return [indices[begin:end] for begin, end in pairwise([0, *borders])]
