"""Views of windows, of manifest ranges and of clips that are cut."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import pytest
from planned_clips import planned
from small_runs import rows

from spacepatch.config import load_config
from spacepatch.decode import probe_video
from spacepatch.inspection import verify
from spacepatch.pipeline import tokenize


def test_each_window_and_view_draws_its_rate_and_is_sampled_from_its_own_start(
    sample_clips: Path,
) -> None:
    source = sample_clips / "landscape_640x360.mp4"  # 4 s
    info = probe_video(str(source))
    settings = {"fps": "2,4,8,10", "clip_seconds": 1, "views": 6, "max_tokens_per_frame": 4}
    clips = planned(source, **settings)
    assert [clip.clip for clip in clips] == list(range(24))
    assert len({(clip.start_pts, clip.stop_pts, clip.view) for clip in clips}) == 24
    second = 1 / info.time_base
    rates = set()
    for number, clip in enumerate(clips):
        window, view = divmod(number, 6)
        start = int(info.frame_pts[0]) + window * second
        assert (clip.view, clip.view_of) == (view, 6 * window)
        assert (clip.start_pts, clip.stop_pts) == (start, start + second)
        times = [start + k * second / clip.sampled_fps for k in range(int(clip.sampled_fps))]
        assert clip.sample_pts.tolist() == [math.floor(time) for time in times]
        shown = [sum(int(pts) <= time for pts in info.frame_pts) - 1 for time in times]
        assert clip.frame_indices.tolist() == shown
        rates.add(clip.sampled_fps)
    assert rates == {2, 4, 8, 10}


def test_views_that_are_cut_to_packs_name_the_piece_of_view_0_that_they_begin_in(
    sample_clips: Path,
) -> None:
    clips = planned(
        sample_clips / "landscape_640x360.mp4",
        fps="2,4,8",
        views=5,
        resolution=64,
        patch="1x16x16",
        pack_length=15 * 7,  # 3 x 5 patches
    )
    by_number = {clip.clip: clip for clip in clips}
    assert len(by_number) == len(clips) > 8
    for clip in clips:
        named = by_number[clip.view_of]
        assert named.view == 0
        assert named.start_pts <= clip.start_pts < named.stop_pts


@pytest.mark.parametrize("cut_to_fit", [False, True])
def test_ranges_and_windows_that_overlap_have_segments_of_their_own(
    sample_clips: Path, tmp_path: Path, cut_to_fit: bool
) -> None:
    lines = ["uri,start,end", "landscape_640x360.mp4,0,2", "landscape_640x360.mp4,1,3"]
    manifest = tmp_path / "manifest.csv"
    manifest.write_text("\n".join(lines) + "\n")
    config = load_config(
        {
            "fps": "4",
            "clip_seconds": 1,
            "clip_stride": "0.5",
            "views": 3,
            "patch": "1x16x16",
            "max_tokens_per_frame": 15,
            "pack_length": 100,
            "cut_to_fit": cut_to_fit,
            "workers": 2,
        }
    )
    out = tmp_path / "out"
    tokenize([str(manifest)], out=out, config=config, root=sample_clips)
    assert verify(out) == []
    stored = rows(out, "segments.parquet")
    assert len({row["segment_id"] for row in stored}) == len(stored)
    # Windows of a range of 2 s begin at 0, 0.5, 1 and 1.5 s, the last one cut off by the range.
    frames = 2 * 3 * (4 + 4 + 4 + 2)
    assert sum(row["valid_frames"] for row in stored) == frames
    assert sum(row["num_kept"] for row in stored) == frames * 15
    if not cut_to_fit:
        intervals = Counter((row["clip_start_pts"], row["clip_stop_pts"]) for row in stored)
        # The third window of one range is the first of the other.
        assert sorted(intervals.values()) == [3] * 6 + [6]
        assert Counter(row["view"] % 3 for row in stored) == {0: 8, 1: 8, 2: 8}
