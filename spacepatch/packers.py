"""Every way to pack by its word, and how many packs each makes."""

from __future__ import annotations

from math import gcd

import numpy as np

from spacepatch.errors import ConfigError
from spacepatch.extras import needed
from spacepatch.histogram_packing import (
    HISTOGRAM_PACKERS,
    SEQUENCE_PACKERS,
    matrix_size,
    strategies_of,
)
from spacepatch.packing import PACKERS, Packer, count_in_order, count_packs

ALL_PACKERS: dict[str, Packer] = {**PACKERS, **SEQUENCE_PACKERS}
"""The words of `--packer`; each assigns whole sequences to packs."""

NEEDS_SCIPY = ("nnlshp", "optimal")
"""Packers that solve equations, which takes seconds where the others take milliseconds."""


def num_packs(
    lengths: np.ndarray,
    *,
    packer: str,
    pack_length: int,
    max_segments: int | None = None,
    window: int | None = None,
) -> int:
    """Count the packs that a packer makes, without making them where a histogram will do.

    Args:
        lengths: ``(n,)`` ints, each in [1, pack_length].
    """
    if packer.endswith("-decreasing"):
        return count_packs(
            np.bincount(lengths),
            pack_length=pack_length,
            packer=packer,
            max_segments=max_segments,
        )
    if packer in HISTOGRAM_PACKERS:
        strategies = strategies_of(
            packer, lengths, pack_length=pack_length, max_segments=max_segments
        )
        return sum(strategies.values())
    return count_in_order(
        lengths, packer=packer, pack_length=pack_length, max_segments=max_segments, window=window
    )


def check_packer(packer: str) -> None:
    """Refuse a packer that cannot run here, before anything is written for it.

    Raises:
        MissingDependencyError: it needs scipy, which is not installed.
    """
    if packer in NEEDS_SCIPY:
        needed("scipy.optimize", "scipy", by=f"packer {packer}", extra="pack")


def check_least_squares(
    divisors: np.ndarray, *, pack_length: int, max_segments: int | None = None
) -> None:
    """Refuse nnlshp where its matrix would be too large, before anything is decoded for it.

    Args:
        divisors: ``(n,)`` ints, of which each length that can come to be packed is a sum: tokens
            of a grid row, or where tokens are dropped 1.

    Raises:
        ConfigError: it would be; says what to give instead.
    """
    unit = gcd(*divisors.tolist()) or 1
    depth = min(max_segments or 3, 3)
    total = pack_length // unit
    if matrix_size(total, depth=depth) is not None:
        return
    most = total
    while matrix_size(most, depth=depth) is None:
        most -= 1
    raise ConfigError(
        f"packer nnlshp: pack_length {pack_length} is too long for its matrix, which grows with "
        f"the third power (lengths are multiples of {unit}): give --pack-length {most * unit} or "
        "less, or --packer optimal, which makes fewer packs"
    )
