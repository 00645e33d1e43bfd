"""What a job makes of a source: tokens held against another way to make them."""

from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from planned_jobs import PATCH, every_frame, made, other_tokens, plan

from spacepatch.arena import Arena
from spacepatch.data import ClipRange
from spacepatch.decode import probe_video
from spacepatch.jobs import run_job
from spacepatch.probes import Probed, ProbeJob, probe_source
from spacepatch.sources import list_sources
from spacepatch.tubelets import LAYOUTS, token_width


def on_display(pts: list[int], start: int, stop: int, base: Fraction, fps: Fraction) -> list[int]:
    times: list[int] = []
    k = 0
    while (at := start + k / (fps * base)) < stop:
        times.append(max(t for t in pts if t <= at))
        k += 1
    return times


CLIPS = [
    "anamorphic_352x288_sar_16x11.mp4",
    "odd_size_321x179_vp9.webm",
    "rotated_90_phone.mp4",
    "still_picture_400x300.png",
    "ten_bit_432x240_hevc.mp4",
    "variable_frame_rate_480x270.mp4",
]


@pytest.mark.parametrize("name", CLIPS)
@pytest.mark.parametrize("fps", ["8", "30000/1001", "1/2", "100"])
def test_tokens_are_those_of_decoding_all_picking_and_cutting(
    sample_clips: Path, name: str, fps: str
) -> None:
    path = sample_clips / name
    job, info = plan(path, value=Fraction(fps), tubelet=3)
    frames = every_frame(path, info, "bicubic")
    pts = sorted(frames)
    times = (
        pts[:1]
        if info.still
        else on_display(pts, pts[0], info.stop_pts, info.time_base, Fraction(fps))
    )
    ((tokens, result),) = made(job)
    expected = other_tokens([frames[t] for t in times], tubelet=3, tail="repeat", layout="c t p q")
    np.testing.assert_array_equal(tokens, expected)
    assert (result.losses, result.num_frames) == ((), len(times))
    assert result.rows.tolist() == list(range(result.grid_t))


@pytest.mark.parametrize("tail", ["repeat", "pad", "drop"])
@pytest.mark.parametrize("tubelet", [1, 2, 4, 7])
def test_the_last_row_is_what_the_tail_policy_says(
    sample_clips: Path, tail: str, tubelet: int
) -> None:
    path = sample_clips / "square_320x320.mp4"
    job, info = plan(path, sampler="num-frames", value=11, tubelet=tubelet, tail=tail)
    frames = every_frame(path, info, "bicubic")
    ((tokens, result),) = made(job)
    chosen = [frames[int(t)] for t in job.clips[0].frame_pts]
    expected = other_tokens(chosen, tubelet=tubelet, tail=tail, layout="c t p q")
    np.testing.assert_array_equal(tokens, expected)
    over = 11 % tubelet
    assert result.padded_frames == (0 if tail == "drop" else -11 % tubelet)
    assert result.num_frames == (11 - over if tail == "drop" else 11)
    assert [loss[:3] for loss in result.losses] == (
        [("tail_dropped", over, 0)] if tail == "drop" and over else []
    )


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
@pytest.mark.parametrize("resampler", ["bicubic", "area"])
def test_every_layout_and_resampler_agrees_with_the_other_way(
    sample_clips: Path, layout: str, resampler: str
) -> None:
    path = sample_clips / "rotated_90_phone.mp4"
    tubelet = 2 if "t" in layout.split() else 1
    job, info = plan(path, value=3, tubelet=tubelet, layout=layout, resampler=resampler)
    frames = every_frame(path, info, resampler)
    chosen = [frames[int(t)] for t in job.clips[0].frame_pts]
    expected = other_tokens(chosen, tubelet=tubelet, tail="repeat", layout=layout)
    np.testing.assert_array_equal(made(job)[0][0], expected)


def test_the_pieces_of_a_cut_video_are_the_whole_in_pieces(sample_clips: Path) -> None:
    path = sample_clips / "landscape_640x360.mp4"
    whole, _ = plan(path)
    pieces, _ = plan(path, pack_length=5 * 12)
    assert len(pieces.clips) > 2
    together = np.concatenate([tokens for tokens, _ in made(pieces)])
    np.testing.assert_array_equal(together, made(whole)[0][0])


def test_clips_that_overlap_get_the_same_frames(sample_clips: Path) -> None:
    ranges = tuple(ClipRange(Fraction(a), Fraction(a + 2)) for a in (1, 0, Fraction(1, 2)))
    path = sample_clips / "landscape_640x360.mp4"
    together, _ = plan(path, ranges=ranges)
    for wanted, (tokens, _) in zip(ranges, made(together), strict=True):
        alone, _ = plan(path, ranges=(wanted,))
        np.testing.assert_array_equal(tokens, made(alone)[0][0])


# --- in the arena ----------------------------------------------------------------------------


@pytest.fixture
def arena(tmp_path: Path) -> Iterator[Arena]:
    width = token_width(2, PATCH)
    with Arena(4000 * width, folder=tmp_path) as arena:
        yield arena


def test_a_job_writes_its_tokens_into_its_place_and_nothing_else(
    sample_clips: Path, arena: Arena
) -> None:
    job, _ = plan(sample_clips / "landscape_640x360.mp4", pack_length=5 * 12)
    width = token_width(2, PATCH)
    # The clips in another order than in the video, with a gap between each two.
    starts = np.cumsum([17, *(clip.num_tokens + 3 for clip in reversed(job.clips))])[:-1]
    offsets = tuple(reversed(starts.tolist()))
    everything = arena.tokens(0, count=4000, dtype="uint8", width=width)
    everything[:] = 99
    in_bytes = tuple(offset * width for offset in offsets)
    result = run_job(replace(job, arena=arena.path, offsets=in_bytes))
    expected = np.full_like(everything, 99)
    for offset, (tokens, clip) in zip(offsets, made(job), strict=True):
        expected[offset : offset + len(tokens)] = tokens
        assert clip.losses == ()
    np.testing.assert_array_equal(everything, expected)
    assert [clip.grid_t for clip in result.clips] == [clip.grid_thw[0] for clip in job.clips]
    del everything


def test_a_job_tells_what_only_a_picture_shows(sample_clips: Path, arena: Arena) -> None:
    job, _ = plan(sample_clips / "rotated_90_phone.mp4")
    observed = run_job(replace(job, arena=arena.path)).observed
    assert (observed["rotation"], observed["mirrored"]) == (90, False)


# --- probing ---------------------------------------------------------------------------------


def probed(path: Path) -> Probed:
    return probe_source(ProbeJob(list_sources([str(path)]).sources[0]))


def test_a_bad_source_is_data_and_not_an_exception(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_text("<html>gone</html>")
    result = probed(tmp_path / "a.mp4")
    assert (result.info, result.reason) == (None, "unreadable")
    assert "HTML page" in result.message
    assert len(result.content_id) == 32


def test_a_file_that_is_gone_before_the_probe_is_io(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_text("x")
    (source,) = list_sources([str(tmp_path / "a.mp4")]).sources
    (tmp_path / "a.mp4").unlink()
    result = probe_source(ProbeJob(source))
    assert (result.info, result.reason, result.content_id) == (None, "io", "")
    assert str(tmp_path) not in result.message


def test_a_good_source_is_what_the_probe_of_its_file_says(sample_clips: Path) -> None:
    path = sample_clips / "odd_size_321x179_vp9.webm"
    result = probed(path)
    assert result.info is not None
    info = probe_video(str(path))
    without = {"frame_pts": None, "keyframes": None}
    assert replace(result.info, **without) == replace(info, **without)
    np.testing.assert_array_equal(result.info.keyframes, info.keyframes)
    np.testing.assert_array_equal(result.info.frame_pts, info.frame_pts)


def test_what_travels_to_a_worker_has_no_table_of_frames(sample_clips: Path) -> None:
    job, info = plan(sample_clips / "square_320x320.mp4")
    assert len(info.frame_pts) == 72
    assert len(job.info.frame_pts) == 0
