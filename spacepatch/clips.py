"""Choose the clips of a source: whole video, windows or manifest ranges, cut to fit a pack."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np

from spacepatch.data import ClipRange, ClipSpec, VideoInfo
from spacepatch.errors import ConfigError, SourceError
from spacepatch.sampling import SAMPLERS, Samples
from spacepatch.tubelets import grid_shape

MOST_WINDOWS = 1_000_000
"""Of one span; more is a slip in clip_seconds or clip_stride."""

LONG_POLICIES = ("split", "skip", "error")


@dataclass(frozen=True, slots=True)
class ClipLoss:
    """A clip that the settings rule out, before any decoding."""

    reason: str
    num_frames: int
    message: str


@dataclass(frozen=True, slots=True)
class _Window:
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


def choose_clips(
    info: VideoInfo,
    *,
    source: int,
    ranges: tuple[ClipRange, ...],
    sampler: str,
    sampler_value: Fraction,
    sizes: tuple[tuple[int, int], ...],
    tubelet_size: int,
    patch_size: tuple[int, int],
    tail: str,
    pack_length: int,
    clip_seconds: Fraction | None = None,
    clip_stride: Fraction | None = None,
    min_seconds: Fraction = Fraction(0),
    long: str = "split",
) -> tuple[list[ClipSpec], list[ClipLoss]]:
    """The clips of one source, in order of time, with their exact frames and token counts.

    Windows of one span share the span's grid of sample times. Where the stream changes its size, a
    new clip begins. A clip of more than `pack_length`
    tokens is cut greedily into the longest windows that fit, the remainder last.

    Args:
        source: the source's row in the plan, copied into each clip.
        ranges: what a manifest asks for, in seconds from the first frame; empty: the whole video.
        sizes: (h, w) of a frame after resizing, one for each of the stream's parts.

    Returns:
        The clips, and what the settings rule out.

    Raises:
        ConfigError: `long="error"` and a clip does not fit.
    """
    clips: list[ClipSpec] = []
    losses: list[ClipLoss] = []
    views: Counter[tuple[int, int]] = Counter()
    for window in _windows(info, ranges, sampler, sampler_value, clip_seconds, clip_stride):
        count = window.last - window.first
        if count == 0 or (not info.still and window.seconds < min_seconds):
            message = (
                f"{float(window.seconds):.3f} s is shorter than min_seconds {float(min_seconds):g}"
                if count
                else "the range holds no frame"
            )
            losses.append(ClipLoss("too_short", count, message))
            continue
        for part, piece in _cut_by_size(info, window):
            chosen, ruled_out = _cut_to_pack(
                info,
                piece,
                source=source,
                size=sizes[part],
                tubelet_size=tubelet_size,
                patch_size=patch_size,
                tail=tail,
                pack_length=pack_length,
                long=long,
            )
            losses += ruled_out
            for clip in chosen:
                # Ranges that overlap can come to one interval: views of it, so that ids stay
                # unique.
                interval = clip.start_pts, clip.stop_pts
                clips.append(replace(clip, clip=len(clips), view=views[interval]))
                views[interval] += 1
    return clips, losses


def _cut_by_size(info: VideoInfo, window: _Window) -> Iterator[tuple[int, _Window]]:
    """Cut a window where the size changes, into (which part of the stream, samples of it)."""
    starts = np.array([part.first for part in info.parts])
    indices = window.samples.indices[window.first : window.last]
    parts = np.searchsorted(starts, indices, side="right") - 1
    borders = [0, *(np.flatnonzero(np.diff(parts)) + 1).tolist(), len(parts)]
    for first, last in itertools.pairwise(borders):
        piece = replace(window, first=window.first + first, last=window.first + last)
        yield int(parts[first]), replace(piece, stop=window.tick(piece.last))


def _cut_to_pack(
    info: VideoInfo,
    window: _Window,
    *,
    source: int,
    size: tuple[int, int],
    tubelet_size: int,
    patch_size: tuple[int, int],
    tail: str,
    pack_length: int,
    long: str,
) -> tuple[list[ClipSpec], list[ClipLoss]]:
    """The clips of one window, of one size, each of which fits a pack; numbered by the caller."""
    clips: list[ClipSpec] = []
    grid_h, grid_w = size[0] // patch_size[0], size[1] // patch_size[1]
    rows_per_pack = pack_length // (grid_h * grid_w)
    count = window.last - window.first

    def num_rows(num_frames: int) -> int:
        return grid_shape(
            num_frames, size, tubelet_size=tubelet_size, patch_size=patch_size, tail=tail
        )[0]

    rows = num_rows(count)
    if rows == 0:
        return [], [
            ClipLoss("tail_dropped", count, f"{count} frames fill no tubelet of {tubelet_size}")
        ]
    if rows_per_pack == 0:
        message = f"one row of {grid_h} x {grid_w} tokens exceeds pack_length {pack_length}"
        return [], [ClipLoss("over_pack_length", count, message)]
    if rows > rows_per_pack and long != "split":
        tokens = rows * grid_h * grid_w
        if long == "error":
            raise ConfigError(
                f"a clip of {tokens} tokens exceeds pack_length {pack_length}; "
                "use --long split or skip, a larger --pack-length or fewer tokens a frame"
            )
        message = f"{tokens} tokens exceed pack_length {pack_length}"
        return [], [ClipLoss("skipped_by_policy", count, message)]
    losses: list[ClipLoss] = []
    for first, last in _cut(window, rows_per_pack * tubelet_size, tubelet_size):
        if last is None:
            message = (
                "the frames sampled in one tick of the stream's clock "
                f"({info.time_base} s) exceed pack_length {pack_length}"
            )
            losses.append(ClipLoss("over_pack_length", window.last - first, message))
            break
        grid_t = num_rows(last - first)
        if grid_t == 0:
            message = f"{last - first} frames fill no tubelet of {tubelet_size}"
            losses.append(ClipLoss("tail_dropped", last - first, message))
            continue
        grid = grid_t, grid_h, grid_w
        clips.append(_clip(info, window, first, last, source, size, grid, tubelet_size))
    return clips, losses


def _cut(window: _Window, most: int, tubelet_size: int) -> Iterator[tuple[int, int | None]]:
    """Cut a window greedily into [first, last) samples, `most` at most, at whole tubelets.

    A border needs a tick of its own, later than the sample before it: where samples are closer than
    the ticks of a coarse time base, a piece is shorter. None: there is no such border.
    """
    ticks, first = window.samples.ticks, window.first
    while window.last - first > most:
        last = first + most
        while last > first and ticks[last] == ticks[last - 1]:
            last -= tubelet_size
        if last <= first:
            yield first, None
            return
        yield first, last
        first = last
    yield first, window.last


def _clip(
    info: VideoInfo,
    window: _Window,
    first: int,
    last: int,
    source: int,
    size: tuple[int, int],
    grid_thw: tuple[int, int, int],
    tubelet_size: int,
) -> ClipSpec:
    indices = window.samples.indices[first:last]
    start, stop = window.tick(first), window.tick(last)
    inside = np.searchsorted(info.frame_pts, [start, stop], side="left")
    return ClipSpec(
        source=source,
        clip=0,
        view=0,
        start_pts=start,
        stop_pts=stop,
        frame_pts=info.frame_pts[indices],
        frame_indices=indices.astype(np.int32),
        row_pts=window.samples.ticks[first:last:tubelet_size][: grid_thw[0]],
        sampled_fps=window.samples.fps,
        size=size,
        grid_thw=grid_thw,
        num_tokens=grid_thw[0] * grid_thw[1] * grid_thw[2],
        num_source_frames=int(inside[1] - inside[0]),
        extra=window.extra,
    )


def _windows(
    info: VideoInfo,
    ranges: tuple[ClipRange, ...],
    sampler: str,
    value: Fraction,
    clip_seconds: Fraction | None,
    clip_stride: Fraction | None,
) -> Iterator[_Window]:
    def sample(first: int, last: int) -> Samples:
        return SAMPLERS[sampler](
            info.frame_pts, start=first, stop=last, time_base=info.time_base, value=value
        )

    for asked in ranges or (ClipRange(None, None),):
        start, stop, seconds = _span(info, asked)
        if start >= stop:
            nothing = Samples(np.empty(0, np.int64), np.empty(0, np.int64), None)
            yield _Window(nothing, 0, 0, stop, Fraction(0), asked.extra)
            continue
        if info.still:
            # A picture has no duration to sample: one frame at 0 s, whatever the sampler.
            one = Samples(np.zeros(1, np.int64), np.array([start]), None)
            yield _Window(one, 0, 1, stop, seconds, asked.extra)
            continue
        samples = sample(start, stop)
        if clip_seconds is None:
            yield _Window(samples, 0, len(samples.ticks), stop, seconds, asked.extra)
            continue
        length = clip_seconds / info.time_base
        stride = (clip_stride or clip_seconds) / info.time_base
        if (stop - start) / stride > MOST_WINDOWS:
            raise SourceError(f"more than {MOST_WINDOWS} windows", reason="too_large")
        previous = None
        for number in itertools.count():
            begin = start + number * stride
            if begin >= stop:
                if previous is None:
                    nothing = Samples(np.empty(0, np.int64), np.empty(0, np.int64), None)
                    yield _Window(nothing, 0, 0, stop, Fraction(0), asked.extra)
                break
            end = min(begin + length, Fraction(stop))
            seconds = (end - begin) * info.time_base
            # Sample times are rounded down to ticks, so the window's borders are too: a sample
            # that falls on a border exactly stays in the window that begins there.
            borders = math.floor(begin), math.floor(end)
            if sampler == "num-frames" and borders[0] < borders[1]:
                # A rate is the stream's, one grid for all windows; a number is each clip's own.
                samples = sample(*borders)
            first, last = map(int, np.searchsorted(samples.ticks, borders, side="left"))
            window = borders if sampler == "num-frames" else (first, last)
            if first == last or window == previous:
                # A stride below the distance of samples: the same samples are the same clip.
                continue
            previous = window
            yield _Window(samples, first, last, borders[1], seconds, asked.extra)


def _span(info: VideoInfo, asked: ClipRange) -> tuple[int, int, Fraction]:
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
