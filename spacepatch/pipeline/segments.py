"""From what a job made of a clip to segments: their rows, their accounts, their place in packs."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from spacepatch.data import ClipSpec
from spacepatch.jobs import ClipTokens
from spacepatch.pipeline.planfile import Plan
from spacepatch.resize import aspect_error


@dataclass(frozen=True, slots=True)
class Made:
    """One clip with its tokens in the arena."""

    spec: ClipSpec
    tokens: ClipTokens
    offset: int
    """Its first token in the arena."""

    @property
    def cells(self) -> int:
        """Tokens of one grid row."""
        return self.spec.grid_thw[1] * self.spec.grid_thw[2]

    @property
    def num_kept(self) -> int:
        return len(self.tokens.rows) * self.cells


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


def segment_row(plan: Plan, made: Made, first: int, last: int) -> tuple[dict[str, Any], np.ndarray]:
    """The row of segments.parquet for kept rows [first, last) of a clip, and those grid rows
    counted from the segment's own first.

    A segment covers the grid rows up to the next segment's, so that rows which were dropped at a
    cut are still accounted for.
    """
    spec, tokens, layout = made.spec, made.tokens, plan.layout
    planned = plan.sources[spec.source]
    info, source = planned.info, planned.source
    assert info is not None, "a clip has a probed source"
    kept, size = tokens.rows, layout.tubelet_size
    low = 0 if first == 0 else int(kept[first])
    high = tokens.grid_t if last == len(kept) else int(kept[last])
    start = spec.start_pts if low == 0 else int(spec.row_pts[low])
    stop = spec.stop_pts if high == spec.grid_thw[0] else int(spec.row_pts[high])
    frames = slice(low * size, min(high * size, tokens.num_frames))
    pts, indices = spec.frame_pts[frames], spec.frame_indices[frames]
    rows = kept[first:last] - low
    # The frames of a kept row: a whole tubelet, but for the clip's last row before its tail.
    valid = sum(min(size, len(pts) - int(row) * size) for row in rows)
    grid = (high - low, *spec.grid_thw[1:])
    seconds = [float(int(time) * info.time_base) for time in pts[::size]]
    part = info.part_at(int(spec.frame_indices[0]))
    row = {
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
        "view_of": spec.clip,
        "num_tokens": grid[0] * made.cells,
        "num_kept": len(rows) * made.cells,
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
        "damaged_frames": int(np.isin(tokens.damaged, np.arange(low * size, high * size)).sum()),
        "tail": plan.settings["tail"],
        "crop": None,
        "pad": (0, 0),
        "scale": [
            spec.size[0] / part.display_size[0],
            spec.size[1] / part.display_size[1],
        ],
        "aspect_error": aspect_error(part.display_size, spec.size),
        "tubelet_size": size,
        "patch_size": layout.patch_size,
        "layout": plan.settings["layout"],
        "order": layout.order,
        "drop": None,
        "decoder": tokens.decoder,
        "pts_repaired": info.pts_repaired,
    }
    return row, rows
