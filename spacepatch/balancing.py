"""Exchange sequences between packs so that attention costs the same in each."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from spacepatch.packing import Ints

BALANCES = ("attention",)
"""What packs can be made equal in; the words of `--balance`."""

MOST_SPLITS = 1 << 12
"""Ways to share out two packs that are tried at once; all of them, where there are no more."""

NEAR = 200
"""Two packs whose costs differ by less than the mean / NEAR are left alone."""

MOST_ROUNDS = 200
"""Rounds after which exchanging ends, however much there is to gain."""

PATIENCE = 8
"""Pairings tried in vain before it ends; with as many packs or fewer, every pair is tried."""

MANY_PACKS = 64
"""With more packs than these a round is in vain that takes less than a hundredth of the variance,
and the third such one is the last."""


@dataclass(frozen=True, slots=True)
class Spread:
    """How evenly a cost is spread over packs; exact integers, so that shards add up."""

    packs: int = 0
    most: int = 0
    total: int = 0
    squares: int = 0
    """Of the costs of all packs, summed."""

    @classmethod
    def of(cls, costs: Ints) -> Spread:
        """Of ``(n,)`` ints, the cost of each pack."""
        values = np.asarray(costs, np.int64).tolist()
        return cls(len(values), max(values, default=0), sum(values), sum(v * v for v in values))

    def __add__(self, other: Spread) -> Spread:
        return Spread(
            self.packs + other.packs,
            max(self.most, other.most),
            self.total + other.total,
            self.squares + other.squares,
        )

    @property
    def max_over_mean(self) -> float:
        """1 where all packs cost the same, and where there are none."""
        return self.most * self.packs / self.total if self.total else 1.0

    @property
    def variation(self) -> float:
        """Coefficient of variation: standard deviation / mean; 0 where all cost the same."""
        if not self.total:
            return 0.0
        return math.sqrt(max(self.squares * self.packs - self.total**2, 0)) / self.total

    def to_json(self) -> dict[str, float]:
        """`max_over_mean` and `variation`."""
        return {"max_over_mean": self.max_over_mean, "variation": self.variation}


def attention_costs(lengths: Ints, packs: Sequence[Sequence[int]]) -> np.ndarray:
    """``(K,)`` int64: the sum of squared lengths of each pack, which attention within segments
    takes time in proportion to."""
    squares = np.square(np.asarray(lengths, np.int64))
    return np.array([squares[list(pack)].sum() for pack in packs], np.int64)


def balance_packs(
    lengths: Ints,
    packs: Sequence[Sequence[int]],
    *,
    pack_length: int,
    max_segments: int | None = None,
) -> list[list[int]]:
    """Share out the sequences of packs anew, so that their attention costs are near-equal.

    The costliest pack and the cheapest share out their sequences so that they cost as nearly the
    same as they can, the second costliest does with the second cheapest, and so on; then again,
    until no pairing gains. All ways to share out are tried where they are `MOST_SPLITS` or fewer
    (sequences of one length are alike), else those of some of the lengths. So neither the highest
    cost nor the variance ever grows, and the number of packs stays.

    Args:
        lengths: ``(n,)`` ints.
        packs: the indices in each pack, as a packer made them for these limits.
        pack_length: Tokens that a pack holds.
        max_segments: Most sequences in one pack; None: as many as fit.

    Returns:
        As many packs of the same indices. The same input gives the same packs.
    """
    values = np.asarray(lengths, np.int64).tolist()
    cap = pack_length if max_segments is None else max_segments
    made = [sorted(pack) for pack in packs]
    costs = attention_costs(values, made)
    if len(made) < 2:
        return made
    near = int(costs.sum()) // (len(made) * NEAR)
    patience, in_vain = min(PATIENCE, len(made)), 0
    for _ in range(MOST_ROUNDS):
        order = np.lexsort((np.arange(len(costs)), -costs)).tolist()
        before = Spread.of(costs)
        for high, low in _pairs(order, in_vain):
            difference = int(costs[high] - costs[low])
            if difference <= near:
                continue
            found = _share_out(values, made[high], made[low], difference, pack_length, cap)
            if found is not None:
                made[high], made[low] = found
                costs[[high, low]] = [sum(values[n] ** 2 for n in pack) for pack in found]
        gained = before.squares - Spread.of(costs).squares
        if len(made) > MANY_PACKS:
            patience = 3
            gained = gained * 100 // max(before.squares - before.total**2 // len(made), 1)
        in_vain = 0 if gained else in_vain + 1
        if in_vain >= patience:
            break
    return made


def _pairs(order: list[int], shift: int) -> Iterator[tuple[int, int]]:
    """Each pack with one other, (costlier, cheaper): without a shift the first with the last.

    Over as many shifts as there are packs, every two meet.
    """
    size = len(order)
    # The nearest to the first pairing come first: 0, 1 and -1, 2 and -2 places away.
    away = (shift + 1) // 2 * (1 if shift % 2 else -1)
    for place in range(size):
        other = (size - 1 - away - place) % size
        if place < other:
            yield order[place], order[other]


def _share_out(
    values: list[int],
    high: list[int],
    low: list[int],
    difference: int,
    pack_length: int,
    cap: int,
) -> tuple[list[int], list[int]] | None:
    """The sequences of two packs in two packs whose costs differ less; None: there is no way."""
    counts = Counter(values[index] for index in high)
    pooled = counts + Counter(values[index] for index in low)
    distinct = sorted(pooled, reverse=True)
    for free in _choices(distinct, pooled):
        numbers = _best_split(free, distinct, counts, pooled, difference, pack_length, cap)
        if numbers is not None:
            break
    else:
        return None
    first: list[int] = []
    second: list[int] = []
    for index in sorted((*high, *low)):
        length = values[index]
        pack = first if numbers[length] else second
        numbers[length] -= pack is first
        pack.append(index)
    return first, second


def _choices(distinct: list[int], pooled: Counter[int]) -> Iterator[list[int]]:
    """Sets of lengths whose sequences are shared out anew, `MOST_SPLITS` ways at most; the others
    stay where they are."""
    spaced = [length for start in range(4) for length in distinct[start::4]]
    orders = (distinct, spaced, distinct[::-1])
    before: list[list[int]] = []
    for order in orders:
        free, ways = [], 1
        for length in order:
            if ways * (pooled[length] + 1) <= MOST_SPLITS:
                ways *= pooled[length] + 1
                free.append(length)
        if sorted(free) not in before:
            before.append(sorted(free))
            yield free
        if len(free) == len(distinct):
            return


def _best_split(
    free: list[int],
    distinct: list[int],
    counts: Counter[int],
    pooled: Counter[int],
    difference: int,
    pack_length: int,
    cap: int,
) -> Counter[int] | None:
    """How many sequences of each length the first pack gets, if that makes them more equal."""
    fixed = [length for length in distinct if length not in free]
    # (tokens, cost, sequences) of the first pack, for every way to share out.
    ways = np.array(
        [
            [sum(counts[length] * length for length in fixed)],
            [sum(counts[length] * length**2 for length in fixed)],
            [sum(counts[length] for length in fixed)],
        ],
        np.int64,
    )
    for length in free:
        numbers = np.arange(pooled[length] + 1)
        added = np.array([[length], [length**2], [1]], np.int64) * numbers
        ways = (ways[:, :, None] + added[:, None, :]).reshape(3, -1)
    tokens, costs, sequences = ways
    all_tokens = sum(length * number for length, number in pooled.items())
    all_costs = sum(length**2 * number for length, number in pooled.items())
    all_sequences = pooled.total()
    fits = (tokens <= pack_length) & (all_tokens - tokens <= pack_length)
    fits &= (sequences <= cap) & (all_sequences - sequences <= cap)
    apart = np.where(fits, np.abs(2 * costs - all_costs), difference)
    best = int(apart.argmin())
    if apart[best] >= difference:
        return None
    numbers_of = Counter({length: counts[length] for length in fixed})
    for length in reversed(free):
        best, numbers_of[length] = divmod(best, pooled[length] + 1)
    return numbers_of
