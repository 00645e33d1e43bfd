"""Pictures of a source through PyAV: the reference that every other decoder is held against."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from spacepatch.data import Picture, VideoInfo
from spacepatch.decode.opening import open_container, raise_unless_damage
from spacepatch.decode.probe import display_size, orientation_of
from spacepatch.errors import DecodeError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

SEEK_AFTER_FRAMES = 500
"""Frames before the first wanted one from which a jump to a keyframe pays."""
TIMED_CONTAINERS = frozenset({"mov", "matroska", "flv", "asf", "mpegts"})
"""Those that tell the time of every packet. Elsewhere (a program stream, a raw one) FFmpeg counts
times from the start, and after a jump they can be a frame off."""


def decode_pictures(
    uri: str,
    *,
    info: VideoInfo,
    indices: np.ndarray,
    pts: np.ndarray,
    offset: int | None = None,
    num_bytes: int | None = None,
    on_picture: Callable[[], None] = lambda: None,
) -> Iterator[Picture]:
    """Yield the wanted pictures in order of presentation, in one pass, and stop after the last.

    A picture that cannot be had is not yielded; whoever asked counts what is missing.

    Args:
        info: what `probe_video` said of this very source; its `frame_pts` are not needed.
        indices: ``(n,)`` strictly increasing presentation indices of the wanted frames.
        pts: ``(n,)`` int64, their times as probed.
        on_picture: called for every picture that the decoder makes, wanted or not: a sign of life.

    Raises:
        DecodeError: the source does not open any more, or the size of its pictures is not the
            planned one (`size_changed`), after the pictures before that.
    """
    from av.video.stream import VideoStream

    if not len(indices):
        return
    # Where times are not to be trusted, only the order is.
    numbered = info.pts_repaired not in ("", "repeated")
    keys = indices if numbered else pts
    place_of = {int(key): place for place, key in enumerate(keys)}
    stop_key = int(keys[-1])
    far = int(indices[0]) >= SEEK_AFTER_FRAMES and not info.pts_repaired
    far = far and info.container in TIMED_CONTAINERS
    with open_container(uri, offset=offset, num_bytes=num_bytes) as container:
        stream = container.streams[info.stream_index]
        assert isinstance(stream, VideoStream)
        # One thread a worker is the fastest, and damaged frames come out the same every time.
        stream.codec_context.thread_count = 1
        if numbered:
            stream.codec_context.copy_opaque = True
            frames = _decode_all(container, stream, numbered=True)
        else:
            frames = _frames(container, stream, seek_to=int(pts[0]) if far else None)
        orientations: dict[int, tuple[int, bool]] = {}
        key: int | None = None
        position, last_pts, repetitions = -1, None, 0
        for frame in frames:
            on_picture()
            if numbered:
                # In a stream without reordering a picture has the number of its packet, whatever
                # became of the packets before; with it, `_decode_all` ends at the first failure.
                own = None if stream.codec_context.has_b_frames else frame.opaque
                if own is not None and own <= position:
                    continue
                key = position = position + 1 if own is None else own
            else:
                # As probed: the k-th repetition of a time is k ticks later.
                repetitions = repetitions + 1 if frame.pts == last_pts else 0
                last_pts = frame.pts
                repeated = info.pts_repaired and frame.pts is not None
                key = frame.pts + repetitions if repeated else frame.pts
            place = None if key is None else place_of.pop(key, None)
            if place is not None:
                # PyAV's side data and its frame hold each other until the garbage collector comes:
                # looked at for each frame, it keeps hundreds of megabytes of pictures alive.
                if frame.rotation not in orientations:
                    orientations[frame.rotation] = orientation_of(frame)
                orientation = orientations[frame.rotation]
                yield _picture(frame, info, int(indices[place]), int(pts[place]), orientation)
            if key is not None and key >= stop_key:
                return


def _picture(
    frame: Any, info: VideoInfo, index: int, pts: int, orientation: tuple[int, bool]
) -> Picture:
    rotation, mirrored = orientation
    size = display_size(
        (frame.height, frame.width),
        rotation=rotation,
        pixel_aspect_ratio=info.pixel_aspect_ratio,
    )
    if size != info.display_size:
        raise DecodeError(
            f"pictures change to {size[1]} x {size[0]} at frame {index}, "
            f"planned were {info.display_size[1]} x {info.display_size[0]}",
            reason="size_changed",
        )
    return Picture(
        frame=frame,
        pts=pts,
        index=index,
        rotation=rotation,
        mirrored=mirrored,
        is_corrupt=bool(frame.is_corrupt),
    )


def _frames(container: InputContainer, stream: VideoStream, seek_to: int | None) -> Iterator[Any]:
    """Every frame from the keyframe at or before `seek_to`, else from the start.

    A broken packet costs its own frame; the end of the file, however early, ends the frames.
    """
    from av.error import FFmpegError

    if seek_to is not None:
        with suppress(FFmpegError):
            container.seek(seek_to, stream=stream, backward=True)
        frames = _decode_all(container, stream)
        head = next(frames, None)
        if head is not None and head.pts is not None and head.pts <= seek_to:
            yield head
            yield from frames
            return
        # The container landed after the target: from the start, then.
        try:
            container.seek(0, backward=True, any_frame=False)
        except FFmpegError as error:
            raise_unless_damage(error, DecodeError)
            return
        stream.codec_context.flush_buffers()
    yield from _decode_all(container, stream)


def _decode_all(
    container: InputContainer, stream: VideoStream, *, numbered: bool = False
) -> Iterator[Any]:
    """Every frame from here on; `numbered` ones carry the number that the probe gave the packet.

    Where pictures are reordered, nothing tells the place of one that failed: numbered frames end.
    """
    from av.error import FFmpegError

    number, seen_key = 0, False
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            break
        except FFmpegError as error:
            raise_unless_damage(error, DecodeError)
            break
        if packet.size == 0:
            # Some files hold empty packets; the decoder takes one for the end of the stream.
            continue
        if numbered:
            if packet.is_keyframe and not seen_key:
                number, seen_key = 0, True
            if not packet.is_discard:
                packet.opaque = number
                number += 1
        try:
            yield from stream.codec_context.decode(packet)
        except FFmpegError as error:
            raise_unless_damage(error, DecodeError, reading=False)
            if numbered and stream.codec_context.has_b_frames:
                return
    try:
        yield from stream.codec_context.decode(None)
    except FFmpegError as error:
        raise_unless_damage(error, DecodeError, reading=False)
