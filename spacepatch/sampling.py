"""Which frames: by time, in rational arithmetic, by number, or by a peer's rule of indices."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from spacepatch.errors import SourceError

MOST_SAMPLES = 20_000_000
"""Of one span: 7 days at 30 a second. More is a slip (fps 30000 for 30000/1001), or a bomb."""
NO_SHIFT = Fraction(0)


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


def sample_fps(
    frame_pts: np.ndarray,
    *,
    start: int,
    stop: int,
    time_base: Fraction,
    value: Fraction,
    shift: Fraction = NO_SHIFT,
    keyframes: np.ndarray | None = None,
) -> Samples:
    """Sample k of [start, stop) is at start + (k + shift) / fps: the frame on display then.

    All samplers take the same arguments, and leave those alone that mean nothing to them.

    Args:
        frame_pts: ``(F,)`` int64, strictly increasing, in units of `time_base`.
        start, stop: the half-open span, in units of `time_base`; start >= frame_pts[0].
        value: samples a second.
        shift: in [0, 1): part of a sample distance by which all samples come later. A span shorter
            than a distance is itself the distance, so that it keeps its one sample.
        keyframes: ``(K,)`` int64 presentation indices, increasing.

    Raises:
        SourceError: more than `MOST_SAMPLES` (reason `too_large`).
    """
    times = _times(stop - start, 1 / (value * time_base), shift, value)
    return _on_display(frame_pts, start, times, value)


def sample_num_frames(
    frame_pts: np.ndarray,
    *,
    start: int,
    stop: int,
    time_base: Fraction,
    value: Fraction,
    shift: Fraction = NO_SHIFT,
    keyframes: np.ndarray | None = None,
) -> Samples:
    """`value` samples at equal distances: sample k at start + (k + shift) * (stop - start) / value.

    They are the frames on display then.
    """
    step, fps = _uniform(start, stop, time_base, value)
    return _on_display(frame_pts, start, _times(stop - start, step, shift, fps), fps)


def sample_every_frame(
    frame_pts: np.ndarray,
    *,
    start: int,
    stop: int,
    time_base: Fraction,
    value: Fraction,
    shift: Fraction = NO_SHIFT,
    keyframes: np.ndarray | None = None,
) -> Samples:
    """Each frame whose time is in [start, stop)."""
    first, last = _inside(frame_pts, start, stop)
    indices = np.arange(first, last, dtype=np.int64)
    return Samples(indices, frame_pts[first:last].copy(), None)


def sample_stride(
    frame_pts: np.ndarray,
    *,
    start: int,
    stop: int,
    time_base: Fraction,
    value: Fraction,
    shift: Fraction = NO_SHIFT,
    keyframes: np.ndarray | None = None,
) -> Samples:
    """Every `value`-th frame of [start, stop), from number floor(shift * value) on."""
    first, last = _inside(frame_pts, start, stop)
    offset = math.floor(shift * min(int(value), last - first))
    indices = np.arange(first + offset, last, int(value), dtype=np.int64)
    return _by_number(frame_pts, indices, (stop - start) * time_base)


def sample_keyframes(
    frame_pts: np.ndarray,
    *,
    start: int,
    stop: int,
    time_base: Fraction,
    value: Fraction,
    shift: Fraction = NO_SHIFT,
    keyframes: np.ndarray | None = None,
) -> Samples:
    """The keyframes of [start, stop).

    Raises:
        ValueError: `keyframes` is not given.
    """
    if keyframes is None:
        raise ValueError("the keyframes of the stream are not known: give keyframes")
    first, last = np.searchsorted(keyframes, _inside(frame_pts, start, stop), side="left")
    indices = keyframes[first:last].astype(np.int64)
    return _by_number(frame_pts, indices, (stop - start) * time_base)


def sample_nearest_fps(
    frame_pts: np.ndarray,
    *,
    start: int,
    stop: int,
    time_base: Fraction,
    value: Fraction,
    shift: Fraction = NO_SHIFT,
    keyframes: np.ndarray | None = None,
) -> Samples:
    """The frames nearest in time to start + (k + shift) / fps, of two as near the earlier.

    NeMo-Curator's `sample_closest`, without rounding and within [start, stop).
    """
    times = _times(stop - start, 1 / (value * time_base), shift, value)
    return _nearest(frame_pts, start, stop, times, value)


def sample_nearest_num_frames(
    frame_pts: np.ndarray,
    *,
    start: int,
    stop: int,
    time_base: Fraction,
    value: Fraction,
    shift: Fraction = NO_SHIFT,
    keyframes: np.ndarray | None = None,
) -> Samples:
    """The frames nearest in time to the sample times of `sample_num_frames`."""
    step, fps = _uniform(start, stop, time_base, value)
    return _nearest(frame_pts, start, stop, _times(stop - start, step, shift, fps), fps)


def qwen2_vl_indices(
    num_frames: int,
    fps_source: float,
    fps_target: float,
    *,
    tubelet_size: int = 2,
    min_frames: int = 4,
    max_frames: int = 768,
) -> np.ndarray:
    """``(n,)`` int64: which of `num_frames` frames Qwen2-VL and Qwen2.5-VL take.

    `sample_frames` of transformers' `Qwen2VLVideoProcessor`. Its indices are a float32 `arange`,
    here with torch's roundings on x86, which show from 16,384 frames on. Where that rule goes one
    index beyond the last frame (111 frames, 54 of them), or has no number (fewer frames than a
    tubelet), the processor fails; here that index is left out, and all frames are taken.
    """
    if num_frames < tubelet_size:
        return np.arange(num_frames, dtype=np.int64)
    most = min(max_frames, num_frames) // tubelet_size * tubelet_size
    wanted = min(max(num_frames / fps_source * fps_target, min_frames), most)
    step = num_frames / (math.floor(wanted / tubelet_size) * tubelet_size)
    count = math.ceil(num_frames / step)
    number = np.arange(count)
    # torch computes eight values from the float32 of their first one, as long as 16 are left.
    base = np.where(number < count // 16 * 16, number // 8 * 8, number)
    exact = (base * step).astype(np.float32).astype(np.float64) + (number - base) * step
    indices = exact.astype(np.float32).astype(np.int64)
    return indices[indices < num_frames]


def qwen3_vl_indices(
    num_frames: int,
    fps_source: float,
    fps_target: float,
    *,
    min_frames: int = 4,
    max_frames: int = 768,
) -> np.ndarray:
    """``(n,)`` int64: which of `num_frames` frames Qwen3-VL takes, the last one among them.

    `sample_frames` of transformers' `Qwen3VLVideoProcessor`.
    """
    wanted = int(num_frames / fps_source * fps_target)
    count = min(max(wanted, min_frames), max_frames, num_frames)
    return np.linspace(0, num_frames - 1, count).round().astype(np.int64)


def transformers_indices(num_frames: int, count: int) -> np.ndarray:
    """``(count,)`` int64: `default_sample_indices_fn` of transformers' `video_utils`.

    More than there are, which is an error there, repeat frames.
    """
    return np.arange(count, dtype=np.int64) * num_frames // count


def sample_qwen2_vl(
    frame_pts: np.ndarray,
    *,
    start: int,
    stop: int,
    time_base: Fraction,
    value: Fraction,
    shift: Fraction = NO_SHIFT,
    keyframes: np.ndarray | None = None,
) -> Samples:
    """`qwen2_vl_indices` of the frames in [start, stop), for `value` a second."""
    return _peer(frame_pts, start, stop, time_base, value, qwen2_vl_indices)


def sample_qwen3_vl(
    frame_pts: np.ndarray,
    *,
    start: int,
    stop: int,
    time_base: Fraction,
    value: Fraction,
    shift: Fraction = NO_SHIFT,
    keyframes: np.ndarray | None = None,
) -> Samples:
    """`qwen3_vl_indices` of the frames in [start, stop), for `value` a second."""
    return _peer(frame_pts, start, stop, time_base, value, qwen3_vl_indices)


def sample_transformers_fps(
    frame_pts: np.ndarray,
    *,
    start: int,
    stop: int,
    time_base: Fraction,
    value: Fraction,
    shift: Fraction = NO_SHIFT,
    keyframes: np.ndarray | None = None,
) -> Samples:
    """`transformers_indices` of the frames in [start, stop), `value` a second, rounded down."""

    def indices(num_frames: int, fps_source: float, fps_target: float) -> np.ndarray:
        count = max(1, int(num_frames / fps_source * fps_target))
        _refuse_beyond(count, value)
        return transformers_indices(num_frames, count)

    return _peer(frame_pts, start, stop, time_base, value, indices)


def sample_transformers_num_frames(
    frame_pts: np.ndarray,
    *,
    start: int,
    stop: int,
    time_base: Fraction,
    value: Fraction,
    shift: Fraction = NO_SHIFT,
    keyframes: np.ndarray | None = None,
) -> Samples:
    """`value` of the frames in [start, stop), by `transformers_indices`."""

    def indices(num_frames: int, fps_source: float, fps_target: float) -> np.ndarray:
        return transformers_indices(num_frames, int(value))

    return _peer(frame_pts, start, stop, time_base, value, indices)


def _uniform(
    start: int, stop: int, time_base: Fraction, value: Fraction
) -> tuple[Fraction, Fraction]:
    """The distance of `value` samples in ticks, and how many a second that is."""
    step = Fraction(stop - start) / value
    return step, 1 / (step * time_base)


def _times(length: int, step: Fraction, shift: Fraction, fps: Fraction) -> tuple[np.ndarray, int]:
    """Numerators and denominator of the times (k + shift) * step below `length`, in ticks."""
    _refuse_beyond(length / step, fps)
    first = shift * min(step, Fraction(length))
    count = math.ceil((length - first) / step)
    denominator = math.lcm(step.denominator, first.denominator)
    distance, offset = int(step * denominator), int(first * denominator)
    # Below 2**61 for any stream of less than 2**61 ticks; Python integers for the absurd ones.
    kind = np.int64 if count * distance + offset < 2**61 else object
    return np.arange(count).astype(kind) * distance + offset, denominator


def _refuse_beyond(count: Fraction | int, fps: Fraction) -> None:
    if count > MOST_SAMPLES:
        raise SourceError(
            f"{float(fps):g} samples a second are more than {MOST_SAMPLES} of this source",
            reason="too_large",
        )


def _on_display(
    frame_pts: np.ndarray, start: int, times: tuple[np.ndarray, int], fps: Fraction
) -> Samples:
    numerators, denominator = times
    ticks = (start + numerators // denominator).astype(np.int64)
    # pts <= t is pts <= floor(t) for integers, so the rounded-down tick finds the same frame.
    indices = np.searchsorted(frame_pts, ticks, side="right") - 1
    return Samples(np.maximum(indices, 0), ticks, fps)


def _nearest(
    frame_pts: np.ndarray, start: int, stop: int, times: tuple[np.ndarray, int], fps: Fraction
) -> Samples:
    first, last = _inside(frame_pts, start, stop)
    if first == last:
        return Samples(np.empty(0, np.int64), np.empty(0, np.int64), fps)
    numerators, denominator = times
    pts = frame_pts[first:last] - start
    # The later of two frames is nearer if their sum is below twice the time; for integers, below
    # that rounded up.
    doubled = -(-2 * numerators // denominator)
    indices = first + np.searchsorted(pts[:-1] + pts[1:], doubled.astype(np.int64), side="left")
    # Not the sample times: a frame can be later than its own, and so beyond a cut at the next.
    return Samples(indices, frame_pts[indices], fps)


def _inside(frame_pts: np.ndarray, start: int, stop: int) -> tuple[int, int]:
    """[first, last) of the frames whose time is in [start, stop)."""
    first, last = np.searchsorted(frame_pts, [start, stop], side="left")
    return int(first), int(last)


def _by_number(frame_pts: np.ndarray, indices: np.ndarray, seconds: Fraction) -> Samples:
    return Samples(indices, frame_pts[indices], len(indices) / seconds)


def _peer(
    frame_pts: np.ndarray,
    start: int,
    stop: int,
    time_base: Fraction,
    value: Fraction,
    indices: Callable[[int, float, float], np.ndarray],
) -> Samples:
    """The frames of [start, stop) that a peer's rule takes, as if they were a file of their own."""
    first, last = _inside(frame_pts, start, stop)
    seconds = (stop - start) * time_base
    if first == last:
        return _by_number(frame_pts, np.empty(0, np.int64), seconds)
    chosen = indices(last - first, float((last - first) / seconds), float(value))
    return _by_number(frame_pts, first + chosen, seconds)


SAMPLERS: dict[str, Callable[..., Samples]] = {
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
"""How frames are chosen; called as `sample_fps` is."""

OF_EACH_CLIP = frozenset(
    "num-frames qwen2-vl qwen3-vl transformers-fps transformers-num-frames nearest-fps "
    "nearest-num-frames".split()
)
"""Samplers whose choice depends on where the span ends: each clip is sampled on its own, while by
the others the windows of a span share the span's samples."""
