"""Windows of a video as clips."""

from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from made_videos import CELLS, NTSC, SAMPLERS, clips_of, indices, info, regular, videos


def test_windows_share_the_grid_of_sample_times_and_lose_nothing() -> None:
    # 6.4 samples a second: no window of 1 s begins on a sample but every fifth.
    video = regular(10)
    (whole,) = clips_of(video, sampler_value=Fraction(32, 5))
    windows = clips_of(video, sampler_value=Fraction(32, 5), clip_seconds=Fraction(1))
    assert len(windows) == 10
    assert indices(windows) == whole.frame_indices.tolist()


@given(
    video=videos(), sampler=SAMPLERS, length=st.fractions(Fraction(1, 20), 5, max_denominator=20)
)
@settings(max_examples=200, deadline=None)
def test_windows_of_any_length_hold_every_sample_once(video, sampler, length) -> None:
    assume(sampler[0] != "num-frames")
    given = {"sampler": sampler[0], "sampler_value": sampler[1]}
    (whole,) = clips_of(video, **given)
    windows = clips_of(video, clip_seconds=length, **given)
    assert indices(windows) == whole.frame_indices.tolist()
    assert all(a.stop_pts <= b.start_pts for a, b in pairwise(windows))


def test_windows_on_whole_samples_meet_exactly_and_the_last_one_ends_with_the_video() -> None:
    windows = clips_of(regular(5, start=1234), clip_seconds=Fraction(2))
    assert [(clip.start_pts, clip.stop_pts) for clip in windows] == [
        (1234, 3234),
        (3234, 5234),
        (5234, 6234),
    ]


def test_a_sample_on_the_border_of_two_windows_is_in_the_second() -> None:
    # Five seconds are 149.85 ticks: sample and border are both rounded down.
    video = info(list(range(600)), 600, time_base=NTSC)
    windows = clips_of(video, sampler_value=Fraction(1, 5), clip_seconds=Fraction(5))
    assert [clip.frame_indices.tolist() for clip in windows] == [[0], [149], [299], [449], [599]]


def test_a_stride_below_the_length_overlaps_and_above_it_leaves_gaps() -> None:
    overlapping = clips_of(
        regular(4), clip_seconds=Fraction(2), clip_stride=Fraction(1), min_seconds=Fraction(0)
    )
    apart = clips_of(regular(5), clip_seconds=Fraction(1), clip_stride=Fraction(2))
    starts = [clip.start_pts for clip in overlapping]
    assert starts == [0, 1000, 2000, 3000]
    assert [clip.stop_pts for clip in overlapping] == [2000, 3000, 4000, 4000]
    assert [(clip.start_pts, clip.stop_pts) for clip in apart] == [
        (0, 1000),
        (2000, 3000),
        (4000, 5000),
    ]


def test_windows_with_equal_samples_are_one_clip() -> None:
    # A sample a second; windows of a second each tenth of one.
    windows = clips_of(
        regular(3),
        sampler_value=Fraction(1),
        clip_seconds=Fraction(1),
        clip_stride=Fraction(1, 10),
    )
    assert [clip.frame_indices.tolist() for clip in windows] == [[0], [25], [50]]


def test_a_window_between_two_samples_is_neither_a_clip_nor_a_loss() -> None:
    windows = clips_of(regular(4), sampler_value=Fraction(1), clip_seconds=Fraction(1, 2))
    assert indices(windows) == [0, 25, 50, 75]


def test_num_frames_are_those_of_each_window_and_not_of_the_video() -> None:
    windows = clips_of(
        regular(6),
        sampler="num-frames",
        sampler_value=Fraction(4),
        clip_seconds=Fraction(2),
    )
    assert [clip.frame_indices.tolist() for clip in windows] == [
        [0, 12, 25, 37],
        [50, 62, 75, 87],
        [100, 112, 125, 137],
    ]
    assert {clip.sampled_fps for clip in windows} == {Fraction(2)}


def test_long_windows_are_cut_too() -> None:
    windows = clips_of(regular(4), clip_seconds=Fraction(2), pack_length=5 * CELLS)
    assert [clip.grid_thw[0] for clip in windows] == [5, 3, 5, 3]
    assert indices(windows) == indices(clips_of(regular(4)))


@pytest.mark.parametrize(
    "sampler", ["transformers-num-frames", "nearest-num-frames", "qwen2-vl", "qwen3-vl"]
)
def test_windows_in_which_a_rule_takes_the_same_frames_are_one_clip(sampler: str) -> None:
    windows = {"clip_seconds": Fraction(1), "clip_stride": Fraction(1, 100)}
    clips = clips_of(regular(3, rate=25), sampler=sampler, sampler_value=4, **windows)
    frames = [clip.frame_indices.tobytes() for clip in clips]
    assert all(before != after for before, after in pairwise(frames))
    assert len(clips) > 50
