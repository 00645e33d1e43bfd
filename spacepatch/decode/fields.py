"""H.264 whose packets are fields: the frames are counted from the decoder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from spacepatch.decode.opening import open_container
from spacepatch.decode.timeline import Timeline

if TYPE_CHECKING:
    from av.video.stream import VideoStream

PACKED_IN_FIELDS = frozenset({"mpegts", "mpeg", "h264"})
"""Containers whose packets FFmpeg's parser cuts out, one for each field of a picture that is coded
as two (as 1080i broadcasts are)."""
LOOKED_AT = 48
"""Packets that are decoded to see whether two of them make a frame."""


def may_be_fields(container: str, stream: VideoStream) -> bool:
    """Whether the packets of a stream can be fields, by its header."""
    context = stream.codec_context
    interlaced = int(context.field_order) not in (0, 1)  # unknown, progressive
    return context.codec.canonical_name == "h264" and container in PACKED_IN_FIELDS and interlaced


def count_frames(
    timeline: Timeline,
    uri: str,
    *,
    offset: int | None,
    num_bytes: int | None,
    stream_index: int,
    max_pixels: int,
    on_packet: Callable[[], None],
) -> Timeline:
    """The timeline by the decoder's frames, where these are fewer than the packets; else as it is.

    To know them all, the whole stream is decoded.
    """

    def decode(most: int | None) -> Iterator[Any]:
        with open_container(
            uri, offset=offset, num_bytes=num_bytes, max_pixels=max_pixels
        ) as container:
            stream = container.streams.video[0]
            for video in container.streams.video:
                if video.index == stream_index:
                    stream = video
            stream.codec_context.thread_count = 1
            yield from _decode(container.demux(stream), stream, most, on_packet)

    seen = sum(1 for _ in decode(LOOKED_AT))
    if seen > min(LOOKED_AT, timeline.num_packets) * 3 // 4:
        return timeline
    known = {frame.pts for frame in decode(None)} - {None}
    if len(known) < 2:
        return timeline
    pts = np.array(sorted(known), np.int64)
    before = [(int(timeline.frame_pts[index]), size) for index, size in timeline.sizes]
    return replace(
        timeline,
        frame_pts=pts,
        stop_pts=int(pts[-1]) + int(np.median(np.diff(pts))),
        repaired="",
        sizes=tuple((int(np.searchsorted(pts, time)), size) for time, size in before),
    )


def _decode(
    packets: Iterator[Any], stream: VideoStream, most: int | None, on_packet: Callable[[], None]
) -> Iterator[Any]:
    from av.error import FFmpegError

    for packet in islice((packet for packet in packets if packet.size), most):
        on_packet()
        try:
            yield from stream.codec_context.decode(packet)
        except FFmpegError:
            continue
    try:
        yield from stream.codec_context.decode(None)
    except FFmpegError:
        return
