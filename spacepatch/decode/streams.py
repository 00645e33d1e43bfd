"""Choose the video stream of a container."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spacepatch.decode.opening import ffmpeg_version
from spacepatch.errors import ProbeError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

KNOWN_SIZE, DEFAULT = 100_000_000, 5_000_000
"""What counts more than a larger picture when the ffmpeg program chooses (`map_auto_video`)."""


def choose_stream(container: InputContainer, stream: str = "") -> VideoStream:
    """The video stream that was asked for, else the one that the ffmpeg program takes by itself.

    That is the one with the most pixels; the container's default goes before up to 5 million
    pixels more, and the first before its equals. Cover art is no video.

    Args:
        stream: empty, FFmpeg's index (`2`), or that among the video streams (`v:1`).

    Raises:
        ProbeError: there is no such stream, or no decoder for it.
    """
    from av.stream import Disposition

    if stream:
        chosen = _asked_for(container, stream)
    else:
        videos = [
            video
            for video in container.streams.video
            if not video.disposition & Disposition.attached_pic
        ]
        if not videos:
            cover = "the only video stream is cover art"
            message = cover if container.streams.video else "no video stream"
            raise ProbeError(message, reason="no_video_stream")

        def score(video: VideoStream) -> int:
            # Without a decoder PyAV has no context, and so no size to tell.
            context = video.codec_context
            pixels = context.height * context.width if context is not None else 0
            known = KNOWN_SIZE if pixels else 0
            return known + pixels + (DEFAULT if video.disposition & Disposition.default else 0)

        chosen = max(videos, key=score)
    if chosen.codec_context is None:
        raise ProbeError(f"FFmpeg {ffmpeg_version()} has no decoder for it", reason="no_decoder")
    return chosen


def _asked_for(container: InputContainer, stream: str) -> VideoStream:
    videos = {str(video.index): video for video in container.streams.video}
    videos |= {f"v:{place}": video for place, video in enumerate(container.streams.video)}
    if stream in videos:
        return videos[stream]
    there = ", ".join(str(video.index) for video in container.streams.video) or "none"
    raise ProbeError(
        f"no video stream {stream}; its video streams: {there}", reason="no_video_stream"
    )
