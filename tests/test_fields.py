"""H.264 whose packets are fields: two make a frame, also where nothing tells a time."""

import subprocess
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from decoding import pictures
from field_pictures import make_fields

from spacepatch.data import VideoInfo
from spacepatch.decode import probe_video

SpacepatchCli = Callable[..., subprocess.CompletedProcess[str]]


def greys(path: Path, info: VideoInfo, indices: range | None = None) -> list[int]:
    """The numbers of the frames, which are their grey."""
    return [
        round((picture.frame.to_ndarray(format="gray").mean() * 219 / 255 + 16) - 20)
        for picture in pictures(path, info, indices)
    ]


def make_raw(path: Path, frames: list[tuple[bytes, bytes]]) -> Path:
    path.write_bytes(b"".join(top + bottom for top, bottom in frames))
    return path


def make_ts(folder: Path, *, fields_a_packet: int, seconds: int = 1) -> Path:
    frames = make_fields(60)
    raw, path = make_raw(folder / "fields.h264", frames), folder / f"fields_{seconds}.ts"
    with av.open(str(raw)) as source, av.open(str(path), "w") as container:
        stream = container.add_stream_from_template(source.streams.video[0])
        stream.time_base = Fraction(1, 90_000)
        for number, fields in enumerate(frames):
            for place, data in enumerate(
                [fields[0] + fields[1]] if fields_a_packet == 2 else fields
            ):
                packet = av.Packet(data)
                packet.stream, packet.time_base = stream, Fraction(1, 90_000)
                packet.pts = packet.dts = 90_000 * seconds + 3600 * number + 1800 * place
                packet.is_keyframe = number % 12 == 0 and place == 0
                container.mux(packet)
    return path


def check_written(path: Path, out: Path, spacepatch_cli: SpacepatchCli) -> None:
    done = spacepatch_cli("tokenize", path, "--out", out, "--every-frame", "--native")
    assert done.returncode == 0, done.stderr
    assert "lost" not in done.stderr


@pytest.mark.parametrize("fields_a_packet", [2, 1])
def test_pictures_coded_as_two_fields_are_one_frame_each(
    tmp_path: Path, fields_a_packet: int, spacepatch_cli: SpacepatchCli
) -> None:
    path = make_ts(tmp_path, fields_a_packet=fields_a_packet)
    info = probe_video(str(path))
    assert (len(info.frame_pts), info.num_packets, info.pts_repaired) == (60, 120, "")
    assert set(np.diff(info.frame_pts).tolist()) == {3600}
    assert info.keyframes.tolist() == [0, 12, 24, 36, 48]
    assert greys(path, info) == list(range(60))
    check_written(path, tmp_path / "out", spacepatch_cli)


def test_fields_without_a_time_are_counted_as_frames(
    tmp_path: Path, spacepatch_cli: SpacepatchCli
) -> None:
    path = make_raw(tmp_path / "paff.h264", make_fields(60))
    info = probe_video(str(path))
    assert (len(info.frame_pts), info.num_packets, info.pts_repaired) == (60, 120, "fields")
    # Nothing tells the rate: 25 frames a second.
    times = [(pts - info.frame_pts[0]) * info.time_base for pts in info.frame_pts.tolist()]
    assert times == [Fraction(number, 25) for number in range(60)]
    assert (info.stop_pts - int(info.frame_pts[-1])) * info.time_base == Fraction(1, 25)
    assert info.keyframes.tolist() == [0, 12, 24, 36, 48]
    assert greys(path, info) == list(range(60))
    assert greys(path, info, range(31, 60, 7)) == list(range(31, 60, 7))
    check_written(path, tmp_path / "out", spacepatch_cli)


def test_fields_before_the_first_keyframe_are_no_frames(tmp_path: Path) -> None:
    path = make_raw(tmp_path / "cut.h264", make_fields(60)[5:])
    info = probe_video(str(path))
    assert (info.num_before_key, info.keyframes.tolist()) == (14, [0, 12, 24, 36])
    assert greys(path, info) == list(range(12, 60))


@pytest.mark.parametrize("num_frames", [1, 2])
def test_a_few_fields_are_half_as_many_frames(tmp_path: Path, num_frames: int) -> None:
    path = make_raw(tmp_path / "short.h264", make_fields(num_frames))
    info = probe_video(str(path))
    assert (len(info.frame_pts), info.num_packets) == (num_frames, 2 * num_frames)
    assert greys(path, info) == list(range(num_frames))


def test_a_jump_of_the_clock_between_fields_is_repaired(tmp_path: Path) -> None:
    late = make_ts(tmp_path, fields_a_packet=1, seconds=200)
    early = make_ts(tmp_path, fields_a_packet=1, seconds=100)
    path = tmp_path / "joined.ts"
    path.write_bytes(late.read_bytes() + early.read_bytes())
    info = probe_video(str(path))
    assert (len(info.frame_pts), info.pts_repaired) == (120, "fields")
    assert info.frame_pts.tolist() == [200 * 90_000 + 3600 * number for number in range(120)]
    assert info.keyframes.tolist() == list(range(0, 120, 12))
    assert greys(path, info) == [*range(60), *range(60)]
