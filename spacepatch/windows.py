"""The windows of a source: whole video, manifest ranges or equal lengths, and their samples."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from spacepatch.data import ClipRange, VideoInfo
from spacepatch.errors import SourceError
from spacepatch.sampling import SAMPLERS, Samples, Span
from spacepatch.views import View

MOST_WINDOWS = 1_000_000
"""Of one span; more is a slip in clip_seconds or clip_stride."""


@dataclass(frozen=True, slots=True)
class Window:
    """Samples [first, last) of one span of the stream."""

    samples: Samples
    first: int
    last: int
    stop: int
    """Where the window ends, in units of the time base."""
    seconds: Fraction
    """Its length as asked for, before it is rounded to the time base."""
    extra: dict[str, Any]

    def tick(self, sample: int) -> int:
        """Where a clip may begin or end: before `sample`, or at the end of the window."""
        return int(self.samples.ticks[sample]) if sample < self.last else self.stop


@dataclass(frozen=True, slots=True)
class Stretch:
    """A window before it is sampled."""

    start: int
    stop: int
    """[start, stop) of the range that it is cut from, in ticks."""
    first: int
    last: int
    """[first, last) of the window itself."""
    seconds: Fraction
    extra: dict[str, Any]


class Grids:
    """The sample times of the windows of one source."""

    def __init__(self, info: VideoInfo, sampler: str, *, one_grid: bool, cut: bool) -> None:
        self._info, self._sampler, self._one_grid, self._cut = info, sampler, one_grid, cut
        self._grid: tuple[object, Samples] | None = None
        self._previous: dict[int, object] = {}

    def window(self, stretch: Stretch, view: View) -> Window | None:
        """The samples of one window; None where they are those of the window before it."""
        info, borders = self._info, (stretch.first, stretch.last)
        if stretch.first >= stretch.last:
            nothing = Samples(np.empty(0, np.int64), np.empty(0, np.int64), None)
            return Window(nothing, 0, 0, stretch.stop, Fraction(0), stretch.extra)
        if info.still:
            # A picture has no duration to sample: one frame at 0 s, whatever the sampler.
            one = Samples(np.zeros(1, np.int64), np.array([stretch.start]), None)
            return Window(one, 0, 1, stretch.last, stretch.seconds, stretch.extra)
        window: tuple[object, ...]
        if not self._cut or not self._one_grid:
            samples = self._sample(view, *borders)
            first, last = 0, len(samples.ticks)
            window = (stretch.start, samples.ticks.tobytes(), samples.indices.tobytes())
        else:
            samples = self._shared(stretch, view)
            first, last = map(int, np.searchsorted(samples.ticks, borders, side="left"))
            window = (stretch.start, first, last)
        if self._cut:
            # A stride below the distance of samples: the same samples are the same clip.
            if first == last or self._previous.get(view.number) == window:
                return None
            self._previous[view.number] = window
        return Window(samples, first, last, stretch.last, stretch.seconds, stretch.extra)

    def _shared(self, stretch: Stretch, view: View) -> Samples:
        key = stretch.start, stretch.stop, view.value, view.shift
        if self._grid is None or self._grid[0] != key:
            self._grid = key, self._sample(view, stretch.start, stretch.stop)
        return self._grid[1]

    def _sample(self, view: View, start: int, stop: int) -> Samples:
        info = self._info
        span = Span(info.frame_pts, start, stop, info.time_base, info.keyframes)
        return SAMPLERS[self._sampler](span, view.value, view.shift)


def list_stretches(
    info: VideoInfo,
    ranges: tuple[ClipRange, ...],
    clip_seconds: Fraction | None,
    clip_stride: Fraction | None,
) -> Iterator[Stretch]:
    for asked in ranges or (ClipRange(None, None),):
        start, stop, seconds = _range(info, asked)
        if clip_seconds is None or start >= stop or info.still:
            yield Stretch(start, stop, start, stop, seconds, asked.extra)
            continue
        length = clip_seconds / info.time_base
        stride = (clip_stride or clip_seconds) / info.time_base
        if (stop - start) / stride > MOST_WINDOWS:
            raise SourceError(f"more than {MOST_WINDOWS} windows", reason="too_large")
        for number in itertools.count():
            begin = start + number * stride
            if begin >= stop:
                break
            end = min(begin + length, Fraction(stop))
            # Sample times are rounded down to ticks, so the window's borders are too: a sample
            # that falls on a border exactly stays in the window that begins there.
            first, last = math.floor(begin), math.floor(end)
            if first < last:
                yield Stretch(start, stop, first, last, (end - begin) * info.time_base, asked.extra)


def _range(info: VideoInfo, asked: ClipRange) -> tuple[int, int, Fraction]:
    """[start, stop) in ticks, and its seconds; a manifest's seconds count from the first frame."""
    origin, end = int(info.frame_pts[0]), info.stop_pts
    seconds = (end - origin) * info.time_base
    start = origin
    if asked.start_seconds:
        start = origin + math.ceil(asked.start_seconds / info.time_base)
    if asked.stop_seconds is not None:
        end = min(end, origin + math.ceil(asked.stop_seconds / info.time_base))
        seconds = min(seconds, asked.stop_seconds)
    return start, end, seconds - (asked.start_seconds or 0)
