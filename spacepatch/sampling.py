"""Which frames: by time, in rational arithmetic, by number, or by a peer's rule of indices."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from spacepatch.errors import SourceError
from spacepatch.peer_indices import qwen2_vl_indices, qwen3_vl_indices, transformers_indices

MOST_SAMPLES = 20_000_000
"""Of one span: 7 days at 30 a second. More is a slip (fps 30000 for 30000/1001), or a bomb."""


@dataclass(frozen=True, slots=True)
class Span:
    """What is sampled: the frames of a stream in [start, stop)."""

    frame_pts: np.ndarray
    """(F,) int64: the frames of the whole stream, strictly increasing, in units of `time_base`."""
    start: int
    stop: int
    """In units of `time_base`; start >= frame_pts[0]."""
    time_base: Fraction
    keyframes: np.ndarray | None = None
    """(K,) int64 presentation indices, increasing."""

    @property
    def ticks(self) -> int:
        return self.stop - self.start

    @property
    def seconds(self) -> Fraction:
        return self.ticks * self.time_base

    @property
    def inside(self) -> tuple[int, int]:
        """[first, last) presentation indices of the frames whose time is in the span."""
        first, last = np.searchsorted(self.frame_pts, [self.start, self.stop], side="left")
        return int(first), int(last)


@dataclass(frozen=True, slots=True)
class Samples:
    """The samples of one span of a stream, in order of time."""

    indices: np.ndarray
    """(n,) int64: presentation index of the frame of each sample; non-decreasing."""
    ticks: np.ndarray
    """(n,) int64: the sample times, rounded down to units of the time base; where frames are chosen
    by number, or the nearest ones, the times of the frames. Non-decreasing. Where a clip is cut
    between samples k-1 and k, ticks[k] is the stop of one and the start of the other."""
    fps: Fraction | None
    """Samples a second, on average; None where every frame is taken."""


Sampler = Callable[[Span, Fraction, Fraction], Samples]
"""Called with a span, the value of the setting, and the random offset: in [0, 1), the part of a
sample distance by which all samples come later. A span shorter than a distance is itself the
distance, so that it keeps its one sample. Samplers leave alone what means nothing to them. More
than `MOST_SAMPLES` are a `SourceError` (reason `too_large`)."""


def sample_fps(span: Span, value: Fraction, shift: Fraction) -> Samples:
    """Sample k is at start + (k + shift) / fps: the frame on display then."""
    return _on_display(span, _times(span, 1 / (value * span.time_base), shift, value), value)


def sample_num_frames(span: Span, value: Fraction, shift: Fraction) -> Samples:
    """Sample k of `value` is at start + (k + shift) * length / value: the frame on display then."""
    step, fps = _uniform(span, value)
    return _on_display(span, _times(span, step, shift, fps), fps)


def sample_every_frame(span: Span, value: Fraction, shift: Fraction) -> Samples:
    """Each frame whose time is in the span."""
    first, last = span.inside
    indices = np.arange(first, last, dtype=np.int64)
    return Samples(indices, span.frame_pts[first:last].copy(), None)


def sample_stride(span: Span, value: Fraction, shift: Fraction) -> Samples:
    """Every `value`-th frame, from number floor(shift * value) on."""
    first, last = span.inside
    offset = math.floor(shift * min(int(value), last - first))
    return _by_number(span, np.arange(first + offset, last, int(value), dtype=np.int64))


def sample_keyframes(span: Span, value: Fraction, shift: Fraction) -> Samples:
    """The keyframes; a `ValueError` where the span does not know them."""
    if span.keyframes is None:
        raise ValueError("the keyframes of the stream are not known: give keyframes")
    first, last = np.searchsorted(span.keyframes, span.inside, side="left")
    return _by_number(span, span.keyframes[first:last].astype(np.int64))


def sample_nearest_fps(span: Span, value: Fraction, shift: Fraction) -> Samples:
    """The frames nearest in time to start + (k + shift) / fps, of two as near the earlier.

    NeMo-Curator's `sample_closest`, without rounding and within the span.
    """
    return _nearest(span, _times(span, 1 / (value * span.time_base), shift, value), value)


def sample_nearest_num_frames(span: Span, value: Fraction, shift: Fraction) -> Samples:
    """The frames nearest in time to the sample times of `sample_num_frames`."""
    step, fps = _uniform(span, value)
    return _nearest(span, _times(span, step, shift, fps), fps)


def sample_qwen2_vl(span: Span, value: Fraction, shift: Fraction) -> Samples:
    """`qwen2_vl_indices`, for `value` a second."""
    return _peer(span, value, qwen2_vl_indices)


def sample_qwen3_vl(span: Span, value: Fraction, shift: Fraction) -> Samples:
    """`qwen3_vl_indices`, for `value` a second."""
    return _peer(span, value, qwen3_vl_indices)


def sample_transformers_fps(span: Span, value: Fraction, shift: Fraction) -> Samples:
    """`transformers_indices`, `value` a second, rounded down."""

    def indices(num_frames: int, fps_source: float, fps_target: float) -> np.ndarray:
        count = max(1, int(num_frames / fps_source * fps_target))
        _refuse_beyond(count, value)
        return transformers_indices(num_frames, count)

    return _peer(span, value, indices)


def sample_transformers_num_frames(span: Span, value: Fraction, shift: Fraction) -> Samples:
    """`value` frames by `transformers_indices`."""
    return _peer(
        span, value, lambda num_frames, *rates: transformers_indices(num_frames, int(value))
    )


SAMPLERS: dict[str, Sampler] = {
    "fps": sample_fps,
    "num-frames": sample_num_frames,
    "every-frame": sample_every_frame,
    "stride": sample_stride,
    "keyframes": sample_keyframes,
    "qwen2-vl": sample_qwen2_vl,
    "qwen3-vl": sample_qwen3_vl,
    "transformers-fps": sample_transformers_fps,
    "transformers-num-frames": sample_transformers_num_frames,
    "nearest-fps": sample_nearest_fps,
    "nearest-num-frames": sample_nearest_num_frames,
}
"""How frames are chosen."""

OF_EACH_CLIP = frozenset(
    "num-frames qwen2-vl qwen3-vl transformers-fps transformers-num-frames nearest-fps "
    "nearest-num-frames".split()
)
"""Samplers whose choice depends on where the span ends: each clip is sampled on its own, while by
the others the windows of a span share the span's samples."""


def _uniform(span: Span, value: Fraction) -> tuple[Fraction, Fraction]:
    """The distance of `value` samples in ticks, and how many a second that is."""
    step = Fraction(span.ticks) / value
    return step, 1 / (step * span.time_base)


def _times(span: Span, step: Fraction, shift: Fraction, fps: Fraction) -> tuple[np.ndarray, int]:
    """Numerators and denominator of the times (k + shift) * step within the span, in ticks."""
    length = Fraction(span.ticks)
    _refuse_beyond(length / step, fps)
    first = shift * min(step, length)
    count = math.ceil((length - first) / step)
    denominator = math.lcm(step.denominator, first.denominator)
    distance, offset = int(step * denominator), int(first * denominator)
    # Below 2**61 for any stream of less than 2**61 ticks; Python integers for the absurd ones.
    kind = np.int64 if count * distance + offset < 2**61 else object
    return np.arange(count).astype(kind) * distance + offset, denominator


def _refuse_beyond(count: Fraction | int, fps: Fraction) -> None:
    if count > MOST_SAMPLES:
        raise SourceError(
            f"{float(fps):g} samples a second are more than {MOST_SAMPLES} of this source; "
            "sample fewer a second, or cut it with ranges of a manifest",
            reason="too_large",
        )


def _on_display(span: Span, times: tuple[np.ndarray, int], fps: Fraction) -> Samples:
    numerators, denominator = times
    ticks = (span.start + numerators // denominator).astype(np.int64)
    # pts <= t is pts <= floor(t) for integers, so the rounded-down tick finds the same frame.
    indices = np.searchsorted(span.frame_pts, ticks, side="right") - 1
    return Samples(np.maximum(indices, 0), ticks, fps)


def _nearest(span: Span, times: tuple[np.ndarray, int], fps: Fraction) -> Samples:
    first, last = span.inside
    if first == last:
        return Samples(np.empty(0, np.int64), np.empty(0, np.int64), fps)
    numerators, denominator = times
    pts = span.frame_pts[first:last] - span.start
    # The later of two frames is nearer if their sum is below twice the time; for integers, below
    # that rounded up.
    doubled = -(-2 * numerators // denominator)
    indices = first + np.searchsorted(pts[:-1] + pts[1:], doubled.astype(np.int64), side="left")
    # Not the sample times: a frame can be later than its own, and so beyond a cut at the next.
    return Samples(indices, span.frame_pts[indices], fps)


def _by_number(span: Span, indices: np.ndarray) -> Samples:
    return Samples(indices, span.frame_pts[indices], len(indices) / span.seconds)


def _peer(
    span: Span, value: Fraction, indices: Callable[[int, float, float], np.ndarray]
) -> Samples:
    """The frames of the span that a peer's rule takes, as if they were a file of their own."""
    first, last = span.inside
    if first == last:
        return _by_number(span, np.empty(0, np.int64))
    chosen = indices(last - first, float((last - first) / span.seconds), float(value))
    return _by_number(span, first + chosen)
