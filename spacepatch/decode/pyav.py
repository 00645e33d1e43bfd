"""Pictures of a source through PyAV: the reference that every other decoder is held against."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from spacepatch.data import Picture, VideoInfo
from spacepatch.decode.deinterlace import treat_interlaced
from spacepatch.decode.opening import open_container, raise_unless_damage
from spacepatch.decode.orientation import display_size, orientation_of
from spacepatch.decode.packets import COUNTED, NO_PTS, is_before_zero
from spacepatch.decode.request import Request
from spacepatch.errors import DecodeError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.codeccontext import VideoCodecContext
    from av.video.stream import VideoStream

_ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
SEEK_AFTER_FRAMES = 500
"""Frames before the first wanted one from which a jump to a keyframe pays."""
SEEK_EARLIER_SECONDS = (0, 2, 10, 50)
"""How far before the wanted frame a jump aims, one after the other: a transport stream lands on any
packet before it, and shows nothing until its next keyframe; an MP4 knows decoding times alone."""
LEADING = -1
"""Number of a picture that refers to what is before the first keyframe: it is no frame."""
TIMED_CONTAINERS = frozenset({"mov", "matroska", "asf", "mpegts"})
"""Those that tell the time of every packet. Elsewhere (a program stream, a raw one) FFmpeg counts
times from the start, and after a jump they can be a frame off. Of an FLV that was begun anew FFmpeg
overlooks the new headers as it jumps."""


def decode(request: Request) -> Iterator[Picture]:
    """`spacepatch.decode.decode_pictures` by PyAV, in the pictures' own pixel format."""
    for stretch in stretches(request.info, request.indices):
        yield from _decode_stretch(request.of(stretch))


def stretches(info: VideoInfo, indices: np.ndarray) -> list[slice]:
    """Wanted frames between which a jump to a keyframe pays: the clips of a long video lie in
    shards all over, and each shard would decode all that is between its own."""
    if not len(indices):
        return []
    if info.pts_repaired or info.container not in TIMED_CONTAINERS:
        return [slice(None)]
    gaps = np.flatnonzero(np.diff(indices) > SEEK_AFTER_FRAMES) + 1
    return [slice(*pair) for pair in itertools.pairwise([0, *gaps.tolist(), len(indices)])]


def _decode_stretch(request: Request) -> Iterator[Picture]:
    """`decode` for frames that lie near each other, in a container of their own."""
    from av.video.stream import VideoStream

    info, indices, pts = request.info, request.indices, request.pts
    deinterlaces = request.interlaced == "deinterlace"
    numbered = info.pts_repaired in COUNTED
    far = int(indices[0]) >= SEEK_AFTER_FRAMES and not info.pts_repaired
    far = far and info.container in TIMED_CONTAINERS
    with open_container(
        request.uri,
        offset=request.offset,
        num_bytes=request.num_bytes,
        max_pixels=request.max_pixels,
    ) as container:
        stream = container.streams[info.stream_index]
        assert isinstance(stream, VideoStream)
        decoder = _make_decoder(stream, info, request.max_pixels)
        if numbered:
            decoder.copy_opaque = True
            starts = frozenset(part.first for part in info.parts[1:])
            frames = _decode_all(
                container,
                stream,
                decoder,
                starts,
                repaired=info.pts_repaired,
                skip=info.num_before_key,
            )
            numbers = _by_order(frames, decoder)
        else:
            # To deinterlace a picture takes the one before it.
            before = int(pts[0]) - deinterlaces
            starts = frozenset(part.first_pts for part in info.parts[1:])
            seek_to = before if far else None
            skip = info.num_before_key
            frames = _frames(container, stream, decoder, starts, seek_to=seek_to, skip=skip)
            numbers = _by_time(frames, repeated=info.pts_repaired == "repeated")
        wanted = _mark_wanted(
            numbers,
            keys=indices if numbered else pts,
            one_more=deinterlaces,
            on_picture=request.on_picture,
        )
        orientations: dict[int, tuple[int, bool]] = {}
        for frame, (place, was_interlaced), is_corrupt in treat_interlaced(
            wanted, policy=request.interlaced
        ):
            # PyAV's side data and its frame hold each other until the garbage collector comes:
            # looked at for each frame, it keeps hundreds of megabytes of pictures alive.
            if frame.rotation not in orientations:
                orientations[frame.rotation] = orientation_of(frame)
            rotation, mirrored = orientations[frame.rotation]
            _check_size(frame, info, int(indices[place]), rotation)
            yield Picture(
                frame=frame,
                pts=int(pts[place]),
                index=int(indices[place]),
                rotation=rotation,
                mirrored=mirrored,
                is_corrupt=is_corrupt,
                was_interlaced=was_interlaced,
            )


def _by_order(
    frames: Iterator[Any], decoder: VideoCodecContext
) -> Iterator[tuple[Any, int | None]]:
    """Frames with their presentation index, where times cannot be trusted.

    In a stream without reordering a picture has the number of its packet, whatever became of the
    packets before; with it, or where packets are fields, `_decode_all` ends at the first failure.
    """
    position = -1
    for frame in frames:
        if frame.opaque == LEADING:
            continue
        own = None if decoder.has_b_frames else frame.opaque
        if own is not None and own <= position:
            continue
        position = position + 1 if own is None else own
        yield frame, position


def _by_time(frames: Iterator[Any], *, repeated: bool) -> Iterator[tuple[Any, int | None]]:
    """Frames with their time as probed: the k-th repetition of a time is k ticks later."""
    last_pts, repetitions = None, 0
    for frame in frames:
        repetitions = repetitions + 1 if frame.pts == last_pts else 0
        last_pts = frame.pts
        yield frame, frame.pts + repetitions if repeated and frame.pts is not None else frame.pts


def _mark_wanted(
    frames: Iterator[tuple[Any, int | None]],
    *,
    keys: np.ndarray,
    one_more: bool,
    on_picture: Callable[[], None],
) -> Iterator[tuple[Any, tuple[int, bool] | None]]:
    """Every frame up to the last wanted one, with its place in `keys` and whether it is interlaced.

    Args:
        one_more: give the frame after the last one too, where that is interlaced.
    """
    place_of = {int(key): place for place, key in enumerate(keys)}
    stop_key = int(keys[-1])
    for frame, key in frames:
        on_picture()
        place = None if key is None else place_of.pop(key, None)
        yield frame, None if place is None else (place, bool(frame.interlaced_frame))
        if key is not None and key >= stop_key:
            if one_more and frame.interlaced_frame:
                yield from ((after, None) for after, _ in itertools.islice(frames, 1))
            return


def _check_size(frame: Any, info: VideoInfo, index: int, rotation: int) -> None:
    """Raise where the size of a picture is not the one that was planned."""
    part = info.part_at(index)
    size = display_size(
        (frame.height, frame.width), rotation=rotation, pixel_aspect_ratio=part.pixel_aspect_ratio
    )
    if size != part.display_size:
        raise DecodeError(
            f"pictures change to {size[1]} x {size[0]} at frame {index}, "
            f"planned were {part.display_size[1]} x {part.display_size[0]}",
            reason="size_changed",
        )


def _make_decoder(stream: VideoStream, info: VideoInfo, max_pixels: int) -> VideoCodecContext:
    """The stream's own decoder or, for VP8 and VP9 with an alpha channel beside the picture, the
    one that reads it: FFmpeg's own leaves it out."""
    from av.codec import CodecContext
    from av.video.codeccontext import VideoCodecContext

    decoder = stream.codec_context
    name = _ALPHA_DECODERS.get(info.codec) if info.alpha else None
    if name is not None:
        made = CodecContext.create(name, "r")
        assert isinstance(made, VideoCodecContext)
        made.extradata, made.options = decoder.extradata, {"max_pixels": str(max_pixels)}
        decoder = made
    # One thread a worker is the fastest, and damaged frames come out the same every time.
    decoder.thread_count = 1
    return decoder


def _frames(
    container: InputContainer,
    stream: VideoStream,
    decoder: VideoCodecContext,
    starts: frozenset[int],
    *,
    seek_to: int | None,
    skip: int,
) -> Iterator[Any]:
    """Every frame from the keyframe at or before `seek_to`, else from the start; see `_decode_all`.

    A broken packet costs its own frame; the end of the file, however early, ends the frames.
    """
    from av.error import FFmpegError

    if seek_to is not None:
        assert stream.time_base is not None, "a demuxed stream has a time base"
        for seconds in SEEK_EARLIER_SECONDS:
            with suppress(FFmpegError):
                target = seek_to - round(seconds / stream.time_base)
                container.seek(target, stream=stream, backward=True)
            decoder.flush_buffers()
            frames = _decode_all(container, stream, decoder, starts)
            head = next(frames, None)
            if head is not None and _is_landing(head, seek_to):
                yield head
                yield from frames
                return
        # Every time the container landed after the target: from the start, then.
        try:
            container.seek(0, backward=True, any_frame=False)
        except FFmpegError as error:
            raise_unless_damage(error, DecodeError)
            return
        decoder.flush_buffers()
    yield from _decode_all(container, stream, decoder, starts, skip=skip)


def _is_landing(head: Any, seek_to: int) -> bool:
    """Whether decoding may go on from the first frame after a jump.

    Some decoders (MPEG-4), and all at a point from which pictures are only refreshed bit by bit
    (H.264), begin with a picture that refers to what was never decoded, and do not flag it.
    """
    from av.video.frame import PictureType

    whole = head.key_frame and head.pict_type == PictureType.I
    return whole and head.pts is not None and head.pts <= seek_to


def _decode_all(
    container: InputContainer,
    stream: VideoStream,
    decoder: VideoCodecContext,
    starts: frozenset[int],
    *,
    repaired: str = "",
    skip: int = 0,
) -> Iterator[Any]:
    """Every frame from here on; counted ones carry the number that the probe gave the packet.

    Where pictures are reordered, or made of two packets, nothing tells the place of one that
    failed: counted frames end.

    Args:
        repaired: `VideoInfo.pts_repaired`, where frames are `COUNTED`.
        starts: numbers (or times) of the keyframes from which the size is another. Some decoders
            drop what they hold back for reordering when the size changes, so it is fetched before.
        skip: packets at the beginning that the decoder does not get: what it made of them would be
            counted, or have the time of a frame, or one after the last.
    """
    from av.error import FFmpegError

    fields = repaired == "fields"
    numbered = repaired in COUNTED and not fields
    number, num_keys, key_pts = 0, 0, NO_PTS
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
        if skip:
            skip -= 1
            continue
        if numbered and packet.is_keyframe:
            num_keys += 1
            if num_keys == 1 and packet.pts is not None:
                key_pts = packet.pts
        if numbered and not packet.is_discard:
            early = key_pts != NO_PTS and is_before_zero(packet, container.format.name)
            if num_keys == 1 and (early or (packet.pts is not None and packet.pts < key_pts)):
                packet.opaque = LEADING
            else:
                packet.opaque = number
                number += 1
        try:
            place = number - 1 if numbered else packet.pts
            if packet.is_keyframe and not fields and place in starts:
                yield from decoder.decode(None)
                decoder.flush_buffers()
            yield from decoder.decode(packet)
        except FFmpegError as error:
            raise_unless_damage(error, DecodeError)
            if fields or (numbered and decoder.has_b_frames):
                return
    try:
        yield from decoder.decode(None)
    except FFmpegError as error:
        raise_unless_damage(error, DecodeError)
