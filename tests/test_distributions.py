"""Distributions of settings: spelling, bounds, and moments against their formulas."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from untimed import untimed

from spacepatch.distributions import parse_distribution
from spacepatch.randomness import Draws

NUM = 8000


def drawn(text: str) -> np.ndarray:
    distribution = parse_distribution(text)
    return np.array([float(distribution.draw(Draws(text, key))) for key in range(NUM)])


@pytest.mark.parametrize(
    ("text", "canonical", "lowest", "highest"),
    [
        ("8", "8", 8, 8),
        ("8.0", "8", 8, 8),
        ("16/2", "8", 8, 8),
        (" 08 ", "8", 8, 8),
        ("29.97", "29.97", Fraction(2997, 100), Fraction(2997, 100)),
        ("30000/1001", "30000/1001", Fraction(30000, 1001), Fraction(30000, 1001)),
        ("60000/2002", "30000/1001", Fraction(30000, 1001), Fraction(30000, 1001)),
        ("0.050", "0.05", Fraction(1, 20), Fraction(1, 20)),
        ("1/40", "0.025", Fraction(1, 40), Fraction(1, 40)),
        ("0", "0", 0, 0),
        ("4,2.0,8", "4,2,8", 2, 8),
        ("2,2,4", "2,2,4", 2, 4),
        ("uniform:2.0..8", "uniform:2..8", 2, 8),
        ("uniform:0..1/3", "uniform:0..1/3", 0, Fraction(1, 3)),
        ("truncnormal:-0.50,1.0:64..384", "truncnormal:-0.5,1:64..384", 64, 384),
        ("truncnormal:0,1/2:64..384:area", "truncnormal:0,0.5:64..384:area", 64, 384),
        ("truncnormal:-2,0.1:1..2", "truncnormal:-2,0.1:1..2", 1, 2),
        ("beta:1/2,0.80", "beta:0.5,0.8", 0, Fraction(4, 5)),
    ],
)
def test_what_means_the_same_is_spelled_the_same(
    text: str, canonical: str, lowest: Fraction, highest: Fraction
) -> None:
    distribution = parse_distribution(text)
    assert str(distribution) == canonical
    assert parse_distribution(canonical) == distribution
    assert (distribution.lowest, distribution.highest) == (lowest, highest)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'' is none of a number"),
        ("fast", "uniform:LO..HI"),
        ("-1", "is none of"),
        ("1e3", "is none of"),
        ("٣", "is none of"),
        ("2,,4", "is none of"),
        ("2, 4", "is none of"),
        ("1.5/2", "is none of"),
        ("uniform:2-8", "is none of"),
        ("uniform:-1..8", "is none of"),
        ("truncnormal:0,1:64..384:volume", "is none of"),
        ("1/0", "1/0 divides by 0"),
        ("uniform:8..2", "LO is below HI"),
        ("uniform:8..8", "LO is below HI"),
        ("truncnormal:0,0:1..2", "SIGMA is above 0"),
        ("truncnormal:50,1:1..2", "within 30 SIGMA"),
        ("beta:0.8,0.8", "below MAX"),
        ("beta:0,0.8", "MEAN is above 0"),
    ],
)
def test_what_is_no_distribution_is_refused_with_what_is_allowed(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_distribution(text)


NUMBERS = st.one_of(
    st.integers(0, 10**6).map(Fraction),
    st.fractions(0, 1000, max_denominator=1001),
    st.integers(0, 10**9).map(lambda millionths: Fraction(millionths, 10**6)),
)


@given(st.lists(NUMBERS, min_size=1, max_size=4), NUMBERS, NUMBERS, st.integers())
@untimed
def test_spelling_and_reading_are_inverse_and_draws_stay_within_bounds(
    values: list[Fraction], first: Fraction, second: Fraction, key: int
) -> None:
    low, high = min(first, second), max(first, second) + Fraction(1, 7)
    texts = [",".join(map(str, values)), f"uniform:{low}..{high}", f"beta:{high / 3},{high}"]
    texts += [f"truncnormal:-0.3,0.7:{low}..{high}{end}" for end in ("", ":area")]
    for text in texts:
        distribution = parse_distribution(text)
        assert parse_distribution(str(distribution)) == distribution
        value = distribution.draw(Draws(key))
        assert isinstance(value, Fraction)
        assert distribution.lowest <= value <= distribution.highest


def test_ranges_are_drawn_to_a_millionth() -> None:
    for text in ["uniform:0..7", "beta:0.3,0.9", "truncnormal:0,1:1..9:area"]:
        value = parse_distribution(text).draw(Draws(1))
        assert (value * 10**6).denominator == 1
        assert (value * 10**4).denominator > 1


def test_rounding_to_a_millionth_never_leaves_the_range() -> None:
    # A third is above 0.333333, which all of the range rounds to.
    assert set(drawn("uniform:1/3..0.3333335")) == {1 / 3}


def test_the_same_key_draws_these_very_numbers() -> None:
    texts = ["2,4,8", "uniform:64..256", "truncnormal:-0.5,1:64..384", "beta:0.5,0.8"]
    values = [float(parse_distribution(text).draw(Draws(5, "view"))) for text in texts]
    assert values == [2.0, 240.062342, 333.07474, 0.310999]


def test_the_numbers_of_a_choice_are_equally_likely_and_one_named_twice_counts_twice() -> None:
    values, counts = np.unique(drawn("2,8,4,8"), return_counts=True)
    assert values.tolist() == [2, 4, 8]
    expected = np.array([NUM / 4, NUM / 4, NUM / 2])
    # 2 degrees of freedom: above 18.5 once in 10,000.
    assert ((counts - expected) ** 2 / expected).sum() < 18.5


def close(values: np.ndarray, mean: float, variance: float) -> bool:
    """Within 4 standard errors of the mean, and 8 % of the variance."""
    near = abs(values.mean() - mean) < 4 * math.sqrt(variance / NUM)
    return near and values.var() == pytest.approx(variance, rel=0.08)


def test_a_uniform_has_its_moments() -> None:
    assert close(drawn("uniform:64..256"), 160, 192**2 / 12)


def truncated_moments(mean: float, sigma: float) -> tuple[float, float]:
    """Of N(mean, sigma) cut to [-1, 1], by numeric integration."""
    u = np.linspace(-1, 1, 200_001)
    weight = np.exp(-(((u - mean) / sigma) ** 2) / 2)
    weight /= weight.sum()
    first = (weight * u).sum()
    return first, (weight * (u - first) ** 2).sum()


@pytest.mark.parametrize(("mean", "sigma"), [("-0.5", "1"), ("0", "0.5"), ("-2", "0.3")])
def test_a_truncated_normal_has_its_moments_along_the_side(mean: str, sigma: str) -> None:
    first, second = truncated_moments(float(mean), float(sigma))
    values = drawn(f"truncnormal:{mean},{sigma}:64..384")
    assert close(values, 64 + (first + 1) / 2 * 320, second * 160**2)


def test_area_makes_the_square_of_the_side_linear_in_the_normal() -> None:
    first, second = truncated_moments(-0.5, 1)
    span = 384**2 - 64**2
    areas = drawn("truncnormal:-0.5,1:64..384:area") ** 2
    assert close(areas, 64**2 + (first + 1) / 2 * span, second * (span / 2) ** 2)


def test_both_ways_of_a_truncated_normal_share_their_draw() -> None:
    side, area = (
        float(parse_distribution(f"truncnormal:-0.5,1:64..384{end}").draw(Draws(3)))
        for end in ("", ":area")
    )
    share = (side - 64) / 320
    assert area == pytest.approx(math.sqrt(64**2 + share * (384**2 - 64**2)), abs=1e-4)


@pytest.mark.parametrize(("mean", "highest"), [(0.5, 0.8), (0.1, 0.9), (0.85, 0.9)])
def test_a_beta_has_the_mean_and_variance_of_navit(mean: float, highest: float) -> None:
    share = mean / highest
    values = drawn(f"beta:{mean},{highest}")
    assert close(values, mean, 0.3 * share * (1 - share) * highest**2)
