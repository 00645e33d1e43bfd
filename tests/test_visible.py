"""Masks of masked prediction: each model's counts, and V-JEPA's generator restated."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from untimed import untimed

from spacepatch.randomness import Draws
from spacepatch.visible import parse_mask

GRIDS = st.tuples(st.integers(1, 6), st.integers(1, 18), st.integers(1, 18))


def visible(text: str, grid: tuple[int, int, int], key: object = 0) -> np.ndarray:
    """``(T, H, W)``."""
    seen = parse_mask(text).visible(grid, Draws(text, key))
    assert seen.dtype == bool
    assert seen.shape == (math.prod(grid),)
    return seen.reshape(grid)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("random:0.750", "random:0.75"),
        ("random:3/4", "random:0.75"),
        ("tube:0.9", "tube:0.9"),
        ("tube:0", "tube:0"),
        (" multi-block ", "multi-block"),
        ("multi-block:long", "multi-block:long"),
    ],
)
def test_what_means_the_same_is_spelled_the_same(text: str, canonical: str) -> None:
    assert str(parse_mask(text)) == canonical
    assert parse_mask(canonical) == parse_mask(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "none of random:R, tube:R, multi-block and multi-block:long"),
        ("random", "none of"),
        ("random:uniform:0..0.5", "none of"),
        ("tube:-1", "none of"),
        ("multi-block:short", "none of"),
        ("blocks:0.5", "none of"),
        ("tube:1", "R is below 1"),
        ("random:1/0", "divides by 0"),
    ],
)
def test_what_is_no_mask_is_refused_with_what_is_allowed(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_mask(text)


@pytest.mark.parametrize(
    ("text", "grid", "num_visible"),
    [
        ("random:0.75", (1, 14, 14), 49),  # MAE: int(L (1 - r)) of the whole sequence
        ("random:0.9", (8, 14, 14), 156),
        ("random:0.9", (1, 10, 10), 9),  # 100 * (1 - 0.9) is 9.999999999999998
        ("random:0.99", (1, 2, 2), 1),
        ("tube:0.9", (8, 14, 14), 160),  # VideoMAE: int(r L) of each frame are masked
        ("tube:0.9", (1, 14, 14), 20),
        ("tube:0.75", (3, 3, 3), 9),
        ("tube:0.99", (4, 1, 1), 4),
    ],
)
def test_as_many_tokens_are_visible_as_the_model_sees(
    text: str, grid: tuple[int, int, int], num_visible: int
) -> None:
    assert visible(text, grid).sum() == num_visible


@given(GRIDS, st.integers(), st.integers(0, 99))
@untimed
def test_a_tube_is_one_map_for_every_t(grid: tuple[int, int, int], key: int, rate: int) -> None:
    seen = visible(f"tube:{rate / 100}", grid, key)
    cells = grid[1] * grid[2]
    assert (seen == seen[0]).all()
    assert seen[0].sum() == max(1, cells - int(rate / 100 * cells))


@pytest.mark.parametrize("text", ["random:0.75", "tube:0.75"])
def test_every_token_is_as_likely_to_be_visible(text: str) -> None:
    counts = np.zeros((2, 4, 4))
    for key in range(2000):
        counts += visible(text, (2, 4, 4), key)
    # Each Binomial(2000, 1/4): a standard deviation of 19.4.
    assert abs(counts - 500).max() < 4.5 * 19.4


def test_a_random_mask_differs_from_row_to_row() -> None:
    seen = visible("random:0.5", (2, 8, 8))
    assert (seen[0] != seen[1]).any()


# --- multi-block ---


def blocks_of(text: str, grid: tuple[int, int, int], draws: Draws) -> np.ndarray:
    """V-JEPA's generator restated, one cell at a time, with our draws for its."""
    count, scale = {"multi-block": (8, 0.15), "multi-block:long": (2, 0.7)}[text]
    _, rows, columns = grid
    keep = int(rows * columns * scale)
    ratio = 0.75 + 0.75 * draws.uniform()
    h = min(round(math.sqrt(keep * ratio)), rows)
    w = min(round(math.sqrt(keep / ratio)), columns)
    while True:
        places = [
            (draws.integer(rows - h + 1), draws.integer(columns - w + 1)) for _ in range(count)
        ]
        seen = [
            not any(y <= row < y + h and x <= column < x + w for y, x in places)
            for row in range(rows)
            for column in range(columns)
        ]
        if any(seen):
            return np.array(seen * grid[0]).reshape(grid)


@pytest.mark.parametrize("text", ["multi-block", "multi-block:long"])
@given(grid=GRIDS, key=st.integers())
@untimed
def test_blocks_are_those_of_v_jepa(text: str, grid: tuple[int, int, int], key: int) -> None:
    expected = blocks_of(text, grid, Draws(text, key))
    np.testing.assert_array_equal(visible(text, grid, key), expected)


@pytest.mark.parametrize("text", ["multi-block", "multi-block:long"])
@pytest.mark.parametrize("height", range(1, 7))
@pytest.mark.parametrize("width", range(1, 7))
def test_at_least_one_token_stays_visible_in_the_smallest_grids(
    text: str, height: int, width: int
) -> None:
    for key in range(40):
        seen = visible(text, (2, height, width), key)
        assert seen.any()
        assert (seen[0] == seen[1]).all()
