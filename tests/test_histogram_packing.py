"""Packing by histogram against exhaustive search, and the numbers of Krell et al."""

from __future__ import annotations

import json
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from untimed import untimed

from spacepatch.errors import ConfigError
from spacepatch.histogram_packing import (
    HISTOGRAM_PACKERS,
    SEQUENCE_PACKERS,
    assign_sequences,
    fill_by_least_squares,
    fill_shortest_first,
    find_optimum,
    prove_lower_bound,
)
from spacepatch.packing import count_packs, lower_bound

pytest.importorskip("scipy", reason="nnlshp and optimal need scipy")


def fewest_packs(lengths: list[int], pack_length: int, max_segments: int | None) -> int:
    """Try every set of sequences that holds the first one left; small instances only."""
    cap = max_segments or len(lengths)

    @cache
    def fewest(left: tuple[int, ...]) -> int:
        if not left:
            return 0
        packs: set[tuple[int, ...]] = set()

        def choose(start: int, chosen: tuple[int, ...], room: int) -> None:
            packs.add(chosen)
            for place in range(start, len(left)):
                if left[place] <= room and len(chosen) < cap:
                    choose(place + 1, (*chosen, place), room - left[place])

        choose(1, (0,), pack_length - left[0])
        return 1 + min(
            fewest(tuple(n for place, n in enumerate(left) if place not in pack)) for pack in packs
        )

    return fewest(tuple(sorted(lengths, reverse=True)))


def spfhp_slowly(lengths: list[int], pack_length: int, max_segments: int | None) -> int:
    """Place one sequence after the other; packs that one length opens are closed to it."""
    packs: list[list[int]] = []
    cap = max_segments or pack_length
    for length in sorted(set(lengths), reverse=True):
        num_older = len(packs)
        for _ in range(lengths.count(length)):
            rooms = [
                (pack_length - sum(pack), place)
                for place, pack in enumerate(packs[:num_older])
                if len(pack) < cap and pack_length - sum(pack) >= length
            ]
            if rooms:
                packs[max(rooms)[1]].append(length)
            else:
                packs.append([length])
    return len(packs)


def histogram_of(lengths: list[int]) -> np.ndarray:
    return np.bincount(np.array(lengths, np.int64), minlength=1)


@st.composite
def packings(
    draw: st.DrawFn, max_size: int = 40, most: int = 30
) -> tuple[list[int], int, int | None]:
    """Lengths (some with a common divisor), pack_length, max_segments."""
    pack_length = draw(st.integers(1, most))
    unit = draw(st.sampled_from([1, 1, 2, 3, 5]))
    length = st.integers(1, max(pack_length // unit, 1)).map(lambda n: min(n * unit, pack_length))
    lengths = draw(st.lists(length, max_size=max_size))
    return lengths, pack_length, draw(st.none() | st.integers(1, 5))


@pytest.mark.parametrize("packer", HISTOGRAM_PACKERS)
@untimed
@given(packing=packings())
def test_strategies_hold_every_sequence_once_within_the_limits(packer, packing):
    lengths, pack_length, max_segments = packing
    strategies = HISTOGRAM_PACKERS[packer](
        histogram_of(lengths), pack_length=pack_length, max_segments=max_segments
    )
    held: Counter[int] = Counter()
    for strategy, repeats in strategies.items():
        assert repeats > 0
        assert 0 < sum(strategy) <= pack_length
        assert len(strategy) <= (max_segments or pack_length)
        assert list(strategy) == sorted(strategy, reverse=True)
        for length in strategy:
            held[length] += repeats
    assert held == Counter(lengths)
    assert {type(n) for s, r in strategies.items() for n in (*s, r)} <= {int}


@pytest.mark.parametrize("packer", SEQUENCE_PACKERS)
@untimed
@given(packing=packings(), seed=st.integers(0, 9))
def test_sequences_are_packed_once_and_as_the_histogram_says(packer, packing, seed):
    lengths, pack_length, max_segments = packing
    limits = {"pack_length": pack_length, "max_segments": max_segments}
    np.random.default_rng(seed).shuffle(lengths)
    packs = SEQUENCE_PACKERS[packer](lengths, **limits)
    assert sorted(index for pack in packs for index in pack) == list(range(len(lengths)))
    strategies = HISTOGRAM_PACKERS[packer](histogram_of(lengths), **limits)
    assert Counter(tuple(lengths[i] for i in pack) for pack in packs) == strategies
    assert packs == SEQUENCE_PACKERS[packer](np.array(lengths, np.int32), **limits)


@untimed
@given(packing=packings(max_size=7, most=15))
def test_the_optimum_and_its_bound_enclose_that_of_an_exhaustive_search(packing):
    lengths, pack_length, max_segments = packing
    limits = {"pack_length": pack_length, "max_segments": max_segments}
    histogram = histogram_of(lengths)
    fewest = fewest_packs(lengths, pack_length, max_segments)
    optimum = find_optimum(histogram, **limits)
    assert optimum.lower_bound <= fewest <= optimum.num_packs
    assert optimum.num_packs <= count_packs(histogram, **limits)
    assert prove_lower_bound(histogram, **limits) == optimum.lower_bound
    assert optimum.lower_bound >= lower_bound(sum(lengths), pack_length=pack_length)


@untimed
@given(packing=packings())
def test_shortest_pack_first_makes_the_packs_of_its_brute_force(packing):
    lengths, pack_length, max_segments = packing
    strategies = fill_shortest_first(
        histogram_of(lengths), pack_length=pack_length, max_segments=max_segments
    )
    assert sum(strategies.values()) == spfhp_slowly(lengths, pack_length, max_segments)


@pytest.mark.parametrize(
    ("lengths", "pack_length", "max_segments", "bound", "num_packs"),
    [
        # Best-fit-decreasing puts the 6 with the 4 and needs a third pack.
        ([6, 5, 5, 4], 10, None, 2, 2),
        ([4, 4, 3, 3, 3, 3], 10, None, 2, 2),
        # Five in three packs of two, though the tokens would fit one.
        ([1, 1, 1, 1, 1], 10, 2, 3, 3),
        # 6 does not fit with 6, though the tokens would need two packs of three.
        ([6, 6, 6], 10, None, 3, 3),
        ([10, 10], 10, None, 2, 2),
        ([], 10, None, 0, 0),
    ],
)
def test_an_optimum_is_that_of_the_hand(lengths, pack_length, max_segments, bound, num_packs):
    found = find_optimum(histogram_of(lengths), pack_length=pack_length, max_segments=max_segments)
    assert (found.lower_bound, found.num_packs) == (bound, num_packs)


def test_the_optimum_is_better_than_best_fit_where_that_fails():
    # 100 packs of 4 + 3 + 3: best-fit-decreasing pairs the 4s, which leaves room for no 3.
    histogram = [0, 0, 0, 200, 100]
    assert count_packs(histogram, pack_length=10) > 100
    found = find_optimum(histogram, pack_length=10)
    assert found.strategies == {(4, 3, 3): 100}
    assert found.lower_bound == 100


def test_least_squares_puts_no_more_than_three_in_a_pack():
    strategies = fill_by_least_squares([0, 1000], pack_length=100)
    assert max(map(len, strategies)) <= 3
    assert fill_by_least_squares([0, 0, 9], pack_length=4, max_segments=1) == {(2,): 9}


def test_least_squares_refuses_a_pack_too_long_for_its_matrix():
    with pytest.raises(ValueError, match=r"pack_length = 8192 .*use optimal"):
        fill_by_least_squares([0, 1, 1], pack_length=8192)
    # Lengths of a common divisor are few again.
    strategies = fill_by_least_squares([0] * 2048 + [8], pack_length=8192)
    assert sum(k * len(s) for s, k in strategies.items()) == 8


def test_least_squares_without_an_end_says_what_to_use_instead(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def endless(*matrices: np.ndarray) -> None:
        raise RuntimeError("Maximum number of iterations reached.")

    monkeypatch.setattr("scipy.optimize.nnls", endless)
    with pytest.raises(ConfigError, match=r"2 lengths in packs of 8 .*use --packer optimal"):
        fill_by_least_squares([0, 1, 1], pack_length=8)


@pytest.mark.parametrize("packer", HISTOGRAM_PACKERS)
@pytest.mark.parametrize(
    ("histogram", "message"), [([1], r"histogram\[0\] = 1"), ([0] * 9 + [2], r"histogram\[9\] = 2")]
)
def test_a_histogram_of_impossible_lengths_is_refused(packer, histogram, message):
    with pytest.raises(ValueError, match=message):
        HISTOGRAM_PACKERS[packer](histogram, pack_length=8)


@pytest.mark.parametrize("packer", SEQUENCE_PACKERS)
@pytest.mark.parametrize("bad", [9, 0, -3])
def test_a_length_that_cannot_be_packed_is_named(packer, bad):
    with pytest.raises(ValueError, match=rf"lengths\[2\] = {bad}: must be in \[1, 8\]"):
        SEQUENCE_PACKERS[packer]([1, 8, bad], pack_length=8)


def test_sequences_of_one_length_are_taken_in_the_order_given():
    assert assign_sequences([3, 7, 3, 7], {(7, 3): 2}) == [[1, 0], [3, 2]]


# --- the published histograms ---


def read_histogram(shared: Path, name: str) -> np.ndarray:
    path = shared / "packing" / "histograms.json"
    if not path.exists():
        pytest.skip("the published histograms are no part of the package")
    # Entry i of the file counts the length i + 1.
    return np.array([0, *json.loads(path.read_text())[name]])


@pytest.mark.parametrize(
    ("name", "max_segments", "num_packs"),
    [
        ("wikipedia_512", 2, 10_101_683),
        ("wikipedia_512", 3, 9_094_695),
        ("wikipedia_512", 4, 8_658_996),
        ("wikipedia_512", 8, 8_224_673),
        ("wikipedia_512", 16, 8_166_708),
        ("squad_384", 2, 45_335),
        ("squad_384", 3, 40_711),
        ("squad_384", None, 40_711),
    ],
)
def test_shortest_pack_first_makes_the_published_packs(shared, name, max_segments, num_packs):
    histogram = read_histogram(shared, name)
    strategies = fill_shortest_first(
        histogram, pack_length=len(histogram) - 1, max_segments=max_segments
    )
    assert sum(strategies.values()) == num_packs


def check_holds(histogram: np.ndarray, strategies: dict[tuple[int, ...], int]) -> None:
    held = np.zeros_like(histogram)
    for strategy, repeats in strategies.items():
        assert sum(strategy) < len(histogram)
        np.add.at(held, list(strategy), repeats)
    assert held.tolist() == histogram.tolist()


def test_least_squares_fills_packs_as_the_paper_says_of_wikipedia(shared):
    # In units of two tokens: 3 s instead of 20, of which 8,155,059 packs come (paper: 99.75 %).
    histogram = read_histogram(shared, "wikipedia_512")
    halved = np.array([0, *histogram[1:].reshape(-1, 2).sum(axis=1)])
    strategies = fill_by_least_squares(halved, pack_length=256)
    check_holds(halved, strategies)
    assert max(map(len, strategies)) == 3
    num_tokens = int((halved * np.arange(257)).sum())
    assert num_tokens / (sum(strategies.values()) * 256) == pytest.approx(0.9975, abs=0.0015)


@pytest.mark.parametrize(
    ("name", "bound", "most_packs"),
    [("wikipedia_512", 8_135_727, 8_135_728), ("squad_384", 40_195, 40_196)],
)
def test_the_optimum_of_the_published_histograms_is_proven(shared, name, bound, most_packs):
    histogram = read_histogram(shared, name)
    found = find_optimum(histogram, pack_length=len(histogram) - 1)
    check_holds(histogram, found.strategies)
    assert found.lower_bound == bound
    assert found.num_packs <= most_packs
