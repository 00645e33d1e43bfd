"""How the tokens of store refs are made as they are loaded: the options, and what is made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spacepatch.clipwriter import ClipTokens
from spacepatch.config import parse_bytes
from spacepatch.data import ClipSpec
from spacepatch.errors import ConfigError, SegmentError
from spacepatch.loader.variation import Variation
from spacepatch.pipeline.plan import PlannedSource
from spacepatch.source_roots import ANY, SourceRoots, parse_roots

ON_MISMATCH = ("error", "warn")
ON_BAD_SOURCE = ("error", "skip")
Roots = str | Path | Sequence[str] | Mapping[int, str | Path]


@dataclass(frozen=True, slots=True)
class Decoding:
    """How the tokens of a dataset of store refs are made.

    Args:
        source_root: where the sources lie now: the folder that their names are relative to, or the
            SOURCE argument itself (file, glob, tar, list, manifest, URL); of several SOURCE
            arguments by their numbers, ``{0: "a/", 1: "b/"}`` or ``["0=a/", "1=b/"]``.
        allow_network: may web servers be asked for sources?
        on_mismatch: where tokens are not those of `tokens_crc32c`, as with another FFmpeg:
            ``error``, or ``warn`` and take them.
        on_bad_source: where a source is missing, changed, cannot be decoded, or gives fewer tokens
            than the segment was packed with: ``error``, or ``skip``: packs lack that segment, and
            `num_bad_segments` counts it.
        decoder_workers: processes that decode ahead, each of which can be killed: a file that
            crashes or hangs costs one segment. 0: whoever reads decodes, as workers of a DataLoader
            may; they are one or the other.
        decode_timeout: seconds that one of them may go without a new frame.
        decode_memory: what one of them may take.
        decode_cache: tokens that a process keeps, made ahead or made before.
        vary: what of each segment is drawn anew in each epoch, within the tokens that were planned:
            a `Variation`, or a dict of its settings, ``{"resolution": "uniform:128..256"}``.
    """

    source_root: Roots | None = None
    allow_network: bool = False
    on_mismatch: str = "error"
    on_bad_source: str = "error"
    decoder_workers: int = 0
    decode_timeout: float = 60.0
    decode_memory: str = "4GB"
    decode_cache: str = "512MB"
    vary: Variation | Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        for name, word, words in (
            ("on_mismatch", self.on_mismatch, ON_MISMATCH),
            ("on_bad_source", self.on_bad_source, ON_BAD_SOURCE),
        ):
            if word not in words:
                raise ValueError(f"{name} is {word!r}, must be one of {', '.join(words)}")
        if self.decoder_workers < 0 or not self.decode_timeout > 0:
            raise ValueError(
                f"decoder_workers {self.decoder_workers}, decode_timeout {self.decode_timeout}: "
                "must be 0 up, and above 0"
            )
        for name, size in (
            ("decode_memory", self.decode_memory),
            ("decode_cache", self.decode_cache),
        ):
            try:
                parse_bytes(size)
            except ValueError as error:
                raise ValueError(f"{name} is {size!r}, {error}") from None
        object.__setattr__(self, "vary", Variation.of(self.vary))

    @property
    def spelled_variation(self) -> dict[str, str] | None:
        return self.vary.settings if isinstance(self.vary, Variation) else None

    def find_roots(self) -> SourceRoots:
        """Raises a ConfigError where a place is not there."""
        try:
            return SourceRoots(self._places(), allow_network=self.allow_network)
        except ConfigError as error:
            raise ConfigError(str(error).replace("--source-root", "source_root")) from None

    def _places(self) -> dict[int, str]:
        """By ordinal of the SOURCE argument, or `ANY`."""
        given = self.source_root
        if given is None:
            return {}
        if isinstance(given, str | Path):
            return {ANY: str(given)}
        if isinstance(given, Mapping):
            return {number: str(place) for number, place in given.items()}
        return parse_roots(map(str, given))


@dataclass(frozen=True, slots=True)
class Wanted:
    """A segment whose tokens are to be made."""

    key: tuple[str, ...]
    """Its id, and what was drawn for it; the same tokens have the same key."""
    clip: ClipSpec
    clip_id: str
    """What the clip's draws are keyed by."""
    planned: PlannedSource

    def error(self, reason: str, message: str) -> SegmentError:
        source, identity = self.planned.source.name, self.key[0]
        return SegmentError(
            f"{source}: segment {identity}: {message}",
            source=source,
            segment_id=identity,
            reason=reason,
        )


@dataclass(frozen=True, slots=True)
class MadeTokens:
    """A segment as it was made."""

    tokens: np.ndarray
    """``(n, D)`` uint8."""
    clip: ClipTokens


Outcome = MadeTokens | SegmentError
