"""Decide which tokens of a clip are kept: how many at random, or all that change.

Positions stay true: a kept token is named by its raster index in the clip's whole grid.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import numpy as np

from spacepatch.distributions import (
    NUMBER,
    Distribution,
    parse_distribution,
    read_number,
    write_number,
)
from spacepatch.randomness import Draws

LENGTH_SIGMA = Fraction(2, 100)
"""Standard deviation of a rate that goes by length (NaViT A.5)."""

MAX_RUN = 2**16 - 1
"""Longest run of a static token, in tubelets: run lengths are stored in 16 bits."""

_ALLOWED = (
    "random:RATE (a number or a distribution), random:length:MU0..MU1:N0..N1, tokens:N, static "
    "or static:THRESHOLD"
)
# The channels' weights in the mean of |difference| / std, with ImageNet's std of 0.229, 0.224 and
# 0.225, times 229 * 224 * 225: whole numbers, so that sums and comparison are exact.
_STD_THOUSANDTHS = (229, 224, 225)
_SCALE = math.prod(_STD_THOUSANDTHS)
_WEIGHTS = np.array([_SCALE // std for std in _STD_THOUSANDTHS], np.int64)


@dataclass(frozen=True, slots=True)
class DrawnRate:
    """A share of the tokens goes, at random; by length it is linear between two points."""

    points: tuple[tuple[int, Fraction], ...]
    """(tokens, rate), one or two: as at the nearest point outside of them."""
    is_bound: ClassVar[bool] = False

    def __str__(self) -> str:
        return "random " + "..".join(write_number(rate) for _, rate in self.points)

    def rate(self, num_tokens: int) -> Fraction:
        """In [0, 1), to 1e-6."""
        (low, first), (high, last) = self.points[0], self.points[-1]
        if low == high:
            return first
        share = min(max(Fraction(num_tokens - low, high - low), Fraction(0)), Fraction(1))
        return max(round(first + share * (last - first), 6), Fraction(0))

    def at(self, num_tokens: int) -> DrawnRate:
        """The same where the length is known: one point, whose rate is what is to be noted."""
        return DrawnRate(((num_tokens, self.rate(num_tokens)),))

    def num_kept(self, num_tokens: int) -> int:
        """Rounded as MAE does it, in float64: int(L (1 - r)), and at least 1."""
        return max(1, int(num_tokens * (1 - float(self.rate(num_tokens)))))


@dataclass(frozen=True, slots=True)
class DrawnTokens:
    """A number of tokens stays, at random."""

    num: int
    is_bound: ClassVar[bool] = False

    def __str__(self) -> str:
        return f"tokens {self.num}"

    def at(self, num_tokens: int) -> DrawnTokens:
        return self

    def num_kept(self, num_tokens: int) -> int:
        return min(self.num, num_tokens)


@dataclass(frozen=True, slots=True)
class DrawnStatic:
    """Tokens that do not change go: how many is known when the pixels are."""

    threshold: Fraction
    is_bound: ClassVar[bool] = True

    def __str__(self) -> str:
        return f"static {write_number(self.threshold)}"

    def at(self, num_tokens: int) -> DrawnStatic:
        return self

    def num_kept(self, num_tokens: int) -> int:
        """An upper bound."""
        return num_tokens


Drawn = DrawnRate | DrawnTokens | DrawnStatic
"""What is drawn once for a clip, before its length is known: `num_kept(num_tokens)`, an upper bound
where `is_bound`, and `str(drawn.at(num_tokens))` for the tables."""


@dataclass(frozen=True, slots=True)
class RandomDrop:
    """Drop a share of the tokens, drawn for each clip."""

    rate: Distribution

    def __str__(self) -> str:
        return f"random:{self.rate}"

    def draw(self, draws: Draws) -> DrawnRate:
        return DrawnRate(((0, self.rate.draw(draws)),))


@dataclass(frozen=True, slots=True)
class LengthDrop:
    """Drop a share that goes by the number of tokens, so that long sequences can lose more.

    The rate is N(mu, 0.02) cut at 2 sigma, with mu linear in the number of tokens from means[0] at
    lengths[0] to means[1] at lengths[1], and constant outside. Below 0 it is 0.

    Source: NaViT (arXiv 2307.06304), appendix A.5.
    """

    means: tuple[Fraction, Fraction]
    lengths: tuple[int, int]

    def __str__(self) -> str:
        means = "..".join(map(write_number, self.means))
        return f"random:length:{means}:{self.lengths[0]}..{self.lengths[1]}"

    def draw(self, draws: Draws) -> DrawnRate:
        # One z for both ends: the rate of any length in between is then that many sigma off too.
        z = Fraction(round(draws.truncated_normal(0.0, 1.0, -2.0, 2.0) * 10**6), 10**6)
        low, high = (mean + LENGTH_SIGMA * z for mean in self.means)
        return DrawnRate(((self.lengths[0], low), (self.lengths[1], high)))


@dataclass(frozen=True, slots=True)
class TokensDrop:
    """Drop what is over a number of tokens."""

    num: int

    def __str__(self) -> str:
        return f"tokens:{self.num}"

    def draw(self, draws: Draws) -> DrawnTokens:
        return DrawnTokens(self.num)


@dataclass(frozen=True, slots=True)
class StaticDrop:
    """Drop the tokens that do not change in time; each kept one stands for a run of them."""

    threshold: Fraction

    def __str__(self) -> str:
        return f"static:{write_number(self.threshold)}"

    def draw(self, draws: Draws) -> DrawnStatic:
        return DrawnStatic(self.threshold)


Drop = RandomDrop | LengthDrop | TokensDrop | StaticDrop
"""`draw(draws) -> Drawn`, and `str()`, one spelling for all that mean the same."""


def parse_drop(text: str) -> Drop:
    """``random:DIST`` (rates in [0, 1)), ``random:length:MU0..MU1:N0..N1``, ``tokens:N``,
    ``static`` (the same as ``static:0.1``) or ``static:THRESHOLD``.

    Raises:
        ValueError: anything else.
    """
    word, _, rest = text.strip().partition(":")
    if word not in DROPPERS:
        raise ValueError(f"{text!r} is none of {_ALLOWED}")
    return DROPPERS[word](rest, text)


def static_threshold(text: str | None) -> Fraction | None:
    """Of a setting that drops static tubelets; None of any other, or none."""
    drop = None if text is None else parse_drop(text)
    return drop.threshold if isinstance(drop, StaticDrop) else None


def _random(rest: str, text: str) -> RandomDrop | LengthDrop:
    if rest.startswith("length:"):
        return _length(rest, text)
    try:
        rate = parse_distribution(rest)
    except ValueError as error:
        raise ValueError(f"{text!r}: the rate {error}") from None
    if rate.highest >= 1:
        raise ValueError(f"{text!r}: rates are below 1, or no token would stay")
    return RandomDrop(rate)


def _length(rest: str, text: str) -> LengthDrop:
    pattern = rf"length:({NUMBER})\.\.({NUMBER}):([0-9]{{1,18}})\.\.([0-9]{{1,18}})"
    match = re.fullmatch(pattern, rest)
    if match is None:
        raise ValueError(f"{text!r} is not random:length:MU0..MU1:N0..N1")
    low, high = int(match[3]), int(match[4])
    means = read_number(match[1], text), read_number(match[2], text)
    if not 0 < low < high:
        raise ValueError(f"{text!r}: N0 is above 0 and below N1")
    if max(means) + 2 * LENGTH_SIGMA >= 1:
        raise ValueError(f"{text!r}: MU0 and MU1 are below 0.96, as rates go up to MU + 0.04")
    return LengthDrop(means, (low, high))


def _tokens(rest: str, text: str) -> TokensDrop:
    if not re.fullmatch("[0-9]{1,18}", rest) or int(rest) < 1:
        raise ValueError(f"{text!r} is not tokens:N with N of at least 1")
    return TokensDrop(int(rest))


def _static(rest: str, text: str) -> StaticDrop:
    # The threshold of the RLT paper, in units of ImageNet's standard deviation.
    rest = rest if ":" in text else "0.1"
    if not re.fullmatch(NUMBER, rest):
        raise ValueError(f"{text!r} is not static:THRESHOLD with a THRESHOLD such as 0.1")
    return StaticDrop(read_number(rest, text))


DROPPERS: dict[str, Callable[[str, str], Drop]] = {
    "random": _random,
    "tokens": _tokens,
    "static": _static,
}
"""What drops tokens, by its first word: reads the rest of a setting, from (rest, whole text)."""


def keep_random(
    num_tokens: int, num_kept: int, *, draws: Draws, available: np.ndarray | None = None
) -> np.ndarray:
    """Choose tokens at random, without replacement.

    Args:
        num_tokens: of the clip's whole grid.
        num_kept: how many are chosen, 1 .. `num_tokens`.
        available: ``(num_tokens,)`` or, one for each grid row, ``(T,)`` bool. Chosen tokens that
            are not available are left out; where none is left, the best of the others stays.

    Returns:
        ``(n,)`` uint32 raster indices, increasing.

    Raises:
        ValueError: `num_kept` is out of range, or nothing is available.
    """
    if not 1 <= num_kept <= num_tokens:
        raise ValueError(f"num_kept is {num_kept}, must be 1 .. {num_tokens}")
    order = draws.order(num_tokens)
    chosen = order[:num_kept]
    if available is not None:
        if not available.any() or num_tokens % len(available):
            raise ValueError(f"{int(available.sum())} of {num_tokens} tokens are available")
        usable = np.repeat(available, num_tokens // len(available))[order]
        chosen = chosen[usable[:num_kept]]
        if not len(chosen):
            chosen = order[usable.argmax()][None]
    return np.sort(chosen).astype(np.uint32)


def drop_rate_at(step: int, num_steps: int, *, high: float = 0.8, low: float = 0.2) -> float:
    """Rate of a training step, for the loader: falls from `high` to `low` along a sigmoid.

    low + (high - low) sigmoid((step - mu) / tau), with mu = num_steps / 2 and
    tau = -num_steps / 10: within 0.7 % of the range at both ends.

    Source: NaViT (arXiv 2307.06304), time-varying token dropping; mu and tau are ours.
    """
    if not (num_steps >= 1 and 0 <= low <= high < 1):
        raise ValueError(f"no schedule of {num_steps} steps from rate {high} down to {low}")
    return low + (high - low) / (1 + math.exp((step / num_steps - 0.5) * 10))


def changed_tokens(
    first: np.ndarray, last: np.ndarray, *, patch_size: tuple[int, int], threshold: Fraction | float
) -> np.ndarray:
    """Which patches differ between two frames: the mean over patch and channels of
    |last - first| / 255 / std is above `threshold`, with ImageNet's std. Computed exactly.

    For run-length tokenization (RLT, arXiv 2411.05222) `first` is the first frame of a tubelet and
    `last` the last frame of the next one; what has changed is kept of the next one.

    Args:
        first: ``(H, W, C)`` uint8, RGB or RGBA; alpha is not looked at.
        last: the same.
        patch_size: (h, w) pixels, which H and W are multiples of.
        threshold: in standard deviations, a tenth in the paper (the float 0.1 is above a tenth).

    Returns:
        ``(gh * gw,)`` bool in raster order.
    """
    height, width, channels = first.shape
    patch_h, patch_w = patch_size
    if first.shape != last.shape or first.dtype != np.uint8 or last.dtype != np.uint8:
        raise ValueError(f"frames {first.shape} {first.dtype} and {last.shape} {last.dtype}")
    if channels not in (3, 4) or height % patch_h or width % patch_w:
        raise ValueError(f"frames {first.shape} are no RGB(A) of patches {patch_size}")
    grid_h, grid_w = height // patch_h, width // patch_w
    difference = np.maximum(first, last) - np.minimum(first, last)
    # Rows first, so that the inner loop is long: "(gh p) w c -> gh w c".
    rows = difference.reshape(grid_h, patch_h, width * channels).sum(axis=1, dtype=np.int64)
    sums = rows.reshape(grid_h * grid_w, patch_w, channels).sum(axis=1)[:, :3] @ _WEIGHTS
    # sum_c S_c / (255 std_c) / (3 p q) > threshold, in whole numbers.
    limit = Fraction(threshold) * 3 * patch_h * patch_w * 255 * _SCALE / 1000
    return np.asarray(sums > math.floor(limit))


def keep_static(
    clip: np.ndarray,
    *,
    tubelet_size: int,
    patch_size: tuple[int, int],
    threshold: Fraction | float,
) -> np.ndarray:
    """Which tokens of a whole clip run-length tokenization keeps: those that have changed
    (`changed_tokens`), and all of the first and then of every 65,535th grid row, where runs end.

    Args:
        clip: ``(T * tubelet_size, H, W, C)`` uint8.

    Returns:
        ``(T, gh * gw)`` bool.
    """
    num_rows = len(clip) // tubelet_size
    if num_rows < 1 or len(clip) % tubelet_size:
        raise ValueError(f"{len(clip)} frames are no tubelets of {tubelet_size}")
    firsts, lasts = clip[:-tubelet_size:tubelet_size], clip[2 * tubelet_size - 1 :: tubelet_size]
    changes = [
        changed_tokens(first, last, patch_size=patch_size, threshold=threshold)
        for first, last in zip(firsts, lasts, strict=True)
    ]
    num_cells = clip.shape[1] // patch_size[0] * (clip.shape[2] // patch_size[1])
    keep = np.stack([np.ones(num_cells, bool), *changes])
    keep[::MAX_RUN] = True
    return keep


def run_lengths(keep: np.ndarray, present: np.ndarray) -> np.ndarray:
    """How many tubelets in time each kept token stands for: up to the next kept one of its cell, an
    absent row, or the end. The lengths of a cell sum to the rows that are present.

    Args:
        keep: ``(T, cells)`` bool. All of the first row is kept, and all of a row after an absent
            one; nothing of an absent row.
        present: ``(T,)`` bool, False for grid rows that were dropped whole (corrupt frames).

    Returns:
        ``(n,)`` uint16 in raster order of the kept tokens.

    Raises:
        ValueError: `keep` is not as said, or a run is longer than 65,535.
    """
    begins = present & ~np.concatenate([[False], present[:-1]])
    if keep[~present].any() or not keep[begins].all():
        raise ValueError("tokens of absent rows are kept, or tokens after an absent row are not")
    stop = np.full(keep.shape[1], len(keep))
    pieces = [stop[:0]]
    for row in reversed(range(len(keep))):
        pieces.append((stop - row)[keep[row]])
        stop[keep[row] | ~present[row]] = row
    lengths = np.concatenate(pieces[::-1])
    if lengths.max(initial=0) > MAX_RUN:
        raise ValueError(f"a token stands for {lengths.max()} tubelets, above {MAX_RUN}")
    return lengths.astype(np.uint16)


def fill_static(tokens: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """Rebuild all tokens of a grid, each as the last kept one of its cell: what models see.

    Args:
        tokens: ``(n, D)`` kept tokens in raster order.
        keep: ``(T, cells)`` bool with n True, all of its first row.

    Returns:
        ``(T * cells, D)`` in raster order, as `tokens` of the undropped grid.
    """
    if not keep[:1].all():
        raise ValueError("keep leaves out tokens of the first row, which nothing comes before")
    if len(tokens) != np.count_nonzero(keep):
        raise ValueError(f"{len(tokens)} tokens, where {np.count_nonzero(keep)} are kept")
    index = np.where(keep, np.cumsum(keep).reshape(keep.shape) - 1, 0)
    return np.asarray(tokens[np.maximum.accumulate(index, axis=0).ravel()])
