"""Packets whose times lie: some are missing, the clock jumps, damage, a long last frame."""

from fractions import Fraction
from pathlib import Path
from typing import get_args

import av
import numpy as np
import pytest
from decoding import pictures
from frame_numbers import make_clip
from numbered_clips import number_of

from spacepatch.data import VideoInfo
from spacepatch.decode import probe_video
from spacepatch.decode.packets import COUNTED, Repair

FRAMES = 240
MPEG2 = ["-c:v", "mpeg2video", "-g", "12", "-bf", "2", "-q:v", "2"]
MPEG4 = ["-c:v", "mpeg4", "-g", "25", "-bf", "0", "-q:v", "2"]


def numbers(path: Path, info: VideoInfo) -> dict[int, int]:
    """By presentation index: the number in the picture, of those that can be had."""
    return {picture.index: number_of(picture) for picture in pictures(path, info)}


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


@pytest.mark.parametrize(
    "missing",
    [[100], [FRAMES], [FRAMES - 2], [FRAMES - 2, FRAMES - 1, FRAMES], [20, FRAMES - 4, FRAMES - 3]],
)
@pytest.mark.parametrize("b_frames", [0, 3])
def test_times_that_are_missing_leave_the_others_as_they_are(
    tmp_path: Path, ffmpeg: str, b_frames: int, missing: list[int]
) -> None:
    # The last group of four: its third packet is shown last, or is not, by the B-frames.
    whole, path = tmp_path / "whole.ts", tmp_path / "missing.ts"
    codec = ["-c:v", "libx264", "-x264-params", f"bframes={b_frames}:b-adapt=0:keyint=50"]
    make_clip(ffmpeg, whole, *codec, numbers=range(FRAMES))
    content = whole.read_bytes()
    for number in missing:
        content = without_time(content, number)
    path.write_bytes(content)
    expected, info = probe_video(str(whole)), probe_video(str(path))
    assert info.pts_repaired == "missing"
    np.testing.assert_array_equal(info.frame_pts, expected.frame_pts)
    assert info.stop_pts == expected.stop_pts
    assert list(numbers(path, info).values()) == list(range(FRAMES))


def copy_to_ts(source: Path, path: Path, times: list[int]) -> Path:
    """The packets of a video without B-frames at these times, in ticks of 90 kHz."""
    with av.open(str(source)) as before, av.open(str(path), "w") as after:
        stream = after.add_stream_from_template(before.streams.video[0])
        packets = (packet for packet in before.demux(video=0) if packet.size)
        for packet, time in zip(packets, times, strict=True):
            packet.stream, packet.time_base = stream, Fraction(1, 90_000)
            packet.pts = packet.dts = time
            after.mux(packet)
    return path


@pytest.mark.parametrize("name", ["mpeg2video", "libx264"])
def test_a_clock_that_is_set_to_zero_shortens_no_frame(
    tmp_path: Path, ffmpeg: str, name: str
) -> None:
    # Of MPEG-2 FFmpeg makes up decoding times, a packet late.
    codec = ["-c:v", name, "-bf", "0", "-g", "12"]
    source = make_clip(ffmpeg, tmp_path / "source.mp4", *codec, numbers=range(60))
    first = copy_to_ts(source, tmp_path / "a.ts", [90_000 * 50 + 3600 * k for k in range(60)])
    # Its first picture stays for ten frames.
    second = copy_to_ts(source, tmp_path / "b.ts", [0, *(36_000 + 3600 * k for k in range(59))])
    path = tmp_path / "joined.ts"
    path.write_bytes(first.read_bytes() + second.read_bytes())
    info = probe_video(str(path))
    assert info.pts_repaired == "discontinuous"
    steps = np.diff(info.frame_pts).tolist()
    assert steps[:59] == [3600] * 59
    assert steps[60:] == [36_000] + [3600] * 58
    assert list(numbers(path, info).values()) == [*range(60), *range(60)]


@pytest.mark.parametrize("codec", [MPEG2, MPEG4])
def test_a_clock_that_is_set_before_the_first_keyframe_repairs_nothing(
    tmp_path: Path, ffmpeg: str, codec: list[str]
) -> None:
    late, whole, path = (tmp_path / f"{name}.ts" for name in ("late", "whole", "path"))
    make_clip(ffmpeg, late, *codec, "-output_ts_offset", "50", numbers=range(FRAMES))
    make_clip(ffmpeg, whole, *codec, numbers=range(FRAMES))
    content = late.read_bytes()
    with av.open(str(late)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    first, second = [packet.pos for packet in packets if packet.is_keyframe][1:3]
    tail = content[first + 188 : second]
    path.write_bytes(tail[tail.index(b"\x47\x41") :] + whole.read_bytes())
    expected, info = probe_video(str(whole)), probe_video(str(path))
    assert info.num_before_key > 5
    assert info.pts_repaired == ""
    np.testing.assert_array_equal(info.frame_pts, expected.frame_pts)
    assert numbers(path, info) == {number: number for number in range(FRAMES)}


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


def test_every_word_for_a_repair_is_described() -> None:
    page = (Path(__file__).parent.parent / "docs" / "decoding.md").read_text()
    words = set(get_args(Repair)) - {""}
    assert words >= COUNTED
    assert [word for word in sorted(words) if f"`{word}`" not in page] == []
