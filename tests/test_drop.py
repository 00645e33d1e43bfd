"""Dropping at random: spelling, counts by each model's rounding, and choices by brute force."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from untimed import untimed

from spacepatch.drop import Drawn, drop_rate_at, keep_random, parse_drop
from spacepatch.randomness import Draws

LENGTH = "random:length:0.2..0.8:64..1024"


def draw(text: str, key: object = 0) -> Drawn:
    return parse_drop(text).draw(Draws(text, key))


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("random:0.50", "random:0.5"),
        ("random:1/2", "random:0.5"),
        ("random:uniform:0.1..0.90", "random:uniform:0.1..0.9"),
        ("random:beta:0.5,0.8", "random:beta:0.5,0.8"),
        ("random:length:0.20..0.8:064..1024", LENGTH),
        ("random:length:0.9..0:1..2", "random:length:0.9..0:1..2"),
        ("tokens:0256", "tokens:256"),
        ("static", "static:0.1"),
        (" static:0.10 ", "static:0.1"),
        ("static:0", "static:0"),
    ],
)
def test_what_means_the_same_is_spelled_the_same(text: str, canonical: str) -> None:
    assert str(parse_drop(text)) == canonical
    assert parse_drop(canonical) == parse_drop(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is none of random:RATE"),
        ("half", "static:THRESHOLD"),
        ("0.5", "is none of random:RATE"),
        ("random", "the rate '' is none of"),
        ("random:fast", "'random:fast': the rate 'fast' is none of"),
        ("random:1", "rates are below 1"),
        ("random:uniform:0..1", "rates are below 1"),
        ("random:0.5,1.5", "rates are below 1"),
        ("random:-0.5", "is none of"),
        ("random:length:0.2..0.8", "MU0..MU1:N0..N1"),
        ("random:length:0.2..0.8:64..64", "N0 is above 0 and below N1"),
        ("random:length:0.2..0.8:0..64", "N0 is above 0 and below N1"),
        ("random:length:0.2..0.96:1..64", "below 0.96"),
        ("random:length:0.2..1/0:1..64", "divides by 0"),
        ("tokens", "tokens:N"),
        ("tokens:0", "tokens:N"),
        ("tokens:1.5", "tokens:N"),
        ("static:", "static:THRESHOLD"),
        ("static:low", "static:THRESHOLD"),
    ],
)
def test_what_drops_nothing_sensible_is_refused_with_what_is_allowed(
    text: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        parse_drop(text)


@pytest.mark.parametrize(
    ("text", "num_tokens", "num_kept", "written"),
    [
        ("random:0.75", 196, 49, "random 0.75"),  # MAE
        ("random:0.9", 1568, 156, "random 0.9"),  # 156.8
        ("random:0.9", 100, 9, "random 0.9"),  # 100 * (1 - 0.9) is 9.999999999999998, as in MAE
        ("random:0.99", 10, 1, "random 0.99"),  # at least one stays
        ("random:0", 7, 7, "random 0"),
        ("random:1/3", 9, 6, "random 1/3"),
        ("tokens:256", 1000, 256, "tokens 256"),
        ("tokens:256", 100, 100, "tokens 256"),
        ("static", 100, 100, "static 0.1"),
        ("static:0.25", 1, 1, "static 0.25"),
    ],
)
def test_kept_tokens_are_counted_as_the_models_count_them(
    text: str, num_tokens: int, num_kept: int, written: str
) -> None:
    drawn = draw(text)
    assert drawn.num_kept(num_tokens) == num_kept
    assert str(drawn) == str(drawn.at(num_tokens)) == written
    assert drawn.is_bound == text.startswith("static")


def test_a_rate_is_drawn_once_for_a_clip() -> None:
    rates = [draw("random:uniform:0.2..0.6", key) for key in range(200)]
    kept = np.array([rate.num_kept(10_000) for rate in rates])
    assert kept.min() >= 4000
    assert kept.max() <= 8000
    assert abs(kept.mean() - 6000) < 4 * 4000 / math.sqrt(12 * 200)
    noted = np.array([float(str(rate).split()[1]) for rate in rates])
    np.testing.assert_allclose(kept, 10_000 * (1 - noted), atol=1)
    assert len(set(noted)) == 200


# --- by length (NaViT A.5) ---


@pytest.mark.parametrize(
    ("num_tokens", "mean"), [(1, 0.2), (64, 0.2), (304, 0.35), (544, 0.5), (1024, 0.8), (9**9, 0.8)]
)
def test_a_rate_by_length_is_a_narrow_normal_around_a_line(num_tokens: int, mean: float) -> None:
    drawn = [draw(LENGTH, key).at(num_tokens) for key in range(4000)]
    rates = np.array([float(str(one).split()[1]) for one in drawn])
    assert abs(rates - mean).max() <= 0.04 + 1e-9
    assert len(set(rates)) > 3500  # to a millionth: 4,000 draws of 80,000 numbers
    # N(mu, 0.02) cut at 2 sigma has a standard deviation of 0.8796 * 0.02.
    assert rates.std() == pytest.approx(0.8796 * 0.02, rel=0.04)
    assert abs(rates.mean() - mean) < 4 * 0.0176 / math.sqrt(4000)


def test_what_is_noted_of_a_rate_by_length_gives_its_count_again() -> None:
    for key, num_tokens in enumerate([1, 10, 64, 100, 777, 1024, 50_000]):
        drawn = draw(LENGTH, key)
        word, rate = str(drawn.at(num_tokens)).split()
        assert word == "random"
        assert parse_drop(f"random:{rate}").draw(Draws()).num_kept(num_tokens) == drawn.num_kept(
            num_tokens
        )
    assert ".." in str(drawn)


def test_rates_by_length_are_never_below_0() -> None:
    drawn = [draw("random:length:0..0.01:10..20", key) for key in range(100)]
    kept = [one.num_kept(10_000) for one in drawn]
    assert max(kept) == 10_000
    assert min(kept) < 9_900


# --- which ones ---


@given(st.integers(1, 200), st.data())
@untimed
def test_kept_tokens_are_those_of_lowest_rank(num_tokens: int, data: st.DataObject) -> None:
    num_kept = data.draw(st.integers(1, num_tokens))
    key = data.draw(st.integers())
    kept = keep_random(num_tokens, num_kept, draws=Draws(key))
    words = Draws(key).uniforms(num_tokens)
    ranked = sorted(range(num_tokens), key=lambda index: words[index])
    assert kept.dtype == np.uint32
    assert kept.tolist() == sorted(ranked[:num_kept])


@given(st.integers(1, 12), st.integers(1, 12), st.data())
@untimed
def test_damage_only_takes_away(num_rows: int, num_cells: int, data: st.DataObject) -> None:
    num_tokens = num_rows * num_cells
    num_kept, key = data.draw(st.integers(1, num_tokens)), data.draw(st.integers())
    rows = data.draw(st.lists(st.booleans(), min_size=num_rows, max_size=num_rows).filter(any))
    usable = {index for index in range(num_tokens) if rows[index // num_cells]}
    words = Draws(key).uniforms(num_tokens)
    ranked = sorted(range(num_tokens), key=lambda index: words[index])
    expected = sorted(set(ranked[:num_kept]) & usable)
    expected = expected or [next(index for index in ranked if index in usable)]
    for available in (np.array(rows), np.repeat(rows, num_cells)):
        kept = keep_random(num_tokens, num_kept, draws=Draws(key), available=available)
        assert kept.dtype == np.uint32
        assert kept.tolist() == expected


def test_every_token_is_as_likely_to_be_kept() -> None:
    counts = np.zeros(20)
    for key in range(2000):
        counts[keep_random(20, 5, draws=Draws("keep", key))] += 1
    # Each Binomial(2000, 1/4): a standard deviation of 19.4.
    assert abs(counts - 500).max() < 4.5 * 19.4


@pytest.mark.parametrize("num_kept", [0, 11])
def test_keeping_none_or_more_than_there_are_is_refused(num_kept: int) -> None:
    with pytest.raises(ValueError, match=r"1 \.\. 10"):
        keep_random(10, num_kept, draws=Draws())


@pytest.mark.parametrize("available", [[False, False], [True, True, True]])
def test_rows_that_are_all_absent_or_do_not_divide_the_grid_are_refused(
    available: list[bool],
) -> None:
    with pytest.raises(ValueError, match="are available"):
        keep_random(10, 5, draws=Draws(), available=np.array(available))


# --- the loader's schedule ---


def test_the_schedule_falls_from_high_to_low() -> None:
    rates = [drop_rate_at(step, 1000) for step in range(1001)]
    assert all(later < earlier for earlier, later in pairwise(rates))
    assert rates[0] == pytest.approx(0.8, abs=0.005)
    assert rates[500] == pytest.approx(0.5)
    assert rates[1000] == pytest.approx(0.2, abs=0.005)
    # rho_min + (rho_max - rho_min) sigmoid((n - mu) / tau), as in the paper.
    assert rates[300] == pytest.approx(0.2 + 0.6 / (1 + math.exp(-(300 - 500) / -100)))


def test_a_schedule_of_other_rates() -> None:
    assert drop_rate_at(5, 10, high=0.6, low=0.6) == pytest.approx(0.6)
    with pytest.raises(ValueError, match=r"0\.2 down to 0\.8"):
        drop_rate_at(5, 10, high=0.2, low=0.8)
    with pytest.raises(ValueError, match="0 steps"):
        drop_rate_at(0, 0)
