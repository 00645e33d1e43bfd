"""Pictures as H.264 in RGB: of no loss, or of a quantizer. x264 makes it, FFmpeg's own decoder
reads it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import numpy as np

from spacepatch.errors import MissingDependencyError, ShardError

if TYPE_CHECKING:
    from av import VideoFrame
    from av.video.codeccontext import VideoCodecContext

ENCODER, DECODER = "libx264rgb", "h264"
PRESET = "veryfast"
TUNED = {
    # One thread and no look into the future: the bytes are those of the pictures alone.
    "threads": "1",
    "lookahead-threads": "1",
    "sync-lookahead": "0",
    # A segment is always read from its beginning.
    "keyint": "infinite",
    "scenecut": "0",
    "bframes": "0",
    "mbtree": "0",
    "rc-lookahead": "0",
    "force-cfr": "1",
}
EXACT = {"cabac": "0"}
"""Without loss most bytes are noise, which arithmetic coding makes 9 % smaller and three times as
slow to read."""
CHANNELS = 3
LEAST_SIDE = 2
"""Pixels of a picture; smaller ones are filled up."""
MOST_QUANTIZER = 51
_UNIT = re.compile(rb"\x00*\x00\x00\x01")


def encode(pictures: np.ndarray, quantizer: int = 0) -> bytes:
    """Compress a film.

    Args:
        pictures: ``(T, 3, H, W)`` uint8: red, green, blue.
        quantizer: 0: without loss; to 51, the coarsest.

    Returns:
        A byte stream (ITU-T H.264, annex B); a function of the pictures, in one build of x264.

    Raises:
        MissingDependencyError: this PyAV has no x264.
    """
    import av

    num_frames, _, height, width = pictures.shape
    try:
        encoder = _context(ENCODER, "w")
    except av.error.FFmpegError as error:
        raise MissingDependencyError(
            f"store compressed needs FFmpeg's {ENCODER}, which PyAV's own wheels have: "
            f"pip install --force-reinstall av ({error})"
        ) from None
    encoder.width, encoder.height = max(width, LEAST_SIDE), max(height, LEAST_SIDE)
    encoder.pix_fmt = "bgr24"
    encoder.time_base, encoder.framerate = Fraction(1, 25), Fraction(25)
    tuned = TUNED | (EXACT if not quantizer else {})
    parameters = ":".join(f"{key}={value}" for key, value in tuned.items())
    encoder.options = {"preset": PRESET, "qp": str(quantizer), "x264-params": parameters}
    room = np.zeros((encoder.height, encoder.width, 3), np.uint8)
    parts = []
    for index in range(num_frames):
        room[:height, :width] = pictures[index, ::-1].transpose(1, 2, 0)
        frame = av.VideoFrame.from_ndarray(room, format="bgr24")
        frame.pts, frame.time_base = index, encoder.time_base
        parts += encoder.encode(frame)
    parts += encoder.encode(None)
    return _without_notes(b"".join(map(bytes, parts)))


def decode(content: bytes, shape: tuple[int, int, int, int]) -> Iterator[np.ndarray]:
    """Each of the T pictures, ``(3, H, W)`` uint8, in turn.

    Args:
        shape: ``(T, 3, H, W)``, as encoded.

    Raises:
        ShardError: the content is damaged, or of other pictures.
    """
    import av

    num_frames, _, height, width = shape
    size = max(height, LEAST_SIDE), max(width, LEAST_SIDE)
    decoder = _context(DECODER, "r")
    # Whatever the stream says of itself; FFmpeg counts whole blocks of 16, and some around them.
    decoder.options = {"max_pixels": str((size[0] + 64) * (size[1] + 64)), "err_detect": "explode"}
    made = 0
    try:
        for packet in [*decoder.parse(content), *decoder.parse(None), None]:
            for frame in decoder.decode(packet):
                if made == num_frames or (frame.height, frame.width) != size:
                    raise ShardError("its compressed tokens are of other pictures")
                made += 1
                yield _planes(frame)[:, :height, :width]
    except av.error.FFmpegError as error:
        raise ShardError(f"its compressed tokens are damaged ({type(error).__name__})") from None
    if made != num_frames:
        raise ShardError(f"its compressed tokens are damaged: {made} pictures of {num_frames}")


def _context(name: str, mode: Literal["r", "w"]) -> VideoCodecContext:
    from av.codec import CodecContext
    from av.video.codeccontext import VideoCodecContext

    context = CodecContext.create(name, mode)
    assert isinstance(context, VideoCodecContext)
    context.thread_count = 1
    return context


def _planes(frame: VideoFrame) -> np.ndarray:
    """``(3, H, W)`` red, green, blue, as they lie in the frame."""
    if frame.format.name != "gbrp":
        raise ShardError(f"its compressed tokens are damaged ({frame.format.name})")
    green, blue, red = (
        np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)[
            : frame.height, : frame.width
        ]
        for plane in frame.planes
    )
    return np.stack([red, green, blue])


def _without_notes(stream: bytes) -> bytes:
    """Without what x264 says of itself: its settings, 700 bytes of them."""
    borders = [match.start() for match in _UNIT.finditer(stream)] + [len(stream)]
    units = [stream[a:b] for a, b in pairwise(borders)]
    return b"".join(unit for unit in units if unit.lstrip(b"\0")[1] & 31 != 6)
