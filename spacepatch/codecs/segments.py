"""Compress the pixel tokens of one segment, and turn them back."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from spacepatch.codecs import h264, plain
from spacepatch.codecs.films import Film, film_of
from spacepatch.errors import ShardError

Decode = Callable[[bytes | memoryview, tuple[int, int, int, int]], Iterator[np.ndarray]]

EXACT, LOSSY, PLAIN = "h264-rgb", "h264-ycocg", "zstd"
CODECS: dict[str, Decode] = {
    EXACT: partial(h264.decode, is_exact=True),
    LOSSY: partial(h264.decode, is_exact=False),
    PLAIN: plain.decode,
}
"""By the name that packs record: what makes T pictures ``(C, H, W)`` of its content and the shape
``(T, C, H, W)``, or raises `ShardError`."""


HIGHEST_FLOOR = 60.0
"""Decibels above which only what is exact is: rounding colours takes more."""
FLOOR_AT_FIRST = 65
"""The quantizer tried first is this minus the floor; most clips then take two or three tries."""
DECIBELS_A_STEP, LEAST_SLOPE = 0.75, 0.25
"""What a coarser quantizer costs, as long as a clip has shown no slope of its own; and what such a
slope is at least taken for."""
CLEARLY_LESS = 0.4
"""Share of the bytes below which what is exact need not be tried besides."""
SMALL = 2**16
"""Bytes of tokens of which any way is quickly tried."""
WORTH_IT = 0.9
"""Share of the bytes above which zstd is tried too, which decodes several times as fast."""
NEAR = 0.5
"""Decibels above the floor that no further try is made for: half of what a step is worth."""
ROWS_AT_ONCE = 256
"""Tokens compared at a time, which fit the cache."""


@dataclass(frozen=True, slots=True)
class Compressed:
    """The tokens of a segment, compressed."""

    content: bytes
    codec: str
    """One of `CODECS`."""
    psnr: float | None
    """Decibels, over all values of the tokens, rounded down to thousandths; None: they come back as
    they were."""


def compress(
    tokens: np.ndarray,
    kept: np.ndarray,
    *,
    grid_thw: tuple[int, int, int],
    tubelet_size: int,
    patch_size: tuple[int, int],
    channels: int,
    halo: int = 0,
    layout: str = "c t p q",
    merge: int = 1,
    floor: float | None = None,
) -> Compressed:
    """Compress pixel tokens; a pure function, which runs in many threads at once.

    With a floor, qualities are tried, decoded and measured, until one is just above it; where none
    is, or what is exact is smaller, the tokens come back as they were.

    Args:
        tokens: ``(n, D)`` uint8.
        kept: ``(n,)`` raster indices of theirs in the grid, no two alike, in any order.
        channels: 3, or 4 with alpha.
        halo, layout, merge: as of `spacepatch.tubelets.cut_tubelets`.
        floor: decibels of PSNR that the tokens may fall to. None: they must come back as they were.

    Raises:
        ValueError: tokens that are not of that geometry.
        MissingDependencyError: a floor, and an FFmpeg without x264.
    """
    try:
        film = film_of(
            kept,
            grid_thw=grid_thw,
            tubelet_size=tubelet_size,
            patch_size=patch_size,
            channels=channels,
            halo=halo,
            layout=layout,
            merge=merge,
        )
    except ShardError as error:
        raise ValueError(str(error)) from None
    if not len(tokens) or tokens.dtype != np.uint8 or tokens.shape != (len(kept), film.width):
        raise ValueError(
            f"tokens are {tokens.dtype} {tokens.shape}, not uint8 {(len(kept), film.width)}, n > 0"
        )
    pictures = film.draw(tokens)
    lossy = None
    if floor is not None and floor <= HIGHEST_FLOOR:
        lossy = _coarsest(pictures, film, tokens, floor)
    if (
        lossy is not None
        and tokens.nbytes > SMALL
        and len(lossy.content) < tokens.nbytes * CLEARLY_LESS
    ):
        return lossy
    exact = _exact(pictures, tokens.nbytes)
    return exact if lossy is None or len(exact.content) <= len(lossy.content) else lossy


def _exact(pictures: np.ndarray, num_bytes: int) -> Compressed:
    content = h264.encode(pictures)
    if content is not None and len(content) < WORTH_IT * num_bytes:
        return Compressed(content, EXACT, None)
    simple = plain.encode(pictures)
    if content is None or len(simple) <= len(content):
        return Compressed(simple, PLAIN, None)
    return Compressed(content, EXACT, None)


def decompress(
    content: bytes | memoryview,
    codec: str,
    kept: np.ndarray,
    *,
    grid_thw: tuple[int, int, int],
    tubelet_size: int,
    patch_size: tuple[int, int],
    channels: int,
    halo: int = 0,
    layout: str = "c t p q",
    merge: int = 1,
) -> np.ndarray:
    """The tokens that were compressed, with the same `kept` and geometry.

    Returns:
        ``(n, D)`` uint8.

    Raises:
        ShardError: the content is damaged, or of another codec or geometry, as far as that can be
            told: a damaged byte may also make other tokens, which only a checksum tells.
    """
    decode = CODECS.get(codec)
    if decode is None:
        raise ShardError(f"its tokens are compressed by {codec!r}, not {' or '.join(CODECS)}")
    film = film_of(
        kept,
        grid_thw=grid_thw,
        tubelet_size=tubelet_size,
        patch_size=patch_size,
        channels=channels,
        halo=halo,
        layout=layout,
        merge=merge,
    )
    return film.cut(decode(content, film.shape))


def _coarsest(
    pictures: np.ndarray, film: Film, tokens: np.ndarray, floor: float
) -> Compressed | None:
    """By the coarsest quantizer that reaches the floor, or is `NEAR` above it; None: none does."""
    best = None
    reaches, fails = -1, h264.WORST_QP + 1
    qp, slope = round(FLOOR_AT_FIRST - floor), DECIBELS_A_STEP
    before: tuple[int, float] | None = None
    while fails - reaches > 1:
        qp = min(max(qp, reaches + 1), fails - 1)
        content = h264.encode(pictures, qp)
        if content is None:
            return None
        try:
            found = film.cut(h264.decode(content, film.shape, is_exact=False))
            psnr = _psnr(tokens, found)
        except ShardError:  # a size that the decoder does not take, though the encoder does
            return None
        above = psnr - floor
        if above >= 0:
            best = Compressed(content, LOSSY, None if math.isinf(psnr) else psnr)
            reaches = qp
            if above < NEAR:
                break
        else:
            fails = qp
        if math.isinf(psnr):
            before, qp = None, fails - 1
            continue
        if before is not None and before[0] != qp:
            slope = max((before[1] - psnr) / (qp - before[0]), LEAST_SLOPE)
        before = qp, psnr
        qp += math.floor(above / slope) or 1
    return best


def _psnr(tokens: np.ndarray, others: np.ndarray) -> float:
    """Decibels between ``(n, D)`` uint8, rounded down to thousandths; infinite where they agree."""
    squares = 0
    for start in range(0, len(tokens), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        differences = np.subtract(tokens[rows], others[rows], dtype=np.int32)
        squares += int(np.square(differences, out=differences).sum(dtype=np.int64))
    if not squares:
        return math.inf
    return math.floor(1000 * 10 * math.log10(255**2 * tokens.size / squares)) / 1000
