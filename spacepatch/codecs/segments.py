"""Compress the pixel tokens of one segment, and turn them back."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from spacepatch.codecs import h264, plain
from spacepatch.codecs.films import Film, film_of
from spacepatch.errors import ShardError
from spacepatch.quality import psnr_of

Decode = Callable[[bytes, Film], np.ndarray]


def _decode_h264(content: bytes, film: Film) -> np.ndarray:
    if film.shape[1] != h264.CHANNELS:
        raise ShardError(f"its tokens have {film.shape[1]} channels, which H.264 has not")
    return film.cut(h264.decode(content, film.shape))


def _decode_plain(content: bytes, film: Film) -> np.ndarray:
    return plain.decode(content, (len(film.places), film.width))


CODECS: dict[str, Decode] = {"h264": _decode_h264, "zstd": _decode_plain}
"""By the name that packs record: what makes ``(n, D)`` tokens of its content and their film, or
raises `ShardError`."""

MOST_TRIES = 5
"""Films that are made to find the coarsest quantizer above a floor."""
HIGHEST = 40.0
"""Decibels above a floor that count: of what came back exact they are infinite."""
DECIBELS_A_STEP = 0.8
"""That a step of the quantizer costs, about."""
FIRST_GUESS = (8, 51.5)
"""A quantizer, and the decibels that filmed pictures have with it, about."""


@dataclass(frozen=True, slots=True)
class Compressed:
    """The tokens of a segment, compressed."""

    content: bytes
    codec: str
    """One of `CODECS`."""
    psnr: float | None
    """Decibels, over all values of the tokens; None: they come back as they were."""


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

    Args:
        tokens: ``(n, D)`` uint8.
        kept: ``(n,)`` raster indices of theirs in the grid, no two alike, in any order.
        channels: 3, or 4 with alpha.
        halo, layout, merge: as of `spacepatch.tubelets.cut_tubelets`.
        floor: decibels of PSNR that the tokens may fall to. None: they must come back as they were.

    Raises:
        ValueError: tokens that are not of that geometry.
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
    if tokens.dtype != np.uint8 or tokens.shape != (len(kept), film.width):
        raise ValueError(
            f"tokens are {tokens.dtype} {tokens.shape}, not uint8 {(len(kept), film.width)}"
        )
    if channels == h264.CHANNELS:
        pictures = film.draw(tokens)
        made = None if floor is None else _above(floor, pictures, tokens, film)
        made = made or Compressed(h264.encode(pictures), "h264", None)
        if len(made.content) < tokens.nbytes * WORTH_IT:
            return made
    # No film, or one of noise.
    return Compressed(plain.encode(tokens), "zstd", None)


WORTH_IT = 0.98
"""Share of the bytes above which decoding a film saves nothing."""


def _above(floor: float, pictures: np.ndarray, tokens: np.ndarray, film: Film) -> Compressed | None:
    """With the coarsest quantizer that was found above a floor; None: there is none."""
    guess, decibels = FIRST_GUESS
    quantizer = guess + int((decibels - floor) / DECIBELS_A_STEP)
    best, least, most = None, 1, h264.MOST_QUANTIZER
    for _ in range(MOST_TRIES):
        quantizer = min(max(quantizer, least), most)
        content = h264.encode(pictures, quantizer)
        found = film.cut(h264.decode(content, film.shape))
        psnr = psnr_of(_error(found, tokens), tokens.size)
        if psnr >= floor:
            best, least = Compressed(content, "h264", psnr), quantizer + 1
        else:
            most = quantizer - 1
        if least > most:
            break
        step = int(min(psnr - floor, HIGHEST) / DECIBELS_A_STEP)
        quantizer += step or (1 if psnr >= floor else -1)
    if best is not None and best.psnr == math.inf:
        return Compressed(best.content, best.codec, None)
    return best


def _error(found: np.ndarray, tokens: np.ndarray) -> int:
    """The sum of squared differences, some tokens at a time."""
    return sum(
        int(np.square(found[at : at + TOKENS_AT_ONCE].astype(np.int32) - part).sum(dtype=np.int64))
        for at in range(0, len(tokens), TOKENS_AT_ONCE)
        for part in [tokens[at : at + TOKENS_AT_ONCE]]
    )


TOKENS_AT_ONCE = 256


def decompress(
    content: bytes,
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
    return decode(content, film)
