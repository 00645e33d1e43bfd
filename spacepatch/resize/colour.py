"""Say how a picture's numbers become RGB."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from spacepatch.errors import DecodeError

if TYPE_CHECKING:
    import av

MATRICES = {
    1: ("bt709", 1),
    4: ("fcc", 4),
    5: ("bt470bg", 5),
    6: ("smpte170m", 5),
    7: ("smpte240m", 7),
    9: ("bt2020nc", 9),
    10: ("bt2020c", 9),
}
"""AVColorSpace -> FFmpeg's name, and swscale's own number (SWS_CS_*)."""
LUMA_WEIGHTS = {
    1: (0.2126, 0.0722),
    4: (0.30, 0.11),
    5: (0.299, 0.114),
    7: (0.212, 0.087),
    9: (0.2627, 0.0593),
}
"""swscale's number of a matrix -> Kr and Kb, ITU-T H.273 table 4."""
RANGES = {"tv": 1, "pc": 2}  # FFmpeg's name -> AVColorRange
TRANSFERS = {16: "pq", 18: "hlg"}
"""AVColorTransferCharacteristic of HDR -> our word, SMPTE ST 2084 and ARIB STD-B67."""

HD_SHORT_SIDE = 720
"""Pixels of the shorter side from which on a picture is HD, for the rule `auto`."""
UNTAGGED: dict[str, Callable[[int], int]] = {
    "bt601": lambda short_side: 6,
    "bt709": lambda short_side: 1,
    "auto": lambda short_side: 1 if short_side >= HD_SHORT_SIDE else 6,
}
"""What YUV without a matrix is taken for: the coded picture's shorter side to an AVColorSpace."""


class Colour(NamedTuple):
    """How a picture's numbers become RGB."""

    matrix: str
    """FFmpeg's name; `gbr` for RGB."""
    range: str
    """`tv` (limited: black is 16, white 235) or `pc` (full)."""
    matrix_from: str
    """`tagged` by the file, or `assumed`."""
    coefficients: int
    """The matrix as swscale numbers it."""


def colour_of(frame: av.VideoFrame, *, untagged: str = "bt601") -> Colour:
    """Say how to read a picture's numbers: by its tags or, where it has none, by rule.

    YUV without a range is limited. YUV without a matrix is what `untagged` says, a word of
    `UNTAGGED`; `bt601`, whatever the size, is what swscale, the ffmpeg command, decord and
    torchcodec do. Where the transfer is PQ or HLG it is BT.2020 instead, the matrix that ITU-R
    BT.2100 gives these. The `yuvj` formats are full range by definition. RGB is full range, and so
    is grey unless tagged as limited (AV1's and HEVC's is). Grey needs no matrix and the rule does
    not touch it: it is always reported as BT.601, assumed.

    Raises:
        DecodeError: a matrix that swscale does not know, and would silently take for BT.601.
    """
    model, _ = sort_format(frame.format)
    if model == "rgb":
        return Colour("gbr", "pc", "tagged", 5)
    tag, range_tag, yuvj = frame.colorspace, frame.color_range, frame.format.name.startswith("yuvj")
    range_ = "pc" if range_tag == 2 or yuvj or (model == "gray" and range_tag != 1) else "tv"
    if model == "gray":
        return Colour("smpte170m", range_, "assumed", 5)
    matrix_from = "tagged"
    if tag in (0, 2, 3):  # RGB, unspecified, reserved: nothing for YUV
        rule = UNTAGGED[untagged]
        tag = 9 if hdr_of(frame) else rule(min(frame.height, frame.width))
        matrix_from = "assumed"
    if tag not in MATRICES:
        raise DecodeError(f"its colour matrix is AVColorSpace {tag}", reason="unsupported_colour")
    matrix, coefficients = MATRICES[tag]
    return Colour(matrix, range_, matrix_from, coefficients)


def hdr_of(frame: av.VideoFrame) -> str:
    """`pq` or `hlg` where the picture is tagged so, else empty."""
    return TRANSFERS.get(frame.color_trc, "")


def sort_format(pixels: av.VideoFormat) -> tuple[str, bool]:
    """Sort a pixel format: `yuv`, `gray` or `rgb`; whether it has alpha, as palettes may have."""
    # Asked of each picture a few times, and PyAV makes an object of each component.
    found = _sorted.get(pixels.name)
    if found is None:
        found = _sorted[pixels.name] = _sort(pixels)
    return found


_sorted: dict[str, tuple[str, bool]] = {}


def _sort(pixels: av.VideoFormat) -> tuple[str, bool]:
    components = pixels.components
    has_alpha = pixels.has_palette or any(component.is_alpha for component in components)
    if pixels.is_rgb or pixels.has_palette or pixels.name.startswith("xyz"):
        return "rgb", has_alpha
    return "yuv" if len(components) >= 3 else "gray", has_alpha
