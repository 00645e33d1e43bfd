"""Choose the clips of a source: whole video, windows or manifest ranges, cut to fit a pack."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from spacepatch.data import ClipRange, ClipSpec, VideoInfo
from spacepatch.errors import ConfigError
from spacepatch.sampling import SAMPLERS, Samples
from spacepatch.tubelets import grid_shape

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
    size: tuple[int, int],
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

    Windows of one span share the span's grid of sample times. A clip of more than `pack_length`
    tokens is cut greedily into the longest windows that fit, the remainder last.

    Args:
        source: the source's row in the plan, copied into each clip.
        ranges: what a manifest asks for, in seconds from the first frame; empty: the whole video.
        size: (h, w) of a frame after resizing.

    Returns:
        The clips, and what the settings rule out.

    Raises:
        ConfigError: `long="error"` and a clip does not fit.
    """
    clips: list[ClipSpec] = []
    losses: list[ClipLoss] = []
    grid_h, grid_w = size[0] // patch_size[0], size[1] // patch_size[1]
    rows_per_pack = pack_length // (grid_h * grid_w)

    for window in _windows(info, ranges, sampler, sampler_value, clip_seconds, clip_stride):
        count = window.last - window.first
        seconds = (window.tick(window.last) - window.tick(window.first)) * info.time_base
        if count == 0 or (not info.still and seconds < min_seconds):
            losses.append(
                ClipLoss(
                    "too_short",
                    count,
                    f"{float(seconds):.3f} s is shorter than min_seconds {float(min_seconds):g}",
                )
            )
            continue
        rows = grid_shape(count, size, tubelet_size=tubelet_size, patch_size=patch_size, tail=tail)[
            0
        ]
        if rows == 0:
            losses.append(
                ClipLoss("tail_dropped", count, f"{count} frames fill no tubelet of {tubelet_size}")
            )
            continue
        if rows_per_pack == 0:
            losses.append(
                ClipLoss(
                    "over_pack_length",
                    count,
                    f"one row of {grid_h} x {grid_w} tokens exceeds pack_length {pack_length}",
                )
            )
            continue
        if rows > rows_per_pack and long != "split":
            tokens = rows * grid_h * grid_w
            if long == "error":
                raise ConfigError(
                    f"a clip of {tokens} tokens exceeds pack_length {pack_length}; "
                    "use --long split or skip, a larger --pack-length or fewer tokens a frame"
                )
            message = f"{tokens} tokens exceed pack_length {pack_length}"
            losses.append(ClipLoss("skipped_by_policy", count, message))
            continue
        step = rows_per_pack * tubelet_size
        for first in range(window.first, window.last, step):
            last = min(first + step, window.last)
            grid_t = grid_shape(
                last - first, size, tubelet_size=tubelet_size, patch_size=patch_size, tail=tail
            )[0]
            if grid_t == 0:
                message = f"{last - first} frames fill no tubelet of {tubelet_size}"
                losses.append(ClipLoss("tail_dropped", last - first, message))
                continue
            clips.append(
                _clip(info, window, first, last, source, len(clips), size, (grid_t, grid_h, grid_w))
            )
    return clips, losses


def _clip(
    info: VideoInfo,
    window: _Window,
    first: int,
    last: int,
    source: int,
    number: int,
    size: tuple[int, int],
    grid_thw: tuple[int, int, int],
) -> ClipSpec:
    indices = window.samples.indices[first:last]
    start, stop = window.tick(first), window.tick(last)
    inside = np.searchsorted(info.frame_pts, [start, stop], side="left")
    return ClipSpec(
        source=source,
        clip=number,
        view=0,
        start_pts=start,
        stop_pts=stop,
        frame_pts=info.frame_pts[indices],
        frame_indices=indices.astype(np.int32),
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
    for asked in ranges or (ClipRange(None, None),):
        start, stop = _span(info, asked)
        if start >= stop:
            yield _Window(
                Samples(np.empty(0, np.int64), np.empty(0, np.int64), None), 0, 0, stop, asked.extra
            )
            continue
        if info.still:
            # A picture has no duration to sample: one frame at 0 s, whatever the sampler.
            one = Samples(np.zeros(1, np.int64), np.array([start]), None)
            yield _Window(one, 0, 1, stop, asked.extra)
            continue
        samples = SAMPLERS[sampler](
            info.frame_pts, start=start, stop=stop, time_base=info.time_base, value=value
        )
        if clip_seconds is None:
            yield _Window(samples, 0, len(samples.ticks), stop, asked.extra)
            continue
        length = clip_seconds / info.time_base
        stride = (clip_stride or clip_seconds) / info.time_base
        number, previous = 0, None
        while True:
            # Sample times are rounded down to ticks, so the window's borders are too: a sample
            # that falls on a border exactly stays in the window that begins there.
            begin = start + number * stride
            if begin >= stop:
                break
            first, last = np.searchsorted(
                samples.ticks, [math.floor(begin), math.floor(begin + length)], side="left"
            )
            number += 1
            if (first, last) == previous:
                # A stride below the distance of samples: the same samples are the same clip.
                continue
            previous = (first, last)
            yield _Window(
                samples, int(first), int(last), min(stop, math.floor(begin + length)), asked.extra
            )


def _span(info: VideoInfo, asked: ClipRange) -> tuple[int, int]:
    """[start, stop) in ticks; a manifest's seconds count from the first frame."""
    origin, end = int(info.frame_pts[0]), info.stop_pts
    start = origin
    if asked.start_seconds:
        start = origin + math.ceil(asked.start_seconds / info.time_base)
    if asked.stop_seconds is not None:
        end = min(end, origin + math.ceil(asked.stop_seconds / info.time_base))
    return start, end
