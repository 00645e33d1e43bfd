"""Clips that carry the number of each frame in its pixels, and how to read it back."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable
from pathlib import Path

import av
import numpy as np

COLUMNS, ROWS, BLOCK_W, BLOCK_H = 8, 2, 16, 32
WIDTH, HEIGHT = COLUMNS * BLOCK_W, ROWS * BLOCK_H
NUMBERS = 1024
"""Numbers that there are: ten blocks say one, six check it."""
_WEIGHTS = 1 << np.arange(COLUMNS * ROWS)


def draw_number(number: int) -> np.ndarray:
    """Draw a frame: white blocks are ones, the lowest bit is at the top left.

    Returns:
        ``(HEIGHT, WIDTH)`` uint8 luma.
    """
    assert 0 <= number < NUMBERS
    code = number | (_check_of(number) << 10)
    bits = (code & _WEIGHTS > 0).reshape(ROWS, COLUMNS)
    return np.kron(np.where(bits, 235, 16), np.ones((BLOCK_H, BLOCK_W))).astype(np.uint8)


def read_number(frame: np.ndarray) -> int:
    """Read the number of a frame, of any size, gray or RGB.

    Args:
        frame: ``(h, w)`` or ``(h, w, 3)`` uint8.

    Raises:
        ValueError: it holds none: two frames blended, or one that is damaged.
    """
    gray = frame if frame.ndim == 2 else frame.mean(axis=2)
    height, width = gray.shape
    levels = np.array(
        [
            # The middle of each block: a codec blurs the borders.
            gray[
                int((row + 0.25) * height / ROWS) : int(np.ceil((row + 0.75) * height / ROWS)),
                int((col + 0.25) * width / COLUMNS) : int(np.ceil((col + 0.75) * width / COLUMNS)),
            ].mean()
            for row in range(ROWS)
            for col in range(COLUMNS)
        ]
    )
    code = int(_WEIGHTS[levels > 126].sum())
    number = code & (NUMBERS - 1)
    if code >> 10 != _check_of(number) or ((levels > 90) & (levels < 165)).any():
        raise ValueError(f"no frame number: {number}, blocks of {levels.round().tolist()}")
    return number


def _check_of(number: int) -> int:
    return (29 * number + 17) % 61


def make_clip(
    ffmpeg: str,
    path: Path,
    *options: str,
    numbers: Iterable[int],
    rate: str = "30",
) -> Path:
    """Encode frames with these numbers, in this order; `options` choose codec and container."""
    source = ["-f", "rawvideo", "-pix_fmt", "gray", "-s", f"{WIDTH}x{HEIGHT}", "-r", rate]
    subprocess.run(
        [ffmpeg, "-v", "error", *source, "-i", "-", "-pix_fmt", "yuv420p", *options, str(path)],
        input=b"".join(draw_number(number).tobytes() for number in numbers),
        check=True,
        capture_output=True,
    )
    return path


def copy_clip(ffmpeg: str, source: Path, path: Path, *options: str, skip: str = "0") -> Path:
    """Copy the packets of a clip from `skip` seconds on (that is, from a keyframe before)."""
    run(ffmpeg, "-v", "error", "-ss", skip, "-i", str(source), "-c", "copy", *options, str(path))
    return path


def pack_clip(source: Path, path: Path) -> Path:
    """Rewrite MPEG-4 with single B-frames as DivX packed it for AVI.

    A packet holds a P-frame and the B-frame that is shown before it; the next packet is a
    placeholder that says: nothing coded.
    """
    nothing = b"\0\0\1\xb6\x5f\xff\x7f"
    with av.open(str(source)) as before, av.open(str(path), "w") as after:
        stream = before.streams.video[0]
        copied = after.add_stream_from_template(stream)
        coded = [bytes(packet) for packet in before.demux(stream) if packet.size]
        packets: list[bytes] = []
        for data in coded:
            if _kind_of(data) == "B":
                packets[-1] += data
                packets.append(nothing)
            else:
                packets.append(data)
        # By this text in the header decoders know it.
        picture = packets[0].index(b"\0\0\1\xb6")
        group = packets[0].find(b"\0\0\1\xb3")
        start = group if group >= 0 else picture
        packets[0] = packets[0][:start] + b"\0\0\1\xb2DivX503b1393p" + packets[0][start:]
        for number, data in enumerate(packets):
            packet = av.Packet(data)
            packet.stream, packet.time_base = copied, stream.time_base
            packet.pts = packet.dts = number
            packet.is_keyframe = _kind_of(data) == "I"
            after.mux(packet)
    return path


def _kind_of(data: bytes) -> str:
    """I, P, B or S: the type of the first MPEG-4 picture in a packet."""
    return "IPBS"[data[data.index(b"\0\0\1\xb6") + 4] >> 6]


def read_table(ffmpeg: str, path: Path) -> list[tuple[int | None, int]]:
    """(pts, number) of each frame in order of presentation, by ffprobe and ffmpeg alone.

    Where ffprobe tells no time of a frame, its pts is None.
    """
    show = ["-select_streams", "v", "-show_entries", "frame=best_effort_timestamp", "-of", "json"]
    probed = run("ffprobe", "-v", "error", *show, str(path))
    gray = ["-vsync", "passthrough", "-copyts", "-f", "rawvideo", "-pix_fmt", "gray", "-"]
    raw = run(ffmpeg, "-v", "error", "-i", str(path), "-map", "v:0", *gray)
    times = [frame.get("best_effort_timestamp") for frame in json.loads(probed)["frames"]]
    pixels = np.frombuffer(raw, np.uint8).reshape(-1, HEIGHT, WIDTH)
    return list(zip(times, map(read_number, pixels), strict=True))


def run(*command: str) -> bytes:
    return subprocess.run(command, check=True, capture_output=True).stdout
