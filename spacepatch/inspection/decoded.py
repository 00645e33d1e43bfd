"""What a sample of segments, decoded and held against their sources, shows of a dataset."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from spacepatch.inspection.comparing import Compared
from spacepatch.inspection.findings import Problem
from spacepatch.quality import psnr_of


@dataclass(frozen=True, slots=True)
class DecodedSegment:
    """One segment of the sample."""

    segment_id: str
    source: str
    clip: int
    view: int
    where: str
    """``NAME-000000.tar: pack 3``"""
    start_seconds: float
    stop_seconds: float
    found: Compared
    problem: str
    """Empty: none."""
    seconds: tuple[float, ...] = ()
    """Of each of `found.shown`."""
    row: Mapping[str, Any] = field(default_factory=dict)
    """Of segments.parquet."""
    patch: tuple[int, int] = (1, 1)
    """(h, w) in pixels of what a token covers of a frame."""
    row_starts: tuple[int, ...] = (0,)
    """The frame that each grid row begins with, and where they end."""

    @property
    def psnr(self) -> float | None:
        """dB; infinite where nothing differs; None: not decoded, or without a source."""
        if self.found.error is None:
            return None
        return psnr_of(self.found.error, self.found.num_values)


@dataclass(frozen=True, slots=True)
class Decoded:
    """What a sample shows of a dataset."""

    kind: str
    """pixels, latents or codes"""
    encoder: str | None
    """Its name; None: pixels."""
    segments: tuple[DecodedSegment, ...]
    notes: tuple[str, ...]
    mean: list[float] | None
    """Of each channel of the sample's latents; None: no latents."""
    std: list[float] | None
    dataset_mean: list[float] | None
    """The same of all latents, as dataset.json has it."""
    dataset_std: list[float] | None

    @property
    def problems(self) -> list[Problem]:
        return [
            Problem(f"{segment.where}: {segment.source} clip {segment.clip}", segment.problem)
            for segment in self.segments
            if segment.problem
        ]

    @property
    def psnr(self) -> float | None:
        """Over all values of all decoded frames."""
        founds = [segment.found for segment in self.segments]
        errors = [found.error for found in founds if found.error is not None]
        if not errors:
            return None
        num_values = sum(found.num_values for found in founds if found.error is not None)
        return psnr_of(sum(errors), num_values)

    @property
    def ssim(self) -> float | None:
        """The mean over frames."""
        parts = [
            (segment.found.ssim, segment.found.num_frames)
            for segment in self.segments
            if segment.found.ssim is not None
        ]
        if not parts:
            return None
        return sum(value * frames for value, frames in parts) / sum(n for _, n in parts)

    @property
    def num_same(self) -> int:
        """Segments that are to the bit what is made of their sources now."""
        return sum(segment.found.is_same is True for segment in self.segments)

    @property
    def num_sound(self) -> int:
        """Those, and those that differ by no more than sums in another order do, and references
        of which there is no more than their number of tokens to be held to."""
        return sum(
            (segment.found.is_same is not None or segment.found.is_counted) and not segment.problem
            for segment in self.segments
        )
