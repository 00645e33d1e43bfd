"""Which clips of a video: cutting, windows, manifest ranges, and what the settings rule out."""

from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from spacepatch.clips import ClipLoss, choose_clips
from spacepatch.data import ClipRange, ClipSpec, Part, VideoInfo
from spacepatch.errors import ConfigError

MILLISECOND = Fraction(1, 1000)
NTSC = Fraction(1001, 30_000)
SIZE = (32, 48)
CELLS = 6  # tokens a grid row of SIZE in patches of 16 x 16
SHAPE = {"sizes": (SIZE,), "patch_size": (16, 16)}


def info(
    pts: list[int], stop: int, *, time_base: Fraction = MILLISECOND, still: bool = False
) -> VideoInfo:
    return VideoInfo(
        container="mov",
        codec="h264",
        stream_index=0,
        parts=(Part(0, pts[0], (360, 640), (360, 640), Fraction(1)),),
        rotation=0,
        pixel_format="yuv420p",
        colour={},
        bit_depth=8,
        hdr="",
        interlaced="progressive",
        alpha=False,
        time_base=time_base,
        frame_pts=np.array(pts, np.int64),
        stop_pts=stop,
        num_packets=len(pts),
        pts_repaired="",
        still=still,
    )


def regular(seconds: int, rate: int = 25, start: int = 0) -> VideoInfo:
    step = 1000 // rate
    return info([start + k * step for k in range(seconds * rate)], start + seconds * 1000)


def chosen(video: VideoInfo, **changes: Any) -> tuple[list[ClipSpec], list[ClipLoss]]:
    values: dict[str, Any] = {
        "source": 7,
        "ranges": (),
        "sampler": "fps",
        "sampler_value": Fraction(8),
        "tubelet_size": 2,
        "tail": "repeat",
        "pack_length": 10**6,
        **SHAPE,
    }
    return choose_clips(video, **(values | changes))


def clips_of(video: VideoInfo, **changes: Any) -> list[ClipSpec]:
    clips, losses = chosen(video, **changes)
    assert losses == []
    return clips


def indices(clips: list[ClipSpec]) -> list[int]:
    return [int(index) for clip in clips for index in clip.frame_indices]


@st.composite
def videos(draw) -> VideoInfo:
    steps = draw(st.lists(st.integers(1, 300), min_size=1, max_size=60))
    pts = [draw(st.integers(-3000, 10**6))]
    for step in steps:
        pts.append(pts[-1] + step)
    # At least as many ticks as samples: no cut falls between two samples of one tick.
    stop = max(pts[-1], pts[0] + 20)
    return info(pts[:-1], stop, time_base=draw(st.sampled_from([MILLISECOND, NTSC])))


SAMPLERS = st.sampled_from(
    [
        ("fps", Fraction(8)),
        ("fps", Fraction(30_000, 1001)),
        ("fps", Fraction(1, 2)),
        ("num-frames", Fraction(17)),
        ("every-frame", Fraction(0)),
    ]
)


# --- cutting to fit a pack -------------------------------------------------------------------


@given(
    video=videos(),
    sampler=SAMPLERS,
    pack_length=st.integers(CELLS, 20 * CELLS),
    tubelet=st.integers(1, 5),
    tail=st.sampled_from(["repeat", "pad"]),
)
@settings(max_examples=200, deadline=None)
def test_the_clips_of_a_cut_video_are_its_uncut_samples_one_after_the_other(
    video, sampler, pack_length, tubelet, tail
) -> None:
    given = {"sampler": sampler[0], "sampler_value": sampler[1], "tubelet_size": tubelet}
    (whole,) = clips_of(video, tail=tail, **given)
    cut = clips_of(video, tail=tail, pack_length=pack_length, **given)
    assert indices(cut) == whole.frame_indices.tolist()
    assert [int(t) for clip in cut for t in clip.frame_pts] == whole.frame_pts.tolist()
    assert all(clip.num_tokens <= pack_length for clip in cut)
    assert [clip.clip for clip in cut] == list(range(len(cut)))


@given(video=videos(), sampler=SAMPLERS, pack_length=st.integers(CELLS, 10 * CELLS))
@settings(max_examples=150, deadline=None)
def test_the_intervals_of_a_cut_video_meet_and_span_it_exactly(video, sampler, pack_length) -> None:
    cut = clips_of(video, sampler=sampler[0], sampler_value=sampler[1], pack_length=pack_length)
    assert cut[0].start_pts == video.frame_pts[0]
    assert cut[-1].stop_pts == video.stop_pts
    assert all(a.stop_pts == b.start_pts for a, b in pairwise(cut))
    assert sum(clip.num_source_frames for clip in cut) == len(video.frame_pts)


@given(video=videos(), pack_length=st.integers(CELLS, 10 * CELLS))
@settings(max_examples=100, deadline=None)
def test_with_every_frame_each_is_in_the_interval_of_its_clip_and_of_no_other(
    video, pack_length
) -> None:
    cut = clips_of(video, sampler="every-frame", pack_length=pack_length)
    assert indices(cut) == list(range(len(video.frame_pts)))
    for clip in cut:
        assert all(clip.start_pts <= t < clip.stop_pts for t in clip.frame_pts.tolist())


@given(video=videos(), pack_length=st.integers(CELLS, 10 * CELLS), tubelet=st.integers(1, 4))
@settings(max_examples=100, deadline=None)
def test_cutting_is_greedy_all_clips_but_the_last_are_as_long_as_fits(
    video, pack_length, tubelet
) -> None:
    cut = clips_of(video, pack_length=pack_length, tubelet_size=tubelet)
    longest = pack_length // CELLS
    for clip in cut[:-1]:
        assert (clip.grid_thw[0], len(clip.frame_indices)) == (longest, longest * tubelet)
    assert 1 <= cut[-1].grid_thw[0] <= longest


def test_a_cut_in_a_long_stay_of_one_frame_gives_it_to_both_sides() -> None:
    # Eight samples a second, four a pack, of a frame that stays for a second.
    cut = clips_of(info([0], 1000), pack_length=2 * CELLS)
    assert indices(cut) == [0] * 8
    assert [(clip.start_pts, clip.stop_pts) for clip in cut] == [(0, 500), (500, 1000)]
    assert [clip.num_source_frames for clip in cut] == [1, 0]


def test_a_clip_knows_its_grid_size_and_tokens() -> None:
    (clip,) = clips_of(regular(2), tubelet_size=3)
    assert (clip.source, clip.view, clip.size) == (7, 0, SIZE)
    assert (len(clip.frame_indices), clip.grid_thw, clip.num_tokens) == (16, (6, 2, 3), 36)
    assert (clip.sampled_fps, clip.num_source_frames) == (8, 50)


@pytest.mark.parametrize(("tail", "rows"), [("repeat", 6), ("pad", 6), ("drop", 5)])
def test_the_tail_policy_decides_the_rows(tail: str, rows: int) -> None:
    (clip,) = clips_of(regular(2), tubelet_size=3, tail=tail)
    assert clip.grid_thw[0] == rows
    assert len(clip.frame_indices) == 16  # what is dropped was selected, and is a loss


@given(video=videos(), pack_length=st.integers(CELLS, 10 * CELLS), tubelet=st.integers(2, 5))
@settings(max_examples=150, deadline=None)
def test_with_tail_drop_the_frames_of_clips_and_losses_are_all_samples(
    video, pack_length, tubelet
) -> None:
    total = len(clips_of(video, tubelet_size=1)[0].frame_indices)
    cut, losses = chosen(video, pack_length=pack_length, tubelet_size=tubelet, tail="drop")
    assert sum(len(c.frame_indices) for c in cut) + sum(x.num_frames for x in losses) == total
    assert all(loss.reason == "tail_dropped" and loss.num_frames < tubelet for loss in losses)


def test_a_remainder_that_fills_no_tubelet_is_dropped_and_counted() -> None:
    # 16 samples, six a pack (three rows of two): 6 + 6 + 4; of five in a tubelet: 15 + 1.
    cut, losses = chosen(regular(2), tubelet_size=5, pack_length=3 * CELLS, tail="drop")
    assert [len(clip.frame_indices) for clip in cut] == [15]
    assert losses == [ClipLoss("tail_dropped", 1, "1 frames fill no tubelet of 5")]


def test_a_video_shorter_than_a_tubelet_is_dropped_with_tail_drop() -> None:
    assert chosen(info([0], 100), tail="drop")[1] == [
        ClipLoss("tail_dropped", 1, "1 frames fill no tubelet of 2")
    ]


# --- what does not fit -----------------------------------------------------------------------


def test_one_row_over_the_pack_is_a_loss_of_all_frames() -> None:
    cut, losses = chosen(regular(2), pack_length=CELLS - 1)
    assert cut == []
    (loss,) = losses
    assert (loss.reason, loss.num_frames) == ("over_pack_length", 16)
    assert "one row of 2 x 3 tokens exceeds pack_length 5" in loss.message


def test_samples_closer_than_ticks_are_not_cut_apart() -> None:
    # Six samples at ticks 0 0 1 1 2 2: two rows of one in a pack, and no cut inside a tick.
    given = {"sampler": "num-frames", "sampler_value": Fraction(6), "tubelet_size": 1}
    cut = clips_of(info([0], 3), pack_length=3 * CELLS, **given)
    assert [(len(clip.frame_indices), clip.start_pts) for clip in cut] == [(2, 0), (2, 1), (2, 2)]
    cut, losses = chosen(info([0], 3), pack_length=CELLS, **given)
    assert (cut, [(x.reason, x.num_frames) for x in losses]) == ([], [("over_pack_length", 6)])


def test_a_pack_of_one_row_makes_a_clip_of_every_row() -> None:
    cut = clips_of(regular(2), pack_length=CELLS)
    assert [clip.grid_thw[0] for clip in cut] == [1] * 8


@pytest.mark.parametrize(("rows", "reasons"), [(8, []), (7, ["skipped_by_policy"])])
def test_long_skip_loses_exactly_what_does_not_fit(rows: int, reasons: list[str]) -> None:
    cut, losses = chosen(regular(2), pack_length=rows * CELLS, long="skip")
    assert [loss.reason for loss in losses] == reasons
    assert len(cut) == 1 - len(reasons)
    assert all(loss.num_frames == 16 for loss in losses)


def test_long_error_stops_with_both_numbers() -> None:
    with pytest.raises(ConfigError, match="48 tokens exceeds pack_length 42"):
        chosen(regular(2), pack_length=7 * CELLS, long="error")
    assert len(clips_of(regular(2), pack_length=8 * CELLS, long="error")) == 1


# --- windows ---------------------------------------------------------------------------------


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


# --- ranges of a manifest --------------------------------------------------------------------


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


# --- too short -------------------------------------------------------------------------------


@pytest.mark.parametrize(("least", "kept"), [("2", 1), ("2.001", 0), ("0", 1)])
def test_a_video_shorter_than_min_seconds_is_too_short(least: str, kept: int) -> None:
    clips, losses = chosen(regular(2), min_seconds=Fraction(least))
    assert len(clips) == kept
    assert [(loss.reason, loss.num_frames) for loss in losses] == [("too_short", 16)] * (1 - kept)


def test_the_last_frame_counts_with_its_duration() -> None:
    assert len(clips_of(info([0], 2000), min_seconds=Fraction(2))) == 1


@pytest.mark.parametrize("fps", [Fraction(8), Fraction(30_000, 1001), Fraction(7, 3)])
def test_whole_windows_are_not_too_short_whatever_rate_and_time_base(fps: Fraction) -> None:
    # Neither 5 s nor the distance of samples is a whole number of ticks of 1001/30000 s.
    video = info(list(range(600)), 600, time_base=NTSC)  # 20.02 s
    clips, losses = chosen(
        video, sampler_value=fps, clip_seconds=Fraction(5), min_seconds=Fraction(5)
    )
    assert len(clips) == 4
    assert {loss.reason for loss in losses} <= {"too_short"}


def test_the_remainder_of_windows_is_too_short_and_counted() -> None:
    clips, losses = chosen(regular(5), clip_seconds=Fraction(2), min_seconds=Fraction(2))
    assert [clip.stop_pts for clip in clips] == [2000, 4000]
    assert [(loss.reason, loss.num_frames) for loss in losses] == [("too_short", 8)]
    assert losses[0].message == "1.000 s is shorter than min_seconds 2"


@pytest.mark.parametrize("start", ["0.003", "0.01", "1/3", "0.1"])
def test_a_range_of_just_min_seconds_is_kept_wherever_it_begins(start: str) -> None:
    video = info(list(range(600)), 600, time_base=NTSC)
    asked = ClipRange(Fraction(start), Fraction(start) + 5)
    assert len(clips_of(video, ranges=(asked,), min_seconds=Fraction(5))) == 1


# --- still pictures --------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["fps", "num-frames", "every-frame"])
def test_a_still_picture_is_one_frame_whatever_the_sampler(sampler: str) -> None:
    (clip,) = clips_of(
        info([0], 40, still=True), sampler=sampler, sampler_value=Fraction(30), tubelet_size=2
    )
    assert (clip.frame_indices.tolist(), clip.frame_pts.tolist()) == ([0], [0])
    assert (clip.grid_thw, clip.sampled_fps) == ((1, 2, 3), None)


def test_a_still_picture_is_never_too_short_nor_cut_in_windows() -> None:
    still = info([0], 40, still=True)
    assert len(clips_of(still, min_seconds=Fraction(5), clip_seconds=Fraction(1, 100))) == 1


def test_a_still_picture_over_the_pack_is_a_loss() -> None:
    _, losses = chosen(info([0], 40, still=True), pack_length=CELLS - 1)
    assert [(loss.reason, loss.num_frames) for loss in losses] == [("over_pack_length", 1)]


# --- streams that change their size -----------------------------------------------------------


@given(videos(), SAMPLERS, st.integers(1, 3), st.lists(st.integers(1, 60), min_size=1, max_size=3))
def test_a_new_clip_begins_where_the_size_changes(
    video: VideoInfo, sampler: tuple[str, Fraction], tubelet: int, starts: list[int]
) -> None:
    firsts = [0, *sorted({start for start in starts if start < len(video.frame_pts)})]
    sizes = tuple((16 * (place + 1), 32) for place in range(len(firsts)))
    parts = tuple(
        Part(first, int(video.frame_pts[first]), size, size, Fraction(1))
        for first, size in zip(firsts, sizes, strict=True)
    )
    given = {"sampler": sampler[0], "sampler_value": sampler[1], "tubelet_size": tubelet}
    whole = clips_of(video, **given)
    pieces = clips_of(replace(video, parts=parts), sizes=sizes, **given)
    # The same samples in the same order, each in a clip of its own part's size.
    assert indices(pieces) == indices(whole)
    for clip in pieces:
        part = {int(np.searchsorted(firsts, index, "right")) - 1 for index in clip.frame_indices}
        assert len(part) == 1
        assert clip.size == sizes[part.pop()]
    assert [clip.clip for clip in pieces] == list(range(len(pieces)))
    # Intervals follow each other without a gap.
    assert pieces[0].start_pts == whole[0].start_pts
    assert pieces[-1].stop_pts == whole[-1].stop_pts
    for one, next_ in pairwise(pieces):
        assert one.stop_pts == next_.start_pts
