"""Distributions of a setting, such as `uniform:64..256`: read, drawn from, and written back."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from spacepatch.randomness import Draws

_MILLION = 10**6
NUMBER = r"[0-9]{1,18}(?:\.[0-9]{1,18}|/[0-9]{1,18})?"
"""Pattern of a number that is not negative: ``8``, ``29.97``, ``30000/1001``."""

_ALLOWED = (
    "a number (8, 29.97, 30000/1001), a choice of them (2,4,8), uniform:LO..HI, "
    "truncnormal:MU,SIGMA:LO..HI, truncnormal:MU,SIGMA:LO..HI:area or beta:MEAN,MAX"
)


@dataclass(frozen=True, slots=True)
class Choice:
    """One of several numbers, each as likely as the others; a number that is named twice counts
    twice. A single number is a choice of one."""

    values: tuple[Fraction, ...]

    def __str__(self) -> str:
        return ",".join(map(write_number, self.values))

    @property
    def lowest(self) -> Fraction:
        return min(self.values)

    @property
    def highest(self) -> Fraction:
        return max(self.values)

    def draw(self, draws: Draws) -> Fraction:
        if len(self.values) == 1:
            return self.values[0]
        return self.values[draws.integer(len(self.values))]


@dataclass(frozen=True, slots=True)
class Uniform:
    """Any number of a range, all equally likely."""

    lowest: Fraction
    highest: Fraction

    def __str__(self) -> str:
        return f"uniform:{write_number(self.lowest)}..{write_number(self.highest)}"

    def draw(self, draws: Draws) -> Fraction:
        value = float(self.lowest) + draws.uniform() * float(self.highest - self.lowest)
        return _millionths(value, self.lowest, self.highest)


@dataclass(frozen=True, slots=True)
class TruncNormal:
    """u ~ N(mean, sigma) cut to [-1, 1], which is mapped to a range: linearly, or so that the
    square of the number is linear in u (a side whose area is drawn).

    Source: NaViT (arXiv 2307.06304), how it samples resolutions.
    """

    mean: Fraction
    sigma: Fraction
    lowest: Fraction
    highest: Fraction
    area: bool

    def __str__(self) -> str:
        normal = f"{write_number(self.mean)},{write_number(self.sigma)}"
        bounds = f"{write_number(self.lowest)}..{write_number(self.highest)}"
        return f"truncnormal:{normal}:{bounds}" + ":area" * self.area

    def draw(self, draws: Draws) -> Fraction:
        share = (draws.truncated_normal(float(self.mean), float(self.sigma), -1.0, 1.0) + 1) / 2
        power = 2 if self.area else 1
        low, high = float(self.lowest) ** power, float(self.highest) ** power
        value = low + share * (high - low)
        return _millionths(math.sqrt(value) if self.area else value, self.lowest, self.highest)


@dataclass(frozen=True, slots=True)
class Beta:
    """d = u * highest, where u is of a Beta distribution with mean m = mean / highest and
    variance 0.3 m (1 - m).

    Source: NaViT (arXiv 2307.06304), appendix A.4, for drop rates. A Beta of mean m and variance
    v has a + b = m (1 - m) / v - 1, so that here a = 7/3 m and b = 7/3 (1 - m).
    """

    mean: Fraction
    highest: Fraction

    def __str__(self) -> str:
        return f"beta:{write_number(self.mean)},{write_number(self.highest)}"

    @property
    def lowest(self) -> Fraction:
        return Fraction(0)

    def draw(self, draws: Draws) -> Fraction:
        mean = self.mean / self.highest
        share = draws.beta(float(mean * 7 / 3), float((1 - mean) * 7 / 3))
        return _millionths(share * float(self.highest), self.lowest, self.highest)


Distribution = Choice | Uniform | TruncNormal | Beta
"""`draw(draws) -> Fraction` (where it is no choice, a multiple of 1e-6), `lowest`, `highest`, and
`str()`, one spelling for all that mean the same."""


@lru_cache(maxsize=64)
def parse_distribution(text: str) -> Distribution:
    """``8``, ``2,4,8``, ``uniform:LO..HI``, ``truncnormal:MU,SIGMA:LO..HI[:area]`` or
    ``beta:MEAN,MAX``, where numbers are not negative (MU may be) and look like ``8``, ``29.97``
    or ``30000/1001``.

    Raises:
        ValueError: anything else.
    """
    for pattern, make in _FORMS.items():
        match = re.fullmatch(pattern.replace("V", NUMBER), text.strip())
        if match is not None:
            return make(match, text)
    raise ValueError(f"{text!r} is none of {_ALLOWED}")


def write_number(value: Fraction) -> str:
    """The shortest text of a number: ``8``, ``29.97``, ``30000/1001``."""
    rest = value.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    if value.denominator == 1 or rest != 1:
        return str(value)
    # Only tenths, hundredths, ..: as many digits as make it whole.
    digits = next(n for n in range(1, 200) if (value * 10**n).denominator == 1)
    whole = str(abs(value.numerator) * 10**digits // value.denominator).zfill(digits + 1)
    return f"{'-' * (value < 0)}{whole[:-digits]}.{whole[-digits:]}"


def read_number(part: str, text: str) -> Fraction:
    """`part` of a setting's `text`, which matches `NUMBER`, as a fraction."""
    try:
        return Fraction(part)
    except ZeroDivisionError:
        raise ValueError(f"{text!r}: {part} divides by 0") from None


def _choice(match: re.Match[str], text: str) -> Choice:
    return Choice(tuple(read_number(part, text) for part in match[0].split(",")))


def _uniform(match: re.Match[str], text: str) -> Uniform:
    return Uniform(*_bounds(match[1], match[2], text))


def _truncnormal(match: re.Match[str], text: str) -> TruncNormal:
    mean, sigma = read_number(match[1], text), read_number(match[2], text)
    # Further out a float64 has no digits left for the weight of [-1, 1].
    if sigma == 0 or abs(mean) - 1 > 30 * sigma:
        raise ValueError(f"{text!r}: SIGMA is above 0, and -1 .. 1 within 30 SIGMA of MU")
    return TruncNormal(mean, sigma, *_bounds(match[3], match[4], text), area=match[5] is not None)


def _beta(match: re.Match[str], text: str) -> Beta:
    mean, highest = read_number(match[1], text), read_number(match[2], text)
    if not 0 < mean < highest:
        raise ValueError(f"{text!r}: MEAN is above 0 and below MAX")
    return Beta(mean, highest)


_FORMS: dict[str, Callable[[re.Match[str], str], Distribution]] = {
    r"V(?:,V)*": _choice,
    r"uniform:(V)\.\.(V)": _uniform,
    r"truncnormal:(-?V),(V):(V)\.\.(V)(:area)?": _truncnormal,
    r"beta:(V),(V)": _beta,
}
"""How each is written, where V is a number."""


def _bounds(low_text: str, high_text: str, text: str) -> tuple[Fraction, Fraction]:
    low, high = read_number(low_text, text), read_number(high_text, text)
    if not low < high:
        raise ValueError(f"{text!r}: LO is below HI")
    return low, high


def _millionths(value: float, lowest: Fraction, highest: Fraction) -> Fraction:
    """Rounded, so that the last digit of a machine's `pow` or `log` changes no token."""
    return min(max(Fraction(round(value * _MILLION), _MILLION), lowest), highest)
