"""Every frame that is decoded or written carries its number in its pixels, and says that one."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import pytest
from conftest import SpacepatchCli
from frame_numbers import draw_number, read_number, read_table
from numbered_clips import FRAMES, NAMES, REPAIRED, ClipOf, number_of, shown_at

from spacepatch.data import Picture, VideoInfo
from spacepatch.decode import DECODERS, decode_pictures, probe_video
from spacepatch.errors import Declined
from spacepatch.loader import PackDataset
from spacepatch.tubelets import join_tubelets


@pytest.fixture(params=DECODERS)
def backend(request: pytest.FixtureRequest) -> str:
    """Return the name of a backend that imports here."""
    name = str(request.param)
    module = {"pyav": "av", "torchcodec": "torchcodec.decoders"}.get(name, name)
    try:
        importlib.import_module(module)
    except (ImportError, OSError, RuntimeError):
        pytest.skip(f"{name} does not import here")
    return name


def decode(
    backend: str, path: Path, info: VideoInfo, indices: Iterable[int], seen: list[int] | None = None
) -> list[Picture]:
    """The wanted pictures; `seen` gets an entry for each picture that was decoded."""
    chosen = np.array(list(indices), np.int64)
    try:
        return list(
            decode_pictures(
                str(path),
                info=info,
                indices=chosen,
                pts=info.frame_pts[chosen],
                on_picture=lambda: None if seen is None else seen.append(1),
                decoder=backend,
            )
        )
    except Declined as error:
        pytest.skip(f"{backend} declines: {error}")


# --- the numbers themselves ------------------------------------------------------------------


def test_a_number_is_read_as_it_was_drawn_and_no_other() -> None:
    for number in range(1024):
        assert read_number(draw_number(number)) == number
    rgb = np.repeat(draw_number(77)[..., None], 3, axis=2)
    assert read_number(rgb[::2, ::2]) == 77


def test_two_frames_in_one_have_no_number() -> None:
    one, other = draw_number(600).astype(int), draw_number(601).astype(int)
    for mixed in ((one + other) // 2, np.where(np.arange(128) < 64, one, other)):
        with pytest.raises(ValueError, match="no frame number"):
            read_number(mixed.astype(np.uint8))


# --- every backend ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_every_frame_has_the_number_of_its_time(
    name: str, backend: str, clip_of: ClipOf, ffmpeg: str
) -> None:
    path = clip_of(name)
    info = probe_video(str(path))
    made = decode(backend, path, info, range(len(info.frame_pts)))
    assert [picture.index for picture in made] == list(range(len(info.frame_pts)))
    assert [picture.pts for picture in made] == info.frame_pts.tolist()
    numbers = [number_of(picture) for picture in made]
    first = numbers[0]
    assert numbers == list(range(first, first + len(numbers)))
    # A tick is what containers round to.
    origin = info.frame_pts[0] * info.time_base - shown_at(name, first)
    for picture, number in zip(made, numbers, strict=True):
        due = origin + shown_at(name, number)
        assert abs(picture.pts * info.time_base - due) <= info.time_base
    assert info.pts_repaired == REPAIRED.get(name, "")
    if name.startswith("cut"):
        assert 0 < first < 60  # the first keyframe after the cut
        assert numbers[-1] == FRAMES - 1
        return
    table = read_table(ffmpeg, path)
    assert numbers == [number for _, number in table]
    if name not in REPAIRED and all(pts is not None for pts, _ in table):
        # FFmpeg 5 lets AVI begin at 0, FFmpeg 8 after the decoder's delay.
        shift = info.frame_pts[0] if name.endswith(".avi") else 0
        assert (info.frame_pts - shift).tolist() == [pts for pts, _ in table]


def test_times_below_zero_are_as_true_as_others(clip_of: ClipOf) -> None:
    info = probe_video(str(clip_of("wrap_h264.ts")))
    assert info.frame_pts[0] < -500_000
    assert info.frame_pts[-1] > 500_000


@pytest.mark.parametrize("name", NAMES)
def test_windows_far_into_a_file_are_those_of_a_full_decode(
    name: str, backend: str, clip_of: ClipOf
) -> None:
    path = clip_of(name)
    info = probe_video(str(path))
    last = len(info.frame_pts) - 1
    full = {p.index: p for p in decode(backend, path, info, range(last + 1))}
    # By 7 frames from window to window: before, on and after keyframes and their leading frames.
    windows = [range(start, start + 3) for start in range(500, 570, 7)]
    windows += [[505, 520, 521, 560, last], range(last - 2, last + 1)]
    for window in windows:
        made = decode(backend, path, info, window)
        assert [picture.index for picture in made] == list(window)
        for picture in made:
            same = full[picture.index]
            assert (picture.pts, number_of(picture)) == (same.pts, number_of(same))
            np.testing.assert_array_equal(picture.frame.to_ndarray(), same.frame.to_ndarray())


def test_a_backend_reads_some_of_the_clips(backend: str, clip_of: ClipOf) -> None:
    read = []
    for name in NAMES:
        try:
            decode(backend, clip_of(name), probe_video(str(clip_of(name))), [0])
        except pytest.skip.Exception:
            continue
        read.append(name)
    assert "h264_b_frames.mp4" in read
    assert backend != "pyav" or read == list(NAMES)


SEEKABLE = [
    *("h264_open_gop.mp4", "h264_open_gop.mkv", "h264_open_gop.ts"),
    *("hevc_open_gop.mp4", "hevc_open_gop.ts", "mpeg2.ts", "vp8_altref.webm", "vp9_altref.webm"),
    *("av1.mkv", "mpeg4.mp4", "wmv2.wmv", "edit_list.mp4", "no_cues.mkv", "fragmented.mp4"),
    *("wrap_h264.ts", "cut_hevc.ts", "late.mkv", "ntsc.ts", "vfr.mkv"),
]


@pytest.mark.parametrize("name", SEEKABLE)
def test_a_window_does_not_cost_all_that_comes_before_it(name: str, clip_of: ClipOf) -> None:
    path = clip_of(name)
    info = probe_video(str(path))
    for start in range(500, 570, 7):
        seen: list[int] = []
        decode("pyav", path, info, range(start, start + 3), seen)
        # Two groups of pictures: of 100 frames at most.
        assert len(seen) <= 200 + 3


# --- through the command line ----------------------------------------------------------------


@pytest.mark.parametrize("name", ["h264_open_gop.ts", "vfr.mp4", "vp8_altref.webm", "packed.avi"])
def test_clips_over_several_tasks_hold_every_frame_once_in_order(
    name: str, clip_of: ClipOf, tmp_path: Path, spacepatch_cli: SpacepatchCli
) -> None:
    out = tmp_path / "out"
    sizes = ["--native", "--patch", "2x16x16", "--shard-size", "2MB", "--pack-length", "1024"]
    clips = ["--every-frame", "--clip-seconds", "1.7", "--workers", "2"]
    done = spacepatch_cli("tokenize", clip_of(name), "--out", out, *sizes, *clips)
    assert done.returncode == 0, done.stderr
    info = probe_video(str(clip_of(name)))
    segments = parquet.read_table(out / "segments.parquet").to_pylist()
    rows = {row["segment_id"]: row for row in segments}
    frames: Counter[int] = Counter()
    dataset = PackDataset(out, padded=False)
    assert len(dataset.document["shards"]) >= 4
    for pack in dataset:
        edges = pack["cu_seqlens"].tolist()
        for start, stop, held in zip(edges[:-1], edges[1:], pack["segments"], strict=True):
            joined = join_tubelets(
                pack["tokens"][start:stop].numpy(),
                grid_thw=tuple(held["grid_thw"]),
                tubelet_size=2,
                patch_size=(16, 16),
            )
            segment = rows[held["segment_id"]]
            numbers = [read_number(frame) for frame in joined]
            assert len(segment["frame_indices"]) == segment["valid_frames"]
            assert numbers[: segment["valid_frames"]] == segment["frame_indices"]
            # A last frame without a partner is there twice, and said to be.
            assert len(numbers) == segment["valid_frames"] + segment["padded_frames"]
            times = info.frame_pts[segment["frame_indices"]].tolist()
            assert segment["frame_pts"] == times
            assert segment["clip_start_pts"] <= times[0]
            assert times[-1] < segment["clip_stop_pts"]
            frames.update(segment["frame_indices"])
    assert frames == dict.fromkeys(range(FRAMES), 1)
    segments.sort(key=lambda row: row["clip_start_pts"])
    assert [n for row in segments for n in row["frame_indices"]] == list(range(FRAMES))
    assert [pts for row in segments for pts in row["frame_pts"]] == info.frame_pts.tolist()
