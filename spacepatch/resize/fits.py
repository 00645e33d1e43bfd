"""Fit a picture into a frame: scale it whole, then cut the frame out of it or pad it."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import isqrt

import numpy as np

from spacepatch.data import Fit
from spacepatch.resize.sizes import MAX_ASPECT_RATIO, Pair, fit_area, fit_size, impossible

FITS = ("stretch", "crop", "pad")
"""How a picture meets a size of another aspect ratio: its axes scaled apart; scaled until it covers
the size, and cut in the middle; or scaled until it lies inside, with zeros at the bottom and right.
"""


def fit_frame(
    display_size: Pair,
    *,
    patch: Pair,
    policy: str,
    value: int | Fraction | Pair | None,
    upscale: bool = False,
    fit: str = "stretch",
    crop: Pair | None = None,
    buckets: Sequence[Pair] = (),
    share: Fraction = Fraction(1),
    place: tuple[float, float] = (0.5, 0.5),
    num_frames: int = 1,
    tubelet_size: int = 1,
) -> Fit:
    """Choose how a picture becomes a frame: pure functions of integers, but for `place`.

    Args:
        display_size: (h, w) of the picture, upright with square pixels.
        patch: what the frame's sides are multiples of, in pixels.
        policy: a word of `SIZE_POLICIES`, `value` what it takes.
        upscale: may enlarge the picture. Without it, what is too small is not scaled: `crop` then
            cuts the most whole patches of it, `pad` pads it.
        fit: a word of `FITS`. With `native`, which does not scale, `crop` leaves out what fills no
            patch and `pad` completes it.
        crop: only with `short-side`: cut so much out of the middle of a picture whose shorter side
            is `value`, as the processors of VideoMAE, V-JEPA 2 and ViViT do.
        buckets: only with `resolution`: aspect ratios as (h, w), of which the picture's nearest, by
            the logarithm, is taken at `value` squared pixels.
        share: of the picture's area, at its aspect ratio: a window that is fitted as if it were the
            picture. Where it is padded, the frame shows what lies beside the window.
        place: of that window, down and to the right, in [0, 1).
        num_frames: frames of the clip, before its tail is filled; for `video-pixels`.
        tubelet_size: frames of a tubelet; for `video-pixels`.

    Raises:
        SourceError: no size meets the policy (reason `resize_impossible`).
    """
    if fit not in FITS:
        raise ValueError(f"fit is {fit!r}, not one of {', '.join(FITS)}")
    window = _shrink(display_size[0], share), _shrink(display_size[1], share)
    if crop is not None:
        if policy != "short-side" or not isinstance(value, int):
            raise ValueError(f"crop is for the policy short-side, not {policy}")
        made = _crop_short_side(window, value, crop=crop, patch=patch, upscale=upscale)
    else:
        if buckets:
            if policy != "resolution" or not isinstance(value, int | Fraction):
                raise ValueError(f"buckets are for the policy resolution, not {policy}")
            target = _fill_bucket(
                window, value, buckets=buckets, patch=patch, upscale=upscale, fit=fit
            )
        elif policy == "native" and fit != "stretch":
            target, upscale = _whole_patches(window, patch), False
        else:
            target = fit_size(
                window,
                patch=patch,
                policy=policy,
                value=value,
                upscale=upscale,
                num_frames=num_frames,
                tubelet_size=tubelet_size,
            )
        made = _meet(window, target, patch=patch, upscale=upscale, fit=fit)
    return made if share == 1 else _find_window(made, window, display_size, place)


def place_frame(frame: np.ndarray, fit: Fit) -> np.ndarray:
    """Cut a frame out of a scaled picture, or pad it with zeros.

    Args:
        frame: ``(h, w, C)`` of `fit.scaled`.

    Returns:
        ``(h, w, C)`` of `fit.size`: a view of `frame`, or where it is padded an array of its own.
    """
    top, left, height, width = fit.crop or (0, 0, *fit.scaled)
    shown = frame[top : top + height, left : left + width]
    if (height, width) == fit.size:
        return shown
    placed = np.zeros((*fit.size, frame.shape[2]), frame.dtype)
    placed[:height, :width] = shown
    return placed


def _shrink(length: int, share: Fraction) -> int:
    """`length` x sqrt(`share`), rounded half up in integers, one pixel at least."""
    return max((isqrt(4 * length**2 * share.numerator // share.denominator) + 1) // 2, 1)


def _crop_short_side(size: Pair, value: int, *, crop: Pair, patch: Pair, upscale: bool) -> Fit:
    """What transformers' `get_resize_output_image_size` and `center_crop` do together.

    The longer side is rounded down, and so is the offset. A picture that may not be enlarged so far
    keeps its size, and gives as many whole patches as it has.
    """
    if crop[0] % patch[0] or crop[1] % patch[1] or max(crop) > value:
        sides = f"crop {crop[0]}x{crop[1]} (h x w) does not lie in a short side of {value}"
        raise ValueError(f"{sides}, or is no multiple of the patch {patch[0]}x{patch[1]}")
    short = min(size)
    if short < value and not upscale:
        return _centre(size, _inner_patches(size, crop, patch))
    _check_thin(size, scale=Fraction(value, short))
    return _centre((value * size[0] // short, value * size[1] // short), crop)


def _fill_bucket(
    size: Pair,
    value: int | Fraction,
    *,
    buckets: Sequence[Pair],
    patch: Pair,
    upscale: bool,
    fit: str,
) -> Pair:
    """The nearest bucket, `value` squared pixels large.

    Without `upscale` no larger than the largest that lies in the picture, or to pad, the smallest
    that the picture lies in.
    """

    def distance(bucket: Pair) -> Fraction:
        stretch = Fraction(size[0] * bucket[1], size[1] * bucket[0])
        return max(stretch, 1 / stretch)

    h, w = min(buckets, key=distance)
    area = Fraction(value) ** 2
    if not upscale:
        # As high as the picture, and as wide.
        reach = Fraction(size[0] ** 2 * w, h), Fraction(size[1] ** 2 * h, w)
        area = min(area, max(reach) if fit == "pad" else min(reach))
    return fit_area((h, w), patch=patch, area=area)


def _meet(size: Pair, target: Pair, *, patch: Pair, upscale: bool, fit: str) -> Fit:
    """Bring a picture to the target of its policy, by a word of `FITS`."""
    if fit == "stretch":
        return Fit(target, target)
    scales = [Fraction(side, n) for side, n in zip(target, size, strict=True)]
    scale = max(scales) if fit == "crop" else min(scales)
    if scale > 1 and not upscale:
        return _centre(size, _inner_patches(size, target, patch) if fit == "crop" else target)
    _check_thin(size, scale=scale)
    return _centre((_scale(size[0], scale), _scale(size[1], scale)), target)


def _find_window(made: Fit, window: Pair, display_size: Pair, place: tuple[float, float]) -> Fit:
    """Put the frame that was made of a window into its whole picture, at the same scale."""
    scaled, offset = [], []
    for axis in (0, 1):
        side = made.scaled[axis]
        whole = max(_scale(display_size[axis], Fraction(side, window[axis])), side)
        free = max(whole - max(side, made.size[axis]), 0)
        start = min(int(place[axis] * (free + 1)), free)  # 1 - 2**-53 times free + 1 rounds up
        scaled.append(whole)
        offset.append(start + made.offset[axis])
    return Fit((scaled[0], scaled[1]), made.size, (offset[0], offset[1]))


def _centre(scaled: Pair, size: Pair) -> Fit:
    """The frame in the middle, rounded down; at the top and left on an axis that is padded."""
    top, left = (max(n - side, 0) // 2 for n, side in zip(scaled, size, strict=True))
    return Fit(scaled, size, (top, left))


def _inner_patches(size: Pair, largest: Pair, patch: Pair) -> Pair:
    """The most whole patches that lie inside a picture and in `largest`, one at least."""
    h, w = (max(min(n - n % p, m), p) for n, m, p in zip(size, largest, patch, strict=True))
    return h, w


def _whole_patches(size: Pair, patch: Pair) -> Pair:
    """The fewest whole patches that a picture lies in."""
    return size[0] + -size[0] % patch[0], size[1] + -size[1] % patch[1]


def _scale(length: int, scale: Fraction) -> int:
    """`length` x `scale`, rounded half up, one pixel at least."""
    return max(int(length * scale + Fraction(1, 2)), 1)


def _check_thin(size: Pair, *, scale: Fraction) -> None:
    """A line of pixels enlarged to fill a frame would be gigabytes, most of them cut off."""
    if scale > 1 and max(size) > MAX_ASPECT_RATIO * min(size):
        raise impossible(size, f"enlarging it {float(scale):.1f} times, up to {MAX_ASPECT_RATIO}:1")
