"""Which clips of a video: cutting, and what the settings rule out."""

from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_videos import (
    CELLS,
    NTSC,
    SAMPLERS,
    SIZE,
    chosen,
    clips_of,
    indices,
    info,
    plain_view,
    regular,
    videos,
)

from spacepatch.clips import ClipLoss
from spacepatch.data import ClipRange, Part, VideoInfo
from spacepatch.drop import parse_drop
from spacepatch.errors import ConfigError
from spacepatch.randomness import Draws

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
    assert losses == [ClipLoss("tail_dropped", 1, "no tubelet of 5 can be filled with 1 frame")]


def test_a_video_shorter_than_a_tubelet_is_dropped_with_tail_drop() -> None:
    assert chosen(info([0], 100), tail="drop")[1] == [
        ClipLoss("tail_dropped", 1, "no tubelet of 2 can be filled with 1 frame")
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


def test_a_clip_of_millions_that_keeps_few_is_cut_for_memory() -> None:
    video = regular(14 * 3600)  # 1,260,000 frames of 6 tokens
    view = replace(
        plain_view(0, tubelet_size=1), drop=parse_drop("tokens:10").draw(Draws("any", "key"))
    )
    clips, losses = chosen(video, sampler="every-frame", views=lambda window: (view,))
    assert losses == []
    assert [clip.num_kept for clip in clips] == [10, 10]
    assert clips[0].num_tokens == 2**22 // CELLS * CELLS
    assert indices(clips) == list(range(len(video.frame_pts)))
