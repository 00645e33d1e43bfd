"""Streams that change the size of their pictures: a new clip begins there, and nothing is lost."""

import subprocess
from collections.abc import Callable
from fractions import Fraction
from itertools import groupby
from pathlib import Path

import av
import numpy as np
import pyarrow.parquet as parquet
import pytest

from spacepatch.data import Part
from spacepatch.decode import decode_pictures, probe_video

SMALL, LARGE, NUM_FRAMES = (64, 96), (96, 160), 20


def encode(ffmpeg: str, path: Path, size: tuple[int, int], *more: str) -> bytes:
    """A clip of 20 frames at 25 frames a second, of this (h, w)."""
    source = f"testsrc2=size={size[1]}x{size[0]}:rate=25,trim=end_frame={NUM_FRAMES}"
    command = [ffmpeg, "-v", "error", "-y", "-f", "lavfi", "-i", source, "-pix_fmt", "yuv420p"]
    subprocess.run([*command, *more, str(path)], check=True)
    return path.read_bytes()


def join(ffmpeg: str, folder: Path, ending: str, *codec: str) -> Path:
    """Two clips of different sizes, one after the other in one file; times go on in a TS."""
    parts = []
    for number, size in enumerate((SMALL, LARGE, SMALL)):
        later = ["-output_ts_offset", str(10 + 0.8 * number)] if ending == "ts" else []
        path = folder / f"part{number}.{ending}"
        parts.append(encode(ffmpeg, path, size, *codec, *later))
    joined = folder / f"joined.{ending}"
    joined.write_bytes(b"".join(parts))
    return joined


def mux_two_sizes(path: Path, codec: str, options: dict[str, str]) -> Path:
    """Packets of two encoders in one stream of a Matroska file, as WebRTC records them."""
    with av.open(str(path), "w") as container:
        stream = None
        for number, (height, width) in enumerate((SMALL, LARGE, SMALL)):
            encoder = av.CodecContext.create(codec, "w")
            assert isinstance(encoder, av.VideoCodecContext)
            encoder.width, encoder.height, encoder.pix_fmt = width, height, "yuv420p"
            encoder.time_base, encoder.framerate = Fraction(1, 25), Fraction(25)
            encoder.options = options
            packets = []
            for k in range(NUM_FRAMES):
                grey = np.full((height * 3 // 2, width), 16 + 9 * k, np.uint8)
                frame = av.VideoFrame.from_ndarray(grey, "yuv420p")
                frame.pts, frame.time_base = k, Fraction(1, 25)
                packets += encoder.encode(frame)
            packets += encoder.encode(None)
            if stream is None:
                stream = container.add_stream(codec, rate=25)
                stream.width, stream.height = SMALL[1], SMALL[0]
                stream.pix_fmt, stream.time_base = "yuv420p", Fraction(1, 25)
            for packet in packets:
                packet.pts += number * NUM_FRAMES
                packet.dts += number * NUM_FRAMES
                packet.stream, packet.time_base = stream, Fraction(1, 25)
                container.mux(packet)
    return path


TS_CODECS = {
    "h264": ["-c:v", "libx264", "-g", "7", "-bf", "2"],
    "hevc": ["-c:v", "libx265", "-x265-params", "log-level=none:keyint=10"],
    "mpeg2": ["-c:v", "mpeg2video", "-g", "6", "-bf", "2"],
}
MAKERS: dict[str, Callable[[str, Path], Path]] = {
    **{
        f"{name}.ts": lambda ffmpeg, folder, codec=codec: join(ffmpeg, folder, "ts", *codec)
        for name, codec in TS_CODECS.items()
    },
    "raw.m2v": lambda ffmpeg, folder: join(ffmpeg, folder, "m2v", "-g", "6"),
    "raw.h264": lambda ffmpeg, folder: join(ffmpeg, folder, "h264", "-bf", "0"),
    "vp8.webm": lambda _, folder: mux_two_sizes(folder / "vp8.webm", "libvpx", {}),
    "vp9.webm": lambda _, folder: mux_two_sizes(folder / "vp9.webm", "libvpx-vp9", {}),
}


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_every_frame_comes_in_the_size_of_its_part(name: str, tmp_path: Path, ffmpeg: str) -> None:
    path = MAKERS[name](ffmpeg, tmp_path)
    info = probe_video(str(path))
    assert info.parts == tuple(
        Part(first, int(info.frame_pts[first]), size, size, Fraction(1))
        for first, size in ((0, SMALL), (NUM_FRAMES, LARGE), (2 * NUM_FRAMES, SMALL))
    )
    wanted = np.arange(len(info.frame_pts))
    pictures = decode_pictures(str(path), info=info, indices=wanted, pts=info.frame_pts)
    sizes = [(picture.frame.height, picture.frame.width) for picture in pictures]
    runs = [(size, len(list(run))) for size, run in groupby(sizes)]
    assert runs == [(SMALL, NUM_FRAMES), (LARGE, NUM_FRAMES), (SMALL, NUM_FRAMES)]


def test_a_new_clip_begins_there_and_no_frame_is_lost(
    tmp_path: Path, ffmpeg: str, spacepatch_cli: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    path = join(ffmpeg, tmp_path, "ts", *TS_CODECS["h264"])
    done = spacepatch_cli(
        "tokenize", path, "--out", tmp_path / "out", "--every-frame", "--native", "--patch", "2x8x8"
    )
    assert done.returncode == 0, done.stderr
    rows = parquet.read_table(tmp_path / "out" / "segments.parquet").to_pylist()
    rows.sort(key=lambda row: row["clip"])
    assert [(row["clip"], tuple(row["size"]), row["valid_frames"]) for row in rows] == [
        (0, SMALL, NUM_FRAMES),
        (1, LARGE, NUM_FRAMES),
        (2, SMALL, NUM_FRAMES),
    ]
    assert [index for row in rows for index in row["frame_indices"]] == list(range(3 * NUM_FRAMES))
    assert all(row["aspect_error"] == 0 and row["scale"] == [1, 1] for row in rows)
    assert parquet.read_table(tmp_path / "out" / "losses.parquet").num_rows == 0
    assert spacepatch_cli("verify", tmp_path / "out").returncode == 0


def test_headers_that_differ_in_other_things_are_no_change_of_size(
    tmp_path: Path, ffmpeg: str
) -> None:
    one = encode(ffmpeg, tmp_path / "a.h264", SMALL, "-bf", "0", "-refs", "1")
    other = encode(ffmpeg, tmp_path / "b.h264", SMALL, "-bf", "0", "-refs", "4")
    assert one[:40] != other[:40]
    (tmp_path / "c.h264").write_bytes(one + other)
    info = probe_video(str(tmp_path / "c.h264"))
    assert info.parts == (Part(0, 0, SMALL, SMALL, Fraction(1)),)
    assert len(info.frame_pts) == 2 * NUM_FRAMES


def test_a_change_of_the_pixel_aspect_alone_is_a_new_part(tmp_path: Path, ffmpeg: str) -> None:
    # As broadcasters switch between 4:3 and 16:9: the same samples a line, shown wider.
    parts = [
        encode(
            ffmpeg, tmp_path / f"{number}.ts", SMALL, "-c:v", "mpeg2video",
            "-aspect", aspect, "-output_ts_offset", str(10 + 0.8 * number),
        )
        for number, aspect in enumerate(("4:3", "16:9"))
    ]  # fmt: skip
    (tmp_path / "c.ts").write_bytes(b"".join(parts))
    info = probe_video(str(tmp_path / "c.ts"))
    assert [(part.first, part.coded_size) for part in info.parts] == [(0, SMALL), (20, SMALL)]
    assert info.parts[0].display_size == (64, 85)
    assert info.parts[1].display_size == (64, 114)
    pictures = decode_pictures(
        str(tmp_path / "c.ts"), info=info, indices=np.arange(40), pts=info.frame_pts
    )
    assert sum(1 for _ in pictures) == 40
