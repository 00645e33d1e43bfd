"""H.264 whose packets are fields: the frames are counted from the decoder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from spacepatch.decode.opening import open_container
from spacepatch.decode.timeline import MOST_FILLED, Timeline

if TYPE_CHECKING:
    from av.video.codeccontext import VideoCodecContext
    from av.video.frame import VideoFrame
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

    To know them all, the whole stream is decoded. Where they do not come with times, or the clock
    jumps, they are counted (`fields`).
    """
    from av.video.stream import VideoStream

    def decode(most: int | None) -> Iterator[VideoFrame]:
        with open_container(
            uri, offset=offset, num_bytes=num_bytes, max_pixels=max_pixels
        ) as container:
            stream = container.streams[stream_index]
            assert isinstance(stream, VideoStream), "the stream was probed as video"
            stream.codec_context.thread_count = 1
            packets = (packet for packet in container.demux(stream) if packet.size)
            chosen = islice(packets, timeline.num_before_key, most)
            yield from _decode(chosen, stream.codec_context, on_packet)

    seen = sum(1 for _ in decode(timeline.num_before_key + LOOKED_AT))
    looked_at = min(LOOKED_AT, timeline.num_packets - timeline.num_before_key)
    if seen == 0 or seen > looked_at * 3 // 4:
        return timeline
    frames = [(frame.pts, frame.key_frame) for frame in decode(None)]
    is_key = [is_key for _, is_key in frames]
    known = {time: is_key for time, is_key in frames if time is not None}
    if len(known) < (1 - MOST_FILLED) * len(frames):
        return _by_order(timeline, is_key, np.arange(len(frames)))
    if timeline.repaired == "discontinuous":
        # The frames share the times of the packets, as evenly as these are their halves.
        packets = len(timeline.frame_pts)
        return _by_order(timeline, is_key, np.arange(len(frames)) * packets // len(frames))
    pts = np.array(sorted(known), np.int64)
    before = [(int(timeline.frame_pts[index]), size) for index, size in timeline.sizes]
    return replace(
        timeline,
        frame_pts=pts,
        stop_pts=_end(pts, timeline),
        repaired="",
        keyframes=np.flatnonzero([known[time] for time in pts.tolist()]),
        sizes=tuple((int(np.searchsorted(pts, time)), size) for time, size in before),
    )


def _by_order(timeline: Timeline, is_key: list[bool], packets: np.ndarray) -> Timeline:
    """As many frames as `is_key`, at the times of these packets, ``(n,)`` places in `timeline`."""
    pts = timeline.frame_pts[packets[packets < len(timeline.frame_pts)]]
    return replace(
        timeline,
        frame_pts=pts,
        stop_pts=_end(pts, timeline),
        repaired="fields",
        keyframes=np.flatnonzero(is_key[: len(pts)]),
        # Nobody says which packets are a frame: exact where each is half of one.
        sizes=tuple(
            (index * len(pts) // len(timeline.frame_pts), size) for index, size in timeline.sizes
        ),
    )


def _end(pts: np.ndarray, timeline: Timeline) -> int:
    """One usual step after the last frame; a single one lasts as long as its packets."""
    return int(pts[-1] + np.median(np.diff(pts))) if len(pts) > 1 else timeline.stop_pts


def _decode(
    packets: Iterator[Any], decoder: VideoCodecContext, on_packet: Callable[[], None]
) -> Iterator[VideoFrame]:
    from av.error import FFmpegError

    for packet in packets:
        on_packet()
        with suppress(FFmpegError):
            yield from decoder.decode(packet)
    with suppress(FFmpegError):
        yield from decoder.decode(None)
