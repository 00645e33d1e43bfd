"""Packers against brute force, and published histograms."""

from __future__ import annotations

import json
import tracemalloc
from bisect import bisect_left, insort
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from untimed import untimed

from spacepatch.packing import PACKERS, count_in_order, count_packs, lower_bound

SHARED = Path(__file__).resolve().parents[2] / "shared"

DECREASING = ["first-fit-decreasing", "best-fit-decreasing"]


# --- brute force: every open pack is looked at, for every sequence ---


def pack_slowly(
    packer: str,
    lengths: list[int],
    pack_length: int,
    max_segments: int | None,
    window: int | None = None,
) -> list[list[int]]:
    order = list(range(len(lengths)))
    if packer in DECREASING:
        order.sort(key=lambda index: (-lengths[index], index))
    packs: list[list[int]] = []
    closed: set[int] = set()

    def room(pack: int) -> int:
        return pack_length - sum(lengths[index] for index in packs[pack])

    def is_open(pack: int) -> bool:
        full = len(packs[pack]) == max_segments or room(pack) < min(lengths)
        return not full and pack not in closed

    for index in order:
        fits = [p for p in range(len(packs)) if is_open(p) and room(p) >= lengths[index]]
        if packer == "next-fit":
            fits = [p for p in fits if p == len(packs) - 1]
        if packer == "best-fit-decreasing":
            fits.sort(key=lambda p: (room(p), -len(packs[p]), p))
        if not fits:
            still_open = [p for p in range(len(packs)) if is_open(p)]
            if packer == "first-fit" and len(still_open) == window:
                closed.add(still_open[0])
            packs.append([])
            fits = [len(packs) - 1]
        packs[fits[0]].append(index)
    return packs


@st.composite
def packings(draw: st.DrawFn) -> tuple[list[int], int, int | None]:
    """Lengths (many of them equal, or around a power of two), pack_length, max_segments."""
    pack_length = draw(st.sampled_from([1, 2, 7, 10, 31, 32, 33, 100, 255, 256, 257]))
    longest = draw(st.integers(1, pack_length))
    edges = sorted({n for k in range(9) for n in (2**k - 1, 2**k, 2**k + 1) if 1 <= n <= longest})
    length = draw(st.sampled_from([st.integers(1, longest), st.sampled_from(edges)]))
    lengths = draw(st.lists(length, max_size=60))
    return lengths, pack_length, draw(st.none() | st.integers(1, 6))


@pytest.mark.parametrize("packer", PACKERS)
@untimed
@given(packing=packings())
def test_packer_does_what_its_brute_force_does(packer, packing):
    lengths, pack_length, max_segments = packing
    packs = PACKERS[packer](lengths, pack_length=pack_length, max_segments=max_segments)
    assert packs == pack_slowly(packer, lengths, pack_length, max_segments)


@untimed
@given(packing=packings(), window=st.integers(1, 8))
def test_first_fit_with_a_window_does_what_its_brute_force_does(packing, window):
    lengths, pack_length, max_segments = packing
    packs = PACKERS["first-fit"](
        lengths, pack_length=pack_length, max_segments=max_segments, window=window
    )
    assert packs == pack_slowly("first-fit", lengths, pack_length, max_segments, window)


@pytest.mark.parametrize("packer", ["first-fit", "best-fit-decreasing"])
@pytest.mark.parametrize("max_segments", [None, 3])
def test_many_sequences_of_which_few_are_long_are_packed_as_by_brute_force(packer, max_segments):
    # So many packs are open, and so many lengths are small, that all that first-fit sets aside is.
    draw = np.random.default_rng(6)
    lengths = np.where(draw.random(400) < 0.1, draw.integers(1, 9, 400), draw.integers(20, 90, 400))
    packs = PACKERS[packer](lengths, pack_length=100, max_segments=max_segments)
    assert packs == pack_slowly(packer, lengths.tolist(), 100, max_segments)


@untimed
@given(packing=packings())
def test_first_fit_with_a_window_of_one_is_next_fit(packing):
    lengths, pack_length, max_segments = packing
    limits = {"pack_length": pack_length, "max_segments": max_segments}
    packs = PACKERS["next-fit"](lengths, **limits)
    assert PACKERS["first-fit"](lengths, **limits, window=1) == packs


@pytest.mark.parametrize("packer", ["next-fit", *DECREASING])
def test_only_first_fit_heeds_the_window(packer):
    lengths = [6, 5, 4, 3, 6, 5, 4, 3]
    assert PACKERS[packer](lengths, pack_length=10, window=1) == PACKERS[packer](
        lengths, pack_length=10
    )


def test_first_fit_closes_the_oldest_pack_when_the_window_is_full():
    lengths = [6, 7, 8, 2, 4, 3, 2]
    # Packs 0 and 1 are open when the 8 comes, so pack 0 closes and takes no 2 any more.
    packs = PACKERS["first-fit"](lengths, pack_length=10, window=2)
    assert packs == [[0], [1, 3], [2, 6], [4, 5]]
    assert PACKERS["first-fit"](lengths, pack_length=10) == [[0, 3, 6], [1, 5], [2], [4]]


@pytest.mark.parametrize("packer", PACKERS)
@untimed
@given(packing=packings())
def test_every_sequence_is_packed_once_within_the_limits(packer, packing):
    lengths, pack_length, max_segments = packing
    packs = PACKERS[packer](lengths, pack_length=pack_length, max_segments=max_segments)
    assert sorted(index for pack in packs for index in pack) == list(range(len(lengths)))
    assert all(0 < sum(lengths[index] for index in pack) <= pack_length for pack in packs)
    assert all(len(pack) <= (max_segments or pack_length) for pack in packs)
    assert len(packs) >= lower_bound(lengths, pack_length=pack_length)


@pytest.mark.parametrize("packer", PACKERS)
@pytest.mark.parametrize("k", [1, 5, 9, 13])
@pytest.mark.parametrize("offset", [-1, 0, 1])
def test_lengths_beside_a_power_of_two_are_all_packed(packer, k, offset):
    length = 2**k + offset
    packs = PACKERS[packer]([length] * 100, pack_length=2**13 + 1)
    assert sorted(index for pack in packs for index in pack) == list(range(100))
    assert len(packs) == -(-100 // ((2**13 + 1) // length))


@pytest.mark.parametrize("packer", PACKERS)
def test_equal_inputs_pack_alike_whatever_holds_them(packer):
    lengths = np.random.default_rng(0).integers(1, 8193, 2000)
    packs = PACKERS[packer](lengths, pack_length=8192, max_segments=5)
    assert packs == PACKERS[packer](lengths.tolist(), pack_length=8192, max_segments=5)
    assert packs == PACKERS[packer](lengths.astype(np.uint16), pack_length=8192, max_segments=5)
    assert {type(index) for pack in packs for index in pack} == {int}


@pytest.mark.parametrize("packer", PACKERS)
def test_no_sequences_give_no_packs(packer):
    assert PACKERS[packer]([], pack_length=8) == []
    assert PACKERS[packer](np.zeros(0, np.int64), pack_length=8) == []


@pytest.mark.parametrize("packer", PACKERS)
@pytest.mark.parametrize("bad", [9, 0, -3])
def test_a_length_that_cannot_be_packed_is_named(packer, bad):
    with pytest.raises(ValueError, match=rf"lengths\[2\] = {bad}: must be in \[1, 8\]"):
        PACKERS[packer]([1, 8, bad, 4, bad], pack_length=8)


@pytest.mark.parametrize("packer", PACKERS)
@pytest.mark.parametrize("lengths", [[1.5, 2.0], [[1, 2]], [True], ["a"]])
def test_lengths_that_are_no_integers_are_refused(packer, lengths):
    with pytest.raises(ValueError, match="lengths: must be"):
        PACKERS[packer](lengths, pack_length=8)


@pytest.mark.parametrize("packer", PACKERS)
@pytest.mark.parametrize("limit", [{"pack_length": 0}, {"pack_length": 8, "max_segments": 0}])
def test_limits_below_one_are_refused(packer, limit):
    with pytest.raises(ValueError, match="must be"):
        PACKERS[packer]([1], **limit)


def test_a_window_below_one_is_refused():
    with pytest.raises(ValueError, match="window = 0"):
        PACKERS["first-fit"]([1], pack_length=8, window=0)


def test_segments_around_the_pack_length_are_packed_as_by_hand():
    lengths = [240, 8160, 8064, 8190, 8192, 4096, 4097, 32, 2, 128, 1]
    packs = PACKERS["best-fit-decreasing"](lengths, pack_length=8192)
    assert packs == [[4], [3, 8], [1, 7], [2, 9], [6, 0, 10], [5]]


# --- histograms ---


@pytest.mark.parametrize("packer", DECREASING)
@untimed
@given(packing=packings())
def test_a_histogram_gives_the_packs_of_its_sequences(packer, packing):
    lengths, pack_length, max_segments = packing
    limits = {"pack_length": pack_length, "max_segments": max_segments}
    histogram = np.bincount(np.array(lengths, np.int64), minlength=1)
    packs = PACKERS[packer](lengths, **limits)
    assert count_packs(histogram, packer=packer, **limits) == len(packs)


@pytest.mark.parametrize("packer", ["next-fit", "first-fit"])
@pytest.mark.parametrize("window", [None, 2])
@untimed
@given(packing=packings())
def test_packers_that_go_by_order_count_the_packs_that_they_make(packer, window, packing):
    lengths, pack_length, max_segments = packing
    limits = {"pack_length": pack_length, "max_segments": max_segments, "window": window}
    packs = PACKERS[packer](lengths, **limits)
    assert count_in_order(lengths, packer=packer, **limits) == len(packs)


@pytest.mark.parametrize("packer", DECREASING)
def test_counting_takes_memory_for_the_distinct_lengths_alone(packer):
    def peak(times: int) -> tuple[int, int]:
        # By hand: 7 with 3, 6 with 4, and the 2s left by fives.
        histogram = np.array([0, 0, 5, 1, 1, 0, 1, 1]) * times
        tracemalloc.start()
        num_packs = count_packs(histogram, pack_length=10, packer=packer)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return num_packs, most

    few, most_of_few = peak(1000)
    many, most_of_many = peak(10**12)
    assert (few, many) == (3000, 3 * 10**12)
    assert most_of_many < 2 * most_of_few < 100_000


@pytest.mark.parametrize("packer", ["next-fit", "first-fit", "worst-fit"])
def test_a_histogram_cannot_give_the_packs_of_packers_that_go_by_order(packer):
    with pytest.raises(ValueError, match=f"'{packer}'.*depend on the order"):
        count_packs([0, 3, 2], pack_length=8, packer=packer)


@pytest.mark.parametrize(
    ("histogram", "message"),
    [
        ([1, 0], r"histogram\[0\] = 1"),
        ([0, 0, 0, 0, 0, 7], r"histogram\[5\] = 7"),
        ([0, 4, -2], r"histogram\[2\] = -2"),
    ],
)
def test_a_histogram_of_impossible_lengths_is_refused(histogram, message):
    with pytest.raises(ValueError, match=message):
        count_packs(histogram, pack_length=4)


def read_histogram(name: str) -> np.ndarray:
    """``(pack_length + 1,)`` counts by length, of Krell et al., arXiv 2107.02027."""
    path = SHARED / "packing" / "histograms.json"
    if not path.exists():
        pytest.skip(f"{path} is not here: the published histograms are no part of the package")
    # Entry i of the file counts the length i + 1.
    return np.array([0, *json.loads(path.read_text())[name]])


@pytest.mark.parametrize(
    ("name", "num_sequences", "bound", "num_packs"),
    [
        ("wikipedia_512", 16_279_552, 8_134_368, 8_138_483),
        ("squad_384", 88_641, 39_713, 40_631),
    ],
)
@pytest.mark.parametrize("packer", DECREASING)
def test_published_histograms_give_the_known_packs(name, num_sequences, bound, num_packs, packer):
    histogram = read_histogram(name)
    pack_length = len(histogram) - 1
    num_tokens = int((histogram * np.arange(len(histogram))).sum())
    assert histogram.sum() == num_sequences
    assert lower_bound(num_tokens, pack_length=pack_length) == bound
    assert count_packs(histogram, pack_length=pack_length, packer=packer) == num_packs


def test_squad_item_by_item_gives_the_packs_of_a_plain_best_fit():
    histogram = read_histogram("squad_384")
    lengths = np.repeat(np.arange(len(histogram)), histogram)
    np.random.default_rng(0).shuffle(lengths)
    rooms: list[int] = []
    num_packs = 0
    for length in sorted(lengths.tolist(), reverse=True):
        tightest = bisect_left(rooms, length)
        if tightest == len(rooms):
            num_packs += 1
            insort(rooms, 384 - length)
        else:
            insort(rooms, rooms.pop(tightest) - length)
    packs = PACKERS["best-fit-decreasing"](lengths, pack_length=384)
    assert num_packs == len(packs) == 40_631


def test_squad_with_two_segments_a_pack_takes_the_known_packs():
    # With two segments a pack, best-fit-decreasing is as good as the published packers.
    assert count_packs(read_histogram("squad_384"), pack_length=384, max_segments=2) == 45_335


@pytest.mark.parametrize(
    ("lengths_or_total", "expected"),
    [(0, 0), (1, 1), (8, 1), (9, 2), ([], 0), ([5, 4], 2), (np.array([8, 8]), 2)],
)
def test_lower_bound_is_the_tokens_over_the_pack_length_rounded_up(lengths_or_total, expected):
    assert lower_bound(lengths_or_total, pack_length=8) == expected
