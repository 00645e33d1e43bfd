"""Ranges of a manifest as clips."""

from fractions import Fraction
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st
from made_videos import CELLS, NTSC, chosen, clips_of, indices, info, regular, videos

from spacepatch.data import ClipRange


def test_a_range_counts_seconds_from_the_first_frame() -> None:
    asked = ClipRange(Fraction(1), Fraction(3), {"label": "dog"})
    (clip,) = clips_of(regular(5, start=60_000), ranges=(asked,))
    assert (clip.start_pts, clip.stop_pts, clip.extra) == (61_000, 63_000, {"label": "dog"})
    assert clip.frame_indices.tolist() == [25 + index for index in indices(clips_of(regular(2)))]


def test_ranges_that_meet_share_no_frame_and_lose_none() -> None:
    borders = [Fraction(0), Fraction(1, 3), Fraction(7, 5), Fraction(2), None]
    ranges = tuple(ClipRange(a, b) for a, b in pairwise(borders))
    clips = clips_of(regular(3), ranges=ranges, sampler="every-frame")
    assert indices(clips) == list(range(75))
    assert all(a.stop_pts <= b.start_pts for a, b in pairwise(clips))


@given(
    video=videos(),
    start=st.fractions(0, 9, max_denominator=30),
    length=st.fractions(Fraction(1, 30), 9, max_denominator=30),
)
@settings(max_examples=200, deadline=None)
def test_with_every_frame_a_range_holds_the_frames_whose_time_is_in_it(
    video, start, length
) -> None:
    origin = int(video.frame_pts[0])
    seconds = [(int(t) - origin) * video.time_base for t in video.frame_pts]
    expected = [k for k, time in enumerate(seconds) if start <= time < start + length]
    asked = ClipRange(start, start + length)
    assert indices(chosen(video, ranges=(asked,), sampler="every-frame")[0]) == expected


def test_a_frame_just_before_a_range_is_not_in_it_and_one_just_before_its_end_is() -> None:
    # Half a second is 14.985 ticks: frame 14 is before it, frame 15 after it.
    video = info(list(range(60)), 60, time_base=NTSC)
    asked = ClipRange(Fraction(1, 2), Fraction(1))
    (clip,) = clips_of(video, ranges=(asked,), sampler="every-frame")
    assert clip.frame_indices.tolist() == list(range(15, 30))


def test_a_range_that_begins_inside_a_frame_takes_the_frame_on_display() -> None:
    (clip,) = clips_of(info([0, 1000], 2000), ranges=(ClipRange(Fraction(1, 2), None),))
    assert clip.frame_indices.tolist() == [0] * 4 + [1] * 8
    assert clip.start_pts == 500


def test_a_range_ends_with_the_video() -> None:
    (clip,) = clips_of(regular(2), ranges=(ClipRange(Fraction(1), Fraction(99)),))
    assert (clip.start_pts, clip.stop_pts, len(clip.frame_indices)) == (1000, 2000, 8)


def test_a_range_after_the_end_is_too_short_and_the_others_stay() -> None:
    ranges = (ClipRange(Fraction(9), Fraction(10)), ClipRange(Fraction(0), Fraction(1)))
    clips, losses = chosen(regular(2), ranges=ranges)
    assert [(loss.reason, loss.num_frames) for loss in losses] == [("too_short", 0)]
    assert [clip.stop_pts for clip in clips] == [1000]


def test_clips_of_one_interval_are_views_of_it_each_with_its_own_columns() -> None:
    ends = [Fraction(99), None, Fraction(2)]  # all three are the end of the video
    ranges = tuple(ClipRange(None, end, {"n": n}) for n, end in enumerate(ends))
    clips = clips_of(regular(2), ranges=ranges, pack_length=5 * CELLS)
    assert [(clip.start_pts, clip.view, clip.extra["n"]) for clip in clips] == [
        (0, 0, 0),
        (1250, 0, 0),
        (0, 1, 1),
        (1250, 1, 1),
        (0, 2, 2),
        (1250, 2, 2),
    ]
    assert len({(clip.start_pts, clip.stop_pts, clip.view) for clip in clips}) == len(clips)


def test_every_piece_of_a_cut_range_keeps_its_columns() -> None:
    ranges = (ClipRange(None, Fraction(1), {"n": 1}), ClipRange(Fraction(1), None, {"n": 2}))
    clips = clips_of(regular(2), ranges=ranges, pack_length=3 * CELLS)
    assert [clip.extra["n"] for clip in clips] == [1, 1, 2, 2]
    assert [clip.clip for clip in clips] == [0, 1, 2, 3]
