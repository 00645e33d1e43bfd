"""Make 16-bit planes of pictures, where 8 bits would show: HDR, and colour with alpha."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from spacepatch.resize.alpha import premultiply
from spacepatch.resize.colour import LUMA_WEIGHTS, Colour, sort_format
from spacepatch.resize.sizes import Pair
from spacepatch.resize.swscale import ACCURATE_RND, convert, view_plane

if TYPE_CHECKING:
    import av


def make_deep(frame: av.VideoFrame, flags: int, colour: Colour, *, depth: int) -> np.ndarray:
    """Turn a frame to RGB or premultiplied RGBA of its own size.

    Args:
        depth: 16, or 8 for the numbers that `make_full_rgb` has, times 257.

    Returns:
        ``(3 or 4, h, w)`` uint16, full range.
    """
    model, has_alpha = sort_format(frame.format)
    full_size, bits = (frame.height, frame.width), _count_bits(frame.format)
    if depth == 16 and model == "yuv":
        planes = make_deep_yuv(frame, full_size, flags, colour)
    elif depth == 16 and bits > 8:
        name, channels = ("rgba64le", 4) if has_alpha else ("rgb48le", 3)
        made = convert(frame, full_size, name, flags, colour, "pc")
        deep = view_plane(made, channels=channels, dtype="<u2")
        planes = np.ascontiguousarray(deep.transpose(2, 0, 1))
        if model == "gray":  # swscale shifts it up, where it spreads RGB from 0 to 65535
            black, white = _black_and_white(bits, colour.range)
            spread = (planes[:3] - black) * (65535 / (white - black))
            planes[:3] = np.rint(spread).clip(0, 65535)
    else:
        full = make_full_rgb(frame, flags, colour).transpose(2, 0, 1)
        planes = np.multiply(full, 257, dtype=np.uint16, order="C")
        if model == "gray" and colour.range == "tv":
            planes[:3] = expand_grey(full[:3]) * np.uint16(257)
    return premultiply(planes) if has_alpha else planes


def make_deep_yuv(frame: av.VideoFrame, size: Pair, flags: int, colour: Colour) -> np.ndarray:
    """Turn YUV to straight RGB or RGBA of `size`: ``(3 or 4, h, w)`` uint16, full range.

    swscale scales, and the matrix is ours: swscale's 16-bit RGB has its white at 65280.
    """
    _, has_alpha = sort_format(frame.format)
    name = "yuva444p16le" if has_alpha else "yuv444p16le"
    # Limited on both sides, whatever it is: full-range planes would be shifted up where they are
    # scaled, and spread where they are not. `yuvj` swscale knows better, and so stays full.
    range_ = "pc" if frame.format.name.startswith("yuvj") else "tv"
    made = convert(frame, size, name, flags, colour._replace(range=range_), range_)
    black, white = _black_and_white(_count_bits(frame.format), colour.range)
    luma, *chroma = (view_plane(made, index, dtype="<u2")[..., 0] for index in range(3))
    red_weight, blue_weight = LUMA_WEIGHTS[colour.coefficients]
    span = white - black
    chroma_span = span if colour.range == "pc" else span * 224 / 219
    y = (luma - np.float32(black)) * np.float32(65535 / span)
    cb, cr = ((plane - np.float32(32768)) * np.float32(65535 / chroma_span) for plane in chroma)
    planes = np.empty((4 if has_alpha else 3, *size), np.uint16)
    red = y + cr * np.float32(2 * (1 - red_weight))
    blue = y + cb * np.float32(2 * (1 - blue_weight))
    y -= red * np.float32(red_weight)
    y -= blue * np.float32(blue_weight)
    y *= np.float32(1 / (1 - red_weight - blue_weight))
    for channel, plane in enumerate((red, y, blue)):
        plane += 0.5
        planes[channel] = plane.clip(0, 65535, out=plane)
    if has_alpha:
        opaque = _black_and_white(_count_bits(frame.format), "pc")[1]
        alpha = view_plane(made, 3, dtype="<u2")[..., 0] * (65535 / opaque)
        planes[3] = np.rint(alpha).clip(0, 65535)
    return planes


def _count_bits(pixels: av.VideoFormat) -> int:
    """Bits of a pixel format's widest component."""
    return 8 if pixels.has_palette else max(component.bits for component in pixels.components)


def _black_and_white(bits: int, range_: str) -> Pair:
    """Where black and white are after swscale shifted a number up to 16 bits."""
    if range_ == "tv":
        return 16 << 8, 235 << 8
    return 0, 65535 if bits >= 16 else ((1 << bits) - 1) << (16 - bits)


def scale_planes(planes: np.ndarray, size: Pair, flags: int) -> np.ndarray:
    """Scale ``(3 or 4, h, w)`` uint16 as the planes of a YUV 4:4:4 picture, the fourth as alpha."""
    import av

    count, height, width = planes.shape
    name = "yuva444p16le" if count == 4 else "yuv444p16le"
    planar = av.VideoFrame(width, height, name)
    for index, plane in enumerate(planes):
        view_plane(planar, index, dtype="<u2")[..., 0] = plane
    small = convert(planar, size, name, flags, Colour("", "tv", "", 5), "tv")
    return np.stack([view_plane(small, index, dtype="<u2")[..., 0] for index in range(count)])


def make_full_rgb(frame: av.VideoFrame, flags: int, colour: Colour) -> np.ndarray:
    """``(h, w, 3)`` uint8 RGB, or RGBA of 4 channels, as large as the frame and as swscale has it.

    It takes all grey for full range: see `expand_grey`.
    """
    name, channels = ("rgba", 4) if sort_format(frame.format)[1] else ("rgb24", 3)
    if frame.format.name == "yuva420p" and 0 < frame.width % 16 < 5:
        # swscale's fast way leaves these last columns as the memory was.
        flags |= ACCURATE_RND
    full = convert(frame, (frame.height, frame.width), name, flags, colour, "pc")
    return view_plane(full, channels=channels)


def expand_grey(grey: np.ndarray) -> np.ndarray:
    """Limited range, 16 to 235, to full: uint8 to uint8."""
    return np.rint((grey - 16.0) * (255 / 219)).clip(0, 255).astype(np.uint8)
