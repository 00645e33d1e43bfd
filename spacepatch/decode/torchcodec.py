"""Pictures of a source through torchcodec; what it must not read is declined."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from spacepatch.data import Picture, VideoInfo
from spacepatch.decode.full_size import (
    GREY,
    RGB,
    BackendError,
    make_reference,
    wrap_pictures,
)
from spacepatch.decode.legs import legs_of
from spacepatch.decode.request import Request
from spacepatch.errors import Declined

REFRESHED = frozenset({"h264", "mpeg4"})
"""Codecs in which a file may call keyframes what are no whole pictures: torchcodec would jump to
them, between two frames that are wanted, and show what it has not."""


def decode(request: Request) -> Iterator[Picture]:
    """`spacepatch.decode.decode_pictures` by torchcodec, as upright RGB.

    A frame is one at a time, in order; torchcodec goes to a keyframe by itself where that is
    nearer (`seek_mode="exact"`).

    Raises:
        Declined: before the first picture: torchcodec must not or cannot read this source.
        DecodeError: a later picture cannot be had, or not at its time (`corrupt_frames`).
    """
    info = request.info
    # Without keyframes: torchcodec knows them itself.
    for leg in legs_of(replace(request, keyframes=None), needs_neighbours=False):
        # Each leg begins with a jump, and so with a picture that is held against PyAV's.
        wanted = request.of(leg.wanted)
        reference = make_reference(wanted)
        decoder = _open(request.uri, info.stream_index)
        tick = float(info.time_base)
        _check_count(decoder, reference.frame_pts * tick, tick)
        _check_colour(decoder, info)
        frames = _read(decoder, wanted, tick)
        yield from wrap_pictures(frames, request=wanted, reference=reference, name="torchcodec")


def _open(uri: str, stream_index: int) -> Any:
    try:
        # By name: its package does not export the class in a way that mypy accepts.
        decoders = importlib.import_module("torchcodec.decoders")
    except (ImportError, RuntimeError, OSError):
        # Its own message is a page about all the FFmpeg libraries that it looked for.
        raise Declined("torchcodec does not import: it needs a shared FFmpeg, 4 to 8") from None
    try:
        return decoders.VideoDecoder(
            uri,
            stream_index=stream_index,
            dimension_order="NHWC",
            num_ffmpeg_threads=1,
            device="cpu",
            seek_mode="exact",
        )
    except (RuntimeError, ValueError):
        raise Declined("torchcodec cannot open it") from None


def _check_count(decoder: Any, seconds: np.ndarray, tick: float) -> None:
    """Raise `Declined` unless it counts the same frames from the same time on.

    The time of each comes with the frame itself, and is held against the plan there.
    """
    if len(decoder) != len(seconds):
        raise Declined(f"torchcodec counts {len(decoder)} frames of {len(seconds)}")
    start = decoder.metadata.begin_stream_seconds_from_content
    if start is None or abs(start - seconds[0]) > tick / 2:
        raise Declined("torchcodec has other times for its frames")


def _check_colour(decoder: Any, info: VideoInfo) -> None:
    metadata, name = decoder.metadata, info.pixel_format
    if metadata.pixel_format != name:
        raise Declined(f"torchcodec takes it for {metadata.pixel_format}, not {name}")
    matrix = metadata.color_space or ""
    if name not in GREY | RGB and matrix != info.colour["matrix"]:
        raise Declined(
            f"torchcodec reads the matrix {matrix or 'none'}, not {info.colour['matrix'] or 'none'}"
        )


def _read(decoder: Any, wanted: Request, tick: float) -> Iterator[np.ndarray]:
    """The wanted frames, each at its time."""
    in_order = wanted.info.codec in REFRESHED
    last = int(wanted.indices[0]) - 1
    for index, time in zip(wanted.indices, wanted.pts * tick, strict=True):
        try:
            for passed in range(last + 1, int(index)) if in_order else ():
                decoder.get_frame_at(passed)
                wanted.on_picture()
            last = int(index)
            frame = decoder.get_frame_at(int(index))
        except (RuntimeError, IndexError):
            raise BackendError("damaged data") from None
        if abs(frame.pts_seconds - time) > tick / 2:
            raise BackendError("another frame than the one of that time")
        wanted.on_picture()
        yield frame.data.numpy()
