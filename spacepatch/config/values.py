"""Values of settings: the words they take, sizes in bytes, colours, TOML and fingerprints."""

from __future__ import annotations

import hashlib
import json
import re
from fractions import Fraction
from functools import lru_cache
from typing import Any


def choices_of(key: str) -> tuple[str, ...]:
    """The words that a setting takes; the dicts of the stages are the one list of them."""
    from spacepatch import clips, decode, packers, resize, tubelets
    from spacepatch.balancing import BALANCES
    from spacepatch.executors import EXECUTORS
    from spacepatch.latents.encoders import DTYPES, POSTERIORS
    from spacepatch.normalization import NORMALIZATIONS
    from spacepatch.token_dtypes import LATENT_DTYPES

    words: dict[str, Any] = {
        "sampler": ("display", "nearest", "qwen2-vl", "qwen3-vl", "transformers"),
        "fit": resize.FITS,
        "kind": ("pixels", "latents", "codes"),
        "posterior": POSTERIORS,
        "encoder_dtype": DTYPES,
        "latent_dtype": LATENT_DTYPES,
        "also": ("pixels",),
        "resampler": resize.RESAMPLERS,
        "decoder": decode.DECODERS,
        "untagged": resize.UNTAGGED,
        "hdr": ("tonemap", "skip", "raw"),
        "interlaced": ("deinterlace", "keep", "skip"),
        "on_error": ("keep-prefix", "skip-video"),
        "layout": tubelets.LAYOUTS,
        "normalize": NORMALIZATIONS,
        "tail": tubelets.TAILS,
        "long": clips.LONG_POLICIES,
        "packer": packers.ALL_PACKERS,
        "executor": EXECUTORS,
        "probe": ("packets", "header"),
        "balance": BALANCES,
        "index": ("auto", "full", "compact"),
    }
    return tuple(words[key])


def to_toml(values: dict[str, Any]) -> str:
    """Flat settings as TOML that `--config` reads back; keys that are None are left out."""
    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items() if value is not None]
    return "\n".join(lines) + "\n"


@lru_cache(maxsize=64)
def parse_bytes(text: str) -> int:
    """``256MB`` (10**6), ``1GiB`` (2**30) or a plain number, in bytes.

    Raises:
        ValueError: anything else.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kKMGT]?)(i?)B?\s*", text)
    if match is None or float(match[1]) <= 0:
        raise ValueError("not a size, such as 64MB or 1GiB")
    power = " KMGT".index(match[2].upper() or " ")
    return int(Fraction(match[1]) * (1024 if match[3] else 1000) ** power)


def parse_colour(text: str) -> tuple[int, int, int]:
    """``RRGGBB`` in hex digits, with or without ``#``, as (r, g, b) of 0..255.

    Raises:
        ValueError: anything else.
    """
    match = re.fullmatch(r"#?([0-9A-Fa-f]{2})([0-9A-Fa-f]{2})([0-9A-Fa-f]{2})", text)
    if match is None:
        raise ValueError("not a colour of six hex digits, such as 000000 or ffffff")
    return int(match[1], 16), int(match[2], 16), int(match[3], 16)


def fingerprint(values: dict[str, Any]) -> str:
    """32 hex digits of blake2b-128 over the sorted JSON of `values`."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
