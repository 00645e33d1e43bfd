"""Pictures of a source through PyAV: the reference that every other decoder is held against."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from spacepatch.data import Picture, VideoInfo
from spacepatch.decode.deinterlace import treat_interlaced
from spacepatch.decode.legs import has_layers, legs_of, may_skip
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
SEEK_EARLIER_SECONDS = (0, 2, 10, 50)
"""How far before the wanted frame a jump aims, one after the other: a transport stream lands on any
packet before it, and shows nothing until its next keyframe; an MP4 knows decoding times alone."""
LEADING = -1
"""Number of a picture that refers to what is before the first keyframe: it is no frame."""


class _AllNeeded(Exception):
    """Pictures were skipped that a later one may need after all: it is of two fields, or damaged
    (and shows then what the decoder has at hand)."""


@dataclass(frozen=True, slots=True)
class _Opened:
    """A source while it is decoded."""

    container: InputContainer
    stream: VideoStream
    decoder: VideoCodecContext
    request: Request
    skips: bool
    """Whether pictures that no sample and no other picture needs are left out."""
    orientations: dict[int, tuple[int, bool]] = field(default_factory=dict)
    """By the angle of a frame: rotation, and whether it is mirrored."""

    @property
    def needs_neighbours(self) -> bool:
        """To deinterlace a picture takes the one before it."""
        return self.request.interlaced == "deinterlace" and not self.skips

    @property
    def is_numbered(self) -> bool:
        return self.request.info.pts_repaired in COUNTED


def decode(request: Request) -> Iterator[Picture]:
    """`spacepatch.decode.decode_pictures` by PyAV, in the pictures' own pixel format."""
    if may_skip(request.info):
        last = -1
        try:
            for picture in _decode(request, skips=True):
                last = picture.index
                yield picture
            return
        except _AllNeeded:
            request = request.of(slice(int(np.searchsorted(request.indices, last + 1)), None))
    yield from _decode(request, skips=False)


def _decode(request: Request, *, skips: bool) -> Iterator[Picture]:
    """`decode`, leg after leg, in one container."""
    from av.error import FFmpegError
    from av.video.stream import VideoStream

    if not len(request.indices):
        return
    with open_container(
        request.uri,
        offset=request.offset,
        num_bytes=request.num_bytes,
        max_pixels=request.max_pixels,
        quick=request.info.stream_index,
    ) as container:
        stream = container.streams[request.info.stream_index]
        assert isinstance(stream, VideoStream)
        decoder = _make_decoder(stream, request.info, request.max_pixels)
        skips = skips and not has_layers(request.info.codec, decoder.extradata)
        opened = _Opened(container, stream, decoder, request, skips)
        if opened.is_numbered:
            decoder.copy_opaque = True
        for leg in legs_of(request, needs_neighbours=opened.needs_neighbours):
            wanted = request.of(leg.wanted)
            frames: Iterator[Any] | None
            if leg.seek_to is None:
                frames = _decode_all(opened, wanted.pts, skip=request.info.num_before_key)
            else:
                frames = _jump(opened, wanted.pts, leg.seek_to)
            if frames is None:
                break
            yield from _pictures(opened, frames, wanted)
            # Let go of what was decoded ahead, before more is.
            frames = None
        else:
            return
        # Every time the container landed after the target: from the start, then.
        try:
            container.seek(0, backward=True, any_frame=False)
        except FFmpegError as error:
            raise_unless_damage(error, DecodeError)
            return
        decoder.flush_buffers()
        rest = request.of(slice(leg.wanted.start, None))
        frames = _decode_all(opened, rest.pts, skip=request.info.num_before_key)
        yield from _pictures(opened, frames, rest)


def _pictures(opened: _Opened, frames: Iterator[Any], wanted: Request) -> Iterator[Picture]:
    """The wanted ones of all that the decoder makes, upright in word and progressive in deed."""
    info, pts = wanted.info, wanted.pts
    if opened.is_numbered:
        numbers = _by_order(frames, opened.decoder)
    else:
        numbers = _by_time(frames, repeated=info.pts_repaired == "repeated")
    marked = _mark_wanted(
        numbers,
        keys=wanted.indices if opened.is_numbered else pts,
        one_more=wanted.interlaced == "deinterlace",
        on_picture=wanted.on_picture,
        skips=opened.skips,
    )
    orientations = opened.orientations
    for frame, (place, was_interlaced), is_corrupt in treat_interlaced(
        marked, policy=wanted.interlaced
    ):
        # PyAV's side data and its frame hold each other until the garbage collector comes:
        # looked at for each frame, it keeps hundreds of megabytes of pictures alive.
        if frame.rotation not in orientations:
            orientations[frame.rotation] = orientation_of(frame)
        rotation, mirrored = orientations[frame.rotation]
        index = int(wanted.indices[place])
        _check_size(frame, info, index, rotation)
        yield Picture(
            frame=frame,
            pts=int(pts[place]),
            index=index,
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
    skips: bool,
) -> Iterator[tuple[Any, tuple[int, bool] | None]]:
    """Every frame up to the last wanted one, with its place in `keys` and whether it is interlaced.

    Args:
        one_more: give the frame after the last one too, where that is interlaced.

    Raises:
        _AllNeeded: a frame is interlaced or damaged, and `skips` is true.
    """
    place_of = {int(key): place for place, key in enumerate(keys)}
    stop_key = int(keys[-1])
    for frame, key in frames:
        on_picture()
        if skips and (frame.interlaced_frame or frame.is_corrupt):
            raise _AllNeeded
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


def _jump(opened: _Opened, pts: np.ndarray, seek_to: int) -> Iterator[Any] | None:
    """Every frame from the keyframe at or before `seek_to`; None where no jump lands there."""
    from av.error import FFmpegError

    time_base = opened.stream.time_base
    assert time_base is not None, "a demuxed stream has a time base"
    for seconds in SEEK_EARLIER_SECONDS:
        with suppress(FFmpegError):
            target = seek_to - round(seconds / time_base)
            opened.container.seek(target, stream=opened.stream, backward=True)
        opened.decoder.flush_buffers()
        frames = _decode_all(opened, pts)
        head = next(frames, None)
        if head is not None and _is_landing(head, seek_to):
            return itertools.chain([head], frames)
    return None


def _is_landing(head: Any, seek_to: int) -> bool:
    """Whether decoding may go on from the first frame after a jump.

    Some decoders (MPEG-4), and all at a point from which pictures are only refreshed bit by bit
    (H.264), begin with a picture that refers to what was never decoded, and do not flag it.
    """
    from av.video.frame import PictureType

    whole = head.key_frame and head.pict_type == PictureType.I
    return whole and head.pts is not None and head.pts <= seek_to


def _decode_all(opened: _Opened, pts: np.ndarray, *, skip: int = 0) -> Iterator[Any]:
    """Every frame from here on; counted ones carry the number that the probe gave the packet.

    A broken packet costs its own frame; the end of the file, however early, ends the frames. Where
    pictures are reordered, or made of two packets, nothing tells the place of one that failed:
    counted frames end.

    Args:
        pts: ``(n,)`` times of the wanted frames; of others, some are left out where `opened.skips`.
        skip: packets at the beginning that the decoder does not get: what it made of them would be
            counted, or have the time of a frame, or one after the last.
    """
    from av.error import FFmpegError

    decoder, info = opened.decoder, opened.request.info
    fields = info.pts_repaired == "fields"
    numbered = opened.is_numbered and not fields
    # Where the size is another from a keyframe on: some decoders drop what they hold back for
    # reordering then, so it is fetched before.
    starts = {part.first if opened.is_numbered else part.first_pts for part in info.parts[1:]}
    gate = _Gate(decoder, pts) if opened.skips else None
    number, num_keys, key_pts = 0, 0, NO_PTS
    packets = opened.container.demux(opened.stream)
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
            early = key_pts != NO_PTS and is_before_zero(packet, opened.container.format.name)
            if num_keys == 1 and (early or (packet.pts is not None and packet.pts < key_pts)):
                packet.opaque = LEADING
            else:
                packet.opaque = number
                number += 1
        if gate is not None:
            gate.pass_on(packet.pts)
        try:
            place = number - 1 if numbered else packet.pts
            if packet.is_keyframe and not fields and place in starts:
                yield from decoder.decode(None)
                decoder.flush_buffers()
            yield from decoder.decode(packet)
        except FFmpegError as error:
            raise_unless_damage(error, DecodeError)
            if opened.skips:
                raise _AllNeeded from None
            if fields or (numbered and decoder.has_b_frames):
                return
    try:
        yield from decoder.decode(None)
    except FFmpegError as error:
        raise_unless_damage(error, DecodeError)


class _Gate:
    """Tells a decoder which of its packets hold a picture that it may leave out."""

    def __init__(self, decoder: VideoCodecContext, pts: np.ndarray) -> None:
        """`pts`: times of the wanted frames."""
        self._decoder, self._wanted = decoder, frozenset(pts.tolist())
        self._is_open: bool | None = None

    def pass_on(self, pts: int | None) -> None:
        """Before the packet of this time; one without a time may be any."""
        is_open = pts is None or pts in self._wanted
        if is_open != self._is_open:
            self._is_open = is_open
            self._decoder.skip_frame = "DEFAULT" if is_open else "NONREF"
