"""What a source holds, from its headers and packets; no picture is decoded."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from spacepatch.data import VideoInfo
from spacepatch.decode.opening import (
    CODECS,
    MAX_PACKETS,
    MAX_PIXELS,
    MAX_SECONDS,
    ffmpeg_version,
    open_container,
    raise_unless_damage,
)
from spacepatch.errors import ProbeError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

IMAGE_FORMATS = frozenset({"png_pipe", "jpeg_pipe", "webp_pipe", "bmp_pipe", "tiff_pipe"})

_MATRICES = {0: "rgb", 1: "bt709", 4: "fcc", 5: "bt470bg", 6: "smpte170m", 7: "smpte240m",
             9: "bt2020nc", 10: "bt2020c"}  # fmt: skip
_PRIMARIES = {1: "bt709", 4: "bt470m", 5: "bt470bg", 6: "smpte170m", 7: "smpte240m", 9: "bt2020",
              11: "smpte431", 12: "smpte432"}  # fmt: skip
_TRANSFERS = {1: "bt709", 4: "gamma22", 5: "gamma28", 6: "smpte170m", 7: "smpte240m", 8: "linear",
              13: "iec61966-2-1", 14: "bt2020-10", 15: "bt2020-12", 16: "smpte2084",
              18: "arib-std-b67"}  # fmt: skip
_HDR = {"smpte2084": "pq", "arib-std-b67": "hlg"}


def probe_video(
    uri: str,
    *,
    offset: int | None = None,
    num_bytes: int | None = None,
    on_packet: Callable[[], None] = lambda: None,
) -> VideoInfo:
    """Read headers and scan packets; no picture is decoded but a photo with EXIF.

    Args:
        offset, num_bytes: where the video lies in `uri`, when that is a tar.
        on_packet: called for every packet scanned: a sign of life on long videos.

    Raises:
        ProbeError: typed, with one of the closed list of reasons.
    """
    with open_container(uri, offset=offset, num_bytes=num_bytes) as container:
        stream = _choose_stream(container)
        context = stream.codec_context
        if context.codec.canonical_name not in CODECS:
            raise ProbeError(
                f"codec {context.codec.canonical_name} is not on the list of allowed codecs",
                reason="forbidden_codec",
            )
        height, width = context.height, context.width
        if not (height and width and context.pix_fmt):
            _check_claimed_size(uri, offset, num_bytes)
            raise ProbeError(
                f"FFmpeg {ffmpeg_version()} cannot decode this {context.codec.canonical_name}",
                reason="no_decoder",
            )
        if height * width > MAX_PIXELS:
            raise ProbeError(f"pictures of {width} x {height} pixels", reason="too_large")
        rotation = _rotation_in_header(container, stream.index)
        sar = stream.sample_aspect_ratio or Fraction(1)
        index = stream.index
        assert stream.time_base is not None, "a demuxed stream has a time base"
        fallback_step = _ticks(stream.guessed_rate, stream.time_base)
        info: dict[str, Any] = {
            "container": container.format.name.split(",")[0],
            "codec": context.codec.canonical_name,
            "stream_index": index,
            "coded_size": (height, width),
            "pixel_aspect_ratio": sar,
            "pixel_format": context.pix_fmt,
            "time_base": stream.time_base,
            "interlaced": _FIELD_ORDERS.get(int(context.field_order), "unknown"),
            **_colour(stream),
        }
        frame_pts, stop, num_packets, repaired = _scan_packets(
            container, stream, fallback_step, on_packet
        )
    still = info["container"] in IMAGE_FORMATS and len(frame_pts) == 1
    if still:
        rotation = _rotation_in_exif(uri, offset, num_bytes)
    if (stop - int(frame_pts[0])) * info["time_base"] > MAX_SECONDS:
        raise ProbeError(f"lasts more than {MAX_SECONDS} s by its own account", reason="too_large")
    return VideoInfo(
        display_size=display_size(info["coded_size"], rotation=rotation, pixel_aspect_ratio=sar),
        rotation=rotation,
        frame_pts=frame_pts,
        stop_pts=stop,
        num_packets=num_packets,
        pts_repaired=repaired,
        still=still,
        **info,
    )


_FIELD_ORDERS = {0: "unknown", 1: "progressive", 2: "tff", 3: "bff", 4: "tff", 5: "bff"}


def display_size(
    coded_size: tuple[int, int], *, rotation: int, pixel_aspect_ratio: Fraction
) -> tuple[int, int]:
    """(h, w) of the upright picture with square pixels: width x SAR, then the rotation."""
    height, width = coded_size
    if pixel_aspect_ratio > 0:
        width = max(1, round(width * pixel_aspect_ratio))
    return (width, height) if rotation in (90, 270) else (height, width)


def _choose_stream(container: InputContainer) -> VideoStream:
    """The stream that FFmpeg itself would choose; cover art is no video."""
    from av.stream import Disposition

    best = container.streams.best("video")
    if best is None:
        raise ProbeError("no video stream", reason="no_video_stream")
    if best.disposition & Disposition.attached_pic:
        videos = (
            s for s in container.streams.video if not s.disposition & Disposition.attached_pic
        )
        best = next(videos, None)
    if best is None:
        raise ProbeError("the only video stream is cover art", reason="no_video_stream")
    if best.codec_context is None:
        raise ProbeError(f"FFmpeg {ffmpeg_version()} has no decoder for it", reason="no_decoder")
    return best  # type: ignore[return-value]


def _check_claimed_size(uri: str, offset: int | None, num_bytes: int | None) -> None:
    """Raise if no decoder opened because of `max_pixels`: FFmpeg tells it to its log alone."""
    import av

    with av.logging.Capture() as said:
        with open_container(uri, offset=offset, num_bytes=num_bytes, log_level=av.logging.ERROR):
            pass
        av.logging.set_level(None)
    for _, _, message in said:
        size = re.match(r"Picture size (\d+)x(\d+)", message)
        if size is not None and int(size[1]) * int(size[2]) > MAX_PIXELS:
            raise ProbeError(f"pictures of {size[1]} x {size[2]} pixels", reason="too_large")


def _rotation_in_header(container: InputContainer, index: int) -> int:
    """Degrees clockwise that make the stream upright, from the container's display matrix.

    PyAV shows the matrix on decoded frames only; the text of av_dump_format has its angle.
    """
    import av

    av.logging.set_level(av.logging.INFO)
    try:
        text = container.dumps_format()  # type: ignore[attr-defined]  # missing in PyAV's stubs
    finally:
        av.logging.set_level(None)
    blocks = re.split(r"^  Stream #0:(\d+)", text, flags=re.MULTILINE)
    block = dict(zip(blocks[1::2], blocks[2::2], strict=False)).get(str(index), "")
    match = re.search(r"^      Display Matrix: rotation of (-?[\d.]+) degrees", block, re.MULTILINE)
    if match is None:
        return 0
    # FFmpeg's angle is counter-clockwise. An angle between is no rotation, as for `_orientation`.
    angle = round(-float(match[1])) % 360
    return angle if angle % 90 == 0 else 0


def _rotation_in_exif(uri: str, offset: int | None, num_bytes: int | None) -> int:
    """Degrees clockwise that make a photo upright: FFmpeg reads EXIF when it decodes."""
    from av.error import FFmpegError

    with open_container(uri, offset=offset, num_bytes=num_bytes) as container:
        for packet in container.demux(video=0):
            if b"exif" not in bytes(packet).lower() and container.format.name != "tiff_pipe":
                return 0
            try:
                return next((orientation_of(frame)[0] for frame in packet.decode()), 0)
            except FFmpegError as error:
                raise_unless_damage(error, ProbeError, reading=False)
                return 0
    return 0


def orientation_of(frame: Any) -> tuple[int, bool]:
    """(degrees clockwise, then mirrored left-right) that make the picture upright.

    The display matrix maps the picture onto the screen, y downwards: (x, y) goes to
    (a x + c y, b x + d y), in 16.16 fixed point (FFmpeg's display.h).
    """
    from av.sidedata.sidedata import Type

    # PyAV fails on side data that its list of kinds does not have, such as a JPEG's EXIF.
    Type._missing_ = classmethod(_make_kind)  # type: ignore[assignment]
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return 0, False
    matrix = struct.unpack("9i", bytes(data)[:36])
    a, b, c, d = (value / 65536 for value in (matrix[0], matrix[1], matrix[3], matrix[4]))
    for rotation, (cos, sin) in enumerate(((1, 0), (0, 1), (-1, 0), (0, -1))):
        # Clockwise on a screen: (x, y) goes to (cos x - sin y, sin x + cos y).
        if _close((a, b, c, d), (cos, sin, -sin, cos)):
            return rotation * 90, False
        # The same with x negated at the end.
        if _close((a, b, c, d), (-cos, sin, sin, cos)):
            return rotation * 90, True
    return 0, False


def _close(left: tuple[float, ...], right: tuple[float, ...]) -> bool:
    scale = max(map(abs, left)) or 1.0
    return all(abs(x / scale - y) < 0.01 for x, y in zip(left, right, strict=True))


def _make_kind(kinds: Any, value: int) -> Any:
    kind = object.__new__(kinds)
    kind._name_, kind._value_ = f"KIND_{value}", value
    return kind


def _colour(stream: VideoStream) -> dict[str, Any]:
    context = stream.codec_context
    matrix = _MATRICES.get(int(context.colorspace), "")
    transfer = _TRANSFERS.get(int(context.color_trc), "")
    pixel_format = context.pix_fmt or ""
    assert context.format is not None, "a pixel format was seen"
    alpha = any(component.is_alpha for component in context.format.components)
    ranges = {1: "limited", 2: "full"}
    return {
        "colour": {
            "matrix": matrix,
            "range": "full" if "yuvj" in pixel_format else ranges.get(int(context.color_range), ""),
            "primaries": _PRIMARIES.get(int(context.color_primaries), ""),
            "transfer": transfer,
            "tagged": "yes" if matrix else "assumed",
        },
        "bit_depth": max(component.bits for component in context.format.components),
        "hdr": _HDR.get(transfer, ""),
        "alpha": alpha or stream.metadata.get("alpha_mode") == "1",
    }


def _scan_packets(
    container: InputContainer,
    stream: VideoStream,
    fallback_step: int,
    on_packet: Callable[[], None],
) -> tuple[np.ndarray, int, int, str]:
    """Times of the presentable frames, the end of the last one, packets, and what was repaired."""
    from av.error import FFmpegError

    times: list[tuple[int | None, int]] = []
    repaired = ""
    key_pts: int | None = None
    seen_key = False
    last_dts: int | None = None
    count = 0
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            break
        except FFmpegError as error:
            raise_unless_damage(error, ProbeError)
            break
        on_packet()
        if packet.size == 0:
            continue
        count += 1
        if count > MAX_PACKETS:
            raise ProbeError(f"more than {MAX_PACKETS} packets", reason="too_large")
        if packet.dts is not None:
            if last_dts is not None and packet.dts < last_dts:
                repaired = "discontinuous"
            last_dts = packet.dts
        if packet.is_keyframe and not seen_key:
            # What comes before the first keyframe cannot be decoded.
            seen_key, key_pts = True, packet.pts
            times.clear()
        if not packet.is_discard:  # else outside the edit list: decoded, never shown
            times.append((packet.pts, packet.duration or 0))
    known = [pts for pts, _ in times if pts is not None]
    if not times:
        raise ProbeError("the video stream holds no frame to show", reason="no_video_stream")
    if not repaired and len(known) < len(times):
        repaired = "missing"
    if repaired:
        return *_count_times(known, len(times), fallback_step), count, repaired
    # Leading pictures of the first keyframe refer to what is not there.
    ordered = sorted(
        (pts, duration)
        for pts, duration in times
        if pts is not None and (key_pts is None or pts >= key_pts)
    )
    pts = np.array([time for time, _ in ordered], np.int64)
    if len(np.unique(pts)) < len(pts):
        repaired = "repeated"
        moved = _move_repeated(pts)
        if moved is None:
            return *_count_times(known, len(times), fallback_step), count, "crowded"
        pts = moved
    duration = ordered[-1][1]
    if duration <= 0:
        duration = int(np.median(np.diff(pts))) if len(pts) > 1 else fallback_step
    return pts, int(pts[-1]) + max(1, duration), count, repaired


def _count_times(known: list[int], num_frames: int, step: int) -> tuple[np.ndarray, int]:
    """Times of frames of which only the order is to be trusted, and their end."""
    start = known[0] if known else 0
    pts = start + np.arange(num_frames, dtype=np.int64) * step
    return pts, int(pts[-1]) + step


def _move_repeated(pts: np.ndarray) -> np.ndarray | None:
    """Sorted times with the k-th repetition of a time k ticks later; None where no tick is free."""
    first = np.searchsorted(pts, pts)  # of the frames with the same time
    moved: np.ndarray = pts + np.arange(len(pts)) - first
    return moved if bool((np.diff(moved) > 0).all()) else None


def _ticks(rate: Fraction | None, time_base: Fraction) -> int:
    """Ticks of one frame at `rate`, at least one; 25 frames a second where nothing is known."""
    return max(1, round(1 / ((rate or Fraction(25)) * time_base)))
