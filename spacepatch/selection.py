"""Choose among the sources: --sample, --limit, --split."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from fractions import Fraction
from itertools import chain, compress

import numpy as np

from spacepatch.data import Source
from spacepatch.errors import ConfigError
from spacepatch.listings import Listing, SourceTable


def select_sources(
    listing: Listing,
    *,
    seed: int,
    sample: str | None = None,
    limit: int | None = None,
    split: str | None = None,
) -> Listing:
    """Apply `--sample`, then `--limit`, then name the `--split` of each source.

    Sample and split go by keyed hashes: a larger sample contains a smaller one, and a source keeps
    its split whatever else is listed. What is missing is chosen like the others, after them: no
    loss is hidden.

    Raises:
        ConfigError: a value that cannot be understood.
    """
    if sample is None and limit is None and not split:
        return listing
    is_chosen = np.ones(len(listing), bool)
    if sample is not None:
        everything = chain(listing.sources, listing.missing)
        draws = np.fromiter((_number(seed, "sample", x) for x in everything), np.uint64)
        first = np.argsort(draws, kind="stable")
        is_chosen[first[parse_share("sample", sample, len(listing)) :]] = False
    if limit is not None:
        is_chosen[np.flatnonzero(is_chosen)[limit:]] = False
    borders = parse_split(split) if split else {}

    def chosen(sources: Iterable[Source], own: np.ndarray) -> Iterator[Source]:
        for source in compress(sources, own):
            if not borders:
                yield source
                continue
            draw = Fraction(_number(seed, "split", source), 2**64)
            name = next(name for name in borders if draw < borders[name])
            yield replace(source, split=name)

    border = len(listing.sources)
    return replace(
        listing,
        sources=SourceTable(chosen(listing.sources, is_chosen[:border])),
        missing=SourceTable(chosen(listing.missing, is_chosen[border:])),
    )


def drawn_order(sources: Iterable[Source], seed: int) -> list[Source]:
    """The order that `--sample` takes sources in: drawn, and the same for the same seed."""
    return sorted(sources, key=lambda source: _number(seed, "sample", source))


def parse_share(
    key: str, text: str, total: int, rounding: Callable[[Fraction], int] = math.ceil
) -> int:
    """`7`, or `1%` of `total` (rounded up by default); a ConfigError where it is neither."""
    try:
        share = Fraction(text[:-1]) / 100 if text.endswith("%") else None
        count = int(text) if share is None else rounding(share * total)
        if count < 0 or not 0 <= (share or 0) <= 1:
            raise ValueError(text)
    except (ValueError, ZeroDivisionError):
        raise ConfigError(f"{key}: {text!r} is no count (12) and no percentage (1%)") from None
    return count


def parse_split(text: str) -> dict[str, Fraction]:
    """``train=0.98,val=0.02`` to names, fit for file names, with their upper borders in [0, 1]."""
    borders: dict[str, Fraction] = {}
    total = Fraction(0)
    for part in text.split(","):
        match = re.fullmatch(r"\s*([0-9A-Za-z_]{1,32})=(\d*\.?\d+|\d+/[1-9]\d*)\s*", part)
        if match is None:
            raise ConfigError(f"split: {part!r} is not NAME=SHARE, as in train=0.98")
        if match[1] in borders:
            raise ConfigError(f"split: {match[1]!r} is named twice")
        total += Fraction(match[2])
        borders[match[1]] = total
    if total != 1:
        raise ConfigError(f"split: the shares of {text!r} sum to {float(total):g}, not to 1")
    return borders


def _number(seed: int, purpose: str, source: Source) -> int:
    """Of 64 bits, that depends on these three and on nothing else."""
    content = f"{seed}\0{purpose}\0{source.source_id}".encode()
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big")
