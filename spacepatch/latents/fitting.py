"""Learn the best linear codec of a sample of blocks, and a vector quantizer on it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from spacepatch.errors import ConfigError
from spacepatch.extras import needed
from spacepatch.latents.encoders import MAX_LATENT
from spacepatch.latents.linear import (
    BASIS_STEP,
    BLOCKS_AT_ONCE,
    CODE_STEP,
    MEAN_STEP,
    LinearCodec,
    nearest_codes,
    round_to,
)
from spacepatch.randomness import Draws

HOLD_OUT = 8
"""Every 8th block is not learned from: what is reported is of those."""
CHANNELS_REPORTED = (1, 2, 4, 8, 16, 32, 64, 128)
MOST_ROUNDS = 100
"""Of k-means, a stage."""


@dataclass(frozen=True, slots=True)
class StageUse:
    """How the codes of one stage are used, by the blocks that were learned from."""

    psnr: float
    """dB on blocks held out, with this stage and those before it."""
    used: int
    dead: int
    """Codes that are nobody's nearest."""
    entropy_bits: float
    """Of the codes; log2 of their number where all are as frequent."""

    @property
    def perplexity(self) -> float:
        """2 to the entropy: as many codes of equal frequency would say as much."""
        return math.exp2(self.entropy_bits)


@dataclass(frozen=True, slots=True)
class FitReport:
    """What a fit achieved."""

    num_blocks: int
    """That were learned from."""
    num_held_out: int
    block_values: int
    """D."""
    channels: int
    codebook: int | None
    psnr_of_channels: dict[int, float]
    """dB on blocks held out, as whole levels of 0..255, by the number of channels kept."""
    variance_of_channels: dict[int, float]
    """Share of the variance of what was learned from that these channels hold."""
    stages: tuple[StageUse, ...]


@dataclass(frozen=True, slots=True)
class Moments:
    """Sums over blocks whose values are whole numbers: float64 holds them exactly up to 2**39
    blocks, so that neither the order of adding nor how blocks were grouped can change them."""

    count: int
    total: np.ndarray
    """``(D,)``: sum of x - 128."""
    products: np.ndarray
    """``(D, D)``: sum of (x - 128) (x - 128)^T."""

    @classmethod
    def of(cls, blocks: np.ndarray) -> Moments:
        """Of ``(N, D)`` uint8."""
        depth = blocks.shape[1]
        total, products = np.zeros(depth), np.zeros((depth, depth))
        for start in range(0, len(blocks), BLOCKS_AT_ONCE):
            part = blocks[start : start + BLOCKS_AT_ONCE] - 128.0
            total += part.sum(axis=0)
            products += part.T @ part
        return cls(len(blocks), total, products)

    def __add__(self, other: Moments) -> Moments:
        return Moments(
            self.count + other.count, self.total + other.total, self.products + other.products
        )

    def mean(self) -> np.ndarray:
        """``(D,)``"""
        return 128 + self.total / self.count

    def covariance(self) -> np.ndarray:
        """``(D, D)``, of the population."""
        outer = np.outer(self.total, self.total)
        return (self.products - outer / self.count) / self.count


def principal_axes(moments: Moments) -> tuple[np.ndarray, np.ndarray]:
    """The axes that lose the least when only the first few are kept (Eckart and Young, 1936).

    Returns:
        ``(D, D)`` float64, an axis of length 1 a column, and ``(D,)`` the variance along each,
        decreasing. Of the two signs of an axis the one is taken by which its first value that is
        at least half as large as its largest is positive.

    Raises:
        MissingDependencyError: threadpoolctl is not installed.
    """
    with one_thread():
        variances, axes = np.linalg.eigh(moments.covariance())
    variances, axes = np.maximum(variances[::-1], 0), axes[:, ::-1]
    # Not the largest itself: axes of pictures are symmetric, and have it twice but for rounding.
    large = np.abs(axes) >= np.abs(axes).max(axis=0) / 2
    signs = np.sign(axes[large.argmax(axis=0), np.arange(axes.shape[1])])
    return axes * signs, variances


def fit_codec(
    blocks: np.ndarray,
    *,
    block: tuple[int, int, int],
    channels: int,
    codebook: int | None = None,
    residual: int = 1,
    seed: int = 0,
) -> tuple[LinearCodec, FitReport]:
    """Learn a codec; the same blocks and seed give the same one.

    Args:
        blocks: ``(N, D)`` uint8, each ``t p q c``.
        block: (t, p, q); D = 3 t p q.
        channels: C, of a latent.
        codebook: K, codes of each stage of the quantizer; None: no quantizer.
        residual: stages; each quantizes what the ones before it leave.

    Raises:
        ConfigError: more channels or codes than the blocks can tell, or as there can be.
        MissingDependencyError: threadpoolctl or, for a codebook, scikit-learn is not installed.
    """
    depth = 3 * math.prod(block)
    if blocks.ndim != 2 or blocks.shape[1] != depth or blocks.dtype != np.uint8:
        raise ValueError(f"blocks are {blocks.dtype} {blocks.shape}, must be uint8 (N, {depth})")
    held = np.arange(len(blocks)) % HOLD_OUT == HOLD_OUT - 1
    check_numbers(len(blocks), block, channels, codebook, residual)
    learned, held_out = blocks[~held], blocks[held]
    moments = Moments.of(learned)
    axes, variances = principal_axes(moments)
    whole = LinearCodec(
        block,
        round_to(moments.mean(), MEAN_STEP),
        round_to(axes, BASIS_STEP),
        np.ones(depth),
    )
    codec = _keep(whole, variances, channels)
    stages: tuple[StageUse, ...] = ()
    if codebook is not None:
        codec, stages = _quantized(codec, learned, held_out, codebook, residual, seed)
    shown = sorted({channels, *CHANNELS_REPORTED} & set(range(depth + 1)))
    total = max(float(variances.sum()), np.finfo(float).tiny)
    report = FitReport(
        num_blocks=len(learned),
        num_held_out=len(held_out),
        block_values=depth,
        channels=channels,
        codebook=codebook,
        psnr_of_channels=_psnr_of_channels(whole, held_out, shown),
        variance_of_channels={count: float(variances[:count].sum()) / total for count in shown},
        stages=stages,
    )
    return codec, report


def check_numbers(
    num_blocks: int,
    block: tuple[int, int, int],
    channels: int,
    codebook: int | None,
    residual: int,
) -> None:
    """Raise a ConfigError for what cannot be learned, or not of so many blocks."""
    depth = 3 * math.prod(block)
    if not 1 <= channels <= depth:
        raise ConfigError(f"channels: {channels}: a block has 1 .. {depth}")
    if residual < 1 or (residual > 1 and codebook is None):
        raise ConfigError(
            f"residual: {residual}: stages of a codebook, 1 at least: give --codebook"
        )
    if codebook is not None and codebook < 2:
        raise ConfigError(f"codebook: {codebook}: 2 codes are the fewest")
    learned = num_blocks - num_blocks // HOLD_OUT
    # The variance along the last axis needs a block more than there are axes.
    needed = max(channels + 1, HOLD_OUT, codebook or 0)
    if learned < needed:
        codes = f" and {codebook} codes" if codebook else ""
        raise ConfigError(
            f"sample_blocks: {learned} blocks to learn from, but {channels} channels{codes} need "
            f"{needed}: sample more, of more or longer videos"
        )


def _keep(whole: LinearCodec, variances: np.ndarray, channels: int) -> LinearCodec:
    """The first channels, each latent of variance 1, and none beyond `MAX_LATENT` ever."""
    basis = whole.basis[:, :channels]
    # The most that a block of 0..255 can have along an axis, on either side.
    low, high = basis * -whole.mean[:, None], basis * (255 - whole.mean)[:, None]
    reach = np.maximum(
        np.maximum(low, high).sum(axis=0),
        -np.minimum(low, high).sum(axis=0),
    )
    scale = np.maximum(np.sqrt(variances[:channels]), reach / MAX_LATENT)
    # Upwards, so that what is stored is no less than what was found.
    stored = np.nextafter(scale.astype(np.float32), np.float32(np.inf))
    return LinearCodec(whole.block, whole.mean, basis, stored.astype(np.float64))


def _psnr_of_channels(
    whole: LinearCodec, blocks: np.ndarray, counts: list[int]
) -> dict[int, float]:
    coefficients = whole.transform(blocks)
    made = {}
    for count in counts:
        kept = LinearCodec(whole.block, whole.mean, whole.basis[:, :count], whole.scale[:count])
        made[count] = psnr(blocks, kept.restore(coefficients[:, :count]))
    return made


def psnr(blocks: np.ndarray, others: np.ndarray) -> float:
    """dB between two ``(N, D)`` uint8: 10 log10(255**2 / mean squared difference)."""
    total = 0
    for start in range(0, len(blocks), BLOCKS_AT_ONCE):
        part = slice(start, start + BLOCKS_AT_ONCE)
        total += int(np.square(blocks[part].astype(np.int32) - others[part]).sum(dtype=np.int64))
    return math.inf if total == 0 else 10 * math.log10(255**2 * blocks.size / total)


# --- the quantizer -----------------------------------------------------------------------------


def _quantized(
    codec: LinearCodec,
    learned: np.ndarray,
    held_out: np.ndarray,
    size: int,
    stages: int,
    seed: int,
) -> tuple[LinearCodec, tuple[StageUse, ...]]:
    left = round_to(codec.transform(learned), CODE_STEP)
    books: list[np.ndarray] = []
    uses = []
    for stage in range(stages):
        draw = Draws(seed, "codebook", stage).integer(2**32)
        books.append(round_to(find_centres(left, size, random_state=draw), CODE_STEP))
        codes = nearest_codes(left, books[-1])
        left -= books[-1][codes]
        codec = LinearCodec(codec.block, codec.mean, codec.basis, codec.scale, np.stack(books))
        coefficients = codec.dequantize(codec.quantize(codec.transform(held_out)))
        uses.append(_use_of(codes, size, psnr(held_out, codec.restore(coefficients))))
    return codec, tuple(uses)


def _use_of(codes: np.ndarray, size: int, decibels: float) -> StageUse:
    counts = np.bincount(codes, minlength=size)
    shares = counts[counts > 0] / len(codes)
    entropy = float(-(shares * np.log2(shares)).sum())
    return StageUse(decibels, len(shares), size - len(shares), max(entropy, 0.0))


def find_centres(points: np.ndarray, size: int, *, random_state: int) -> np.ndarray:
    """``(size, C)`` float64 centres of ``(N, C)`` points, by scikit-learn's k-means.

    Raises:
        MissingDependencyError: scikit-learn is not installed.
    """
    cluster = needed("sklearn.cluster", "scikit-learn", by="codebook")
    exceptions = needed("sklearn.exceptions", "scikit-learn", by="codebook")
    # With several threads its sums are added in the order in which these end.
    with one_thread(), warnings.catch_warnings():
        # Fewer different points than codes: the report counts the dead ones.
        warnings.simplefilter("ignore", exceptions.ConvergenceWarning)
        found = cluster.KMeans(
            size,
            init="k-means++",
            n_init=1,
            max_iter=MOST_ROUNDS,
            algorithm="lloyd",
            random_state=random_state,
        ).fit(points.astype(np.float32))
    return np.asarray(found.cluster_centers_, np.float64)


@contextmanager
def one_thread() -> Iterator[None]:
    """Have the libraries below numpy and scikit-learn use one thread: the last bits of what they
    find depend on how many.

    Raises:
        MissingDependencyError: threadpoolctl is not installed.
    """
    with needed("threadpoolctl", "threadpoolctl", by="fit").threadpool_limits(1):
        yield


def check_installed(*, codebook: bool) -> None:
    """Raise a MissingDependencyError for what fitting needs and this installation lacks."""
    needed("threadpoolctl", "threadpoolctl", by="fit")
    needed("safetensors.numpy", "safetensors", by="fit")
    if codebook:
        needed("sklearn.cluster", "scikit-learn", by="codebook")
