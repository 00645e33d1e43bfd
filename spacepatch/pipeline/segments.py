"""From what a job made of a clip to segments: their rows, their accounts, their place in packs."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from spacepatch.clipwriter import ClipTokens
from spacepatch.data import ClipSpec
from spacepatch.pipeline.plan import Plan
from spacepatch.randomness import Draws
from spacepatch.resize import aspect_error
from spacepatch.shards import SegmentContent
from spacepatch.tubelets import cells_of_rows, merge_of
from spacepatch.visible import parse_mask


@dataclass(frozen=True, slots=True)
class Made:
    """One clip with its tokens in the arena."""

    spec: ClipSpec
    tokens: ClipTokens
    offset: int
    """Its first byte in the arena."""

    @property
    def num_kept(self) -> int:
        return self.tokens.num_kept

    def kept(self, merge: int) -> np.ndarray:
        """``(num_kept,)`` uint32: raster index of each token in the clip's grid."""
        if self.tokens.kept is not None:
            return self.tokens.kept
        return cells_of_rows(self.tokens.rows, *self.spec.grid_thw[1:], merge=merge)


def make_segment_id(
    token_fingerprint: str,
    *,
    seed: int,
    source_id: str,
    start_pts: int,
    stop_pts: int,
    time_base: object,
    view: int,
) -> str:
    """32 hex digits: blake2b-128 of what makes the segment, and nothing of where it is stored."""
    parts = (token_fingerprint, seed, source_id, start_pts, stop_pts, time_base, view)
    content = "\0".join(map(str, parts)).encode()
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def clip_id(plan: Plan, spec: ClipSpec) -> str:
    """The segment id of a clip that is stored whole."""
    planned = plan.sources[spec.source]
    assert planned.info is not None, "a clip has a probed source"
    return make_segment_id(
        plan.fingerprints["token"],
        seed=plan.settings["seed"],
        source_id=planned.source.source_id,
        start_pts=spec.start_pts,
        stop_pts=spec.stop_pts,
        time_base=planned.info.time_base,
        view=spec.view,
    )


def segment_of(
    plan: Plan, made: Made, first: int, last: int | None, tokens: np.ndarray
) -> SegmentContent:
    """The segment of kept rows [first, last) of a clip, to be written; None: up to the last.

    A segment covers the grid rows up to the next segment's, so that rows which were dropped at a
    cut are still accounted for.

    Args:
        tokens: ``(n, D)``: all kept tokens of the clip.
    """
    rows, cells = made.tokens.rows, made.spec.cells
    if last is None:
        span, low, last = slice(None), 0, len(rows)
    else:
        # Only whole rows are ever cut apart: nothing is dropped then.
        span, low = slice(first * cells, last * cells), 0 if first == 0 else int(rows[first])
    kept = made.kept(merge_of(plan.layout.order))[span] - np.uint32(low * cells)
    row = _row(plan, made, first, last, num_kept=len(kept))
    visible = visible_of(plan.settings, row, kept)
    lengths = made.tokens.run_lengths
    return SegmentContent(
        row, tokens[span], kept, None if lengths is None else lengths[span], visible
    )


def clip_of_segment(clip: ClipSpec, segment: dict[str, Any]) -> ClipSpec:
    """The clip whose tokens are those of a segment that was made of `clip`.

    Segments are cut of clips between grid rows, or end before them. Where tokens are dropped they
    are drawn of the whole clip, which is never cut apart then.

    Args:
        segment: its row, or what pack.json says of it: clip_start_pts, clip_stop_pts, grid_thw.
    """
    rows, start = segment["grid_thw"][0], segment["clip_start_pts"]
    if clip.drop is not None or (start, rows) == (clip.start_pts, clip.grid_thw[0]):
        return clip
    first = 0 if start == clip.start_pts else int(np.searchsorted(clip.row_pts, start))
    span = slice(int(clip.row_starts[first]), int(clip.row_starts[first + rows]))
    grid = rows, *clip.grid_thw[1:]
    return replace(
        clip,
        start_pts=start,
        stop_pts=segment["clip_stop_pts"],
        frame_pts=clip.frame_pts[span],
        frame_indices=clip.frame_indices[span],
        sample_pts=clip.sample_pts[span],
        grid_thw=grid,
        num_kept=math.prod(grid),
    )


def visible_of(
    settings: dict[str, Any], row: dict[str, Any], kept: np.ndarray
) -> np.ndarray | None:
    """``(num_kept,)`` uint8 mask of a segment; None where none is stored."""
    if not settings["store_mask"]:
        return None
    draws = Draws(settings["seed"], row["segment_id"], "mask")
    mask = parse_mask(settings["mask"]).visible(tuple(row["grid_thw"]), draws)
    return np.asarray(mask[kept].astype(np.uint8))


def _row(plan: Plan, made: Made, first: int, last: int, *, num_kept: int) -> dict[str, Any]:
    """The row of segments.parquet for kept rows [first, last) of a clip."""
    spec, tokens, layout = made.spec, made.tokens, plan.layout
    planned = plan.sources[spec.source]
    info, source = planned.info, planned.source
    assert info is not None, "a clip has a probed source"
    rows, starts = tokens.rows, spec.row_starts
    low = 0 if first == 0 else int(rows[first])
    high = tokens.grid_t if last == len(rows) else int(rows[last])
    start = spec.start_pts if low == 0 else int(spec.row_pts[low])
    stop = spec.stop_pts if high == spec.grid_thw[0] else int(spec.row_pts[high])
    begin, end = int(starts[low]), min(int(starts[high]), tokens.num_frames)
    pts, indices = spec.frame_pts[begin:end], spec.frame_indices[begin:end]
    # The frames of a kept row: a whole tubelet, but for the clip's last row before its tail.
    covered = np.minimum(starts, end)
    valid = int(np.diff(covered)[rows[first:last]].sum())
    grid = (high - low, *spec.grid_thw[1:])
    firsts = spec.frame_pts[starts[low:high]]
    seconds = [float(int(time) * info.time_base) for time in firsts]
    part = info.part_at(int(spec.frame_indices[0]))
    scaled = spec.fit.scaled
    return {
        "segment_id": make_segment_id(
            plan.fingerprints["token"],
            seed=plan.settings["seed"],
            source_id=source.source_id,
            start_pts=start,
            stop_pts=stop,
            time_base=info.time_base,
            view=spec.view,
        ),
        "source": source.name,
        "source_root": source.source_root,
        "source_id": source.source_id,
        "split": source.split,
        "clip": spec.clip,
        "view": spec.view,
        "view_of": spec.view_of,
        "num_tokens": grid[0] * spec.cells,
        "num_kept": num_kept,
        "grid_thw": grid,
        "size": spec.size,
        "seconds": seconds,
        "extra": spec.extra,
        "clip_start_pts": start,
        "clip_stop_pts": stop,
        "time_base": str(info.time_base),
        "frame_pts": pts.tolist(),
        "frame_indices": indices.tolist(),
        "source_fps": planned.num_frames / planned.duration_seconds
        if planned.duration_seconds
        else None,
        "sampled_fps": None if spec.sampled_fps is None else float(spec.sampled_fps),
        "num_source_frames": spec.num_source_frames,
        "valid_frames": valid,
        "padded_frames": tokens.padded_frames if high == tokens.grid_t else 0,
        "repeated_frames": int(np.count_nonzero(np.diff(indices) == 0)),
        "corrupt_frames": len(pts) - valid,
        "damaged_frames": int(np.isin(tokens.damaged, np.arange(begin, end)).sum()),
        "tail": plan.settings["tail"],
        "crop": spec.fit.crop,
        "pad": spec.fit.pad,
        "scale": [scaled[0] / part.display_size[0], scaled[1] / part.display_size[1]],
        "aspect_error": aspect_error(part.display_size, scaled),
        "tubelet_size": spec.tubelet_size,
        "patch_size": spec.patch_size,
        "halo": layout.halo,
        "layout": plan.settings["layout"],
        "order": layout.order,
        "drop": spec.drop,
        "decoder": tokens.decoder,
        "pts_repaired": info.pts_repaired,
        "tokens_crc32c": None,  # until they are written, or at least seen
        "psnr": None,
    }
