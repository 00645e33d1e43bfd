"""Files that end too early: noticed, counted, and what is there is kept."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import pytest

from spacepatch.decode import decode_pictures, probe_video
from spacepatch.errors import ProbeError

NUM_FRAMES = 100
MAKERS = {
    "moov_first.mp4": ["-c:v", "libx264", "-movflags", "faststart"],
    "moov_last.mp4": ["-c:v", "libx264"],
    "fragments.mp4": ["-c:v", "libx264", "-g", "10", "-movflags", "frag_keyframe+empty_moov"],
    "h264.mkv": ["-c:v", "libx264", "-bf", "0"],
    "vp8.webm": ["-c:v", "libvpx", "-deadline", "realtime", "-b:v", "500k"],
    "mpeg4.avi": ["-c:v", "mpeg4", "-q", "5"],
    "flv1.flv": ["-c:v", "flv1"],
    "h264.ts": ["-c:v", "libx264"],
    "ps.mpg": ["-c:v", "mpeg2video"],
}
SAYS_NOTHING = {"h264.ts", "ps.mpg"}
"""Streams without an end: cut anywhere, they are only shorter."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, ffmpeg: str) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    source = f"testsrc2=size=160x96:rate=25,noise=alls=20:allf=t,trim=end_frame={NUM_FRAMES}"
    for name, codec in MAKERS.items():
        command = [ffmpeg, "-v", "error", "-f", "lavfi", "-i", source, "-pix_fmt", "yuv420p"]
        subprocess.run([*command, *codec, str(folder / name)], check=True)
    return folder


def cut(whole: Path, name: str, percent: int, folder: Path) -> Path:
    content = (whole / name).read_bytes()
    path = folder / name
    path.write_bytes(content[: len(content) * percent // 100])
    return path


def frames_that_ffmpeg_decodes(path: Path) -> int:
    listing = subprocess.run(
        ["ffmpeg", "-v", "quiet", "-i", path, "-fps_mode", "passthrough", "-f", "framemd5", "-"],
        capture_output=True,
        check=False,
    ).stdout
    return sum(1 for line in listing.splitlines() if line and not line.startswith(b"#"))


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_a_whole_file_is_not_cut_off(whole: Path, name: str) -> None:
    info = probe_video(str(whole / name))
    assert len(info.frame_pts) == NUM_FRAMES
    assert (info.cut_off, info.missing_ticks, info.missing_frames) == (False, 0, 0)


@pytest.mark.parametrize("percent", [10, 50, 90, 99])
@pytest.mark.parametrize("name", sorted(MAKERS))
def test_a_cut_off_file_says_so_and_gives_what_it_has(
    whole: Path, name: str, percent: int, tmp_path: Path
) -> None:
    path = cut(whole, name, percent, tmp_path)
    if name == "moov_last.mp4":
        with pytest.raises(ProbeError) as caught:
            probe_video(str(path))
        assert caught.value.reason == "unreadable"
        return
    info = probe_video(str(path))
    there = len(info.frame_pts)
    if (name, percent) == ("mpeg4.avi", 99):
        # An AVI ends in an index: here the cut goes through the last frame.
        assert (there, info.cut_off, info.missing_frames) == (NUM_FRAMES, True, 0)
        return
    assert info.cut_off == (name not in SAYS_NOTHING)
    assert 0 < there < NUM_FRAMES
    if name in ("moov_first.mp4", "h264.mkv", "vp8.webm", "mpeg4.avi"):
        # These promise their length: what is missing and what is there are the whole.
        assert abs(info.missing_frames + there - NUM_FRAMES) <= 2
    pictures = decode_pictures(str(path), info=info, indices=np.arange(there), pts=info.frame_pts)
    # The frame that the end of the file cuts through may come, flagged, or not.
    assert there - 1 <= sum(1 for _ in pictures) <= there
    assert abs(frames_that_ffmpeg_decodes(path) - there) <= 1


def test_an_avi_that_claims_too_many_frames_is_not_cut_off(whole: Path, tmp_path: Path) -> None:
    content = bytearray((whole / "mpeg4.avi").read_bytes())
    for marker, place in ((b"avih", 16), (b"strh", 32)):
        at = content.index(marker) + 8 + place
        assert int.from_bytes(content[at : at + 4], "little") == NUM_FRAMES
        content[at : at + 4] = (5 * NUM_FRAMES).to_bytes(4, "little")
    path = tmp_path / "claims.avi"
    path.write_bytes(content)
    info = probe_video(str(path))
    assert (len(info.frame_pts), info.cut_off) == (NUM_FRAMES, False)
    assert (info.stop_pts - info.frame_pts[0]) * info.time_base == 4


def run(
    cli: Callable[..., subprocess.CompletedProcess[str]], path: Path, out: Path, *more: str
) -> tuple[int, list[dict[str, object]], list[dict[str, object]]]:
    """Exit code, losses and sources."""
    size = ("--max-tokens-per-frame", "16", "--every-frame")
    done = cli("tokenize", path, "--out", out, *size, *more)
    assert cli("verify", out).returncode == 0
    losses = parquet.read_table(out / "losses.parquet").to_pylist()
    return done.returncode, losses, parquet.read_table(out / "sources.parquet").to_pylist()


def test_what_is_missing_is_a_loss_and_the_rest_is_kept(
    whole: Path,
    tmp_path: Path,
    spacepatch_cli: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    path = cut(whole, "moov_first.mp4", 50, tmp_path)
    code, losses, (source,) = run(spacepatch_cli, path, tmp_path / "out")
    assert code == 0  # no source is lost as a whole
    (cut_off,) = [loss for loss in losses if loss["stage"] == "probe"]
    assert cut_off["reason"] == "truncated"
    assert "promises 4.000 s" in str(cut_off["message"])
    info = probe_video(str(path))
    assert cut_off["num_frames"] == NUM_FRAMES - len(info.frame_pts)
    assert source["frames_selected"] == NUM_FRAMES
    assert source["frames_written"] == NUM_FRAMES - source["frames_lost"]
    assert source["frames_written"] >= len(info.frame_pts) - 2


def test_skip_video_drops_all_of_a_damaged_video_and_keeps_a_sound_one(
    whole: Path,
    tmp_path: Path,
    spacepatch_cli: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    cut(whole, "moov_first.mp4", 50, videos)
    (videos / "sound.mkv").write_bytes((whole / "h264.mkv").read_bytes())
    # Noise in the middle of the coded pictures, in a container that does not notice.
    content = bytearray((whole / "h264.ts").read_bytes())
    middle = len(content) // 2
    for at in range(middle, middle + 188 * 60, 188):
        content[at + 100 : at + 140] = bytes(40)
    (videos / "noise.ts").write_bytes(content)
    code, losses, sources = run(
        spacepatch_cli, videos, tmp_path / "out", "--on-error", "skip-video"
    )
    assert code == 3
    written = {row["source"]: row["frames_written"] for row in sources}
    assert written == {"moov_first.mp4": 0, "noise.ts": 0, "sound.mkv": NUM_FRAMES}
    assert {(loss["source"], loss["reason"]) for loss in losses} == {
        ("moov_first.mp4", "truncated"),
        ("noise.ts", "corrupt_frames"),
    }
    code, losses, sources = run(spacepatch_cli, videos, tmp_path / "kept")
    written = {row["source"]: row["frames_written"] for row in sources}
    assert written["sound.mkv"] == NUM_FRAMES
    assert 0 < written["noise.ts"] < NUM_FRAMES


def test_allow_corrupt_keeps_flagged_frames_and_says_how_many(
    whole: Path,
    tmp_path: Path,
    spacepatch_cli: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    content = bytearray((whole / "h264.mkv").read_bytes())
    for at in range(len(content) // 4, len(content) // 2, 997):
        content[at] ^= 0x5A
    path = tmp_path / "flipped.mkv"
    path.write_bytes(content)
    info = probe_video(str(path))
    everything = np.arange(len(info.frame_pts))
    flagged = [
        picture.index
        for picture in decode_pictures(str(path), info=info, indices=everything, pts=info.frame_pts)
        if picture.is_corrupt
    ]
    assert flagged
    # One frame a token: a row that goes has a flagged frame or a missing one, never both.
    run(spacepatch_cli, path, tmp_path / "dropped", "--patch", "1x16x16")
    rows = parquet.read_table(tmp_path / "dropped" / "segments.parquet").to_pylist()
    shown = {index for row in rows for index in row["frame_indices"]}
    assert sum(row["corrupt_frames"] for row in rows) >= 1
    assert sum(row["damaged_frames"] for row in rows) == 0
    _, losses, _ = run(
        spacepatch_cli, path, tmp_path / "kept", "--allow-corrupt", "--patch", "1x16x16"
    )
    rows = parquet.read_table(tmp_path / "kept" / "segments.parquet").to_pylist()
    kept = {index for row in rows for index in row["frame_indices"]}
    assert sum(row["damaged_frames"] for row in rows) == len(kept & set(flagged)) == len(flagged)
    assert shown <= kept
    missing = len(info.frame_pts) - sum(row["valid_frames"] for row in rows)
    lost = [loss["num_frames"] for loss in losses if loss["stage"] == "decode"]
    assert sum(lost) == missing
