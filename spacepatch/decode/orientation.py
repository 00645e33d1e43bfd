"""Which way is up: display matrices, EXIF, and the size of the upright picture."""

from __future__ import annotations

import functools
import math
import re
import struct
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from spacepatch.decode.opening import open_container, raise_unless_damage
from spacepatch.errors import DecodeError, ProbeError

if TYPE_CHECKING:
    from av.container import InputContainer

MOST_DEGREES_OFF = 1.0
"""From a right angle that is meant: as the ffmpeg program has it."""
_SLANTED = (
    "its pictures are to be turned by {:.0f} degrees; only right angles are: re-encode it upright"
)


MOST_PIXEL_ASPECT = 200
"""Wider or narrower pixels than this are a slip of a header, not a picture."""


def sane_ratio(ratio: Fraction | None) -> Fraction:
    """A pixel aspect ratio; 1 where there is none, or none that can be meant."""
    if not ratio or not 1 <= max(ratio, 1 / ratio) <= MOST_PIXEL_ASPECT:
        return Fraction(1)
    return ratio


@functools.lru_cache(maxsize=64)
def display_size(
    coded_size: tuple[int, int], *, rotation: int, pixel_aspect_ratio: Fraction
) -> tuple[int, int]:
    """(h, w) of the upright picture with square pixels: width x SAR, then the rotation."""
    height, width = coded_size
    if pixel_aspect_ratio > 0:
        width = max(1, round(width * pixel_aspect_ratio))
    return (width, height) if rotation in (90, 270) else (height, width)


def rotation_in_header(container: InputContainer, index: int) -> int:
    """Degrees clockwise that make the stream upright, from the container's display matrix.

    PyAV shows the matrix on decoded frames only; the text of av_dump_format has its angle.

    Raises:
        ProbeError: an angle between the right ones (reason `unsupported_rotation`).
    """
    import av

    av.logging.set_level(av.logging.INFO)
    try:
        text = container.dumps_format()  # type: ignore[attr-defined]  # missing in PyAV's stubs
    finally:
        av.logging.set_level(None)
    blocks = re.split(r"^  Stream #0:(\d+)", text, flags=re.MULTILINE)
    block = dict(zip(blocks[1::2], blocks[2::2], strict=False)).get(str(index), "")
    match = re.search(r"^      Display Matrix: rotation of (-?[\d.]+) degrees", block, re.MULTILINE)
    if match is None:
        return 0
    angle = -float(match[1]) % 360  # FFmpeg's is counter-clockwise
    if abs(angle - round(angle / 90) * 90) > MOST_DEGREES_OFF:
        raise ProbeError(_SLANTED.format(angle), reason="unsupported_rotation")
    return round(angle / 90) * 90 % 360


def rotation_in_exif(uri: str, offset: int | None, num_bytes: int | None) -> int:
    """Degrees clockwise that make a photo upright: FFmpeg reads EXIF when it decodes."""
    from av.error import FFmpegError

    with open_container(uri, offset=offset, num_bytes=num_bytes) as container:
        for packet in container.demux(video=0):
            if b"exif" not in bytes(packet).lower() and container.format.name != "tiff_pipe":
                return 0
            try:
                return next((orientation_of(frame)[0] for frame in packet.decode()), 0)
            except FFmpegError as error:
                raise_unless_damage(error, ProbeError)
                return 0
    return 0


def orientation_of(frame: Any) -> tuple[int, bool]:
    """(degrees clockwise, then mirrored left-right) that make the picture upright.

    The display matrix maps the picture onto the screen, y downwards: (x, y) goes to
    (a x + c y, b x + d y), in 16.16 fixed point (FFmpeg's display.h). Only directions count: what
    it scales is the pixel aspect ratio's part.

    Raises:
        DecodeError: an angle between the right ones (reason `unsupported_rotation`).
    """
    from av.sidedata.sidedata import Type

    # PyAV fails on side data that its list of kinds does not have, such as a JPEG's EXIF.
    Type._missing_ = classmethod(_make_kind)  # type: ignore[assignment]
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return 0, False
    matrix = struct.unpack("9i", bytes(data)[:36])
    a, b, c, d = matrix[0], matrix[1], matrix[3], matrix[4]
    if not (a or b) or not (c or d):
        return 0, False  # it maps everything onto a line: nobody meant that
    for axis in ((a, b), (c, d)):
        if min(map(abs, axis)) > math.tan(math.radians(MOST_DEGREES_OFF)) * max(map(abs, axis)):
            angle = math.degrees(math.atan2(b, a)) % 360
            raise DecodeError(_SLANTED.format(angle), reason="unsupported_rotation")
    directions = _direction(a, b) + _direction(c, d)
    for rotation, (cos, sin) in enumerate(((1, 0), (0, 1), (-1, 0), (0, -1))):
        # Clockwise on a screen: (x, y) goes to (cos x - sin y, sin x + cos y).
        if directions == (cos, sin, -sin, cos):
            return rotation * 90, False
        # The same with x negated at the end.
        if directions == (-cos, sin, sin, cos):
            return rotation * 90, True
    return 0, False


def _direction(x: int, y: int) -> tuple[int, int]:
    """The nearest of the four directions along an axis."""
    if abs(x) > abs(y):
        return (1 if x > 0 else -1), 0
    return 0, (1 if y > 0 else -1)


def _make_kind(kinds: Any, value: int) -> Any:
    kind = object.__new__(kinds)
    kind._name_, kind._value_ = f"KIND_{value}", value
    return kind
