"""What decord and torchcodec share: sources that they must not read, and full-size RGB pictures.

Neither takes our allow-lists, says which frames are damaged, or lets itself be told a colour. So a
source goes to them only where all of that is known beforehand, and where their first picture
equals PyAV's. Everything else is declined, and PyAV reads it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spacepatch.data import Picture, VideoInfo
from spacepatch.decode import pyav
from spacepatch.decode.magic import HEAD_BYTES, demuxers_for
from spacepatch.decode.opening import CODECS, open_container
from spacepatch.decode.request import Request
from spacepatch.decode.timeline import read_timeline
from spacepatch.errors import Declined, DecodeError, ProbeError, SourceError
from spacepatch.remote import is_url

if TYPE_CHECKING:
    from av.container import InputContainer

BACKENDS = frozenset({"decord", "torchcodec"})
"""Decoders that give full-size RGB, and of damage no more than an error."""
UNTAGGED_MATRIX = "smpte170m"
"""What they take YUV without a matrix for."""

CONTAINERS = frozenset({"mov", "matroska", "avi"})
"""Whose first bytes say what the whole is, so that no other demuxer takes the file."""
TRUSTED_CONTAINERS = CONTAINERS | {"flv", "asf"}
"""What `trust_input` lets through. In transport and program streams both find wrong frames."""
TEXT_ENDS_WITHIN = 256
"""Bytes in which a video has its first zero. FFmpeg looks for playlists up to there only."""

HALF_CHROMA = frozenset({"yuv420p", "yuvj420p", "yuv422p", "yuvj422p"})
FULL_CHROMA = frozenset({"yuv444p", "yuvj444p", "yuv444p10le"})
GREY = frozenset({"gray", "gray10le", "gray12le"})
RGB = frozenset({"gbrp", "rgb24", "bgr24", "bgr0"})
"""Pixel formats whose full-size RGB is the same, bit by bit, from every FFmpeg that was measured
(4.1, 5.1, 8.1). Of others, chroma of more than 8 bits for example, it differs by up to 180."""

LARGEST_DIFFERENCE = 2
"""Levels that a full-size picture may differ from PyAV's."""


@dataclass(frozen=True, slots=True)
class Reference:
    """What PyAV says of a source, for a backend to be held against."""

    frame_pts: np.ndarray
    """(F,) int64: all frames of the stream, in units of its time base."""
    first: np.ndarray
    """(h, w, 3) uint8: the first wanted picture, upright, full size."""
    is_best_stream: bool
    """The stream is the one that FFmpeg chooses by itself."""
    was_interlaced: bool
    """The first wanted picture is interlaced, and kept so."""


def make_reference(request: Request) -> Reference:
    """Check all that can be known before a backend sees the file.

    Raises:
        Declined: the backends must not, or cannot, read it.
    """
    info = request.info
    refusal = _refuse_place(request) or _refuse_kind(request)
    if refusal:
        raise Declined(refusal)
    _check_container(request)
    with open_container(
        request.uri, num_bytes=request.num_bytes, max_pixels=request.max_pixels
    ) as container:
        table = _read_frames(container, request)
        best = container.streams.best("video")
        is_best = best is not None and best.index == info.stream_index
    there = request.indices[request.indices < len(table.frame_pts)]
    if not np.array_equal(table.frame_pts[there], request.pts):
        raise Declined("its frames are not at the times that were planned")
    picture = _first_picture(replace(request.of(slice(1)), info=table))
    if picture.is_corrupt:
        raise Declined("its first picture is damaged")
    if picture.mirrored:
        raise Declined("its display matrix mirrors it, which the backends do not")
    return Reference(table.frame_pts, _upright(picture), is_best, picture.was_interlaced)


def _refuse_place(request: Request) -> str:
    """Why the backends, which open files by themselves, cannot open this one."""
    if is_url(request.uri):
        return "it is no file here: it is read from a store"
    return "" if request.offset is None else "it lies inside a tar"


def _refuse_kind(request: Request) -> str:
    """Why the probed properties alone rule the backends out; empty if they do not."""
    info, untagged = request.info, request.untagged
    height, width = info.coded_size
    name = info.pixel_format
    subsampled, grey = name in HALF_CHROMA, name in GREY
    rules = (
        (info.still, "a still picture"),
        (info.codec not in CODECS, f"codec {info.codec} is not on the list of allowed codecs"),
        (height * width > request.max_pixels, f"pictures of {width} x {height} pixels"),
        (len(info.parts) > 1, "its pictures change their size"),
        (info.cut_off, "the file is cut off, and backends do not flag damaged pictures"),
        (bool(info.pts_repaired), f"its times are repaired ({info.pts_repaired})"),
        (bool(info.hdr), "it is HDR, whose transfer is lost in RGB"),
        (info.alpha, "it has an alpha channel"),
        (
            request.interlaced != "keep" and info.interlaced in ("tff", "bff"),
            "its pictures are interlaced",
        ),
        (
            name not in HALF_CHROMA | FULL_CHROMA | GREY | RGB,
            f"RGB of {name} depends on the version of FFmpeg",
        ),
        (
            subsampled and bool(height % 2 or width % 2),
            f"RGB of {name} with an odd side depends on the version of FFmpeg",
        ),
        (grey and info.colour["range"] == "tv", "grey of limited range"),
        (
            not (grey or name in RGB) and not info.colour["matrix"] and untagged != "bt601",
            f"it names no matrix, and backends take BT.601 for {untagged}",
        ),
    )
    return next((words for holds, words in rules if holds), "")


def _check_container(request: Request) -> None:
    container = request.info.container
    if container not in (TRUSTED_CONTAINERS if request.trust_input else CONTAINERS):
        raise Declined(f"container {container}")
    if request.trust_input:
        return
    with Path(request.uri).open("rb") as file:
        head = file.read(HEAD_BYTES)
    try:
        kind = demuxers_for(head, fallback="")
    except ProbeError:
        kind = ""
    if kind not in CONTAINERS or b"\0" not in head[:TEXT_ENDS_WITHIN]:
        raise Declined("its first bytes are not those of ISO-BMFF, Matroska or AVI")
    if "%" in request.uri:
        raise Declined("its path has a %, by which FFmpeg may look for a series of files")


def _read_frames(container: InputContainer, request: Request) -> VideoInfo:
    """Its `info` with its `frame_pts`, which it leaves behind on the way to a worker.

    Raises:
        Declined: the file has what is not shown, or streams that must not be opened.
    """
    from av.video.stream import VideoStream

    info = request.info
    for other in container.streams.video:
        context = other.codec_context
        if context is None or context.codec.canonical_name not in CODECS:
            raise Declined("one of its video streams is not of the allowed codecs")
    stream = container.streams[info.stream_index]
    assert isinstance(stream, VideoStream), "the stream was probed as video"
    if info.container == "avi" and stream.codec_context.has_b_frames:
        raise Declined("AVI does not tell the times of reordered pictures")
    if not len(info.frame_pts):
        timeline = read_timeline(
            container, stream, max_pixels=request.max_pixels, on_packet=request.on_picture
        )
        info = replace(info, frame_pts=timeline.frame_pts)
    if len(info.frame_pts) != info.num_packets:
        hidden = info.num_packets - len(info.frame_pts)
        raise Declined(f"{hidden} packets are not shown: an edit list, or a cut without a keyframe")
    return info


def _first_picture(request: Request) -> Picture:
    # Only a decoded picture tells whether it is interlaced, and only this policy says so.
    policy = "keep" if request.interlaced == "keep" else "skip"
    pictures = pyav.decode(replace(request, interlaced=policy))
    try:
        picture = next(pictures, None)
    except SourceError as error:
        if error.reason == "skipped_by_policy":
            raise Declined("its pictures are interlaced") from None
        raise Declined(str(error)) from None
    if picture is None:
        raise Declined("PyAV has no picture at its first time")
    return picture


def _upright(picture: Picture) -> np.ndarray:
    """(h, w, 3) uint8: what PyAV's plain conversion gives, turned upright."""
    from av.error import FFmpegError

    try:
        rgb = picture.frame.to_ndarray(format="rgb24")
    except (FFmpegError, ValueError):
        raise Declined("FFmpeg has no RGB of its colours") from None
    return np.rot90(rgb, -picture.rotation // 90)


def wrap_pictures(
    frames: Iterator[np.ndarray], *, request: Request, reference: Reference, name: str
) -> Iterator[Picture]:
    """Turn a backend's RGB into pictures; the first is held against PyAV's.

    Args:
        frames: one for each that is wanted, ``(h, w, 3)`` uint8, upright. What it raises while it
            makes the first is a reason to decline, later a fault of the source.
        name: of the backend, for messages.

    Raises:
        Declined: the first picture cannot be made, or is not PyAV's.
        DecodeError: a later one cannot (`corrupt_frames`), or is of another size.
    """
    import av

    for place, index in enumerate(request.indices):
        try:
            rgb = next(frames, None)
        except BackendError as error:
            if place == 0:
                raise Declined(str(error)) from None
            raise DecodeError(
                f"{name} fails at frame {index}: {error}; PyAV reads on after damage",
                reason="corrupt_frames",
            ) from None
        if place == 0:
            _check_first(rgb, reference.first)
        assert rgb is not None, "a backend gives every frame or raises"
        if rgb.shape != reference.first.shape:
            raise DecodeError(
                f"{name} gives a picture of another size at frame {index}", reason="size_changed"
            )
        yield Picture(
            # Not `from_ndarray`: 4 ms for 1080p, to copy what nobody else has.
            frame=av.VideoFrame.from_numpy_buffer(np.ascontiguousarray(rgb), format="rgb24"),
            pts=int(request.pts[place]),
            index=int(index),
            rotation=0,
            mirrored=False,
            is_corrupt=False,
            was_interlaced=reference.was_interlaced,
        )


class BackendError(Exception):
    """What a backend could not do, in our words: the one seam between its errors and ours."""


def _check_first(rgb: Any, expected: np.ndarray) -> None:
    if rgb is None or rgb.shape != expected.shape:
        raise Declined("its first picture is not of the size that PyAV's is")
    difference = int(np.abs(rgb.astype(np.int16) - expected).max())
    if difference > LARGEST_DIFFERENCE:
        raise Declined(f"its first picture differs from PyAV's by {difference} levels")
