"""What a source holds, from its headers and packets.

Pictures are decoded only where these do not tell: FFmpeg's own look at the first ones of a stream
without a header, a keyframe whose header differs from the one before (its size), a photo with EXIF
(which way is up), and all of an H.264 whose packets are fields (how many frames).
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from spacepatch.data import Part, VideoInfo
from spacepatch.decode.ebml import segment_is_whole
from spacepatch.decode.fields import count_frames, may_be_fields
from spacepatch.decode.hollow import Hollow
from spacepatch.decode.images import image_kind, probe_image
from spacepatch.decode.opening import (
    CODECS,
    MAX_PIXELS,
    MAX_SECONDS,
    TOO_LONG,
    ffmpeg_version,
    open_container,
)
from spacepatch.decode.orientation import (
    display_size,
    rotation_in_exif,
    rotation_in_header,
    sane_ratio,
)
from spacepatch.decode.parts import Size
from spacepatch.decode.streams import choose_stream
from spacepatch.decode.tiff import holds_jpeg
from spacepatch.decode.timeline import Timeline, read_timeline
from spacepatch.errors import ProbeError
from spacepatch.remote import open_source

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

_FIELD_ORDERS = {0: "unknown", 1: "progressive", 2: "tff", 3: "bff", 4: "tff", 5: "bff"}
_OWN_PIXEL_ASPECT = frozenset({"mov", "matroska", "avi", "asf"})
"""Containers that tell the pixel aspect ratio themselves, for the whole stream."""


def probe_video(
    uri: str,
    *,
    offset: int | None = None,
    num_bytes: int | None = None,
    stream: str = "",
    max_pixels: int = MAX_PIXELS,
    on_packet: Callable[[], None] = lambda: None,
    hollow: Hollow | None = None,
) -> VideoInfo:
    """Read headers and scan packets; pictures are decoded only where these do not tell.

    Args:
        offset, num_bytes: where the video lies in `uri`, when that is a tar.
        stream: which video stream, see `choose_stream`; empty: the one that FFmpeg takes.
        max_pixels: of a picture; more is refused before a decoder allocates anything.
        on_packet: called for every packet scanned: a sign of life on long videos.
        hollow: what need not be read of an MP4, see `find_hollow`; None: all is read.

    Raises:
        ProbeError: typed, with one of the closed list of reasons.
        NeedsPackets: without that nobody can tell.
    """
    kind = _image_kind(uri, offset or 0)
    if kind and stream in ("", "0", "v:0"):
        return probe_image(
            uri,
            kind=kind,
            offset=offset,
            num_bytes=num_bytes,
            max_pixels=max_pixels,
            on_packet=on_packet,
        )
    return probe_container(
        uri,
        offset=offset,
        num_bytes=num_bytes,
        stream=stream,
        max_pixels=max_pixels,
        on_packet=on_packet,
        hollow=hollow,
    )


def probe_container(
    uri: str,
    *,
    offset: int | None,
    num_bytes: int | None,
    stream: str,
    max_pixels: int,
    on_packet: Callable[[], None],
    hollow: Hollow | None = None,
) -> VideoInfo:
    """`probe_video` of what FFmpeg reads, whatever else could read it."""
    with open_container(
        uri, offset=offset, num_bytes=num_bytes, max_pixels=max_pixels, hollow=hollow
    ) as container:
        video = choose_stream(container, stream)
        context = video.codec_context
        codec = context.codec.canonical_name
        if codec not in CODECS:
            raise ProbeError(
                f"codec {codec} is not on the list of allowed codecs; re-encode it as H.264",
                reason="forbidden_codec",
            )
        height, width = context.height, context.width
        if not (height and width and context.pix_fmt):
            _check_claimed_size(uri, offset, num_bytes, max_pixels)
            message = f"FFmpeg {ffmpeg_version()} cannot decode this {codec}"
            raise ProbeError(message, reason="no_decoder")
        if height * width > max_pixels:
            raise _too_large(height, width, max_pixels)
        assert video.time_base is not None, "a demuxed stream has a time base"
        rotation = rotation_in_header(container, video.index)
        first = Size((height, width), sane_ratio(video.sample_aspect_ratio))
        info: dict[str, Any] = {
            "container": container.format.name.split(",")[0],
            "codec": codec,
            "stream_index": video.index,
            "pixel_format": context.pix_fmt,
            "time_base": video.time_base,
            "header_frames": video.frames,
            "header_seconds": _claimed_seconds(container, video),
            "interlaced": _FIELD_ORDERS.get(int(context.field_order), "unknown"),
            **_colour(video),
        }
        fields = may_be_fields(info["container"], video)
        if hollow is not None:
            hollow.begin(video)
        timeline = read_timeline(
            container,
            video,
            max_pixels=max_pixels,
            on_packet=on_packet,
            hollow=hollow is not None,
        )
    if fields:
        timeline = count_frames(
            timeline,
            uri,
            offset=offset,
            num_bytes=num_bytes,
            stream_index=info["stream_index"],
            max_pixels=max_pixels,
            on_packet=on_packet,
        )
    if info["container"] == "matroska" and timeline.cut_off:
        timeline = _extend_last(timeline, uri, offset or 0, num_bytes)
    still = info["container"] in IMAGE_FORMATS and len(timeline.frame_pts) == 1
    if still:
        rotation = rotation_in_exif(uri, offset, num_bytes)
        _refuse_black(uri, offset or 0)
    length = (timeline.stop_pts - int(timeline.frame_pts[0])) * info["time_base"]
    if length > MAX_SECONDS:
        raise ProbeError(TOO_LONG, reason="too_large")
    return VideoInfo(
        parts=_parts(first, timeline, rotation, info["container"]),
        rotation=rotation,
        frame_pts=timeline.frame_pts,
        stop_pts=timeline.stop_pts,
        num_packets=timeline.num_packets,
        num_before_key=timeline.num_before_key,
        pts_repaired=timeline.repaired,
        still=still,
        cut_off=timeline.cut_off,
        missing_ticks=timeline.missing_ticks,
        missing_frames=timeline.missing_frames,
        keyframes=timeline.keyframes,
        **info,
    )


def _extend_last(timeline: Timeline, uri: str, offset: int, num_bytes: int | None) -> Timeline:
    """What a whole Matroska file promises beyond its last packet is that frame's own time."""
    with open_source(uri) as file:
        size = file.seek(0, io.SEEK_END) - offset if num_bytes is None else num_bytes
        if not segment_is_whole(file, start=offset, num_bytes=size):
            return timeline
    stop = timeline.stop_pts + timeline.missing_ticks
    return replace(timeline, stop_pts=stop, cut_off=False, missing_ticks=0, missing_frames=0)


def _claimed_seconds(container: InputContainer, video: VideoStream) -> float | None:
    if video.duration is not None and video.time_base is not None:
        return float(video.duration * video.time_base)
    return None if container.duration is None else container.duration / 1_000_000


def _image_kind(uri: str, offset: int) -> str:
    with open_source(uri) as file:
        file.seek(offset)
        return image_kind(file.read(64))


def _refuse_black(uri: str, offset: int) -> None:
    with open_source(uri) as file:
        if holds_jpeg(file, offset):
            message = f"FFmpeg {ffmpeg_version()} makes a TIFF that holds JPEG black"
            raise ProbeError(message, reason="no_decoder")


def _parts(first: Size, timeline: Timeline, rotation: int, container: str) -> tuple[Part, ...]:
    """The runs of frames of one size; what changes back at once is no part."""
    parts: list[Part] = []
    for index, size in ((0, first), *timeline.sizes):
        ratio = sane_ratio(size.pixel_aspect_ratio)
        if index and (container in _OWN_PIXEL_ASPECT or not size.pixel_aspect_ratio):
            ratio = first.pixel_aspect_ratio
        if index >= len(timeline.frame_pts):
            break
        while parts and parts[-1].first >= index:
            parts.pop()
        shown = display_size(size.coded_size, rotation=rotation, pixel_aspect_ratio=ratio)
        if not parts or (parts[-1].coded_size, parts[-1].display_size) != (size.coded_size, shown):
            pts = int(timeline.frame_pts[index])
            parts.append(Part(index, pts, size.coded_size, shown, ratio))
    return tuple(parts)


def _too_large(height: int, width: int, max_pixels: int) -> ProbeError:
    return ProbeError(
        f"pictures of {width} x {height} pixels; --max-pixels allows {max_pixels}",
        reason="too_large",
    )


def _check_claimed_size(
    uri: str, offset: int | None, num_bytes: int | None, max_pixels: int
) -> None:
    """Raise if no decoder opened because of `max_pixels`: FFmpeg tells it to its log alone."""
    import av

    with av.logging.Capture() as said:
        with open_container(
            uri,
            offset=offset,
            num_bytes=num_bytes,
            log_level=av.logging.ERROR,
            max_pixels=max_pixels,
        ):
            pass
        av.logging.set_level(None)
    for _, _, message in said:
        size = re.match(r"Picture size (\d+)x(\d+)", message)
        if size is not None and int(size[1]) * int(size[2]) > max_pixels:
            raise _too_large(int(size[2]), int(size[1]), max_pixels)


def _colour(stream: VideoStream) -> dict[str, Any]:
    context = stream.codec_context
    matrix = _MATRICES.get(int(context.colorspace), "")
    transfer = _TRANSFERS.get(int(context.color_trc), "")
    pixel_format = context.pix_fmt or ""
    assert context.format is not None, "a pixel format was seen"
    alpha = any(component.is_alpha for component in context.format.components)
    ranges = {1: "tv", 2: "pc"}
    return {
        "colour": {
            "matrix": matrix,
            "range": "pc" if "yuvj" in pixel_format else ranges.get(int(context.color_range), ""),
            "primaries": _PRIMARIES.get(int(context.color_primaries), ""),
            "transfer": transfer,
            "tagged": "yes" if matrix else "assumed",
        },
        "bit_depth": max(component.bits for component in context.format.components),
        "hdr": _HDR.get(transfer, ""),
        # A palette may have transparent colours.
        "alpha": alpha or context.format.has_palette or stream.metadata.get("alpha_mode") == "1",
    }
