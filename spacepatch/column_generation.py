"""The fewest packs in fractions, by the column generation of Gilmore and Gomory (1961)."""

from __future__ import annotations

from collections.abc import Iterable
from math import ceil

import numpy as np

from spacepatch.extras import needed
from spacepatch.packing import lower_bound

Strategy = tuple[int, ...]
"""The lengths in one pack, longest first."""

Counts = dict[int, int]
"""How many sequences there are of each length, longest first; no count is 0."""

ONE = 1 << 40
"""The price of a whole pack in integers: those of up to 2**22 sequences sum up exactly."""

MOST_ROUNDS = 60
"""Most linear programs solved for a histogram; the bound is proven however many they are."""


def generate_columns(
    counts: Counts, first: Iterable[Strategy], *, pack_length: int, cap: int, known: int
) -> tuple[list[Strategy], list[float], int]:
    """Find out how often each strategy is best used, in fractions, and a proven lower bound.

    The linear program covers the sequences by as few packs as it can. Strategies come in as long
    as one is worth more than a pack at the program's prices of a sequence.

    The bound does not rest on the solver's floats: prices are integers, the most that they make of
    a pack is found by an exact integer knapsack, and all sequences at these prices, divided by
    that, are packs that no packing goes below (Farley, 1990).

    Args:
        first: Strategies to begin with; they must hold every length of `counts`.
        cap: Most sequences in one pack.
        known: Packs of a packing that is known; nothing is sought once it is proven optimal.

    Returns:
        Strategies, how often each is used (both empty where `known` is optimal), and the bound.
    """
    lengths, numbers = np.array(list(counts), np.int64), list(counts.values())
    num_tokens = sum(length * number for length, number in counts.items())
    bound = lower_bound(num_tokens, pack_length=pack_length)
    strategies = dict.fromkeys(first)
    # The solver's prices leap from one corner to another, and most of them prove little. A mean
    # with the best prices so far proves more and finds better strategies (Wentges, 1997). A token
    # is a fair first price.
    best_prices = lengths * ONE // pack_length
    repeats: list[float] = []
    for _ in range(MOST_ROUNDS):
        if bound >= known:
            break
        value, repeats, prices = _solve(strategies, counts)
        if ceil(value - 1e-6) <= bound:
            break
        new: list[Strategy] = []
        price_of = dict(zip(counts, prices.tolist(), strict=True))
        for mixed in ((best_prices + prices * 3) // 4, prices):
            found, most = _price(lengths, mixed, pack_length, cap)
            worth = sum(
                price * number for price, number in zip(mixed.tolist(), numbers, strict=True)
            )
            if -(-worth // most) >= bound:
                bound = -(-worth // most)
                best_prices = np.array([price * ONE // most for price in mixed.tolist()])
            new = [
                strategy
                for strategy in found
                if strategy not in strategies
                and sum(price_of[length] for length in strategy) > ONE + (ONE >> 30)
            ]
            if new:
                break
        else:
            break
        strategies.update(dict.fromkeys(new))
    used = list(strategies)[: len(repeats)]
    return used, repeats, bound


def _solve(
    strategies: dict[Strategy, None], counts: Counts
) -> tuple[float, list[float], np.ndarray]:
    """Cover the sequences by fractions of strategies; return their sum, them, and the prices."""
    sparse = needed("scipy.sparse", "scipy", by="packer optimal", extra="pack")
    optimize = needed("scipy.optimize", "scipy", by="packer optimal", extra="pack")
    row_of = {length: row for row, length in enumerate(counts)}
    entries = [(row_of[length], column) for column, s in enumerate(strategies) for length in s]
    rows, columns = np.array(entries).T
    solution = optimize.linprog(
        np.ones(len(strategies)),
        A_ub=sparse.csc_array((np.full(rows.size, -1.0), (rows, columns))),
        b_ub=-np.array(list(counts.values()), float),
        method="highs-ds",
        options={"primal_feasibility_tolerance": 1e-9, "dual_feasibility_tolerance": 1e-10},
    )
    assert solution.success, solution.message
    # No sequence is worth more than a pack, and none less than nothing, but for rounding.
    prices = (np.clip(-solution.ineqlin.marginals, 0, 1) * ONE).astype(np.int64)
    return float(solution.fun), solution.x.tolist(), prices


def _price(
    lengths: np.ndarray, prices: np.ndarray, pack_length: int, cap: int
) -> tuple[list[Strategy], int]:
    """Return the best strategy with each length at these prices, and the most one is worth.

    An exact integer knapsack, by dynamic programming over the room (and, where `cap` is less than
    the pack has room for, over the sequences). O(pack_length * lengths) or that times `cap`.
    """
    step = int(cap < pack_length // lengths.min())
    depth = cap if step else 0
    # best[room, k]: the most that up to k sequences in `room` tokens are worth; with one column,
    # that any number of them are.
    best = np.zeros((pack_length + 1, depth + 1), np.int64)
    choice = np.full((pack_length + 1, depth + 1), -1)
    ascending, price_of = lengths[::-1].copy(), prices[::-1].copy()
    num_fit = np.searchsorted(ascending, np.arange(pack_length + 1), side="right")
    for room in range(int(ascending[0]), pack_length + 1):
        num = num_fit[room]
        best[room] = best[room - 1]
        worth = best[room - ascending[:num], : depth + 1 - step] + price_of[:num, None]
        item = worth.argmax(axis=0)
        most = worth[item, np.arange(item.size)]
        better = most > best[room, step:]
        best[room, step:][better] = most[better]
        choice[room, step:][better] = item[better]
    choices, spans = choice.tolist(), ascending.tolist()
    found: dict[Strategy, None] = {}
    for length in spans:
        strategy, room, slots = [length], pack_length - length, depth - step
        while room > 0:
            item_here = choices[room][slots]
            if item_here < 0:
                room -= 1
                continue
            strategy.append(spans[item_here])
            room -= spans[item_here]
            slots -= step
        found[tuple(sorted(strategy, reverse=True))] = None
    return list(found), int(best[pack_length, depth])
