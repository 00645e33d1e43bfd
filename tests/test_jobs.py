"""What a job makes of a source: tokens held against another way to make them, losses counted."""

import math
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from einops import rearrange

from spacepatch.arena import Arena
from spacepatch.clips import choose_clips
from spacepatch.data import ClipRange, ClipSpec, Picture, VideoInfo
from spacepatch.decode import probe_video
from spacepatch.jobs import ClipTokens, Job, TokenSettings, run_job, tokens_of
from spacepatch.probes import Probed, ProbeJob, probe_source, slim
from spacepatch.resize import make_frame
from spacepatch.sources import list_sources
from spacepatch.tubelets import LAYOUTS, token_width

SIZE = (48, 64)
PATCH = (16, 16)
PATTERNS = {
    "c t p q": "(t k) (h p) (w q) c -> (t h w) (c k p q)",
    "t p q c": "(t k) (h p) (w q) c -> (t h w) (k p q c)",
    "p q c": "(t k) (h p) (w q) c -> (t h w) (k p q c)",
    "c p q": "(t k) (h p) (w q) c -> (t h w) (k c p q)",
}


def plan(
    path: Path,
    *,
    sampler: str = "fps",
    value: Fraction | int = 8,
    tubelet: int = 2,
    tail: str = "repeat",
    layout: str = "c t p q",
    resampler: str = "bicubic",
    pack_length: int = 10**6,
    ranges: tuple[ClipRange, ...] = (),
    one_size: bool = False,
) -> tuple[Job, VideoInfo]:
    """A job of all the clips of one file, and what the probe said.

    With `one_size` it overlooked that the pictures change their size.
    """
    (source,) = list_sources([str(path)]).sources
    probed = probe_source(ProbeJob(source))
    assert probed.info is not None
    if one_size:
        probed = replace(probed, info=replace(probed.info, parts=probed.info.parts[:1]))
    assert probed.info is not None
    clips, losses = choose_clips(
        probed.info,
        source=0,
        ranges=ranges,
        sampler=sampler,
        sampler_value=Fraction(value),
        sizes=(SIZE,) * len(probed.info.parts),
        tubelet_size=tubelet,
        patch_size=PATCH,
        tail=tail,
        pack_length=pack_length,
    )
    assert losses == []
    settings = TokenSettings(
        tubelet_size=tubelet,
        patch_size=PATCH,
        layout=layout,
        tail=tail,
        resampler=resampler,
        token_width=token_width(tubelet, PATCH),
    )
    offsets = np.cumsum([0, *(clip.num_tokens for clip in clips)])[:-1]
    job = Job(
        source=source,
        content_id=probed.content_id,
        info=slim(probed.info),
        clips=tuple(clips),
        offsets=tuple(offsets.tolist()),
        arena="",
        settings=settings,
    )
    return job, probed.info


def made(job: Job) -> list[tuple[np.ndarray, ClipTokens]]:
    return list(tokens_of(job))


# --- the other way: decode everything, then pick, then cut -----------------------------------


def every_frame(path: Path, info: VideoInfo, resampler: str) -> dict[int, np.ndarray]:
    """The frames that come, by time."""
    frames = {}
    with av.open(str(path)) as container:
        stream = container.streams[info.stream_index]
        stream.codec_context.thread_count = 1  # with more, a damaged video looks otherwise
        for packet in container.demux(stream):
            with suppress(av.error.InvalidDataError):
                for frame in packet.decode():
                    turn = {0: 0, -90: 90, 90: 270, 180: 180, -180: 180}[frame.rotation]
                    picture = Picture(frame, frame.pts, 0, turn, False, frame.is_corrupt)
                    made = make_frame(picture, size=SIZE, resampler=resampler)
                    frames[frame.pts] = made.copy()
    return frames


def flagged_times(path: Path) -> set[int]:
    """The frames that FFmpeg itself calls damaged."""
    found = set()
    with av.open(str(path)) as container:
        container.streams.video[0].codec_context.thread_count = 1
        for packet in container.demux(video=0):
            with suppress(av.error.InvalidDataError):
                found |= {frame.pts for frame in packet.decode() if frame.is_corrupt}
    return found


def on_display(pts: list[int], start: int, stop: int, base: Fraction, fps: Fraction) -> list[int]:
    times: list[int] = []
    k = 0
    while (at := start + k / (fps * base)) < stop:
        times.append(max(t for t in pts if t <= at))
        k += 1
    return times


def other_tokens(frames: list[np.ndarray], *, tubelet: int, tail: str, layout: str) -> np.ndarray:
    missing = -len(frames) % tubelet
    if tail == "drop":
        frames = frames[: len(frames) // tubelet * tubelet]
    elif missing:
        last = frames[-1] if tail == "repeat" else np.zeros_like(frames[-1])
        frames = frames + [last] * missing
    height, width = PATCH
    return rearrange(np.stack(frames), PATTERNS[layout], k=tubelet, p=height, q=width)


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
    width = job.settings.token_width
    # The clips in another order than in the video, with a gap between each two.
    starts = np.cumsum([17, *(clip.num_tokens + 3 for clip in reversed(job.clips))])[:-1]
    offsets = tuple(reversed(starts.tolist()))
    everything = arena.tokens(dtype="uint8", width=width)
    everything[:] = 99
    result = run_job(replace(job, arena=arena.path, offsets=offsets))
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


# --- losses ----------------------------------------------------------------------------------


def account(clip: ClipSpec, tokens: np.ndarray, result: ClipTokens, tubelet: int) -> None:
    """Frames and tokens in are frames and tokens out and losses."""
    cells = clip.grid_thw[1] * clip.grid_thw[2]
    kept = sum(min(tubelet, result.num_frames - int(row) * tubelet) for row in result.rows)
    assert kept + sum(loss[1] for loss in result.losses) == len(clip.frame_indices)
    assert len(tokens) == len(result.rows) * cells
    assert len(tokens) + sum(loss[2] for loss in result.losses) == clip.num_tokens


def test_missing_and_flagged_frames_drop_their_rows_and_the_others_are_as_ever(
    corpus: Path,
) -> None:
    path = corpus / "decord__corrupted.mp4"
    job, info = plan(path, sampler="every-frame", tubelet=2)
    frames = every_frame(path, info, "bicubic")
    times = info.frame_pts.tolist()
    bad = {times.index(t) // 2 for t in {*times} - {*frames} | flagged_times(path)}
    assert len(bad) == 2
    ((tokens, result),) = made(job)
    account(job.clips[0], tokens, result, 2)
    assert result.rows.tolist() == [row for row in range(25) if row not in bad]
    assert [loss[:3] for loss in result.losses] == [("corrupt_frames", 4, 24)]
    chosen = [frames[t] for k, t in enumerate(times) if k // 2 not in bad]
    expected = other_tokens(chosen, tubelet=2, tail="repeat", layout="c t p q")
    np.testing.assert_array_equal(tokens, expected)


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory, ffmpeg: str) -> Path:
    """A transport stream of 50 frames that lacks one packet in the middle."""
    path = tmp_path_factory.mktemp("damaged") / "a.ts"
    source = "testsrc2=s=160x120:r=25:d=2,noise=alls=60:allf=t:all_seed=1"
    options = "-c:v mpeg2video -g 12 -bf 0 -q:v 3".split()
    subprocess.run([ffmpeg, "-v", "error", "-f", "lavfi", "-i", source, *options, path], check=True)
    content = path.read_bytes()
    middle = len(content) // 188 // 2 * 188
    path.write_bytes(content[:middle] + content[middle + 188 :])
    return path


@pytest.mark.parametrize("tubelet", [1, 2, 3, 7])
@pytest.mark.parametrize("tail", ["repeat", "pad", "drop"])
def test_a_flagged_frame_drops_its_row_and_is_counted(
    damaged: Path, tubelet: int, tail: str
) -> None:
    job, info = plan(damaged, sampler="every-frame", tubelet=tubelet, tail=tail)
    flagged = [info.frame_pts.tolist().index(t) for t in flagged_times(damaged)]
    assert len(flagged) == 1
    assert len(info.frame_pts) == 50
    ((tokens, result),) = made(job)
    account(job.clips[0], tokens, result, tubelet)
    rows = range(50 // tubelet if tail == "drop" else math.ceil(50 / tubelet))
    assert result.rows.tolist() == [row for row in rows if row != flagged[0] // tubelet]
    reasons = {loss[0] for loss in result.losses}
    assert reasons == {"corrupt_frames"} | (
        {"tail_dropped"} if tail == "drop" and 50 % tubelet else set()
    )


def test_a_flagged_frame_that_is_sampled_many_times_drops_all_its_rows(damaged: Path) -> None:
    # Two hundred samples a second: eight of each frame, four rows.
    job, _ = plan(damaged, value=200, tubelet=2)
    ((tokens, result),) = made(job)
    account(job.clips[0], tokens, result, 2)
    assert [loss[:3] for loss in result.losses] == [("corrupt_frames", 8, 4 * 12)]


def test_a_flagged_frame_that_no_sample_takes_costs_nothing(damaged: Path) -> None:
    job, _ = plan(damaged, sampler="every-frame", tubelet=1)
    (flagged,) = set(range(50)) - set(made(job)[0][1].rows.tolist())
    half = Fraction(25, 2)  # every second frame
    for first in (0, 1):
        wanted = ClipRange(Fraction(first, 25), None)
        job, _ = plan(damaged, value=half, tubelet=1, ranges=(wanted,))
        ((_, result),) = made(job)
        taken = flagged in job.clips[0].frame_indices
        assert taken is (flagged % 2 == first)
        assert [loss[1] for loss in result.losses] == [1] * taken


@pytest.mark.parametrize("tubelet", [1, 2, 4])
def test_a_video_that_is_cut_off_loses_the_rest_and_nothing_else(
    sample_clips: Path, tmp_path: Path, ffmpeg: str, tubelet: int
) -> None:
    # The index is at the front: the plan knows all frames, half of their packets are gone.
    path = tmp_path / "a.mp4"
    source = sample_clips / "landscape_640x360.mp4"
    command = [ffmpeg, "-v", "error", "-i", source, "-c", "copy", "-movflags", "+faststart", path]
    subprocess.run(command, check=True)
    whole, info = plan(path, sampler="every-frame", tubelet=tubelet)
    os.truncate(path, path.stat().st_size // 2)
    cut = replace(whole, content_id=plan_id(path))
    ((tokens, result),) = made(cut)
    account(cut.clips[0], tokens, result, tubelet)
    assert {loss[0] for loss in result.losses} <= {"truncated", "corrupt_frames"}
    assert "truncated" in {loss[0] for loss in result.losses}
    assert 0 < len(result.rows) < len(info.frame_pts) // tubelet
    # What came before the cut is what it would have been.
    whole_frames = every_frame(source, info, "bicubic")
    times = info.frame_pts.tolist()[:24]
    expected = other_tokens(
        [whole_frames[t] for t in times], tubelet=tubelet, tail="repeat", layout="c t p q"
    )
    np.testing.assert_array_equal(tokens[: len(expected)], expected)


def plan_id(path: Path) -> str:
    return probe_source(ProbeJob(list_sources([str(path)]).sources[0])).content_id


def test_a_clip_of_which_no_frame_comes_is_lost_whole(tmp_path: Path, ffmpeg: str) -> None:
    # The header says 64 x 48; the frames themselves claim more than may be decoded.
    path = tmp_path / "a.webm"
    source = ["-f", "lavfi", "-i", "testsrc2=s=64x48:r=25:d=1"]
    subprocess.run([ffmpeg, "-v", "error", *source, "-c:v", "libvpx", path], check=True)
    path.write_bytes(
        path.read_bytes().replace(b"\x9d\x01\x2a\x40\0\x30\0", b"\x9d\x01\x2a\xff\x3f\xff\x3f")
    )
    job, _ = plan(path, sampler="every-frame", tubelet=2)
    ((tokens, result),) = made(job)
    account(job.clips[0], tokens, result, 2)
    assert (result.grid_t, len(tokens)) == (0, 0)
    assert [loss[:3] for loss in result.losses] == [
        ("fewer_frames_than_planned", 25, job.clips[0].num_tokens)
    ]


def test_a_size_that_changes_loses_the_rest_of_the_video(corpus: Path) -> None:
    path = corpus / "derived__resolution_change_midstream.ts"
    job, _ = plan(path, sampler="every-frame", tubelet=2, one_size=True)
    ((tokens, result),) = made(job)
    account(job.clips[0], tokens, result, 2)
    # 25 frames of the first size: 13 rows, the last one padded.
    assert (result.num_frames, result.padded_frames, len(result.rows)) == (25, 1, 13)
    ((reason, frames, lost, message),) = result.losses
    assert (reason, frames, lost) == ("size_changed", 25, 12 * 12)
    assert "frame 25" in message


def test_a_size_that_changes_before_a_clip_loses_the_clip_and_not_the_one_before(
    corpus: Path,
) -> None:
    path = corpus / "derived__resolution_change_midstream.ts"
    job, _ = plan(path, sampler="every-frame", tubelet=1, pack_length=10 * 12, one_size=True)
    results = made(job)
    for clip, (tokens, result) in zip(job.clips, results, strict=True):
        account(clip, tokens, result, 1)
    assert [len(result.rows) for _, result in results] == [10, 10, 5, 0, 0]
    assert [loss[0] for _, result in results for loss in result.losses] == ["size_changed"] * 3


def rewrite_same_size(path: Path, other: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1] + b"?")


def append(path: Path, other: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def replace_by_other(path: Path, other: Path) -> None:
    shutil.copy(other, path)


def empty(path: Path, other: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("change", [rewrite_same_size, append, replace_by_other, empty])
def test_a_file_that_is_not_the_planned_one_any_more_is_lost_as_changed(
    sample_clips: Path, tmp_path: Path, change: Any
) -> None:
    path = tmp_path / "a.mp4"
    shutil.copy(sample_clips / "square_320x320.mp4", path)
    job, _ = plan(path, pack_length=5 * 12)
    change(path, sample_clips / "portrait_270x480.mp4")
    results = made(job)
    for clip, (tokens, result) in zip(job.clips, results, strict=True):
        account(clip, tokens, result, 2)
        assert len(tokens) == 0
        assert [loss[0] for loss in result.losses] == ["source_changed"]
        assert result.losses[0][1] == len(clip.frame_indices)


def test_a_file_that_is_gone_is_lost_to_io_which_can_be_retried(
    sample_clips: Path, tmp_path: Path
) -> None:
    path = tmp_path / "a.mp4"
    shutil.copy(sample_clips / "square_320x320.mp4", path)
    job, _ = plan(path)
    path.unlink()
    ((tokens, result),) = made(job)
    account(job.clips[0], tokens, result, 2)
    assert [loss[0] for loss in result.losses] == ["io"]
    assert str(tmp_path) not in result.losses[0][3]


def test_messages_of_losses_name_no_absolute_path(corpus: Path) -> None:
    for name in ("decord__corrupted.mp4", "derived__resolution_change_midstream.ts"):
        job, _ = plan(corpus / name, sampler="every-frame", one_size=True)
        for _, result in made(job):
            assert result.losses
            assert not any(str(corpus) in loss[3] or "\n" in loss[3] for loss in result.losses)


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
    assert replace(result.info, frame_pts=None) == replace(info, frame_pts=None)
    np.testing.assert_array_equal(result.info.frame_pts, info.frame_pts)


def test_what_travels_to_a_worker_has_no_table_of_frames(sample_clips: Path) -> None:
    job, info = plan(sample_clips / "square_320x320.mp4")
    assert len(info.frame_pts) == 72
    assert len(job.info.frame_pts) == 0
