"""Choose a size at native aspect ratio: pure functions from integers to integers."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from fractions import Fraction

from spacepatch.errors import SourceError

Pair = tuple[int, int]
"""(h, w)."""

NAFLEX_EPSILON = 1e-5
"""Where the search of `fit_tokens_per_frame` stops, and the ratio at which it gives up: timm's."""
MAX_ASPECT_RATIO = 200
"""Thinner pictures have no size by the rules of Qwen2-VL and Qwen3-VL."""


def fit_size(
    size: Pair,
    *,
    patch: Pair,
    policy: str,
    value: int | Fraction | Pair | None,
    upscale: bool = False,
    num_frames: int = 1,
    tubelet_size: int = 1,
) -> Pair:
    """Choose the size of a frame, near the aspect ratio of its picture.

    Args:
        size: display size of the picture (upright, square pixels), in pixels.
        patch: size of a patch in pixels; each side of the result is a multiple, and one at least.
        policy: a word of `SIZE_POLICIES`.
        value: what the policy takes: N, (MIN, MAX), or None for `native`.
        upscale: may enlarge the picture. Without it no side goes beyond the picture's own,
            rounded up to the next multiple of the patch.
        num_frames: frames of the clip, before its tail is filled; for `video-pixels`.
        tubelet_size: frames of a tubelet; for `video-pixels`.

    Raises:
        SourceError: no size meets the policy (reason `resize_impossible`).
    """
    clip = {"num_frames": num_frames, "tubelet_size": tubelet_size}
    more = clip if policy == "video-pixels" else {}
    return SIZE_POLICIES[policy](size, patch=patch, value=value, upscale=upscale, **more)


@functools.lru_cache(maxsize=4096)
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
        raise impossible(size, f"at most {value} patches of {patch[0]}x{patch[1]} a frame")
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
        raise impossible(size, f"{wish}, up to {MAX_ASPECT_RATIO}:1")
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


def fit_resolution(
    size: Pair, *, patch: Pair, value: int | Fraction, upscale: bool = False
) -> Pair:
    """`value` squared pixels at native aspect ratio: NaViT's resolutions (arXiv 2307.06304, 3.3).

    Each side is rounded half up, one patch at least.
    """
    area, native = Fraction(value) ** 2, Fraction(size[0] * size[1])
    return fit_area(size, patch=patch, area=area if upscale else min(area, native))


def fit_area(ratio: Pair, *, patch: Pair, area: Fraction) -> Pair:
    """The size of `area` pixels whose sides are as `ratio`, each to its nearest multiple."""
    h, w = (
        # floor(2 x / p), with x = sqrt(area n / other), in integers: no rounding of a root.
        (math.isqrt(4 * area.numerator * n // (area.denominator * other * p * p)) + 1) // 2
        for n, other, p in zip(ratio, ratio[::-1], patch, strict=True)
    )
    return max(h, 1) * patch[0], max(w, 1) * patch[1]


def smart_resize_video(
    size: Pair,
    *,
    patch: Pair,
    value: Pair,
    upscale: bool = False,
    num_frames: int,
    tubelet_size: int,
) -> Pair:
    """A size for a whole clip: `smart_resize` of Qwen3-VL's video processor.

    Exactly theirs with `upscale`, so it can miss its own budget.

    Args:
        patch: the formula's factor, in pixels.
        value: (MIN, MAX) volume: frames times pixels.
        num_frames: before the tail is filled.

    Raises:
        SourceError: too few frames, or too thin a picture (reason `resize_impossible`).
    """
    enlarged = size
    if upscale and (size[0] < patch[0] or size[1] < patch[1]):
        enlarge = max(patch[0] / size[0], patch[1] / size[1])
        enlarged = int(size[0] * enlarge), int(size[1] * enlarge)
    if num_frames < tubelet_size or max(enlarged) / min(enlarged) > MAX_ASPECT_RATIO:
        wish = f"{num_frames} frames in tubelets of {tubelet_size}, up to {MAX_ASPECT_RATIO}:1"
        raise impossible(size, wish)
    frames = num_frames, round(num_frames / tubelet_size) * tubelet_size
    return _smart_resize(enlarged, patch=patch, frames=frames, budget=value, upscale=upscale)


SIZE_POLICIES: dict[str, Callable[..., Pair]] = {
    "max-tokens-per-frame": fit_tokens_per_frame,
    "pixels": fit_pixels,
    "video-pixels": smart_resize_video,
    "resolution": fit_resolution,
    "short-side": functools.partial(fit_side, which=min),
    "long-side": functools.partial(fit_side, which=max),
    "native": fit_native,
}
"""How a frame's size is chosen; called as `fit_size` does."""


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


def impossible(size: Pair, wish: str) -> SourceError:
    """The loss of a picture that no size meets (reason `resize_impossible`)."""
    picture = f"a picture of {size[0]}x{size[1]} (h x w)"
    return SourceError(f"{picture} has no size for {wish}", reason="resize_impossible")
