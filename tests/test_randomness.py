"""Draws: held against Philox in plain integers, literal values, and formulas of moments."""

from __future__ import annotations

import hashlib
import math
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from untimed import untimed

from spacepatch.randomness import Draws

MASK = 2**64 - 1


def philox_words(key: str, num: int) -> list[int]:
    """Philox 4x64-10 after Salmon et al. 2011, counters 1, 2, ..; key: blake2b-128, little end
    first."""
    digest = hashlib.blake2b(key.encode(), digest_size=16).digest()
    words: list[int] = []
    counter = 0
    while len(words) < num:
        counter += 1
        a, b, c, d = counter, 0, 0, 0
        low, high = int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")
        for _ in range(10):
            first, second = a * 0xD2E7470EE14C6C93, c * 0xCA5A826395121157
            a, b = (second >> 64) ^ b ^ low, second & MASK
            c, d = (first >> 64) ^ d ^ high, first & MASK
            low, high = (low + 0x9E3779B97F4A7C15) & MASK, (high + 0xBB67AE8584CAA73B) & MASK
        words += [a, b, c, d]
    return words[:num]


def truncated_moments(mean: float, sigma: float, low: float, high: float) -> tuple[float, float]:
    """By numeric integration."""
    x = np.linspace(low, high, 200_001)
    weight = np.exp(-(((x - mean) / sigma) ** 2) / 2)
    weight /= weight.sum()
    first = (weight * x).sum()
    return first, (weight * (x - first) ** 2).sum()


def test_words_are_those_of_philox() -> None:
    draws = Draws(17, "view", 3)
    expected = [(word >> 11) / 2**53 for word in philox_words("17\0view\x003", 11)]
    assert [draws.uniform() for _ in range(11)] == expected


def test_many_at_once_are_the_same_as_one_by_one() -> None:
    one, many = Draws("k"), Draws("k")
    assert [one.uniform() for _ in range(9)] == [*many.uniforms(2), *many.uniforms(7)]
    assert many.uniforms(0).shape == (0,)


LITERALS = """
from spacepatch.randomness import Draws
print(Draws(0, "f" * 32, "s", 0, 0).uniforms(3).tolist(), Draws(7, "clip").order(10).tolist())
draws = Draws("x")
print([draws.integer(100) for _ in range(8)])
print(round(draws.truncated_normal(0.3, 0.02, 0.26, 0.34), 12), round(draws.beta(1.75, 7 / 12), 12))
"""


@pytest.mark.parametrize("hash_seed", ["0", "123"])
def test_another_process_draws_these_very_numbers(hash_seed: str) -> None:
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    command = [sys.executable, "-c", LITERALS]
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert result.stdout.splitlines() == [
        "[0.20994872161971367, 0.9215083187924189, 0.2163295738393619] "
        "[1, 6, 2, 5, 8, 7, 4, 9, 3, 0]",
        "[70, 75, 42, 99, 29, 24, 26, 39]",
        "0.316890626153 0.884869572259",
    ]


def test_a_key_is_its_parts_as_text_and_in_their_order() -> None:
    assert Draws(1, "23").uniform() == Draws("1", 23).uniform()
    others = [Draws(12, 3), Draws(123), Draws("23", 1), Draws(1, "23", ""), Draws()]
    assert len({draws.uniform() for draws in [Draws(1, "23"), *others]}) == 6


def test_integers_are_equally_likely() -> None:
    draws = Draws("integers")
    counts = np.bincount([draws.integer(7) for _ in range(7000)], minlength=7)
    # Chi-square of 6 degrees of freedom: above 27 once in 10,000 keys.
    assert len(counts) == 7
    assert ((counts - 1000) ** 2 / 1000).sum() < 27


def test_words_that_would_make_small_integers_likelier_are_passed_over() -> None:
    draws, stop = Draws("fair"), 3 * 2**62
    words = philox_words("fair", 40)
    expected = [word for word in words if word < stop]
    assert 20 < len(expected) < 40
    assert [draws.integer(stop) for _ in expected] == expected


def test_one_integer_is_always_0_and_none_is_refused() -> None:
    assert Draws("k").integer(1) == 0
    assert Draws("k").integer(2**64) == philox_words("k", 1)[0]
    with pytest.raises(ValueError, match="stop is 0"):
        Draws("k").integer(0)


@pytest.mark.parametrize(
    "normal",
    [(0.0, 1.0, -2.0, 2.0), (0.5, 0.02, 0.46, 0.54), (-0.5, 1.0, -1.0, 1.0), (0.0, 1.0, 5.0, 6.0)],
)
def test_truncated_normals_have_the_moments_of_their_formula(
    normal: tuple[float, float, float, float],
) -> None:
    draws, num = Draws("normal", *normal), 20_000
    values = np.array([draws.truncated_normal(*normal) for _ in range(num)])
    mean, variance = truncated_moments(*normal)
    assert normal[2] <= values.min() < values.max() <= normal[3]
    assert abs(values.mean() - mean) < 4 * math.sqrt(variance / num)
    assert values.var() == pytest.approx(variance, rel=0.06)


def test_a_range_narrower_than_the_digits_of_the_inverse_is_kept_to() -> None:
    low = math.pi
    high = math.nextafter(math.nextafter(low, 4), 4)
    draws = Draws("narrow")
    values = {draws.truncated_normal(3.0, 1.0, low, high) for _ in range(100)}
    assert values <= {low, math.nextafter(low, 4), high}


def test_a_normal_without_weight_in_its_range_is_refused() -> None:
    with pytest.raises(ValueError, match="no weight"):
        Draws("k").truncated_normal(0.0, 1.0, 50.0, 60.0)


@given(st.integers(), st.floats(-40, 40), st.floats(0.001, 100))
@untimed
def test_truncated_normals_stay_within_their_bounds(key: int, low: float, width: float) -> None:
    try:
        value = Draws(key).truncated_normal(0.0, 1.0, low, low + width)
    except ValueError:
        assert low > 37 or low + width < -37
    else:
        assert low <= value <= low + width


@pytest.mark.parametrize("a", [0.05, 0.6, 7 / 6, 1.0, 2.2])
def test_betas_have_the_moments_of_their_formula(a: float) -> None:
    draws, num, b = Draws("beta", a), 20_000, 7 / 3 - a
    values = np.array([draws.beta(a, b) for _ in range(num)])
    mean, variance = a / (a + b), a * b / (a + b) ** 2 / (a + b + 1)
    assert 0 <= values.min() < values.max() <= 1
    assert abs(values.mean() - mean) < 4 * math.sqrt(variance / num)
    assert values.var() == pytest.approx(variance, rel=0.08)


def test_a_beta_of_1_and_1_is_uniform() -> None:
    draws = Draws("flat")
    counts = np.bincount([int(draws.beta(1, 1) * 8) for _ in range(8000)], minlength=8)
    assert ((counts - 1000) ** 2 / 1000).sum() < 30  # 7 degrees of freedom: once in 10,000


@pytest.mark.parametrize("shape", [(0, 1), (1, -1), (math.nan, 1)])
def test_shapes_that_no_beta_has_are_refused(shape: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="above 0"):
        Draws("k").beta(*shape)


@given(st.integers(0, 300), st.integers())
@untimed
def test_an_order_is_a_permutation_by_the_words(num: int, key: int) -> None:
    order = Draws(key).order(num).tolist()
    words = philox_words(str(key), num)
    assert order == sorted(range(num), key=lambda index: words[index])
    assert sorted(order) == list(range(num))


def test_every_place_of_an_order_is_equally_likely() -> None:
    counts = np.zeros((5, 5))
    for key in range(5000):
        counts[np.arange(5), Draws("order", key).order(5)] += 1
    # 16 degrees of freedom: above 45 once in 10,000.
    assert ((counts - 1000) ** 2 / 1000).sum() < 45
