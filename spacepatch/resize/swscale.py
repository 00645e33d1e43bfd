"""Run swscale: pixel formats, colour matrices and sizes of FFmpeg's pictures."""

from __future__ import annotations

import functools
import threading
from typing import TYPE_CHECKING

import numpy as np

from spacepatch.errors import DecodeError
from spacepatch.resize.colour import RANGES, Colour
from spacepatch.resize.sizes import Pair

if TYPE_CHECKING:
    import av
    from av.video.reformatter import VideoReformatter

# swscale's flags, from libswscale/swscale.h: numbers, because PyAV loads where it is used.
ACCURATE_RND = 0x40000
FULL_QUALITY = 0x2000 | 0x4000 | ACCURATE_RND | 0x80000
"""FULL_CHR_H_INT, FULL_CHR_H_INP, ACCURATE_RND, BITEXACT: all the chroma, everywhere the same."""
BICUBIC = 4 | FULL_QUALITY
AREA = 32 | FULL_QUALITY
PLAIN = 2
"""BILINEAR and nothing else: the full-size RGB that PyAV, decord and torchcodec make by default."""

ABORTING = frozenset({"yaf32be", "yaf32le"})
"""Pixel formats on which swscale (FFmpeg 8.1) ends the whole process with abort()."""


def convert(
    frame: av.VideoFrame, size: Pair, name: str, flags: int, colour: Colour, range_out: str
) -> av.VideoFrame:
    """Run swscale once: scale to `size` and turn to the pixel format `name`."""
    import av

    message = f"swscale cannot make {name} of {frame.format.name}"
    # It aborts on a single line of a camera's raw mosaic, too.
    one_line = frame.height == 1 and frame.format.name.startswith("bayer")
    if frame.format.name in ABORTING or one_line:
        raise DecodeError(message, reason="unsupported_colour")
    # What makes swscale set itself up anew, and the thread: PyAV lets go of the GIL meanwhile.
    step = frame.format.name, frame.height, frame.width, frame.interlaced_frame, name, size, flags
    try:
        return _make_context(step, colour, range_out, threading.get_ident()).reformat(
            frame,
            height=size[0],
            width=size[1],
            format=name,
            # All explicit: PyAV's defaults are AVColorSpace numbers where SWS_CS is meant.
            src_colorspace=colour.coefficients,
            dst_colorspace=colour.coefficients,
            src_color_range=RANGES[colour.range],
            dst_color_range=RANGES[range_out],
            interpolation=flags,
            threads=1,
        )
    except av.OSError as error:
        raise DecodeError(message, reason="unsupported_colour") from error


@functools.lru_cache(maxsize=16)
def _make_context(*step: object) -> VideoReformatter:
    """One swscale context for equal steps: a new one costs 0.4 - 1 ms."""
    from av.video.reformatter import VideoReformatter

    return VideoReformatter()


def view_plane(
    frame: av.VideoFrame, index: int = 0, *, channels: int = 1, dtype: str = "u1"
) -> np.ndarray:
    """View a plane as ``(h, w, channels)`` of `dtype`; the view keeps the frame's buffer alive."""
    plane = frame.planes[index]
    rows = np.frombuffer(memoryview(plane), dtype).reshape(frame.height, -1)
    if plane.line_size < 0:
        rows = rows[::-1]  # bottom-up, as raw video may be: the buffer starts at its lowest address
    return rows[:, : frame.width * channels].reshape(frame.height, frame.width, channels)
