"""Animated WebP, and AVIF with alpha or of tiles: what FFmpeg cannot read, by Pillow.

Only Pillow's two plugins for these run. GIF, APNG and all other stills go through FFmpeg.
"""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from spacepatch.data import Part, Picture, VideoInfo
from spacepatch.decode.opening import (
    MAX_PIXELS,
    MAX_SECONDS,
    TOO_LONG,
    Member,
    open_container,
    open_member,
)
from spacepatch.decode.request import Request
from spacepatch.errors import DecodeError, ProbeError

if TYPE_CHECKING:
    import av
    from PIL.AvifImagePlugin import AvifImageFile

IMAGE_CONTAINERS = frozenset({"webp", "avif"})
"""`VideoInfo.container` of what `decode_image` reads, and FFmpeg must not."""
MAX_FRAMES = 200_000
"""Frames after which an animation is taken for a bomb: 1.8 hours at 30 frames a second."""
MAX_AVIF_BYTES = 1 << 29
"""Pillow holds all of an AVIF in memory; a WebP is read frame by frame."""
SHORTEST_MS, DEFAULT_MS = 11, 100
"""A WebP's frame of less than the first is shown for the second, as in browsers: it was made for
players that need 100 ms."""

TURNS = {1: (0, False), 2: (0, True), 3: (180, False), 4: (180, True), 5: (90, True),
         6: (90, False), 7: (270, True), 8: (270, False)}  # fmt: skip
"""EXIF orientation: (degrees clockwise, then mirrored left-right) that make the picture upright."""
_CODES = {"smpte2084": 16, "arib-std-b67": 18, "bt2020": 9}


def image_kind(head: bytes) -> str:
    """Which images need `probe_image`, by the first 64 bytes: `webp` (animated), `avif`, or ""."""
    if head[:4] == b"RIFF" and head[8:16] == b"WEBPVP8X" and len(head) > 20:
        return "webp" if head[20] & 0x02 else ""  # a flag says that it is animated
    stop = min(int.from_bytes(head[:4], "big"), len(head))
    brands = {head[8:12], *(head[k : k + 4] for k in range(16, stop, 4))}
    return "avif" if head[4:8] == b"ftyp" and brands & {b"avif", b"avis"} else ""


def probe_image(
    uri: str,
    *,
    kind: str,
    offset: int | None = None,
    num_bytes: int | None = None,
    max_pixels: int = MAX_PIXELS,
    on_packet: Callable[[], None] = lambda: None,
) -> VideoInfo:
    """What `probe_video` says of other files; no picture of these is decoded.

    Times of a WebP are the sums of its frames' durations in milliseconds, of which one may be below
    `SHORTEST_MS` (`pts_repaired` is `too_fast`). A frame that is cut off is planned, and lost when
    it is decoded. Of an AVIF the sequence counts, not the still beside it, in FFmpeg's times. With
    alpha, or of tiles, its container is `avif`, for `decode_image`; else `mov`, and FFmpeg decodes
    it in all its bits.

    Args:
        kind: by `image_kind`. The others, and the errors, are those of `probe_video`.
    """
    if kind == "avif":
        where = {"offset": offset, "num_bytes": num_bytes}
        return _probe_avif(uri, max_pixels=max_pixels, on_packet=on_packet, **where)
    with open_member(uri, offset, num_bytes) as file:
        webp = _read_webp(file, max_pixels, on_packet)
    frames = webp.frames
    claimed = np.array([frame.milliseconds for frame in frames], np.int64)
    shown = np.where(claimed < SHORTEST_MS, DEFAULT_MS, claimed)
    ends = np.cumsum(shown)
    if ends[-1] > MAX_SECONDS * 1000:
        raise ProbeError(TOO_LONG, reason="too_large")
    # The canvas is transparent at first, and again where a frame was disposed of.
    alpha = webp.alpha or not frames[0].covers(webp.size) or any(f.disposes for f in frames)
    still = len(frames) == 1 and not webp.cut_off
    return VideoInfo(
        container="webp",
        codec="webp",
        stream_index=0,
        **_shape(webp.size, webp.turn[0], alpha, 0),
        colour={"matrix": "rgb", "range": "pc", "primaries": "", "transfer": "", "tagged": "yes"},
        hdr="",
        interlaced="progressive",
        time_base=Fraction(1, 1000),
        frame_pts=ends - shown,
        stop_pts=int(ends[-1]),
        num_packets=len(frames),
        num_before_key=0,
        pts_repaired="too_fast" if not still and (shown != claimed).any() else "",
        still=still,
        cut_off=webp.cut_off,
        keyframes=np.array(
            [k for k, frame in enumerate(frames) if not k or webp.replaced_by(frame)]
        ),
    )


def _probe_avif(
    uri: str, *, max_pixels: int, on_packet: Callable[[], None], **where: Any
) -> VideoInfo:
    from spacepatch.decode.probe import probe_container

    with open_container(uri, max_pixels=max_pixels, **where) as container:
        # Alpha, and each tile, are streams of their own. The sequence goes before the still beside
        # it, and colour stands before its alpha.
        order = [(video.frames, -video.index) for video in container.streams.video]
    if not order:
        raise ProbeError("no video stream", reason="no_video_stream")
    stream = str(-max(order)[1])
    info = probe_container(uri, stream=stream, max_pixels=max_pixels, on_packet=on_packet, **where)
    count = len(info.frame_pts)
    try:
        # libavif tells mode and size of the whole, if none of the file is missing.
        with open_member(uri, **where) as file:
            image = _open_avif(file)
    except _DamagedError:
        if len(order) > (1 if count == 1 else 2):
            message = "an AVIF with alpha or tiles that is cut off or damaged"
            raise ProbeError(message, reason="unreadable") from None
        return replace(info, still=count == 1)
    with image:
        size, alpha = (image.height, image.width), image.mode in ("RGBA", "LA")
        rotation, _ = _turn(image.info.get("exif", b""))
        num_images = image.n_frames
    if not alpha and size == info.coded_size:
        return replace(info, still=count == 1)
    _check_size(size, max_pixels)
    count = min(count, num_images)
    return replace(
        info,
        container="avif",
        **_shape(size, rotation, alpha, int(info.frame_pts[0])),
        colour={**info.colour, "matrix": "rgb", "range": "pc", "tagged": "yes"},
        frame_pts=info.frame_pts[:count],
        stop_pts=int([*info.frame_pts, info.stop_pts][count]),
        keyframes=info.keyframes[info.keyframes < count],
        still=count == 1,
    )


def _shape(size: tuple[int, int], rotation: int, alpha: bool, first_pts: int) -> dict[str, Any]:
    """Of a `VideoInfo`, what Pillow's pictures have in common."""
    shown = (size[1], size[0]) if rotation in (90, 270) else size
    return {
        "parts": (Part(0, first_pts, size, shown, Fraction(1)),),
        "rotation": rotation,
        "pixel_format": "rgba" if alpha else "rgb24",
        "bit_depth": 8,
        "alpha": alpha,
    }


def decode_image(request: Request) -> Iterator[Picture]:
    """`spacepatch.decode.decode_pictures` of the containers `webp` and `avif`, as viewers show
    them.

    They are whole canvases, `rgba` (straight alpha) where `info.alpha`, else `rgb24`. As of every
    decoder, a frame that fails is missing; those of a WebP that are drawn over what it left are
    flagged as corrupt. None is interlaced.
    """
    info, indices = request.info, request.indices
    places = {int(index): place for place, index in enumerate(indices)}
    draw = _draw_webp if info.container == "webp" else _draw_avif
    with open_member(request.uri, request.offset, request.num_bytes) as file:
        for index, pixels, turn, is_corrupt in draw(file, sorted(places), request.max_pixels):
            request.on_picture()
            if pixels is not None and index in places:
                frame, time = _wrap(pixels, info), int(request.pts[places[index]])
                yield Picture(frame, time, index, *turn, is_corrupt)


_Drawn = tuple[int, np.ndarray | None, tuple[int, bool], bool]
"""Index, ``(h, w, 4)`` RGBA canvas (None: failed), what makes it upright, whether it is damaged."""


def _draw_avif(file: Member, indices: list[int], max_pixels: int) -> Iterator[_Drawn]:
    with _open_avif(file) as image:
        _check_size((image.height, image.width), max_pixels)
        turn = _turn(image.info.get("exif", b""))
        for index in indices:
            pixels = None
            with suppress(_DamagedError), _pillow():
                image.seek(index)
                pixels = np.asarray(image.convert("RGBA"))
            yield index, pixels, turn, False


def _draw_webp(file: Member, indices: list[int], max_pixels: int) -> Iterator[_Drawn]:
    """All frames up to the last wanted one, from the last that needs none before it; they share one
    canvas, drawn on further after each."""
    webp = _read_webp(file, max_pixels, lambda: None)
    start = min(indices, default=0)
    while start and not webp.replaced_by(webp.frames[start]):
        start -= 1
    canvas = np.zeros((*webp.size, 4), np.uint8)
    is_corrupt = False
    for index, frame in enumerate(webp.frames[start : max(indices, default=-1) + 1], start):
        (y, x), (height, width) = frame.corner, frame.size
        place = canvas[y : y + height, x : x + width]
        # The specification forbids a frame that leaves the canvas.
        pixels = _decode_webp_frame(file, frame) if place.shape[:2] == frame.size else None
        if pixels is None:
            is_corrupt = True
        elif frame.blends:
            _draw_over(place, pixels)
        else:
            place[:] = pixels
            is_corrupt = is_corrupt and not frame.covers(webp.size)
        yield index, None if pixels is None else canvas, webp.turn, is_corrupt
        if frame.disposes:
            place[:] = 0


class _WebpFrame(NamedTuple):
    """A frame of an animation, as its ANMF chunk says; sizes are (h, w)."""

    start: int
    stop: int
    """[start, stop) bytes of the file: the frame's own chunks."""
    corner: tuple[int, int]
    """(y, x) of its rectangle on the canvas."""
    size: tuple[int, int]
    milliseconds: int
    blends: bool
    """Drawn over the canvas; else in its place."""
    disposes: bool
    """Its rectangle is cleared before the next frame."""

    def covers(self, canvas: tuple[int, int]) -> bool:
        return self.corner == (0, 0) and self.size == canvas


class _Webp(NamedTuple):
    size: tuple[int, int]
    alpha: bool
    turn: tuple[int, bool]
    frames: list[_WebpFrame]
    cut_off: bool

    def replaced_by(self, frame: _WebpFrame) -> bool:
        """Whether nothing of the frames before it shows."""
        return frame.covers(self.size) and not frame.blends


def _read_webp(file: Member, max_pixels: int, on_packet: Callable[[], None]) -> _Webp:
    """Walk the chunks to the end of the file, whatever the size in its head: programs that write
    to a pipe cannot fill it in."""
    head = file.read(30)
    if len(head) < 30 or image_kind(head) != "webp":
        raise ProbeError("an animated WebP that is cut off in its header", reason="unreadable")
    width, height = (int.from_bytes(head[at : at + 3], "little") + 1 for at in (24, 27))
    _check_size((height, width), max_pixels)
    frames: list[_WebpFrame] = []
    turn, cut_off = TURNS[1], False
    for kind, start, stop, is_whole in _chunks(file, 12, file.seek(0, io.SEEK_END)):
        cut_off = not is_whole
        if kind == b"ANMF" and len(anmf := file.read(16)) == 16:
            x, y, w, h, time = (int.from_bytes(anmf[k : k + 3], "little") for k in range(0, 15, 3))
            blends, disposes = not anmf[15] & 0x02, bool(anmf[15] & 0x01)
            where = (2 * y, 2 * x), (h + 1, w + 1)
            frames.append(_WebpFrame(start + 16, stop, *where, time, blends, disposes))
            on_packet()
            if len(frames) > MAX_FRAMES:
                message = f"more than {MAX_FRAMES} frames; cut it into shorter ones"
                raise ProbeError(message, reason="too_large")
        elif kind == b"EXIF":
            turn = _turn(file.read(min(stop - start, 1 << 16)))
    if not frames:
        raise ProbeError("an animated WebP without a frame: cut off", reason="unreadable")
    return _Webp((height, width), bool(head[20] & 0x10), turn, frames, cut_off)


def _chunks(file: Member, position: int, end: int) -> Iterator[tuple[bytes, int, int, bool]]:
    """(name, start, stop, whether it is all there) of RIFF chunks; the file stands at `start`."""
    while position + 8 <= end:
        file.seek(position)
        head = file.read(8)
        if len(head) < 8:
            return
        kind, length = struct.unpack("<4sI", head)
        stop = position + 8 + length
        yield kind, position + 8, min(stop, end), stop <= end
        position = stop + length % 2


def _draw_over(canvas: np.ndarray, pixels: np.ndarray) -> None:
    """Draw ``(h, w, 4)`` RGBA pixels over a canvas, in place; alpha is straight in both.

    "Alpha-blending" of the WebP container specification, rounded to nearest.
    """
    above, below = pixels[..., 3:].astype(np.uint32), canvas[..., 3:].astype(np.uint32)
    part, rest = above * 255, below * (255 - above)
    whole = np.maximum(part + rest, 1)  # alpha of the result, times 255
    canvas[..., :3] = (pixels[..., :3] * part + canvas[..., :3] * rest + whole // 2) // whole
    canvas[..., 3:] = (part + rest + 127) // 255


def _decode_webp_frame(file: Member, frame: _WebpFrame) -> np.ndarray | None:
    """``(h, w, 4)`` RGBA pixels of one frame, from a still WebP made of it; None: damaged."""
    from PIL.WebPImagePlugin import WebPImageFile

    (height, width), body, alpha = frame.size, b"", False
    limit = 8 * height * width + (1 << 16)  # twice the bytes of the pixels themselves
    for kind, start, stop, is_whole in _chunks(file, frame.start, frame.stop):
        if kind in (b"ALPH", b"VP8 ", b"VP8L"):
            if not is_whole or len(body) + stop - start > limit:
                return None
            content = file.read(stop - start)
            alpha |= kind == b"ALPH"  # lossless pictures say it themselves
            body += struct.pack("<4sI", kind, len(content)) + content + b"\0" * (len(content) % 2)
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    riff = b"RIFF", 22 + len(body), b"WEBP", b"VP8X", 10, 16 * alpha
    still = io.BytesIO(struct.pack("<4sI4s4sIB3x", *riff) + size + body)
    with suppress(_DamagedError), _pillow(), WebPImageFile(still) as image:
        return np.asarray(image.convert("RGBA"))
    return None


def _open_avif(file: Member) -> AvifImageFile:
    """An AVIF with its boxes read; nothing is decoded."""
    from PIL.AvifImagePlugin import AvifImageFile

    content = file.read(MAX_AVIF_BYTES + 1)
    if len(content) > MAX_AVIF_BYTES:
        message = f"an AVIF of more than {MAX_AVIF_BYTES} bytes; make it a video"
        raise ProbeError(message, reason="too_large")
    with _pillow():
        return AvifImageFile(io.BytesIO(content))


class _DamagedError(DecodeError):
    """Pillow cannot make a picture of the bytes."""


@contextmanager
def _pillow() -> Iterator[None]:
    """Where Pillow's settings and errors meet ours: no limit of pixels (sizes are checked before),
    one thread for libavif. Its bytes come from memory: an OSError is its word for damage."""
    from PIL import AvifImagePlugin, Image

    before = Image.MAX_IMAGE_PIXELS, AvifImagePlugin.DEFAULT_MAX_THREADS
    Image.MAX_IMAGE_PIXELS, AvifImagePlugin.DEFAULT_MAX_THREADS = None, 1
    try:
        with warnings.catch_warnings(action="ignore"):  # of damaged EXIF data
            yield
    except MemoryError:
        raise DecodeError("no memory left for Pillow", reason="out_of_memory") from None
    except (ArithmeticError, EOFError, LookupError, OSError, RuntimeError, SyntaxError, TypeError,
            ValueError, struct.error):  # fmt: skip
        raise _DamagedError("Pillow cannot decode it: damaged", reason="unreadable") from None
    finally:
        Image.MAX_IMAGE_PIXELS, AvifImagePlugin.DEFAULT_MAX_THREADS = before


def _turn(exif: bytes) -> tuple[int, bool]:
    """How the orientation in EXIF data makes a picture upright, as in `TURNS`."""
    from PIL import Image

    tags = Image.Exif()
    with suppress(_DamagedError), _pillow():
        tags.load(exif)
        return TURNS.get(tags.get(0x112, 1), TURNS[1])
    return TURNS[1]


def _wrap(pixels: np.ndarray, info: VideoInfo) -> av.VideoFrame:
    """A frame with a copy of ``(h, w, 4)`` pixels, without alpha where `info` has none."""
    import av

    name, channels = ("rgba", 4) if info.alpha else ("rgb24", 3)
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels[..., :channels]), format=name)
    frame.colorspace, frame.color_range = 0, 2  # RGB, full
    frame.color_trc = _CODES.get(info.colour["transfer"], 2)
    frame.color_primaries = _CODES.get(info.colour["primaries"], 2)
    return frame


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    if size[0] * size[1] > max_pixels:
        message = f"pictures of {size[1]} x {size[0]} pixels; --max-pixels allows {max_pixels}"
        raise ProbeError(message, reason="too_large")
