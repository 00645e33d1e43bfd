"""The promises of cutting to fit."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from untimed import untimed

from spacepatch.cutting import Piece, pack_cut_to_fit

Items = list[tuple[int, int]]


@st.composite
def clips(draw: st.DrawFn) -> tuple[Items, int]:
    """Items as (num_rows, row_length), and a pack_length that no row exceeds."""
    pack_length = draw(st.sampled_from([1, 10, 64, 100, 1000, 8192]))
    longest_row = draw(st.integers(1, pack_length))
    item = st.tuples(st.integers(1, 40), st.integers(1, longest_row))
    return draw(st.lists(item, max_size=30)), pack_length


def cut_to_fit(items: Items, pack_length: int, **options: object) -> list[list[Piece]]:
    lengths = [num_rows * row_length for num_rows, row_length in items]
    row_lengths = [row_length for _, row_length in items]
    return pack_cut_to_fit(lengths, row_lengths, pack_length=pack_length, **options)


def num_tokens(pack: list[Piece], items: Items) -> int:
    return sum((stop - start) * items[item][1] for item, start, stop in pack)


def assert_rows_stand_once_in_order(packs: list[list[Piece]], items: Items) -> None:
    next_row = [0] * len(items)
    for pack in packs:
        assert len({item for item, _, _ in pack}) == len(pack)
        for item, start, stop in pack:
            assert start == next_row[item] < stop
            next_row[item] = stop
    assert next_row == [num_rows for num_rows, _ in items]


def cut_slowly(
    items: Items, pack_length: int, cap: int, can_cut: Callable[[int, int], bool]
) -> list[list[Piece]]:
    """The rules of `pack_cut_to_fit`, over a list that is sorted for every piece."""
    left = [(item, 0) for item in range(len(items))]
    spare, packs = pack_length // 100, []

    def tokens_of(part: tuple[int, int]) -> int:
        item, start = part
        return (items[item][0] - start) * items[item][1]

    def best_cut(free: int, spare: int) -> tuple[tuple[int, int], int] | None:
        best = None, 0
        for part in left[:100]:
            if tokens_of(part) <= free or free - best[1] <= spare:
                break
            item, start = part
            for rows in range(1, tokens_of(part) // items[item][1]):
                tokens = rows * items[item][1]
                fits = tokens <= free and tokens_of(part) - tokens >= spare
                if fits and tokens > best[1] and can_cut(item, start + rows):
                    best = part, tokens
        return best if best[1] else None

    while left:
        pack: list[Piece] = []
        rests: list[tuple[int, int]] = []
        free = pack_length
        while len(pack) < cap:
            left.sort(key=lambda part: (-tokens_of(part), part))
            total = sum(map(tokens_of, left + rests))
            whole = next((part for part in left if tokens_of(part) <= free), None)
            tokens = tokens_of(whole) if whole else 0
            num_left = len(left) + len(rests)
            is_scarce = total * cap <= num_left * pack_length
            is_last_pack = total - tokens <= pack_length and num_left <= cap + 1
            closes = not whole or (len(pack) == cap - 1 and not is_scarce)
            if left and not pack and tokens_of(left[0]) > pack_length:
                whole, tokens = best_cut(free, spare) or best_cut(free, 0)
            elif closes and free - tokens > spare and not is_last_pack:
                cut = best_cut(free, spare)
                whole, tokens = cut if cut and cut[1] > tokens else (whole, tokens)
            if whole is None:
                break
            left.remove(whole)
            item, start = whole
            stop = start + tokens // items[item][1]
            pack.append((item, start, stop))
            if stop < items[item][0]:
                rests.append((item, stop))
            free -= tokens
        packs.append(pack)
        left += rests
    return packs


@untimed
@given(clips=clips(), every=st.integers(1, 3), max_segments=st.none() | st.integers(1, 5))
def test_cut_to_fit_does_what_its_brute_force_does(clips, every, max_segments):
    items, pack_length = clips
    items = [item for item in items if every * item[1] <= pack_length]

    def can_cut(item: int, row: int) -> bool:
        return (item + row) % every == 0

    packs = cut_to_fit(items, pack_length, max_segments=max_segments, can_cut=can_cut)
    assert packs == cut_slowly(items, pack_length, max_segments or pack_length, can_cut)


@pytest.mark.parametrize("rows", [(30,), (7, 30), tuple(range(3, 40))])
def test_many_clips_of_few_or_many_rows_are_cut_as_by_brute_force(rows):
    draw = np.random.default_rng(len(rows))
    items = [(int(draw.integers(1, 30)), int(draw.choice(rows))) for _ in range(150)]
    assert cut_to_fit(items, 500) == cut_slowly(items, 500, 500, lambda item, row: True)


@untimed
@given(clips=clips(), max_segments=st.none() | st.integers(1, 5))
def test_cut_to_fit_keeps_every_row_once_within_the_limits(clips, max_segments):
    items, pack_length = clips
    packs = cut_to_fit(items, pack_length, max_segments=max_segments)
    assert_rows_stand_once_in_order(packs, items)
    assert all(0 < num_tokens(pack, items) <= pack_length for pack in packs)
    assert all(len(pack) <= (max_segments or pack_length) for pack in packs)


@untimed
@given(clips=clips())
@example(clips=([(100, 16), (100, 16)], 8192))
def test_cut_to_fit_fills_packs_to_within_a_row_and_one_percent(clips):
    items, pack_length = clips
    packs = cut_to_fit(items, pack_length)
    longest_row = max((row_length for _, row_length in items), default=0)
    for pack in packs[:-2]:
        assert pack_length - num_tokens(pack, items) < longest_row + pack_length // 100


@untimed
@given(clips=clips())
def test_cut_to_fit_leaves_no_slivers_of_the_items_it_cuts(clips):
    items, pack_length = clips
    for pack in cut_to_fit(items, pack_length):
        for item, start, stop in pack:
            num_rows, row_length = items[item]
            if start > 0 and stop == num_rows:
                assert (stop - start) * row_length >= pack_length // 100


@untimed
@given(clips=clips(), every=st.integers(2, 5), max_segments=st.none() | st.integers(1, 5))
def test_cut_to_fit_cuts_only_where_it_may(clips, every, max_segments):
    items, pack_length = clips
    items = [item for item in items if every * item[1] <= pack_length]
    packs = cut_to_fit(
        items,
        pack_length,
        max_segments=max_segments,
        can_cut=lambda item, row: (item + row) % every == 0,
    )
    assert_rows_stand_once_in_order(packs, items)
    for pack in packs:
        assert num_tokens(pack, items) <= pack_length
        for item, _, stop in pack:
            assert stop == items[item][0] or (item + stop) % every == 0


@untimed
@given(clips=clips())
def test_cut_to_fit_gives_equal_packs_for_equal_inputs(clips):
    items, pack_length = clips
    assert cut_to_fit(items, pack_length) == cut_to_fit(items, pack_length)


def test_five_hundred_equal_clips_fill_their_packs():
    items = [(20, 240)] * 500
    packs = cut_to_fit(items, 8192)
    assert_rows_stand_once_in_order(packs, items)
    fill = 500 * 20 * 240 / (8192 * len(packs))
    assert fill >= 0.98
    # No pack needs more than one cut to close it.
    assert sum(len(pack) for pack in packs) - 500 <= len(packs)


@untimed
@given(seed=st.integers(0, 2**32 - 1))
def test_mixed_clips_of_small_rows_fill_their_packs(seed):
    draw = np.random.default_rng(seed)
    items = [(int(draw.integers(1, 120)), int(draw.integers(60, 260))) for _ in range(300)]
    packs = cut_to_fit(items, 8192)
    fill = sum(num_rows * row for num_rows, row in items) / (8192 * len(packs))
    assert fill >= 0.97


def test_items_that_fill_their_packs_to_one_percent_are_not_cut():
    items = [(68, 120), (17, 480), (1, 8192), (340, 24)] * 20  # 8160 of 8192 tokens, or all
    assert sum(len(pack) for pack in cut_to_fit(items, 8192)) == 80


def test_nothing_is_cut_that_fits_the_last_pack_whole():
    assert cut_to_fit([(20, 240), (20, 240)], 8192) == [[(0, 0, 20)], [(1, 0, 20)]]


def test_an_item_longer_than_a_pack_is_cut_no_more_than_it_must_be():
    assert cut_to_fit([(7, 10)], 30) == [[(0, 0, 3)], [(0, 3, 6)], [(0, 6, 7)]]


def test_an_item_that_may_not_be_cut_and_fits_no_pack_is_named():
    with pytest.raises(ValueError, match="item 1: can_cut lets no piece of 70 tokens fit"):
        cut_to_fit([(3, 10), (7, 10)], 30, can_cut=lambda item, row: row == 4)


def test_no_items_give_no_packs():
    assert cut_to_fit([], 8) == []


@pytest.mark.parametrize(
    ("lengths", "row_lengths", "message"),
    [
        ([8, 0], [4, 4], r"lengths\[1\] = 0: must be at least 1"),
        ([8, 18], [4, 9], r"row_lengths\[1\] = 9: must be in \[1, 8\]"),
        ([8, 10], [4, 4], r"lengths\[1\] = 10: no multiple of its rows, 4"),
        ([8, 8], [4], "2 lengths, but 1 row_lengths"),
    ],
)
def test_items_that_are_no_whole_rows_are_named(lengths, row_lengths, message):
    with pytest.raises(ValueError, match=message):
        pack_cut_to_fit(lengths, row_lengths, pack_length=8)
