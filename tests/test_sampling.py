"""Which frames: against a brute force in fractions, over random variable frame rates."""

import math
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spacepatch.sampling import OF_EACH_CLIP, SAMPLERS, Samples, Span

TIME_BASES = [Fraction(1, 1000), Fraction(1, 90_000), Fraction(1001, 30_000), Fraction(1, 5)]
RATES = [Fraction(8), Fraction(30_000, 1001), Fraction(1, 2), Fraction(7, 3), Fraction(60)]
SHIFTS = [Fraction(0), Fraction(1, 2), Fraction(123_457, 10**6), Fraction(999_999, 10**6)]


@st.composite
def streams(draw) -> tuple[list[int], int]:
    """Strictly increasing times of any start, and the end of the last frame."""
    steps = draw(st.lists(st.integers(1, 400), min_size=1, max_size=30))
    pts = [draw(st.integers(-5000, 5_000_000))]
    for step in steps:
        pts.append(pts[-1] + step)
    return pts[:-1], pts[-1]


@st.composite
def spans(draw) -> tuple[list[int], int, int]:
    """A stream, and a span of it."""
    pts, end = draw(streams())
    start = draw(st.integers(pts[0], end - 1))
    return pts, start, draw(st.integers(start + 1, end))


def brute_force(pts: list[int], times: list[Fraction]) -> list[int]:
    """The last frame that is not after each time: a frame is an interval, not an instant."""
    return [max(k for k, time in enumerate(pts) if time <= at) for at in times]


def brute_grid(start: int, stop: int, step: Fraction) -> list[Fraction]:
    times = []
    while (time := start + len(times) * step) < stop:
        times.append(time)
    return times


def sampled(
    name: str,
    pts: list[int],
    start: int,
    stop: int,
    base: Fraction,
    value,
    shift: Fraction = Fraction(0),
) -> Samples:
    """What a sampler takes; every third frame is a keyframe."""
    span = Span(np.array(pts, np.int64), start, stop, base, np.arange(0, len(pts), 3))
    return SAMPLERS[name](span, Fraction(value), shift)


@given(span=spans(), base=st.sampled_from(TIME_BASES), fps=st.sampled_from(RATES))
@settings(max_examples=300, deadline=None)
def test_sample_k_is_the_frame_on_display_at_start_plus_k_over_fps(span, base, fps) -> None:
    pts, start, stop = span
    times = brute_grid(start, stop, 1 / (fps * base))
    samples = sampled("fps", pts, start, stop, base, fps)
    assert samples.indices.tolist() == brute_force(pts, times)
    assert samples.ticks.tolist() == [math.floor(time) for time in times]
    assert samples.fps == fps


@given(span=spans(), base=st.sampled_from(TIME_BASES), fps=st.fractions(Fraction(1, 100), 300))
@settings(max_examples=200, deadline=None)
def test_any_rational_rate_agrees_with_brute_force(span, base, fps) -> None:
    pts, start, stop = span
    times = brute_grid(start, min(stop, start + 500), 1 / (fps * base))
    samples = sampled("fps", pts, start, min(stop, start + 500), base, fps)
    assert samples.indices.tolist() == brute_force(pts, times)


@given(span=spans(), base=st.sampled_from(TIME_BASES), count=st.integers(1, 64))
@settings(max_examples=300, deadline=None)
def test_num_frames_takes_that_many_at_equal_distances(span, base, count) -> None:
    pts, start, stop = span
    times = [start + Fraction(k * (stop - start), count) for k in range(count)]
    samples = sampled("num-frames", pts, start, stop, base, count)
    assert samples.indices.tolist() == brute_force(pts, times)
    assert samples.ticks.tolist() == [math.floor(time) for time in times]
    assert samples.fps == count / ((stop - start) * base)


@given(span=spans(), base=st.sampled_from(TIME_BASES))
@settings(max_examples=200, deadline=None)
def test_every_frame_takes_those_whose_time_is_in_the_span(span, base) -> None:
    pts, start, stop = span
    samples = sampled("every-frame", pts, start, stop, base, 0)
    assert samples.indices.tolist() == [k for k, t in enumerate(pts) if start <= t < stop]
    assert samples.ticks.tolist() == [t for t in pts if start <= t < stop]
    assert samples.fps is None


@pytest.mark.parametrize("name", sorted(SAMPLERS))
@given(
    span=spans(),
    base=st.sampled_from(TIME_BASES),
    value=st.integers(1, 90),
    shift=st.sampled_from(SHIFTS),
)
@settings(max_examples=100, deadline=None)
def test_indices_and_times_never_go_back(name, span, base, value, shift) -> None:
    pts, start, stop = span
    samples = sampled(name, pts, start, stop, base, value, shift)
    indices, ticks = samples.indices.tolist(), samples.ticks.tolist()
    assert (samples.indices.dtype, samples.ticks.dtype) == (np.int64, np.int64)
    assert all(a <= b for a, b in pairwise(indices))
    assert all(a <= b for a, b in pairwise(ticks))
    assert all(start <= tick < stop for tick in ticks)
    # A cut before sample k ends a clip at ticks[k]: no frame of the clip may be later.
    assert all(pts[k] <= tick for k, tick in zip(indices, ticks, strict=True))


@pytest.mark.parametrize("name", sorted(set(SAMPLERS) - {"keyframes"}))
@given(span=spans(), value=st.integers(1, 90), shift=st.sampled_from(SHIFTS))
@settings(max_examples=100, deadline=None)
def test_a_span_that_holds_a_frame_has_a_sample(name, span, value, shift) -> None:
    pts, start, stop = span
    samples = sampled(name, pts, start, stop, Fraction(1, 1000), value, shift)
    assert len(samples.indices) > 0 or not any(start <= time < stop for time in pts)


@pytest.mark.parametrize("name", ["fps", "every-frame", "stride", "keyframes"])
@given(stream=streams(), cut=st.integers(1, 40), value=st.integers(1, 9))
@settings(max_examples=100, deadline=None)
def test_a_longer_span_begins_with_the_samples_of_a_shorter_one(name, stream, cut, value) -> None:
    pts, end = stream
    stop = max(pts[0] + 1, end - cut)
    short = sampled(name, pts, pts[0], stop, Fraction(1, 1000), value).indices.tolist()
    whole = sampled(name, pts, pts[0], end, Fraction(1, 1000), value).indices.tolist()
    assert whole[: len(short)] == short


def test_only_what_depends_on_the_end_of_the_span_is_chosen_for_each_clip_alone() -> None:
    pts = list(range(0, 30_000, 33))
    rates = {
        name
        for name in SAMPLERS
        if sampled(name, pts, 0, 20_000, Fraction(1, 1000), 5).ticks.tolist()
        == [
            tick
            for tick in sampled(name, pts, 0, 30_000, Fraction(1, 1000), 5).ticks.tolist()
            if tick < 20_000
        ]
    }
    assert rates == set(SAMPLERS) - OF_EACH_CLIP


# --- by number ---------------------------------------------------------------------------------


@given(span=spans(), stride=st.integers(1, 12), shift=st.sampled_from(SHIFTS))
@settings(max_examples=200, deadline=None)
def test_stride_takes_every_nth_frame_of_the_span(span, stride, shift) -> None:
    pts, start, stop = span
    inside = [k for k, time in enumerate(pts) if start <= time < stop]
    samples = sampled("stride", pts, start, stop, Fraction(1, 1000), stride, shift)
    offset = math.floor(shift * min(stride, len(inside)))
    assert samples.indices.tolist() == inside[offset::stride]
    assert samples.ticks.tolist() == [pts[k] for k in samples.indices.tolist()]
    assert samples.fps == Fraction(1000 * len(samples.indices), stop - start)


@given(span=spans())
@settings(max_examples=100, deadline=None)
def test_keyframes_are_those_whose_time_is_in_the_span(span) -> None:
    pts, start, stop = span
    samples = sampled("keyframes", pts, start, stop, Fraction(1, 1000), 0)
    expected = [k for k, time in enumerate(pts) if start <= time < stop and k % 3 == 0]
    assert samples.indices.tolist() == expected
    assert samples.ticks.tolist() == [pts[k] for k in expected]


def test_keyframes_that_nobody_knows_are_an_error() -> None:
    with pytest.raises(ValueError, match="keyframes"):
        SAMPLERS["keyframes"](Span(np.arange(9), 0, 9, Fraction(1)), Fraction(0), Fraction(0))


# --- a shift -----------------------------------------------------------------------------------


@given(span=spans(), fps=st.sampled_from(RATES), shift=st.sampled_from(SHIFTS))
@settings(max_examples=200, deadline=None)
def test_a_shift_moves_all_samples_by_that_part_of_their_distance(span, fps, shift) -> None:
    pts, start, stop = span
    step = 1 / (fps * Fraction(1, 1000))
    times = brute_grid(start + shift * min(step, stop - start), stop, step)
    samples = sampled("fps", pts, start, stop, Fraction(1, 1000), fps, shift)
    assert samples.indices.tolist() == brute_force(pts, times)
    assert samples.ticks.tolist() == [math.floor(time) for time in times]


@given(span=spans(), count=st.integers(1, 64), shift=st.sampled_from(SHIFTS))
@settings(max_examples=200, deadline=None)
def test_a_shift_leaves_the_number_of_samples_as_it_is(span, count, shift) -> None:
    pts, start, stop = span
    times = [start + (k + shift) * Fraction(stop - start, count) for k in range(count)]
    samples = sampled("num-frames", pts, start, stop, Fraction(1, 1000), count, shift)
    assert samples.indices.tolist() == brute_force(pts, times)


# --- exactness ---------------------------------------------------------------------------------


def test_a_frame_that_stays_long_is_taken_again_and_again() -> None:
    # Frames at 0, 0.1 and 2.1 s, the last one for 0.4 s; four samples a second.
    samples = sampled("fps", [0, 100, 2100], 0, 2500, Fraction(1, 1000), 4)
    assert samples.indices.tolist() == [0, 1, 1, 1, 1, 1, 1, 1, 1, 2]


def test_the_last_frame_is_on_display_to_the_end_of_its_duration() -> None:
    samples = sampled("fps", [0, 500], 0, 3000, Fraction(1, 1000), 1)
    assert samples.indices.tolist() == [0, 1, 1]


def test_a_sample_on_the_very_tick_of_a_frame_takes_that_frame() -> None:
    # Index / average fps gets this wrong by rounding: 1/3 s is tick 10,010 of 1/30030.
    pts = [k * 1001 for k in range(30)]
    samples = sampled("fps", pts, 0, 30 * 1001, Fraction(1, 30_030), 30)
    assert samples.indices.tolist() == list(range(30))


def test_ntsc_video_at_30_repeats_a_frame_in_a_thousand_and_never_skips() -> None:
    pts = list(range(2002))
    samples = sampled("fps", pts, 0, 2002, Fraction(1001, 30_000), 30)
    counts = np.bincount(samples.indices, minlength=2002)
    # 2002 frames of 1001/30000 s are 66.80007 s, and 30 samples a second 2004.002.
    assert (len(samples.indices), counts.min(), (counts == 2).sum()) == (2005, 1, 3)


def test_a_span_of_no_whole_sample_distance_still_has_its_first_sample() -> None:
    assert sampled("fps", [7], 7, 8, Fraction(1, 1000), Fraction(1, 100)).indices.tolist() == [0]


def test_more_samples_than_frames_repeat_frames() -> None:
    samples = sampled("num-frames", [0, 10], 0, 20, Fraction(1, 1000), 8)
    assert samples.indices.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]


def test_arithmetic_stays_exact_where_64_bits_are_not_enough() -> None:
    hour = 3600 * 10**9  # a time base of nanoseconds
    pts = [k * 10**9 for k in range(3600)]
    fps = Fraction(30_000, 1001) * Fraction(10**9 + 7, 10**9 + 9)
    samples = sampled("fps", pts, 0, hour, Fraction(1, 10**9), fps)
    for k in (1, 999, 50_000, len(samples.ticks) - 1):
        assert samples.ticks[k] == math.floor(k / fps * 10**9)
        assert samples.indices[k] == samples.ticks[k] // 10**9
