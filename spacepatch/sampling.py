"""Which frames, by time: sample times in rational arithmetic, and the frame on display at each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from spacepatch.errors import SourceError

MOST_SAMPLES = 20_000_000
"""Of one span: 7 days at 30 a second. More is a slip (fps 30000 for 30000/1001), or a bomb."""


@dataclass(frozen=True, slots=True)
class Samples:
    """The samples of one span of a stream, in order of time."""

    indices: np.ndarray
    """(n,) int64: presentation index of the frame on display at each sample time."""
    ticks: np.ndarray
    """(n,) int64: the sample times, rounded down to units of the time base; non-decreasing. Where
    a clip is cut between samples k-1 and k, ticks[k] is the stop of one and the start of the
    other."""
    fps: Fraction | None
    """Samples a second; None where every frame is taken."""


def sample_fps(
    frame_pts: np.ndarray, *, start: int, stop: int, time_base: Fraction, value: Fraction
) -> Samples:
    """Sample k of [start, stop) is at start + k / fps and takes the frame on display then.

    Args:
        frame_pts: ``(F,)`` int64, strictly increasing, in units of `time_base`.
        start, stop: the half-open span, in units of `time_base`; start >= frame_pts[0].
        value: samples a second.
    """
    return _sample_every(frame_pts, start, stop, 1 / (value * time_base), value)


def sample_num_frames(
    frame_pts: np.ndarray, *, start: int, stop: int, time_base: Fraction, value: Fraction
) -> Samples:
    """`value` samples at equal distances: sample k at start + k * (stop - start) / value."""
    step = Fraction(stop - start) / value
    return _sample_every(frame_pts, start, stop, step, 1 / (step * time_base))


def sample_every_frame(
    frame_pts: np.ndarray, *, start: int, stop: int, time_base: Fraction, value: Fraction
) -> Samples:
    """Each frame whose time is in [start, stop); `value` is ignored."""
    first, last = np.searchsorted(frame_pts, [start, stop], side="left")
    indices = np.arange(first, last, dtype=np.int64)
    return Samples(indices, frame_pts[first:last].copy(), None)


def _sample_every(
    frame_pts: np.ndarray, start: int, stop: int, step: Fraction, fps: Fraction
) -> Samples:
    if (stop - start) / step > MOST_SAMPLES:
        raise SourceError(
            f"{float(fps):g} samples a second are more than {MOST_SAMPLES} of this source",
            reason="too_large",
        )
    count = -(-(stop - start) * step.denominator // step.numerator)
    # k * numerator stays below 2**63 for any stream of less than 2**63 ticks; Python integers for
    # the absurd ones.
    kind = np.int64 if count * step.numerator < 2**62 else object
    offsets = np.arange(count).astype(kind) * step.numerator // step.denominator
    ticks = (start + offsets).astype(np.int64)
    # pts <= t is pts <= floor(t) for integers, so the rounded-down tick finds the same frame.
    indices = np.searchsorted(frame_pts, ticks, side="right") - 1
    return Samples(np.maximum(indices, 0), ticks, fps)


SAMPLERS: dict[str, Callable[..., Samples]] = {
    "fps": sample_fps,
    "num-frames": sample_num_frames,
    "every-frame": sample_every_frame,
}
