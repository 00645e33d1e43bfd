"""What a job loses of a source: rows, clips and the reasons, with every frame accounted for."""

import math
import os
import shutil
import subprocess
from contextlib import suppress
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from planned_jobs import every_frame, made, other_tokens, plan

from spacepatch.data import ClipRange, ClipSpec
from spacepatch.jobs import ClipTokens
from spacepatch.probes import ProbeJob, probe_source
from spacepatch.sources import list_sources


def flagged_times(path: Path) -> set[int]:
    """The frames that FFmpeg itself calls damaged."""
    found = set()
    with av.open(str(path)) as container:
        container.streams.video[0].codec_context.thread_count = 1
        for packet in container.demux(video=0):
            with suppress(av.error.InvalidDataError):
                found |= {frame.pts for frame in packet.decode() if frame.is_corrupt}
    return found


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
    ((reason, frames, lost, message, _),) = result.losses
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
