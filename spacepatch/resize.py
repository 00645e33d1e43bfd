"""Choose a size at native aspect ratio; make frames from pictures."""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from spacepatch.data import Picture
from spacepatch.errors import DecodeError, SourceError

if TYPE_CHECKING:
    import av
    from av.video.reformatter import VideoReformatter

Pair = tuple[int, int]
"""(h, w)."""

NAFLEX_EPSILON = 1e-5
"""Where the search of `fit_tokens_per_frame` stops, and the ratio at which it gives up: timm's."""
MAX_ASPECT_RATIO = 200
"""Thinner pictures have no size by the rules of Qwen2-VL and Qwen3-VL."""


def fit_size(
    size: Pair, *, patch: Pair, policy: str, value: int | Pair | None, upscale: bool = False
) -> Pair:
    """Choose the size of a frame, near the aspect ratio of its picture.

    Args:
        size: display size of the picture (upright, square pixels), in pixels.
        patch: size of a patch in pixels; each side of the result is a multiple, and one at least.
        policy: a word of `SIZE_POLICIES`.
        value: what the policy takes: N, (MIN, MAX), or None for `native`.
        upscale: may enlarge the picture. Without it no side goes beyond the picture's own,
            rounded up to the next multiple of the patch.

    Raises:
        SourceError: no size meets the policy (reason `resize_impossible`).
    """
    return SIZE_POLICIES[policy](size, patch=patch, value=value, upscale=upscale)


def fit_tokens_per_frame(size: Pair, *, patch: Pair, value: int, upscale: bool = False) -> Pair:
    """The largest size of at most `value` patches: NaFlex, as in timm and SigLIP 2.

    A search for the ratio in the float64 steps of timm's `get_image_size_for_seq`; sides round up.
    """

    def scale(ratio: float) -> Pair:
        h, w = (max(math.ceil(n * ratio / p), 1) * p for n, p in zip(size, patch, strict=True))
        return h, w

    def fits(ratio: float) -> bool:
        h, w = scale(ratio)
        return (h // patch[0]) * (w // patch[1]) <= value

    if not upscale and fits(1.0):
        return scale(1.0)
    # From 0 to 100 even without upscaling: another start would end at another ratio than timm's.
    low, high = NAFLEX_EPSILON / 10, 100.0
    while high - low >= NAFLEX_EPSILON:
        middle = (low + high) / 2
        if fits(middle):
            low = middle
        else:
            high = middle
    if low <= NAFLEX_EPSILON:
        raise _impossible(size, f"at most {value} patches of {patch[0]}x{patch[1]} a frame")
    return scale(low)


def fit_pixels(size: Pair, *, patch: Pair, value: Pair, upscale: bool = False) -> Pair:
    """A size of MIN to MAX pixels: `smart_resize` of Qwen2-VL, with the patch as its factor.

    Where that formula leaves the budget although some size meets it (a side held at one patch, or
    rounded up), the longer side loses patches until it does.

    Args:
        value: (MIN, MAX) pixels of a frame. MIN may be missed without `upscale`, MAX never is.
    """
    (patch_h, patch_w), largest = patch, value[1]
    if max(size) / min(size) > MAX_ASPECT_RATIO or largest < patch_h * patch_w:
        wish = f"{value[0]} to {largest} pixels a frame in patches of {patch_h}x{patch_w}"
        raise _impossible(size, f"{wish}, up to {MAX_ASPECT_RATIO}:1")
    h, w = _smart_resize(size, patch=patch, frames=(1, 1), budget=value, upscale=upscale)
    # 31x639, patch 28, MAX 7840: the formula says 28x392, which is 10976 pixels.
    while h * w > largest:
        if w == patch_w or (h >= w and h > patch_h):
            h -= patch_h
        else:
            w -= patch_w
    return h, w


def fit_side(
    size: Pair, *, which: Callable[[Pair], int], patch: Pair, value: int, upscale: bool = False
) -> Pair:
    """Bring the shorter (`which=min`) or longer (`max`) side to `value` pixels, to its patch.

    The other side keeps the aspect ratio. Both are rounded half up, one patch at least.
    """
    length = which(size)
    side = size.index(length)
    if value > length and not upscale:
        return fit_native(size, patch=patch)
    target = _to_multiple(value, patch[side])
    if not upscale:
        length = max(length, target)  # the side itself, rounded up, is ratio 1
    other = _to_multiple(size[1 - side], patch[1 - side], numerator=target, denominator=length)
    return (target, other) if side == 0 else (other, target)


def fit_native(size: Pair, *, patch: Pair, value: None = None, upscale: bool = False) -> Pair:
    """No scaling: each side to the nearest multiple of the patch, half up, one patch at least."""
    return _to_multiple(size[0], patch[0]), _to_multiple(size[1], patch[1])


SIZE_POLICIES: dict[str, Callable[..., Pair]] = {
    "max-tokens-per-frame": fit_tokens_per_frame,
    "pixels": fit_pixels,
    "short-side": functools.partial(fit_side, which=min),
    "long-side": functools.partial(fit_side, which=max),
    "native": fit_native,
}
"""How a frame's size is chosen; called as `fit_size` does."""


def smart_resize_video(
    size: Pair, *, num_frames: int, tubelet_size: int, patch: int, min_pixels: int, max_pixels: int
) -> Pair:
    """The size of a whole video's frames: `smart_resize` of Qwen3-VL's video processor.

    For presets that promise a peer's sizes: it enlarges, and it can miss its own budget, the
    volume of `min_pixels` to `max_pixels` (frames times pixels). `patch` is the formula's factor.

    Raises:
        SourceError: too few frames, or too thin a picture (reason `resize_impossible`).
    """
    if num_frames < tubelet_size or max(size) / min(size) > MAX_ASPECT_RATIO:
        wish = f"{num_frames} frames in tubelets of {tubelet_size}, up to {MAX_ASPECT_RATIO}:1"
        raise _impossible(size, wish)
    if min(size) < patch:
        enlarge = max(patch / size[0], patch / size[1])
        size = int(size[0] * enlarge), int(size[1] * enlarge)
    frames = num_frames, round(num_frames / tubelet_size) * tubelet_size
    budget = min_pixels, max_pixels
    return _smart_resize(size, patch=(patch, patch), frames=frames, budget=budget, upscale=True)


def aspect_error(display_size: Pair, size: Pair) -> float:
    """How much resizing distorts: max(r, 1/r) - 1, with r = (w / h) / (W / H).

    0 is no distortion, 0.02 means that one axis is stretched 2 % more than the other.
    """
    ratio = (size[1] * display_size[0]) / (size[0] * display_size[1])
    return max(ratio, 1 / ratio) - 1


def _smart_resize(size: Pair, *, patch: Pair, frames: Pair, budget: Pair, upscale: bool) -> Pair:
    """What the `smart_resize`s of Qwen2-VL (of one frame) and Qwen3-VL have in common.

    `frames` is their true number, and the one that is held against `budget`, (smallest, largest)
    volume. Both round half to even, as Python does, and may so reach a side of 0 on the way.
    """
    num_pixels, (smallest, largest) = frames[0] * size[0] * size[1], budget
    h, w = (round(n / p) * p for n, p in zip(size, patch, strict=True))
    if frames[1] * h * w > largest:
        shrink = math.sqrt(num_pixels / largest)
        # Below 1 where only the rounding broke the budget: 15x1000, patch 10, largest 19000.
        shrink = shrink if upscale else max(shrink, 1.0)
        h, w = (math.floor(n / shrink / p) * p for n, p in zip(size, patch, strict=True))
    elif frames[1] * h * w < smallest:
        enlarge = math.sqrt(smallest / num_pixels)
        enlarge = enlarge if upscale else min(enlarge, 1.0)
        h, w = (math.ceil(n * enlarge / p) * p for n, p in zip(size, patch, strict=True))
    return max(h, patch[0]), max(w, patch[1])


def _to_multiple(length: int, patch: int, *, numerator: int = 1, denominator: int = 1) -> int:
    """`length` x numerator / denominator to the nearest multiple of `patch`, half up, not 0."""
    unit = denominator * patch
    return max((2 * length * numerator + unit) // (2 * unit), 1) * patch


def _impossible(size: Pair, wish: str) -> SourceError:
    picture = f"a picture of {size[0]}x{size[1]} (h x w)"
    return SourceError(f"{picture} has no size for {wish}", reason="resize_impossible")


# swscale's flags, from libswscale/swscale.h: numbers, because PyAV loads where it is used.
FULL_QUALITY = 0x2000 | 0x4000 | 0x40000 | 0x80000
"""FULL_CHR_H_INT, FULL_CHR_H_INP, ACCURATE_RND, BITEXACT: all the chroma, everywhere the same."""
BICUBIC = 4 | FULL_QUALITY
AREA = 32 | FULL_QUALITY
PLAIN = 2
"""BILINEAR and nothing else: the full-size RGB that PyAV, decord and torchcodec make by default."""

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
RANGES = {"tv": 1, "pc": 2}  # FFmpeg's name -> AVColorRange


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


def make_frame(
    picture: Picture, *, size: Pair, resampler: str = "bicubic", out: np.ndarray | None = None
) -> np.ndarray:
    """Make an upright RGB frame of a picture, composited on black where it has alpha.

    FFmpeg (7.1 and later) puts the chroma samples where the picture says that they are, and scales
    the two fields of an interlaced picture apart.

    Args:
        size: of the frame, in pixels.
        resampler: a word of `RESAMPLERS`.
        out: ``(h, w, 3)`` uint8 to write to, a slice of an arena for example.

    Returns:
        ``(h, w, 3)`` uint8: `out`, or an array of its own, perhaps strided.

    Raises:
        DecodeError: the picture's colours cannot be turned to RGB (reason `unsupported_colour`).
    """
    frame = RESAMPLERS[resampler](picture, size)
    if out is None:
        return frame
    if out.shape != frame.shape:
        raise ValueError(f"out has shape {out.shape}, the frame {frame.shape}")
    # By channels where it is turned by 90 degrees: 0.4 instead of 1.0 ms for 640x360.
    for part in range(3) if picture.rotation % 180 else (slice(None),):
        np.copyto(out[..., part], frame[..., part], casting="no")
    return out


def colour_of(frame: av.VideoFrame) -> Colour:
    """Say how to read a picture's numbers: by its tags or, where it has none, by rule.

    YUV without a matrix is BT.601 whatever its size, and without a range limited: as swscale, the
    ffmpeg command, decord and torchcodec have it. The `yuvj` formats are full range by definition.
    RGB is full range, and so is grey unless tagged as limited (AV1's and HEVC's is).

    Raises:
        DecodeError: a matrix that swscale does not know, and would silently take for BT.601.
    """
    model, _ = _sort_format(frame.format)
    if model == "rgb":
        return Colour("gbr", "pc", "tagged", 5)
    tag, range_tag, yuvj = frame.colorspace, frame.color_range, frame.format.name.startswith("yuvj")
    range_ = "pc" if range_tag == 2 or yuvj or (model == "gray" and range_tag != 1) else "tv"
    if model == "gray" or tag in (0, 2, 3):  # RGB, unspecified, reserved: nothing for YUV
        return Colour("smpte170m", range_, "assumed", 5)
    if tag not in MATRICES:
        raise DecodeError(f"its colour matrix is AVColorSpace {tag}", reason="unsupported_colour")
    matrix, coefficients = MATRICES[tag]
    return Colour(matrix, range_, "tagged", coefficients)


def _through_swscale(picture: Picture, size: Pair, *, flags: int) -> np.ndarray:
    """Colour and scale in swscale, then turn the small frame: a view."""
    size = size if picture.rotation % 180 == 0 else (size[1], size[0])
    frame = np.rot90(_make_rgb(picture.frame, size, flags), -picture.rotation // 90)
    return frame[:, ::-1] if picture.mirrored else frame


def _through_torch(picture: Picture, size: Pair, *, mode: str) -> np.ndarray:
    """Full-size upright RGB as decoders make it, then torch's uint8 kernel, as torchvision does."""
    import torch

    full_size = picture.frame.height, picture.frame.width
    full_size = full_size if picture.rotation % 180 == 0 else (full_size[1], full_size[0])
    full = np.ascontiguousarray(_through_swscale(picture, full_size, flags=PLAIN))
    batch = torch.from_numpy(full).permute(2, 0, 1)[None]
    small = torch.nn.functional.interpolate(batch, size=size, mode=mode, antialias=True)
    return np.asarray(small[0].permute(1, 2, 0))


RESAMPLERS: dict[str, Callable[[Picture, Pair], np.ndarray]] = {
    "bicubic": functools.partial(_through_swscale, flags=BICUBIC),
    "area": functools.partial(_through_swscale, flags=AREA),
    "torch-bicubic": functools.partial(_through_torch, mode="bicubic"),
    "torch-bilinear": functools.partial(_through_torch, mode="bilinear"),
}
"""How a picture becomes a frame: an upright ``(h, w, 3)`` uint8 array of the given size."""


def _make_rgb(frame: av.VideoFrame, size: Pair, flags: int) -> np.ndarray:
    """Turn a decoded frame to RGB of `size`, not yet upright. Returns ``(h, w, 3)`` uint8."""
    model, has_alpha = _sort_format(frame.format)
    colour = colour_of(frame)
    if model != "yuv" or has_alpha:
        return _scale_rgb(frame, size, flags, colour)
    if size[0] * size[1] < frame.height * frame.width and flags != PLAIN:
        # Planes first, then the small picture to RGB: 2.6 ms for 1080p to 640x360, not 4.6. With
        # 16 bits between, equal within 1 level, but where a full-range highlight rings past white.
        frame = _convert(frame, size, "yuv444p16le", flags, colour, colour.range)
    return _view_plane(_convert(frame, size, "rgb24", flags, colour, "pc"), channels=3)


def _scale_rgb(frame: av.VideoFrame, size: Pair, flags: int, colour: Colour) -> np.ndarray:
    """Composite on black at full size, then scale R, G and B as the planes of a YUV 4:4:4 picture.

    To composite first is to scale premultiplied colour: what hides under alpha 0 bleeds nowhere.
    swscale would scale RGB by way of YUV, slower and up to 7 levels off.
    """
    import av

    model, has_alpha = _sort_format(frame.format)
    name, channels = ("rgba", 4) if has_alpha else ("rgb24", 3)
    full = _convert(frame, (frame.height, frame.width), name, flags, colour, "pc")
    rgba = _view_plane(full, channels=channels)
    planar = av.VideoFrame(frame.width, frame.height, "yuv444p")
    for channel in range(3):
        plane = rgba[..., channel]
        if has_alpha:
            plane = (plane * rgba[..., 3].astype(np.uint16) + 127) // 255
        _view_plane(planar, channel)[..., 0] = plane
    # Full range on both sides: the numbers are scaled, and nothing else.
    small = _convert(planar, size, "yuv444p", flags, colour._replace(range="pc"), "pc")
    scaled = np.concatenate([_view_plane(small, channel) for channel in range(3)], axis=2)
    if model == "gray" and colour.range == "tv":  # swscale takes all grey for full range
        scaled = np.rint((scaled - 16.0) * (255 / 219)).clip(0, 255).astype(np.uint8)
    return scaled


def _convert(
    frame: av.VideoFrame, size: Pair, name: str, flags: int, colour: Colour, range_out: str
) -> av.VideoFrame:
    """Run swscale once: scale to `size` and turn to the pixel format `name`."""
    import av

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
        message = f"swscale cannot make {name} of {frame.format.name}"
        raise DecodeError(message, reason="unsupported_colour") from error


@functools.lru_cache(maxsize=16)
def _make_context(*step: object) -> VideoReformatter:
    """One swscale context for equal steps: a new one costs 0.4 - 1 ms."""
    from av.video.reformatter import VideoReformatter

    return VideoReformatter()


def _sort_format(pixels: av.VideoFormat) -> tuple[str, bool]:
    """Sort a pixel format: `yuv`, `gray` or `rgb`; whether it has alpha, as palettes may have."""
    components = pixels.components
    has_alpha = pixels.has_palette or any(component.is_alpha for component in components)
    if pixels.is_rgb or pixels.has_palette or pixels.name.startswith("xyz"):
        return "rgb", has_alpha
    return "yuv" if len(components) >= 3 else "gray", has_alpha


def _view_plane(frame: av.VideoFrame, index: int = 0, *, channels: int = 1) -> np.ndarray:
    """View a plane as ``(h, w, channels)`` uint8; the view keeps the frame's buffer alive."""
    plane = frame.planes[index]
    rows = np.frombuffer(memoryview(plane), np.uint8).reshape(frame.height, -1)
    if plane.line_size < 0:
        rows = rows[::-1]  # bottom-up, as raw video may be: the buffer starts at its lowest address
    return rows[:, : frame.width * channels].reshape(frame.height, frame.width, channels)
