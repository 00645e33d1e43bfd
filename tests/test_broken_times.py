"""Packets whose times lie: one is missing, the clock jumps, fields, damage, a long last frame."""

import subprocess
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from decoding import pictures
from field_pictures import make_fields
from frame_numbers import make_clip, read_number

from spacepatch.data import VideoInfo
from spacepatch.decode import probe_video
from spacepatch.resize import make_frame

FRAMES = 240
MPEG2 = ["-c:v", "mpeg2video", "-g", "12", "-bf", "2", "-q:v", "2"]
MPEG4 = ["-c:v", "mpeg4", "-g", "25", "-bf", "0", "-q:v", "2"]


def numbers(path: Path, info: VideoInfo) -> dict[int, int]:
    """By presentation index: the number in the picture, of those that can be had."""
    return {
        picture.index: read_number(make_frame(picture, size=(64, 128)))
        for picture in pictures(path, info)
    }


def without_time(content: bytes, number: int) -> bytes:
    """A transport stream whose `number`-th PES of video has no PTS any more."""
    place = -1
    for _ in range(number):
        place = content.index(b"\0\0\1\xe0", place + 1)
    flags, length = place + 7, content[place + 8]
    assert content[flags] & 0x80
    stuffing = b"\xff" * length
    return (
        content[:flags]
        + b"\0"
        + content[flags + 1 : place + 9]
        + stuffing
        + content[place + 9 + length :]
    )


@pytest.mark.parametrize("b_frames", [0, 2])
def test_a_time_that_is_missing_leaves_the_others_as_they_are(
    tmp_path: Path, ffmpeg: str, b_frames: int
) -> None:
    whole, path = tmp_path / "whole.ts", tmp_path / "missing.ts"
    codec = ["-c:v", "mpeg2video", "-g", "12", "-bf", str(b_frames), "-q:v", "2"]
    make_clip(ffmpeg, whole, *codec, numbers=range(FRAMES))
    path.write_bytes(without_time(whole.read_bytes(), 100))
    expected, info = probe_video(str(whole)), probe_video(str(path))
    assert len(info.frame_pts) == FRAMES
    step = int(np.diff(expected.frame_pts)[0])
    assert np.abs(info.frame_pts - expected.frame_pts).max() <= step
    assert np.count_nonzero(info.frame_pts != expected.frame_pts) <= 1
    assert list(numbers(path, info).values()) == list(range(FRAMES))


@pytest.mark.parametrize("codec", [MPEG2, MPEG4])
def test_a_jump_of_the_clock_behind_a_cut_shifts_no_frame(
    tmp_path: Path, ffmpeg: str, codec: list[str]
) -> None:
    whole, cut, joined = (tmp_path / f"{name}.ts" for name in ("whole", "cut", "joined"))
    make_clip(ffmpeg, whole, *codec, numbers=range(FRAMES))
    content = whole.read_bytes()
    tail = content[len(content) // 188 // 2 * 188 :]
    cut.write_bytes(tail)
    joined.write_bytes(tail + content)
    alone, info = probe_video(str(cut)), probe_video(str(joined))
    assert info.pts_repaired == "discontinuous"
    first = len(alone.frame_pts)
    np.testing.assert_array_equal(info.frame_pts[:first], alone.frame_pts)
    found, by_itself = numbers(joined, info), numbers(cut, alone)
    assert [found[index] for index in range(first)] == [by_itself[index] for index in range(first)]
    # FFmpeg leaves out the pictures that refer from behind the jump to what is before it.
    rest = [found[index] for index in sorted(found) if index >= first]
    assert rest == list(range(FRAMES - len(rest), FRAMES))
    assert len(rest) >= FRAMES - 2
    assert max(found) == len(info.frame_pts) - 1


def test_a_damaged_keyframe_costs_itself_and_moves_no_time(tmp_path: Path, ffmpeg: str) -> None:
    whole, path = tmp_path / "whole.mkv", tmp_path / "damaged.mkv"
    make_clip(ffmpeg, whole, *MPEG4, numbers=range(FRAMES))
    with av.open(str(whole)) as container:
        packet = [packet for packet in container.demux(video=0) if packet.is_keyframe][4]
        data = bytes(packet)
    content = whole.read_bytes()
    path.write_bytes(content.replace(data, bytes(len(data))))
    expected, info = probe_video(str(whole)), probe_video(str(path))
    assert info.pts_repaired == ""
    np.testing.assert_array_equal(info.frame_pts, expected.frame_pts)
    # One GOP behind it everything is right again.
    found = [picture.index for picture in pictures(path, info)]
    assert found[-100:] == list(range(FRAMES - 100, FRAMES))


def test_a_last_frame_that_stays_is_no_missing_end(tmp_path: Path) -> None:
    """A screen recording: nothing changes for the last five seconds."""
    path = tmp_path / "stays.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(50):
            frame = av.VideoFrame.from_ndarray(np.full((72, 64), 3 * number, np.uint8), "yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            for packet in stream.encode(frame):
                packet.duration = 125 if number == 49 else 1
                container.mux(packet)
        for packet in stream.encode(None):
            packet.duration = 125
            container.mux(packet)
    info = probe_video(str(path))
    assert (info.cut_off, info.missing_frames) == (False, 0)
    assert float((info.stop_pts - info.frame_pts[0]) * info.time_base) == pytest.approx(
        6.96, abs=0.05
    )
    path.write_bytes(path.read_bytes()[:-2000])
    assert probe_video(str(path)).cut_off


@pytest.mark.parametrize("fields_a_packet", [2, 1])
def test_pictures_coded_as_two_fields_are_one_frame_each(
    tmp_path: Path,
    fields_a_packet: int,
    spacepatch_cli: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    frames = make_fields(60)
    raw, path = tmp_path / "fields.h264", tmp_path / "fields.ts"
    raw.write_bytes(b"".join(top + bottom for top, bottom in frames))
    with av.open(str(raw)) as source, av.open(str(path), "w") as container:
        stream = container.add_stream_from_template(source.streams.video[0])
        stream.time_base = Fraction(1, 90_000)
        for number, fields in enumerate(frames):
            for place, data in enumerate(
                [fields[0] + fields[1]] if fields_a_packet == 2 else fields
            ):
                packet = av.Packet(data)
                packet.stream, packet.time_base = stream, Fraction(1, 90_000)
                packet.pts = packet.dts = 90_000 + 3600 * number + 1800 * place
                packet.is_keyframe = number % 12 == 0 and place == 0
                container.mux(packet)
    info = probe_video(str(path))
    assert (len(info.frame_pts), info.num_packets, info.pts_repaired) == (60, 120, "")
    assert set(np.diff(info.frame_pts).tolist()) == {3600}
    greys = [
        round((picture.frame.to_ndarray(format="gray").mean() * 219 / 255 + 16) - 20)
        for picture in pictures(path, info)
    ]
    assert greys == list(range(60))
    out = tmp_path / "out"
    done = spacepatch_cli("tokenize", path, "--out", out, "--every-frame", "--native")
    assert done.returncode == 0
    assert "lost" not in done.stderr
