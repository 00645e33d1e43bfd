"""Pack sequences by the histogram of their lengths: Krell et al.'s two methods, and the optimum.

Krell et al., "Efficient Sequence Packing without Cross-contamination", arXiv 2107.02027. A
histogram says how often each length occurs. Its packing is a few strategies, each some times over,
so that the cost depends on the distinct lengths and not on the number of sequences.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from heapq import heappop, heappush
from itertools import accumulate
from math import gcd
from typing import TypedDict

import numpy as np

from spacepatch.column_generation import Counts, Strategy, generate_columns
from spacepatch.errors import ConfigError
from spacepatch.extras import needed
from spacepatch.packing import (
    PACKERS,
    Ints,
    Packer,
    check_cap,
    check_lengths,
    count_packs,
    cut_at,
    stable_order,
)

Strategies = dict[Strategy, int]
"""How many packs are filled in each way. Every sequence of the histogram stands in one of them."""


class Limits(TypedDict):
    pack_length: int
    max_segments: int | None


MOST_CELLS = 1 << 24
"""Most entries of NNLSHP's dense matrix (packs of some 580 units): it takes 128 MiB, as much again
inside of scipy, and half a minute. With packs a half longer it would take minutes."""

MOST_LISTED = 1 << 18
"""Most sequences that best-fit-decreasing packs one by one to begin with."""


@dataclass(frozen=True)
class Optimum:
    """Packs that are as few as the method finds, and the proof of how few there can be."""

    strategies: Strategies
    lower_bound: int
    """No packing whatever has fewer packs; equal to `num_packs`, this one is proven optimal."""

    @property
    def num_packs(self) -> int:
        return sum(self.strategies.values())


def fill_shortest_first(
    histogram: Ints, *, pack_length: int, max_segments: int | None = None
) -> Strategies:
    """Krell et al.'s SPFHP: longest first, into the emptiest of the open packs that they fit.

    All sequences of one length are placed at once, and those that fit nowhere open one pack each,
    even if several of them would fit into one. Of packs with equal room the last one made is taken.

    Args:
        histogram: ``(m,)`` ints; entry i is the number of sequences of length i, entry 0 is 0.
        pack_length: Tokens that a pack holds.
        max_segments: Most sequences in one pack (the paper's depth); None: as many as fit.
    """
    counts, cap = _read_histogram(histogram, pack_length, max_segments)
    strategies: Counter[Strategy] = Counter()
    made: defaultdict[int, list[tuple[Strategy, int]]] = defaultdict(list)
    negative_rooms: list[int] = []

    def put(strategy: Strategy, repeats: int) -> None:
        room = pack_length - sum(strategy)
        if not room or len(strategy) == cap:
            strategies[strategy] += repeats
            return
        if not made[room]:
            heappush(negative_rooms, -room)
        made[room].append((strategy, repeats))

    for length, left in counts.items():
        while left:
            room = -negative_rooms[0] if negative_rooms else 0
            if room < length:
                put((length,), left)
                break
            strategy, repeats = made[room].pop()
            taken = min(left, repeats)
            left -= taken
            if repeats > taken:
                made[room].append((strategy, repeats - taken))
            if not made[room]:
                heappop(negative_rooms)
            put((*strategy, length), taken)
    for packs in made.values():
        for strategy, repeats in packs:
            strategies[strategy] += repeats
    return _in_order(strategies)


def fill_by_least_squares(
    histogram: Ints, *, pack_length: int, max_segments: int | None = None
) -> Strategies:
    """Krell et al.'s NNLSHP: how often each full pack of up to 3 sequences is wanted; needs scipy.

    Of all strategies with the sum `pack_length`, non-negative least squares (residuals of lengths
    up to 8 weighed with 0.09, as in the paper) says how often each is wanted, rounded to integers.
    A place that no sequence is left for stays padding; a sequence without a place has a pack of
    its own. Lengths are divided by their common divisor first, where they have one.

    Args:
        max_segments: Most sequences in one pack; the method has no more than 3, see
            `fill_shortest_first`.

    Raises:
        ValueError: The matrix of lengths and strategies would be too large: it grows with the
            third power of `pack_length`, and 512 is the paper's.
        ConfigError: scipy's solver does not get to an end.
    """
    counts, cap = _read_histogram(histogram, pack_length, max_segments)
    unit = gcd(*counts) or 1
    total, depth = pack_length // unit, min(cap, 3)
    if matrix_size(total, depth=depth) is None:
        raise ValueError(
            f"pack_length = {pack_length} (in units of {unit}: {total}): NNLSHP would need a "
            f"matrix of more than {MOST_CELLS:,} entries; use optimal, which makes fewer packs"
        )
    strategies = _full_strategies(total, depth=depth)
    matrix = np.zeros((total, len(strategies)))
    for column, strategy in enumerate(strategies):
        for length in strategy:
            matrix[length - 1, column] += 1
    wanted = np.zeros(total)
    for length, number in counts.items():
        wanted[length // unit - 1] = number
    weights = np.where(np.arange(1, total + 1) * unit <= 8, 0.09, 1.0)
    optimize = needed("scipy.optimize", "scipy", by="packer nnlshp", extra="pack")
    try:
        repeats, _ = optimize.nnls(weights[:, None] * matrix, weights * wanted)
    except RuntimeError as error:
        raise ConfigError(
            f"packer nnlshp: scipy finds no solution for {len(counts)} lengths in packs of "
            f"{pack_length} ({error}): use --packer optimal, which makes fewer packs"
        ) from None
    chosen = [
        (tuple(length * unit for length in strategy), round(number))
        for strategy, number in zip(strategies, repeats.tolist(), strict=True)
    ]
    filled, left = _fill(chosen, counts)
    for length, number in left.items():
        filled[length,] += number
    return _in_order(filled)


def matrix_size(total: int, *, depth: int) -> int | None:
    """About the entries of NNLSHP's matrix for packs of `total` units; None: more than it takes."""
    # About total ** 2 / 12 sums of three; more than enough to refuse before they are listed.
    size = total * (total ** (depth - 1) // (1, 2, 12)[depth - 1] + 1)
    return size if size <= MOST_CELLS else None


def find_optimum(histogram: Ints, *, pack_length: int, max_segments: int | None = None) -> Optimum:
    """Pack by column generation (Gilmore and Gomory, 1961), with a proven bound; needs scipy.

    A linear program says how often each strategy is used, see `generate_columns`. The fractions
    are rounded down, and the sequences left go to best-fit-decreasing; in a second try the largest
    fractions are first rounded up as far as sequences are left. The fewest packs of these, and of
    best-fit-decreasing alone, are taken.

    Seconds for hundreds of distinct lengths in packs of 512; minutes for a thousand in packs of
    8192, where the rounds may end (`MOST_ROUNDS`) with a bound that is proven but not the best.
    Packs are the same wherever scipy is the same; another solver may choose among equal optima.

    Args:
        histogram, pack_length, max_segments: See `fill_shortest_first`.
    """
    counts, cap = _read_histogram(histogram, pack_length, max_segments)
    limits: Limits = {"pack_length": pack_length, "max_segments": max_segments}
    strategies, repeats, bound = _fractions(histogram, counts, cap, limits)
    down = [(strategy, int(x + 1e-9)) for strategy, x in zip(strategies, repeats, strict=True)]
    fractions = [x - number for x, (_, number) in zip(repeats, down, strict=True)]
    order = sorted(range(len(down)), key=lambda column: (-fractions[column], column))
    up = [(strategies[column], 1) for column in order if fractions[column] > 1e-9]
    tries = [_with_rest(down, [], counts, limits), _with_rest(down, up, counts, limits)]
    best = min(tries, key=lambda packs: packs.total())
    if count_packs(histogram, **limits) < best.total():
        best = _with_rest([], [], counts, limits)
    return Optimum(_in_order(best), bound)


def prove_lower_bound(histogram: Ints, *, pack_length: int, max_segments: int | None = None) -> int:
    """Return a number of packs that no packing goes below, as `find_optimum` proves it."""
    counts, cap = _read_histogram(histogram, pack_length, max_segments)
    limits: Limits = {"pack_length": pack_length, "max_segments": max_segments}
    return _fractions(histogram, counts, cap, limits)[2]


def _strategies_of_optimum(
    histogram: Ints, *, pack_length: int, max_segments: int | None = None
) -> Strategies:
    return find_optimum(histogram, pack_length=pack_length, max_segments=max_segments).strategies


HISTOGRAM_PACKERS: dict[str, Callable[..., Strategies]] = {
    "spfhp": fill_shortest_first,
    "nnlshp": fill_by_least_squares,
    "optimal": _strategies_of_optimum,
}
"""By name: called as ``(histogram, *, pack_length, max_segments=None)``."""


def strategies_of(
    name: str, lengths: np.ndarray, *, pack_length: int, max_segments: int | None
) -> Strategies:
    """The strategies of a histogram packer for ``(n,)`` lengths; not to be changed.

    A plan counts the packs of a task that then packs them: what takes seconds is done once.
    """
    histogram = np.bincount(lengths, minlength=1)
    return _remembered(name, histogram.tobytes(), pack_length, max_segments)


@lru_cache(maxsize=256)
def _remembered(
    name: str, histogram: bytes, pack_length: int, max_segments: int | None
) -> Strategies:
    counts = np.frombuffer(histogram, np.int64)
    return HISTOGRAM_PACKERS[name](counts, pack_length=pack_length, max_segments=max_segments)


def assign_sequences(lengths: Ints, strategies: Strategies) -> list[list[int]]:
    """Fill the packs of `strategies` with sequences: those of one length in the order given.

    Args:
        lengths: ``(n,)`` ints, whose histogram is that of the strategies.

    Returns:
        For each pack, in the order of the strategies, the indices into `lengths`.
    """
    sizes = [len(strategy) for strategy, repeats in strategies.items() for _ in range(repeats)]
    listed = [length for strategy, repeats in strategies.items() for length in strategy * repeats]
    wanted, values = np.array(listed, np.int64), np.asarray(lengths, np.int64)
    # The k-th place for a length is that of the k-th sequence of it.
    places, order = stable_order(wanted), stable_order(values)
    assert np.array_equal(wanted[places], values[order])
    indices = np.empty(values.size, np.int64)
    indices[places] = order
    return cut_at(indices.tolist(), [0, *accumulate(sizes)])


def _packer_of(name: str) -> Packer:
    def pack(
        lengths: Ints,
        *,
        pack_length: int,
        max_segments: int | None = None,
        window: int | None = None,
    ) -> list[list[int]]:
        check_cap(max_segments, pack_length=pack_length)
        values = check_lengths(lengths, most=pack_length)
        limits: Limits = {"pack_length": pack_length, "max_segments": max_segments}
        return assign_sequences(values, strategies_of(name, values, **limits))

    return pack


SEQUENCE_PACKERS: dict[str, Packer] = {name: _packer_of(name) for name in HISTOGRAM_PACKERS}
"""The same methods as `packing.PACKERS` are called: from lengths to packs; `window` is ignored."""


def _read_histogram(
    histogram: Ints, pack_length: int, max_segments: int | None
) -> tuple[Counts, int]:
    """Return the counts and the most sequences in a pack; refuse what is no histogram."""
    # Counting refuses all that cannot be packed, in words that name it.
    count_packs(histogram, pack_length=pack_length, max_segments=max_segments)
    numbers = np.asarray(histogram)
    lengths = np.flatnonzero(numbers)[::-1]
    counts = dict(zip(lengths.tolist(), numbers[lengths].tolist(), strict=True))
    most = pack_length // min(counts, default=1)
    return counts, most if max_segments is None else min(most, max_segments)


def _in_order(strategies: Strategies) -> Strategies:
    return dict(sorted(((s, n) for s, n in strategies.items() if n), reverse=True))


def _full_strategies(total: int, *, depth: int) -> list[Strategy]:
    """List the strategies of up to `depth` lengths whose sum is `total`, longest length first."""
    found: list[Strategy] = []

    def extend(strategy: Strategy, room: int) -> None:
        slots = depth - len(strategy)
        if not room:
            found.append(strategy)
        elif slots:
            longest = min(room, strategy[-1] if strategy else room)
            for length in range(longest, -(-room // slots) - 1, -1):
                extend((*strategy, length), room - length)

    extend((), total)
    return found


def _fill(wanted: list[tuple[Strategy, int]], counts: Counts) -> tuple[Counter[Strategy], Counts]:
    """Fill packs as far as sequences are left: a place without one is dropped from its pack.

    Returns:
        The packs that are not empty, and the sequences without a place.
    """
    left = dict(counts)
    filled: Counter[Strategy] = Counter()
    for strategy, repeats in wanted:
        rest = repeats
        while rest:
            # Places that have no sequence go; then as many packs as every place can be filled in.
            need: Counter[int] = Counter()
            for length in strategy:
                if need[length] < left.get(length, 0):
                    need[length] += 1
            if not need:
                break
            number = min(rest, *(left[length] // need[length] for length in need))
            filled[tuple(need.elements())] += number
            for length in need:
                left[length] -= number * need[length]
            rest -= number
    return filled, {length: number for length, number in left.items() if number}


def _with_rest(
    down: list[tuple[Strategy, int]],
    up: list[tuple[Strategy, int]],
    counts: Counts,
    limits: Limits,
) -> Counter[Strategy]:
    """Fill the packs of `down`, those of `up` that all sequences are left for, then best-fit."""
    filled, left = _fill(down, counts)
    for strategy, _ in up:
        need = Counter(strategy)
        if all(left.get(length, 0) >= number for length, number in need.items()):
            filled[strategy] += 1
            for length, number in need.items():
                left[length] -= number
    rest = np.repeat(np.array(list(left), np.int64), np.array(list(left.values()), np.int64))
    for pack in PACKERS["best-fit-decreasing"](rest, **limits):
        filled[tuple(rest[pack].tolist())] += 1
    return filled


def _fractions(
    histogram: Ints, counts: Counts, cap: int, limits: Limits
) -> tuple[list[Strategy], list[float], int]:
    """Call `generate_columns` with good strategies to begin with; see there."""
    first = dict(fill_shortest_first(histogram, **limits))
    if sum(counts.values()) <= MOST_LISTED:
        first |= _with_rest([], [], counts, limits)
    known = count_packs(histogram, **limits)
    return generate_columns(counts, first, pack_length=limits["pack_length"], cap=cap, known=known)
