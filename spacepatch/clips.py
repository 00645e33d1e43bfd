"""Choose the clips of a source: whole video, windows or manifest ranges, cut to fit a pack."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np

from spacepatch.data import ClipRange, ClipSpec, Fit, VideoInfo
from spacepatch.errors import ConfigError, SourceError
from spacepatch.framerules import PIXELS, Lattice
from spacepatch.views import View
from spacepatch.windows import Grids, Window, list_stretches

LONG_POLICIES = ("split", "skip", "error")

MOST_GRID = 2**22
"""Tokens of a clip before dropping; one that keeps few of very many is cut here, for memory."""


@dataclass(frozen=True, slots=True)
class ClipLoss:
    """A clip that the settings rule out, before any decoding."""

    reason: str
    num_frames: int
    message: str
    stage: str = "list"


def choose_clips(
    info: VideoInfo,
    *,
    source: int,
    ranges: tuple[ClipRange, ...],
    sampler: str,
    views: Callable[[int], Sequence[View]],
    one_grid: bool,
    fit: Callable[[tuple[int, int], View, int], Fit],
    tail: str,
    pack_length: int,
    clip_seconds: Fraction | None = None,
    clip_stride: Fraction | None = None,
    min_seconds: Fraction = Fraction(0),
    long: str = "split",
    lattice: Lattice = PIXELS,
) -> tuple[list[ClipSpec], list[ClipLoss]]:
    """The clips of one source, in order of time, with their exact frames and token counts.

    Where the stream changes its size, a new clip begins. A clip that keeps more than `pack_length`
    tokens is cut greedily into the longest windows that fit, the remainder last.

    Args:
        source: the source's row in the plan, copied into each clip.
        ranges: what a manifest asks for, in seconds from the first frame; empty: the whole video.
        sampler: a word of `SAMPLERS`.
        views: what is drawn for the n-th window: as many variants of it for every n.
        one_grid: windows of one span share the span's grid of sample times; else each has its own.
        fit: the frame of a picture of (h, w) pixels, of a clip of so many frames.

    Returns:
        The clips, and what the settings rule out.

    Raises:
        ConfigError: `long="error"` and a clip does not fit.
    """
    clips: list[ClipSpec] = []
    losses: list[ClipLoss] = []
    seen: Counter[tuple[int, int, int]] = Counter()
    stretches = list_stretches(info, ranges, clip_seconds, clip_stride)
    grids = Grids(info, sampler, one_grid=one_grid, cut=clip_seconds is not None)
    for number, stretch in enumerate(stretches):
        base = len(clips)
        drawn = views(number)
        for view in drawn:
            window = grids.window(stretch, view)
            if window is None:
                continue
            chosen, ruled_out = _choose_in(
                info, window, view, source, fit, tail, pack_length, long, min_seconds, lattice
            )
            losses += ruled_out
            for clip in chosen:
                # Ranges that overlap can come to one interval: views of it, so that ids stay
                # unique; further ones count on in steps of the number of views.
                key = view.number, clip.start_pts, clip.stop_pts
                number_of_view = view.number + seen[key] * len(drawn)
                seen[key] += 1
                if clips or number_of_view:  # a clip is made as clip 0 of view 0
                    clip = replace(clip, clip=len(clips), view=number_of_view)
                clips.append(clip)
        clips[base:] = _name_shared(clips[base:], len(drawn))
    if not clips and not losses:
        losses.append(ClipLoss("too_short", 0, "the range holds no frame"))
    return clips, losses


def _name_shared(clips: list[ClipSpec], num_views: int) -> list[ClipSpec]:
    """Name the clip of view 0 that each of a window's clips begins in."""
    first = [clip for clip in clips if clip.view % num_views == 0]
    starts = [clip.start_pts for clip in first]

    def shared(clip: ClipSpec) -> int:
        if clip.view % num_views == 0 or not first:
            return clip.clip
        return first[max(bisect_right(starts, clip.start_pts) - 1, 0)].clip

    return [replace(clip, view_of=of) if (of := shared(clip)) else clip for clip in clips]


def _choose_in(
    info: VideoInfo,
    window: Window,
    view: View,
    source: int,
    fit: Callable[[tuple[int, int], View, int], Fit],
    tail: str,
    pack_length: int,
    long: str,
    min_seconds: Fraction,
    lattice: Lattice,
) -> tuple[list[ClipSpec], list[ClipLoss]]:
    """The clips of one view of one window."""
    count = window.last - window.first
    if count == 0 or (not info.still and window.seconds < min_seconds):
        message = (
            f"{float(window.seconds):.3f} s is shorter than min_seconds {float(min_seconds):g}"
            if count
            else "the range holds no frame"
        )
        return [], [ClipLoss("too_short", count, message)]
    clips: list[ClipSpec] = []
    losses: list[ClipLoss] = []
    for part, piece in _cut_by_size(info, window):
        frames = piece.last - piece.first
        try:
            fitted = fit(info.parts[part].display_size, view, frames)
        except SourceError as error:
            losses.append(ClipLoss(error.reason, frames, str(error), "resize"))
            continue
        chosen, ruled_out = _cut_to_pack(
            info,
            piece,
            view,
            fitted,
            source=source,
            tail=tail,
            pack_length=pack_length,
            long=long,
            lattice=lattice,
        )
        clips += chosen
        losses += ruled_out
    return clips, losses


def _cut_by_size(info: VideoInfo, window: Window) -> Iterator[tuple[int, Window]]:
    """Cut a window where the size changes, into (which part of the stream, samples of it)."""
    if len(info.parts) == 1:
        yield 0, window
        return
    starts = np.array([part.first for part in info.parts])
    indices = window.samples.indices[window.first : window.last]
    parts = np.searchsorted(starts, indices, side="right") - 1
    borders = [0, *(np.flatnonzero(np.diff(parts)) + 1).tolist(), len(parts)]
    for first, last in itertools.pairwise(borders):
        piece = replace(window, first=window.first + first, last=window.first + last)
        yield int(parts[first]), replace(piece, stop=window.tick(piece.last))


def _cut_to_pack(
    info: VideoInfo,
    window: Window,
    view: View,
    fit: Fit,
    *,
    source: int,
    tail: str,
    pack_length: int,
    long: str,
    lattice: Lattice,
) -> tuple[list[ClipSpec], list[ClipLoss]]:
    """The clips of one window, of one size, each of which fits a pack; numbered by the caller."""
    clips: list[ClipSpec] = []
    tubelet_size = view.tubelet_size
    count = window.last - window.first
    rows, grid_h, grid_w = lattice.grid(
        count, fit.size, tubelet_size=tubelet_size, patch_size=view.patch_size, tail=tail
    )
    cells = grid_h * grid_w

    def frames_of(rows: int) -> int:
        return lattice.rule.num_frames(rows * tubelet_size)

    def unfilled(num_frames: int) -> ClipLoss:
        return ClipLoss(*lattice.unfilled(num_frames, tubelet_size=tubelet_size))

    def num_kept(rows: int) -> int:
        return view.drop.num_kept(rows * cells) if view.drop is not None else rows * cells

    if rows == 0:
        return [], [unfilled(count)]
    tokens = num_kept(rows)
    if tokens > pack_length and num_kept(1) > pack_length:
        message = f"one row of {grid_h} x {grid_w} tokens exceeds pack_length {pack_length}"
        return [], [ClipLoss("over_pack_length", count, message)]
    if tokens > pack_length and long != "split":
        if long == "error":
            raise ConfigError(
                f"a clip of {tokens} tokens exceeds pack_length {pack_length}; "
                "use --long split or skip, a larger --pack-length or fewer tokens a frame"
            )
        message = f"{tokens} tokens exceed pack_length {pack_length}"
        return [], [ClipLoss("skipped_by_policy", count, message)]
    losses: list[ClipLoss] = []
    most = count
    longest = rows if view.drop is None else min(rows, max(1, MOST_GRID // cells))
    if tokens > pack_length or longest < rows:
        most = frames_of(_rows_that_fit(num_kept, longest, pack_length))
    elif view.drop is None and tokens + cells > pack_length and not lattice.rule.first:
        # Frames of a further row would not fit. (By themselves, they would be a first latent.)
        most = frames_of(rows)
    for first, last in _cut(window, most, lattice.rule.step * tubelet_size):
        if last is None:
            message = (
                "the frames sampled in one tick of the stream's clock "
                f"({info.time_base} s) exceed pack_length {pack_length}"
            )
            losses.append(ClipLoss("over_pack_length", window.last - first, message))
            break
        grid_t = lattice.num_rows(last - first, tubelet_size=tubelet_size, tail=tail)
        if grid_t == 0:
            losses.append(unfilled(last - first))
            continue
        grid = grid_t, grid_h, grid_w
        clip = _clip(info, window, first, last, source, fit, grid, view, lattice)
        clips.append(clip)
    return clips, losses


def _rows_that_fit(num_kept: Callable[[int], int], rows: int, pack_length: int) -> int:
    """The most of `rows` that fit a pack, as all fewer do: a rate that grows with the length may
    leave less of a long piece than of its remainder."""
    return next((row for row in range(1, rows) if num_kept(row + 1) > pack_length), rows)


def _cut(window: Window, most: int, row_frames: int) -> Iterator[tuple[int, int | None]]:
    """Cut a window greedily into [first, last) samples, `most` at most, at whole grid rows.

    A border needs a tick of its own, later than the sample before it: where samples are closer than
    the ticks of a coarse time base, a piece is shorter. None: there is no such border.
    """
    ticks, first = window.samples.ticks, window.first
    while window.last - first > most:
        last = first + most
        while last > first and ticks[last] == ticks[last - 1]:
            last -= row_frames
        if last <= first:
            yield first, None
            return
        yield first, last
        first = last
    yield first, window.last


def _clip(
    info: VideoInfo,
    window: Window,
    first: int,
    last: int,
    source: int,
    fit: Fit,
    grid_thw: tuple[int, int, int],
    view: View,
    lattice: Lattice,
) -> ClipSpec:
    indices = window.samples.indices[first:last]
    start, stop = window.tick(first), window.tick(last)
    inside = np.searchsorted(info.frame_pts, [start, stop], side="left")
    num_tokens = math.prod(grid_thw)
    return ClipSpec(
        source=source,
        clip=0,
        view=0,
        view_of=0,
        start_pts=start,
        stop_pts=stop,
        frame_pts=info.frame_pts[indices],
        frame_indices=indices.astype(np.int32),
        sample_pts=window.samples.ticks[first:last],
        sampled_fps=window.samples.fps,
        fit=fit,
        tubelet_size=view.tubelet_size,
        patch_size=view.patch_size,
        grid_thw=grid_thw,
        num_kept=num_tokens if view.drop is None else view.drop.num_kept(num_tokens),
        drop=None if view.drop is None else str(view.drop.at(num_tokens)),
        num_source_frames=int(inside[1] - inside[0]),
        keyframes=_keyframes_of(info, indices),
        extra=window.extra,
        lattice=lattice,
    )


def _keyframes_of(info: VideoInfo, indices: np.ndarray) -> np.ndarray:
    """``(k, 2)`` index and time of the last keyframe not after each of some frames."""
    if info.pts_repaired:
        return np.empty((0, 2), np.int64)
    places = np.unique(np.searchsorted(info.keyframes, indices, side="right") - 1)
    keys = info.keyframes[places[places >= 0]]
    return np.stack([keys, info.frame_pts[keys]], axis=1)
