"""Pictures as H.264, through FFmpeg: RGB without loss; Y, Co and Cg in full resolution with it.

The latter are turned here, in whole numbers, and a decoder of H.264 has no freedom: the same
content gives the same tokens whatever FFmpeg decodes it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from spacepatch.errors import MissingDependencyError, ShardError

DECODER = "h264"
WORST_QP = 51
"""The coarsest quantizer; 0 is the finest."""
MOST_PIXELS = 2**26
"""Of a picture: FFmpeg decodes no larger ones, and its own limit is beyond what memory has."""
ENCODER = {
    "preset": "veryfast",
    # One thread and no mbtree, which reads memory that nobody wrote: the same bytes each time. One
    # quantizer throughout, which is what PSNR wants. CAVLC decodes half as fast again as CABAC.
    "x264-params": "threads=1:mbtree=0:aq-mode=0:psy=0:cabac=0:keyint=infinite:scenecut=0",
}
MARGIN = 128
"""Pixels that a side may have besides those of the picture."""
SEI = 6
"""The kind of NAL unit in which x264 writes its version and settings."""


@dataclass(frozen=True, slots=True)
class Colours:
    """What a picture is compressed as."""

    encoder: str
    given: str
    """The pixel format that the encoder takes."""
    decoded: str
    """The one that a decoder gives: planes in full resolution."""
    turn: Callable[[np.ndarray], np.ndarray]
    """``(3, H, W)`` uint8 of red, green and blue to such planes, in the decoder's order."""
    turn_back: Callable[[np.ndarray], np.ndarray]
    alpha: int
    """The plane that holds alpha, below the colours."""
    nothing: int
    """What the other planes have there."""


def encode(pictures: np.ndarray, qp: int | None = None) -> bytes | None:
    """Compress a film.

    Args:
        pictures: ``(T, C, H, W)`` uint8, C is 3, or 4 with alpha.
        qp: the quantizer, from 0 to `WORST_QP`; None: without loss.

    Returns:
        What `decode` turns back; None where x264 does not take pictures of that size.

    Raises:
        MissingDependencyError: FFmpeg was built without x264.
    """
    import av
    from av.error import FFmpegError
    from av.video.codeccontext import VideoCodecContext

    colours = RGB if qp is None else Y_CO_CG
    _check_has(colours.encoder, to="compress tokens")
    encoder: Any = VideoCodecContext.create(colours.encoder, "w")
    _, channels, height, width = pictures.shape
    encoder.width, encoder.height = width, _tall(channels, height)
    encoder.pix_fmt = colours.given
    encoder.time_base, encoder.framerate = Fraction(1, 25), Fraction(25)
    encoder.thread_count = 1
    encoder.options = ENCODER | {"qp": str(qp or 0)}
    packets: list[bytes] = []
    try:
        for index, picture in enumerate(pictures):
            planes = _planes_of(picture, colours)
            if colours is RGB:  # the encoder takes blue, green, red side by side
                planes = np.ascontiguousarray(planes[[1, 0, 2]].transpose(1, 2, 0))
            frame: Any = av.VideoFrame.from_ndarray(planes, format=colours.given)
            frame.pts, frame.time_base = index, encoder.time_base
            packets.extend(bytes(packet) for packet in encoder.encode(frame))
        packets.extend(bytes(packet) for packet in encoder.encode(None))
    except FFmpegError:
        return None
    if len(packets) != len(pictures):
        return None
    packets[0] = _without_sei(packets[0])
    sizes = np.array([len(packet) for packet in packets], "<u4")
    return b"".join((sizes.tobytes(), *packets))


def decode(
    content: bytes | memoryview, shape: tuple[int, int, int, int], *, is_exact: bool
) -> Iterator[np.ndarray]:
    """Each of the T pictures, ``(C, H, W)`` uint8, in turn.

    Args:
        shape: ``(T, C, H, W)``, as encoded.
        is_exact: whether they were encoded without loss.

    Raises:
        ShardError: the content is damaged, or of other pictures.
        MissingDependencyError: FFmpeg was built without H.264.
    """
    from av.error import FFmpegError
    from av.packet import Packet
    from av.video.codeccontext import VideoCodecContext

    colours = RGB if is_exact else Y_CO_CG
    num, channels, height, width = shape
    tall = _tall(channels, height)
    _check_has(DECODER, to="read compressed tokens")
    decoder: Any = VideoCodecContext.create(DECODER, "r")
    decoder.thread_count = 1
    # FFmpeg counts whole blocks and what it aligns lines by.
    most = min((width + MARGIN) * (tall + MARGIN), MOST_PIXELS)
    decoder.options = {"max_pixels": str(most), "err_detect": "explode"}
    made = 0
    try:
        for packet in (*map(Packet, _packets(content, num)), None):
            for frame in decoder.decode(packet):
                is_ours = frame.format.name == colours.decoded and made < num
                if not is_ours or (frame.width, frame.height) != (width, tall) or frame.is_corrupt:
                    raise ShardError("its compressed tokens are damaged (other pictures)")
                made += 1
                yield _picture_of(_planes_in(frame), channels, colours)
    except FFmpegError as error:
        reason = error.strerror or type(error).__name__
        raise ShardError(f"its compressed tokens are damaged ({reason})") from None
    if made < num:
        raise ShardError(f"its compressed tokens are damaged ({made} pictures of {num})")


def _check_has(codec: str, *, to: str) -> None:
    import av

    if codec not in av.codecs_available:
        raise MissingDependencyError(
            f"to {to}, FFmpeg needs {codec}, as in PyAV's wheels: pip install --force-reinstall av"
        )


def _packets(content: bytes | memoryview, num: int) -> Iterator[bytes]:
    if len(content) < 4 * num:
        raise ShardError("its compressed tokens are cut off")
    stops = 4 * num + np.cumsum(np.frombuffer(content, "<u4", num), dtype=np.int64)
    if stops[-1] != len(content):
        raise ShardError(
            f"its compressed tokens are {len(content)} bytes, and {stops[-1]} by their sizes"
        )
    start = 4 * num
    for stop in stops.tolist():
        yield bytes(content[start:stop])
        start = stop


def _without_sei(packet: bytes) -> bytes:
    """A packet of Annex B, whose start codes are nowhere inside a unit."""
    units = re.split(rb"\x00?\x00\x00\x01", packet)[1:]
    kept = (unit for unit in units if unit[0] & 31 != SEI)
    return b"".join(b"\x00\x00\x00\x01" + unit for unit in kept)


def _tall(channels: int, height: int) -> int:
    """Alpha lies below the colours, as luma."""
    return height * (channels - 2)


def _planes_in(frame: Any) -> np.ndarray:
    """``(3, H, W)`` as they lie in a frame."""
    height, width = frame.height, frame.width
    return np.stack(
        [
            np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)[:height, :width]
            for plane in frame.planes
        ]
    )


def _planes_of(picture: np.ndarray, colours: Colours) -> np.ndarray:
    """``(3, tall, W)`` uint8 of ``(C, H, W)``."""
    planes = colours.turn(picture[:3])
    if len(picture) == 3:
        return planes
    alpha = np.full_like(planes, colours.nothing)
    alpha[colours.alpha] = picture[3]
    return np.concatenate([planes, alpha], axis=1)


def _picture_of(planes: np.ndarray, channels: int, colours: Colours) -> np.ndarray:
    height = planes.shape[1] // (channels - 2)
    picture = colours.turn_back(planes[:, :height])
    if channels == 3:
        return picture
    return np.concatenate([picture, planes[colours.alpha : colours.alpha + 1, height:]])


def _to_gbr(rgb: np.ndarray) -> np.ndarray:
    return rgb[[1, 2, 0]]


def _from_gbr(gbr: np.ndarray) -> np.ndarray:
    return gbr[[2, 0, 1]]


def _to_y_co_cg(rgb: np.ndarray) -> np.ndarray:
    red, green, blue = rgb.astype(np.int16)
    turned = np.stack(
        [
            (red + 2 * green + blue + 2) >> 2,
            ((red - blue + 1) >> 1) + 128,
            ((2 * green - red - blue + 2) >> 2) + 128,
        ]
    )
    return np.asarray(turned.clip(0, 255).astype(np.uint8))


def _from_y_co_cg(planes: np.ndarray) -> np.ndarray:
    luma, orange, green = planes.astype(np.int16)
    orange -= 128
    green -= 128
    others = luma - green
    rgb = np.empty(planes.shape, np.uint8)
    for plane, value in zip(rgb, (others + orange, luma + green, others - orange), strict=True):
        np.clip(value, 0, 255, out=plane, casting="unsafe")
    return rgb


RGB = Colours("libx264rgb", "bgr24", "gbrp", _to_gbr, _from_gbr, alpha=0, nothing=0)
Y_CO_CG = Colours("libx264", "yuv444p", "yuv444p", _to_y_co_cg, _from_y_co_cg, alpha=0, nothing=128)
