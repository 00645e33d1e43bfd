"""Assign variable-length sequences to packs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from heapq import heappop, heappush
from itertools import pairwise
from typing import Protocol

import numpy as np

from spacepatch.first_fit import place_first_fit
from spacepatch.max_tree import MaxTree, OwnLeaves

Ints = Sequence[int] | np.ndarray
"""``(n,)`` integers, such as the token counts of n sequences."""


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
    borders = _next_fit_borders(lengths, pack_length, max_segments)
    return cut_at(list(range(borders[-1])), borders)


def pack_first_fit(
    lengths: Ints, *, pack_length: int, max_segments: int | None = None, window: int | None = None
) -> list[list[int]]:
    """Put each sequence, in the order given, into the oldest open pack that it fits; see `Packer`.

    A pack is full, and no longer open, once it has `max_segments` or less room than the shortest
    of all `lengths`. Where a pack must be opened and `window` packs are open (NaViT's buffer), the
    oldest of them is closed; None closes none. O(n log n).
    """
    pack_of = np.array(_first_fit(lengths, pack_length, max_segments, window), np.int64)
    return _gather(pack_of, np.arange(pack_of.size))


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
    counts = _check_ints(histogram, name="histogram")
    used = np.flatnonzero(counts)
    for length in used[(counts[used] < 0) | (used < 1) | (used > pack_length)]:
        raise ValueError(f"histogram[{length}] = {counts[length]}: not a count of 1..{pack_length}")
    groups = list(zip(used[::-1].tolist(), counts[used][::-1].tolist(), strict=True))
    placed = _place_groups(packer, groups, pack_length, max_segments)
    return max((start + size for start, size, _ in placed), default=0)


def count_in_order(
    lengths: Ints,
    *,
    pack_length: int,
    packer: str,
    max_segments: int | None = None,
    window: int | None = None,
) -> int:
    """Count the packs of `next-fit` or `first-fit` without making them.

    Args:
        lengths, pack_length, max_segments, window: See `Packer`.
    """
    if packer == "next-fit":
        return len(_next_fit_borders(lengths, pack_length, max_segments)) - 1
    return max(_first_fit(lengths, pack_length, max_segments, window), default=-1) + 1


def lower_bound(lengths_or_total: int | Ints, *, pack_length: int) -> int:
    """Return ceil(tokens / pack_length) of ``(n,)`` lengths or their sum: none packs better."""
    return -(-int(np.sum(lengths_or_total)) // pack_length)


def _check_ints(values: Ints, *, name: str) -> np.ndarray:
    array = np.asarray(values)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise ValueError(f"{name}: must be (n,) integers, got {array.dtype} {array.shape}")
    return array.astype(np.int64, copy=False)


def check_lengths(lengths: Ints, most: int | None = None, name: str = "lengths") -> np.ndarray:
    """Return ``(n,)`` int64; a length below 1 or above `most` is an error that names it."""
    array = _check_ints(lengths, name=name)
    bad = (array < 1) | (False if most is None else array > most)
    if bad.any():
        index = bad.argmax()
        allowed = "at least 1" if most is None else f"in [1, {most}], the pack's tokens"
        raise ValueError(f"{name}[{index}] = {array[index]}: must be {allowed}")
    return array


def check_cap(max_segments: int | None, *, pack_length: int) -> int:
    """Return the most segments in a pack: a segment is a token or more, so None is no limit."""
    cap = pack_length if max_segments is None else max_segments
    if pack_length < 1 or cap < 1:
        raise ValueError(f"pack_length = {pack_length}, max_segments = {cap}: must be at least 1")
    return cap


def _next_fit_borders(lengths: Ints, pack_length: int, max_segments: int | None) -> list[int]:
    """Return the index that each pack begins with, and at the end the number of sequences."""
    cap = check_cap(max_segments, pack_length=pack_length)
    values = check_lengths(lengths, most=pack_length)
    ends = np.cumsum(values)
    # Where a pack would end that begins with each of them.
    stops = np.searchsorted(ends, ends - values + pack_length, side="right")
    next_of = np.minimum(stops, np.arange(values.size) + cap).tolist()
    borders = [0]
    while borders[-1] < values.size:
        borders.append(next_of[borders[-1]])
    return borders


def _first_fit(
    lengths: Ints, pack_length: int, max_segments: int | None, window: int | None
) -> list[int]:
    """Return the pack of each sequence, see `pack_first_fit`."""
    cap = check_cap(max_segments, pack_length=pack_length)
    values = check_lengths(lengths, most=pack_length)
    if window is not None and window < 1:
        raise ValueError(f"window = {window}: must be at least 1")
    return place_first_fit(values, pack_length=pack_length, cap=cap, window=window)


def _place_groups(
    packer: str, groups: list[tuple[int, int]], pack_length: int, max_segments: int | None
) -> Iterator[tuple[int, int, int]]:
    """Place sequences, given as (length, count), longest first, as `packer` does one by one.

    Sequences of one length fill equal packs alike, so this works on runs of neighbouring packs
    with equal room and slots: they are few, however many sequences there are.

    Yields:
        In order of placement (start, num_packs, per_pack): the next num_packs * per_pack sequences
        go to packs [start, start + num_packs), pack after pack.
    """
    cap = check_cap(max_segments, pack_length=pack_length)
    best_fit = packer == "best-fit-decreasing"
    # A run lies, with value `free`, at leaf `free` for best-fit and at leaf `start` for first-fit:
    # the leftmost leaf that is at least a length is the run that the packer wants.
    num_leaves = sum(count for _, count in groups)
    tree = OwnLeaves() if best_fit else MaxTree(num_leaves, nodes=defaultdict(int))
    runs: dict[int, list[tuple[int, int, int, int]]] = {}
    num_packs = 0
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
                    del runs[leaf]
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
                    yield start, num, each
                    if slots > each and free > each * length:
                        run = (slots - each, start, num, free - each * length)
                        leaf = run[3] if best_fit else start
                        if leaf not in runs:
                            tree.set(leaf, run[3])
                            runs[leaf] = []
                        heappush(runs[leaf], run)
                    count -= num * each
                    start += num


def _pack_decreasing(
    packer: str, lengths: Ints, pack_length: int, max_segments: int | None
) -> list[list[int]]:
    # Longest first; ties by index, so that equal inputs always pack alike.
    values = check_lengths(lengths, most=pack_length)
    order = stable_order(pack_length - values)
    ordered = values[order]
    first = np.flatnonzero(np.diff(ordered, prepend=0))
    counts = np.diff(first, append=order.size)
    groups = list(zip(ordered[first].tolist(), counts.tolist(), strict=True))
    placements = list(_place_groups(packer, groups, pack_length, max_segments))
    start, size, per_pack = np.array(placements, np.int64).reshape(-1, 3).T
    num_placed = size * per_pack
    rank = np.arange(order.size) - np.repeat(np.cumsum(num_placed) - num_placed, num_placed)
    pack_of = np.repeat(start, num_placed) + rank // np.repeat(per_pack, num_placed)
    return _gather(pack_of, order)


def _gather(pack_of: np.ndarray, order: np.ndarray) -> list[list[int]]:
    """Return the indices in each pack: those of `order`, which go to the packs `pack_of`."""
    indices = order[stable_order(pack_of)].tolist()
    return cut_at(indices, [0, *np.cumsum(np.bincount(pack_of)).tolist()])


def cut_at(indices: list[int], borders: list[int]) -> list[list[int]]:
    """Cut a list at [0, ..., its length]."""
    return [indices[begin:end] for begin, end in pairwise(borders)]


def stable_order(values: np.ndarray) -> np.ndarray:
    """``np.argsort(values, kind="stable")`` of ints from 0 up, in linear time."""
    order = np.arange(values.size)
    # numpy has a radix sort, but for 16 bits.
    for shift in range(0, int(values.max(initial=0)).bit_length(), 16):
        digits = (values[order] >> shift & 0xFFFF).astype(np.uint16)
        order = order[np.argsort(digits, kind="stable")]
    return order
