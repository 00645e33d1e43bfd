"""Choose among the sources: --sample, --limit, --split."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction

from spacepatch.data import Source
from spacepatch.errors import ConfigError


def select_sources(
    sources: tuple[Source, ...],
    *,
    seed: int,
    sample: str | None = None,
    limit: int | None = None,
    split: str | None = None,
) -> tuple[Source, ...]:
    """Apply `--sample`, then `--limit`, then name the `--split` of each source.

    Sample and split go by keyed hashes: a larger sample contains a smaller one, and a source keeps
    its split whatever else is listed.

    Raises:
        ConfigError: a value that cannot be understood.
    """
    if sample is not None:
        count = parse_share("sample", sample, len(sources))
        chosen = drawn_order(sources, seed)[:count]
        kept = {id(source) for source in chosen}
        sources = tuple(source for source in sources if id(source) in kept)
    if limit is not None:
        sources = sources[:limit]
    if split:
        borders = parse_split(split)
        draws = [_draw(seed, "split", source) for source in sources]
        names = [next(name for name in borders if draw < borders[name]) for draw in draws]
        sources = tuple(map(lambda source, name: replace(source, split=name), sources, names))
    return sources


def drawn_order(sources: Sequence[Source], seed: int) -> list[Source]:
    """The order that `--sample` takes sources in: drawn, and the same for the same seed."""
    return sorted(sources, key=lambda source: _draw(seed, "sample", source))


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


def _draw(seed: int, purpose: str, source: Source) -> Fraction:
    """A number in [0, 1) that depends on these three and on nothing else."""
    content = f"{seed}\0{purpose}\0{source.source_id}".encode()
    number = int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big")
    return Fraction(number, 2**64)
