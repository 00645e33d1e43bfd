"""The clip that a segment is made of where it varies: fewer frames, another frame, patch or drop,
within the tokens that were planned."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np

from spacepatch.clipwriter import ClipTokens
from spacepatch.data import ClipSpec, Fit
from spacepatch.drop import Drawn, DrawnRate, DrawnTokens
from spacepatch.resize import fit_size


def vary_clip(
    clip: ClipSpec,
    *,
    tubelet_size: int,
    patch_size: tuple[int, int],
    fit: Fit | None,
    unit: tuple[int, int],
    drop: Drawn | None,
    tail: str,
    budget: int,
) -> ClipSpec:
    """A clip in another frame, patch or drop, of `budget` tokens at most and one at least.

    Where it would have more, a frame that is chosen anew gets smaller. Is that not enough, or is
    the frame the planned one, more tokens are dropped where any are, else the last rows go.

    Args:
        fit: the frame; None: the planned one.
        unit: (h, w) in pixels that frames are multiples of.
        tail: what fills the last tubelet.
    """
    num_frames = end = len(clip.frame_pts)
    rows = clip.lattice.num_rows(num_frames, tubelet_size=tubelet_size, tail=tail)

    def kept(num_tokens: int) -> int:
        return num_tokens if drop is None else drop.num_kept(num_tokens)

    def cells_of(size: tuple[int, int]) -> int:
        return size[0] // patch_size[0] * (size[1] // patch_size[1])

    chosen = clip.fit if fit is None else fit
    if fit is not None and kept(rows * cells_of(fit.size)) > budget:
        cells = cells_of(unit)
        most = _most(
            math.prod(fit.size) // math.prod(unit), lambda num: kept(rows * num * cells) <= budget
        )
        chosen = _shrunk(fit, unit, most)
    cells = cells_of(chosen.size)
    if drop is None and rows * cells > budget:
        rows = max(1, budget // cells)
        end = min(num_frames, rows * tubelet_size)
    num_tokens = rows * cells
    num_kept, word = kept(num_tokens), None if drop is None else str(drop.at(num_tokens))
    if num_kept > budget:
        num_kept, word = budget, str(DrawnTokens(budget))
    return replace(
        clip,
        stop_pts=clip.stop_pts if end == num_frames else int(clip.sample_pts[end]),
        frame_pts=clip.frame_pts[:end],
        frame_indices=clip.frame_indices[:end],
        sample_pts=clip.sample_pts[:end],
        fit=chosen,
        tubelet_size=tubelet_size,
        patch_size=patch_size,
        grid_thw=(rows, chosen.size[0] // patch_size[0], chosen.size[1] // patch_size[1]),
        num_kept=num_kept,
        drop=word,
    )


def resampled(
    clip: ClipSpec, fps: Fraction, time_base: Fraction, *, least: int, counts_samples: bool
) -> ClipSpec:
    """The samples of a clip that are on display at a rate of `fps` from its start on, each once: at
    most its own.

    Args:
        least: so many at least, of a clip that has them, at equal distances.
        counts_samples: they were planned at equal distances, whatever the stream's clock rounds
            them to; else, as every frame or every n-th, they go by their times.
    """
    num = len(clip.sample_pts)
    if counts_samples and clip.sampled_fps is not None:
        taken = on_display(range(num), num, clip.sampled_fps / fps)
    else:
        taken = on_display(clip.sample_pts.tolist(), clip.stop_pts, 1 / (fps * time_base))
    if len(taken) < min(least, num):
        taken = np.arange(least) * num // least
    if len(taken) == num:
        return clip
    return replace(
        clip,
        frame_pts=clip.frame_pts[taken],
        frame_indices=clip.frame_indices[taken],
        sample_pts=clip.sample_pts[taken],
        sampled_fps=fps,
    )


def on_display(times: Sequence[int], stop: int, step: Fraction) -> np.ndarray:
    """Which samples are on display at some time[0] + k * step before `stop`: ``(n,)`` int64,
    increasing, one at least.

    Args:
        times: when each sample begins to be on display, until the next one does; non-decreasing.
    """
    first, distance, unit = times[0], step.numerator, step.denominator
    taken = [
        place
        for place, (start, end) in enumerate(zip(times, [*times[1:], stop], strict=True))
        # The first of the times that is not before the sample, is it before the next one?
        if -((first - start) * unit // distance) * distance < (end - first) * unit
    ]
    return np.array(taken or [0], np.int64)


def planned_drop(text: str | None) -> DrawnRate | DrawnTokens | None:
    """What a clip's `drop` says was drawn for it: ``random 0.4873`` or ``tokens 256``."""
    if text is None:
        return None
    word, _, value = text.partition(" ")
    return DrawnTokens(int(value)) if word == "tokens" else DrawnRate(((0, Fraction(value)),))


def varied_segment(
    segment: Mapping[str, Any], clip: ClipSpec, made: ClipTokens, time_base: Fraction
) -> dict[str, Any]:
    """What pack.json would say of a segment as it was made, and in ``varied`` what was drawn."""
    grid = [made.grid_t, *clip.grid_thw[1:]]
    firsts = clip.frame_pts[clip.row_starts[: made.grid_t]]
    return {
        **segment,
        "clip_stop_pts": clip.stop_pts,
        "grid_thw": grid,
        "num_kept": made.num_kept,
        "num_tokens": math.prod(grid),
        "seconds": [float(int(time) * time_base) for time in firsts],
        "size": list(clip.size),
        "tokens_crc32c": None,
        "varied": {
            "patch": [clip.tubelet_size, *clip.patch_size],
            "sampled_fps": None if clip.sampled_fps is None else float(clip.sampled_fps),
            "scaled": list(clip.fit.scaled),
            "crop": None if clip.fit.crop is None else list(clip.fit.crop),
            "drop": clip.drop,
        },
    }


def _most(upto: int, fits: Callable[[int], bool]) -> int:
    """A number that fits while the next does not, by halving; 1 where none does."""
    low, high = 1, upto
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def _shrunk(fit: Fit, unit: tuple[int, int], most: int) -> Fit:
    """The same window of the picture in a frame of `most` units at most."""
    size = fit_size(fit.size, patch=unit, policy="max-tokens-per-frame", value=most)
    scaled = [
        max(1, (2 * whole * new + old) // (2 * old))
        for whole, new, old in zip(fit.scaled, size, fit.size, strict=True)
    ]
    offset = [
        place * new // old for place, new, old in zip(fit.offset, size, fit.size, strict=True)
    ]
    return Fit((scaled[0], scaled[1]), size, (offset[0], offset[1]))
