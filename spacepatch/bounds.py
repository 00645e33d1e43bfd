"""How few packs there can be: lower bounds, from quick ones to that of column generation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np

from spacepatch.extras import needed
from spacepatch.histogram_packing import prove_lower_bound
from spacepatch.packing import lower_bound

WORDS = {
    "tokens": "tokens / pack length",
    "segments": "segments / max_segments",
    "L2": "Martello and Toth's L2",
    "columns": "proven by column generation",
}
"""How a bound was had, for people; from the quickest and weakest to the strongest."""

QUICK = 1 << 19
"""Distinct lengths x pack length up to which column generation takes a few seconds; where
`max_segments` is less than a pack has room for, times that."""

Counts = Mapping[int, int]
"""How many sequences there are of each length."""


@dataclass(frozen=True, slots=True)
class LowerBound:
    """Packs that no packing of the same segments goes below."""

    packs: int
    by: str
    """A word of `WORDS`."""

    def to_json(self) -> dict[str, Any]:
        """`packs` and `by`."""
        return {"packs": self.packs, "by": self.by}

    def describe(self, packs: int) -> str:
        """For people, beside the number of packs that there are."""
        optimal = ": no packing has fewer" if packs == self.packs else ""
        return f"lower bound {self.packs:,} ({WORDS[self.by]}{optimal})"


def martello_toth(counts: Counts, *, pack_length: int) -> int:
    """The bound L2 of Martello and Toth (1990): never below tokens / pack length.

    For every k up to half a pack: sequences longer than pack_length - k share a pack with none of
    k or more; those above half share it with none of each other; the rest of k or more must fit
    what these leave, and packs of their own. O(distinct lengths) for all k together.
    """
    lengths = np.array(sorted(counts), np.int64)
    if not lengths.size:
        return 0
    numbers = np.array([counts[length] for length in lengths.tolist()], np.int64)
    # Of sequences of less than lengths[i]: how many, and their tokens.
    below = np.concatenate([[0], np.cumsum(numbers)])
    tokens = np.concatenate([[0], np.cumsum(numbers * lengths)])
    middle = np.searchsorted(lengths, pack_length // 2, side="right")
    # The bound changes only where k passes a length.
    shortest = np.concatenate([[0], lengths[:middle]])
    first = np.searchsorted(lengths, shortest, side="left")
    huge = np.searchsorted(lengths, pack_length - shortest, side="right")
    num_large = below[huge] - below[middle]
    room = num_large * pack_length - (tokens[huge] - tokens[middle])
    small = tokens[middle] - tokens[first]
    more = -(-np.maximum(small - room, 0) // pack_length)
    return int((below[-1] - below[middle] + more).max())


def bound_packs(
    histograms: Mapping[int, Counts],
    *,
    pack_length: int,
    max_segments: int | None = None,
    packs: int | None = None,
    thorough: bool = False,
) -> LowerBound:
    """The best bound that can be had at once; with `thorough`, the best that there is.

    Column generation is for what the others leave open: where `packs` is more than they say, and
    where it is quick (`QUICK`) and scipy is there, or `thorough`.

    Args:
        histograms: by token width: packs hold tokens of one width.
        packs: of a packing that is known; a bound that is as high needs no better one.

    Raises:
        MissingDependencyError: `thorough` needs scipy.
    """
    quick = [_quick(counts, pack_length, max_segments) for counts in histograms.values()]
    if packs is not None and sum(bound.packs for bound in quick) >= packs:
        return _sum(quick)
    found = []
    for counts, bound in zip(histograms.values(), quick, strict=True):
        is_quick = _cost(counts, pack_length, max_segments) <= QUICK and find_spec("scipy")
        if counts and (thorough or is_quick):
            histogram = np.zeros(max(counts) + 1, np.int64)
            histogram[list(counts)] = list(counts.values())
            proven = prove_lower_bound(
                histogram, pack_length=pack_length, max_segments=max_segments
            )
            if proven > bound.packs:
                bound = LowerBound(proven, "columns")
        found.append(bound)
    return _sum(found)


def check_thorough() -> None:
    """Refuse a thorough bound that cannot be proven here, before anything is done for it.

    Raises:
        MissingDependencyError: it needs scipy, which is not installed.
    """
    needed("scipy.optimize", "scipy", by="the best lower bound (--bound)", extra="pack")


def _cost(counts: Counts, pack_length: int, max_segments: int | None) -> int:
    """Of one knapsack of column generation, in what `QUICK` counts."""
    cost = len(counts) * pack_length
    if counts and max_segments is not None and max_segments < pack_length // min(counts):
        cost *= max_segments
    return cost


def _quick(counts: Counts, pack_length: int, max_segments: int | None) -> LowerBound:
    plain = lower_bound(sum(n * length for length, n in counts.items()), pack_length=pack_length)
    found = [LowerBound(plain, "tokens")]
    if max_segments is not None:
        found.append(LowerBound(-(-sum(counts.values()) // max_segments), "segments"))
    found.append(LowerBound(martello_toth(counts, pack_length=pack_length), "L2"))
    # Of equal ones the first, which is the easiest to see.
    return max(found, key=lambda bound: bound.packs)


def _sum(bounds: list[LowerBound]) -> LowerBound:
    """Of the packs of all token widths, called by the strongest of the ways."""
    strongest = max((bound.by for bound in bounds), key=list(WORDS).index, default="tokens")
    return LowerBound(sum(bound.packs for bound in bounds), strongest)
