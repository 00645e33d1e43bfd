"""Every frame that is decoded or written carries its number in its pixels, and says that one."""

from __future__ import annotations

import importlib
import subprocess
from collections import Counter
from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import pytest
from conftest import SpacepatchCli
from frame_numbers import (
    copy_clip,
    draw_number,
    make_clip,
    pack_clip,
    read_number,
    read_table,
)

from spacepatch.data import Picture, VideoInfo
from spacepatch.decode import DECODERS, probe_video
from spacepatch.errors import Declined
from spacepatch.loader import PackDataset
from spacepatch.tubelets import join_tubelets

FRAMES = 640
"""More than decoders read before they seek (500)."""
X264 = ["-c:v", "libx264", "-preset", "veryfast", "-x264-params"]
B_FRAMES = [*X264, "bframes=3:b-adapt=0:keyint=50:scenecut=0"]
OPEN_GOP = [*X264, "bframes=3:b-adapt=0:open-gop=1:keyint=48:scenecut=0"]
X265 = ["-c:v", "libx265", "-preset", "ultrafast", "-x265-params"]
OPEN_HEVC = [*X265, "bframes=3:b-adapt=0:open-gop=1:keyint=48:scenecut=0:log-level=error"]
MPEG2 = ["-c:v", "mpeg2video", "-bf", "2", "-g", "15", "-q:v", "3"]
MPEG4 = ["-c:v", "mpeg4", "-bf", "2", "-g", "50", "-q:v", "3"]
VPX = ["-auto-alt-ref", "1", "-lag-in-frames", "16", "-g", "100", "-b:v", "600k", "-cpu-used", "5"]

VARIED = [4] * 10 + [2] * 10 + [1] * 10
"""60ths of a second that each of 30 frames lasts: 15, 30 and 60 frames a second."""
N = "mod(N,30)"
VARY = (
    f"setpts='floor(N/30)*{sum(VARIED)}"
    f"+if(lt({N},10),4*{N},if(lt({N},20),40+2*({N}-10),60+{N}-20))'"
)
VFR = ["-vf", VARY, "-vsync", "passthrough"]

ENCODED = {
    "h264_b_frames.mp4": B_FRAMES,
    "h264_open_gop.mp4": OPEN_GOP,
    "h264_open_gop.mkv": OPEN_GOP,
    "h264_open_gop.ts": OPEN_GOP,
    "h264_open_gop.flv": OPEN_GOP,
    "h264_open_gop.h264": OPEN_GOP,
    "refreshed.mp4": [*X264, "intra-refresh=1:keyint=60:bframes=0"],
    "refreshed.ts": [*X264, "intra-refresh=1:keyint=60:bframes=0"],
    "mpeg4.ts": MPEG4,
    "h264_two_keyframes.mp4": [*X264, "bframes=3:keyint=400:min-keyint=400:scenecut=0"],
    "h264_b_frames.avi": B_FRAMES,
    "h264_no_b_frames.avi": ["-c:v", "libx264", "-bf", "0", "-g", "50"],
    "hevc_open_gop.mp4": OPEN_HEVC,
    "hevc_open_gop.ts": OPEN_HEVC,
    "hevc_open_gop.hevc": OPEN_HEVC,
    "mpeg2.ts": MPEG2,
    "mpeg2.mpg": [*MPEG2, "-f", "vob"],
    "mpeg4.avi": MPEG4,
    "mpeg4.mp4": MPEG4,
    "vp8_altref.webm": ["-c:v", "libvpx", *VPX],
    "vp9_altref.webm": ["-c:v", "libvpx-vp9", *VPX],
    "av1.mkv": ["-c:v", "libsvtav1", "-preset", "12", "-g", "100"],
    "theora.ogv": ["-c:v", "libtheora", "-q:v", "8", "-g", "50"],
    "wmv2.wmv": ["-c:v", "wmv2", "-q:v", "3", "-g", "50"],
    "flv1.flv": ["-c:v", "flv", "-q:v", "3", "-g", "50"],
    "frames.gif": [],
    "vfr.mp4": [*VFR, *B_FRAMES],
    "vfr.mkv": [*VFR, *B_FRAMES],
    "vfr.ts": [*VFR, *OPEN_GOP],
    "ntsc.mp4": B_FRAMES,
    "ntsc.ts": OPEN_GOP,
    "late.mp4": [*B_FRAMES, "-output_ts_offset", "100"],
    "late.mkv": [*B_FRAMES, "-output_ts_offset", "3600"],
    "fragmented.mp4": [*B_FRAMES, "-movflags", "frag_keyframe+empty_moov"],
    # 2**33 ticks of 90 kHz are 95443.7 s. FFmpeg counts up to the wrap from below zero.
    "wrap_h264.ts": [*OPEN_GOP, "-output_ts_offset", "95434", "-muxdelay", "0"],
    "wrap_mpeg2.ts": [*MPEG2, "-output_ts_offset", "95436", "-muxdelay", "0"],
}
RATES = {"vfr": "60", "ntsc": "30000/1001"}
DERIVED = (
    "edit_list.mp4",
    "stream_copy.mkv",
    "no_cues.mkv",
    "packed.avi",
    "jump_forward.ts",
    "jump_back.ts",
    "cut_h264.ts",
    "cut_hevc.ts",
    "cut_mpeg2.ts",
)
NAMES = (*ENCODED, *DERIVED)
REPAIRED = {
    **dict.fromkeys(("h264_open_gop.h264", "hevc_open_gop.hevc"), "missing"),
    **dict.fromkeys(("h264_b_frames.avi", "h264_no_b_frames.avi", "packed.avi"), "unordered"),
    **dict.fromkeys(("jump_forward.ts", "jump_back.ts"), "discontinuous"),
}
"""Where the times of packets are not those of pictures, and what is the matter."""

ClipOf = Callable[[str], Path]


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


@pytest.fixture(scope="module")
def clip_of(ffmpeg: str, tmp_path_factory: pytest.TempPathFactory) -> ClipOf:
    """Return a function that makes a clip by its name, once."""
    folder = tmp_path_factory.mktemp("numbers")

    def clip(name: str) -> Path:
        path = folder / name
        if not path.exists():
            if name in ENCODED:
                rate = RATES.get(name.partition(".")[0], "30")
                make_clip(ffmpeg, path, *ENCODED[name], numbers=range(FRAMES), rate=rate)
            else:
                derive(ffmpeg, name, path, clip)
        return path

    return clip


def derive(ffmpeg: str, name: str, path: Path, clip_of: ClipOf) -> None:
    """Make one of `DERIVED`."""
    if name in ("edit_list.mp4", "stream_copy.mkv"):
        # 99 frames are not shown, or the 50 before the keyframe: an MP4 tells, Matroska cannot.
        long = make_clip(ffmpeg, path.with_name(f"long_{name}"), *B_FRAMES, numbers=range(800))
        copy_clip(ffmpeg, long, path, skip="3.3")
    elif name == "no_cues.mkv":
        with path.open("wb") as file:
            command = [ffmpeg, "-v", "error", "-i", clip_of("h264_open_gop.mp4"), "-c", "copy"]
            subprocess.run([*command, "-f", "matroska", "pipe:"], stdout=file, check=True)
    elif name == "packed.avi":
        single = ["-c:v", "mpeg4", "-bf", "1", "-b_strategy", "0", "-g", "49", "-q:v", "3"]
        plain = make_clip(ffmpeg, path.with_name("plain.avi"), *single, numbers=range(FRAMES))
        pack_clip(plain, path)
    elif name.startswith("jump"):
        parts = []
        for start, offset in ((0, "200"), (320, "900" if name == "jump_forward.ts" else "100")):
            part = path.with_name(f"{start}_{name}")
            numbers = range(start, start + 320)
            make_clip(ffmpeg, part, *B_FRAMES, "-output_ts_offset", offset, numbers=numbers)
            parts.append(part.read_bytes())
        path.write_bytes(b"".join(parts))
    else:
        # From the middle of a group of pictures on.
        source = {"cut_h264.ts": "h264_open_gop.ts", "cut_hevc.ts": "hevc_open_gop.ts"}
        content = clip_of(source.get(name, "mpeg2.ts")).read_bytes()
        path.write_bytes(content[len(content) // 188 // 30 * 188 :])


def shown_at(name: str, number: int) -> Fraction:
    """Second at which a frame is shown, by the way the clip was made."""
    kind = name.partition(".")[0]
    if kind == "vfr":
        return Fraction(number // 30 * sum(VARIED) + sum(VARIED[: number % 30]), 60)
    return number / Fraction(RATES.get(kind, "30"))


def decode(
    backend: str, path: Path, info: VideoInfo, indices: Iterable[int], seen: list[int] | None = None
) -> list[Picture]:
    """The wanted pictures; `seen` gets an entry for each picture that was decoded."""
    chosen = np.array(list(indices), np.int64)
    try:
        return list(
            DECODERS[backend](
                str(path),
                info=info,
                indices=chosen,
                pts=info.frame_pts[chosen],
                on_picture=lambda: None if seen is None else seen.append(1),
            )
        )
    except Declined as error:
        pytest.skip(f"{backend} declines: {error}")


def number_of(picture: Picture) -> int:
    return read_number(picture.frame.to_ndarray(format="rgb24"))


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
