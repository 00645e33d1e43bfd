"""Hold the segments and losses of a task against its planned clips."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

from spacepatch.data import ClipSpec, Task
from spacepatch.inspection.findings import Report
from spacepatch.inspection.segments import Row, num_lost_rows, read_drop
from spacepatch.pipeline.plan import Plan, PlannedSource
from spacepatch.resize import aspect_error


@dataclass(frozen=True, slots=True)
class _Piece:
    """What one segment covers of its clip."""

    start: int
    stop: int
    pts: list[int]
    indices: list[int]
    grid_t: int
    lost_rows: int
    padded_frames: int


@dataclass(slots=True)
class _Account:
    """What became of one planned clip."""

    pieces: list[_Piece] = field(default_factory=list)
    frames: int = 0
    tokens: int = 0


class ClipAccounts:
    """Holds the segments and losses of one task against its planned clips."""

    def __init__(self, plan: Plan, task: Task) -> None:
        self._plan = plan
        self._specs: dict[tuple[str, int, int], ClipSpec] = {}
        for spec in task.clips:
            source_id = plan.sources[spec.source].source.source_id
            self._specs[source_id, spec.clip, spec.view] = spec
        self._accounts: dict[tuple[str, int, int], _Account] = defaultdict(_Account)

    def add(self, row: Row, report: Report) -> None:
        """One segment."""
        key = (row["source_id"], row["clip"], row["view"])
        spec = self._specs.get(key)
        if spec is None:
            report("is of no clip that the plan has in this task")
            return
        for name, value in _planned_values(spec, self._plan.sources[spec.source]).items():
            found = json.loads(row[name]) if name == "extra" else row[name]
            if found != value:
                report(f"{name} is {found!r}, the plan says {value!r}")
        grid = tuple(row["grid_thw"])
        if grid[1:] != spec.grid_thw[1:]:
            report(f"grid is {grid}, the plan says {spec.grid_thw}")
        account = self._accounts[key]
        account.pieces.append(
            _Piece(
                start=row["clip_start_pts"],
                stop=row["clip_stop_pts"],
                pts=row["frame_pts"],
                indices=row["frame_indices"],
                grid_t=row["grid_thw"][0],
                lost_rows=num_lost_rows(row, spec.lattice),
                padded_frames=row["padded_frames"],
            )
        )
        account.frames += row["valid_frames"]
        account.tokens += row["num_kept"]

    def settle(self, losses: list[dict[str, Any]], report: Report) -> None:
        """After the last segment: everything that was planned is written or lost."""
        frames: Counter[tuple[str, int | None]] = Counter()
        tokens: Counter[tuple[str, int | None]] = Counter()
        for loss in losses:
            frames[loss["source_id"], loss["clip"]] += loss["num_frames"]
            tokens[loss["source_id"], loss["clip"]] += loss["num_tokens"]
        planned: dict[tuple[str, int | None], list[tuple[str, int, int]]] = defaultdict(list)
        for key in self._specs:
            planned[key[:2]].append(key)
        for clip in frames.keys() - planned.keys():
            report(f"a loss is of clip {clip[1]} of source {clip[0]}, which is not in this task")
        for clip, keys in planned.items():
            specs = [self._specs[key] for key in keys]
            accounts = [self._accounts[key] for key in keys]
            name = f"{self._plan.sources[specs[0].source].source.name} clip {clip[1]}"
            written = sum(account.frames for account in accounts)
            selected = sum(len(spec.frame_pts) for spec in specs)
            if not written and clip not in frames:
                report(f"{name} is planned and neither written nor lost")
            elif selected != written + frames[clip]:
                report(
                    f"{name}: {selected} frames planned, {written} written and {frames[clip]} lost"
                )
            kept = sum(account.tokens for account in accounts)
            num_planned = sum(map(_planned_tokens, specs, accounts))
            if num_planned != kept + tokens[clip]:
                report(
                    f"{name}: {num_planned} tokens planned, {kept} written and {tokens[clip]} lost"
                )
            for spec, account in zip(specs, accounts, strict=True):
                _check_pieces(name, spec, account, report)


def _planned_tokens(spec: ClipSpec, account: _Account) -> int:
    """Tokens that were to be kept of a clip.

    Of static tubelets, how many that is was known when they were seen: all of a row that is lost,
    and what is kept of the others, for which the packs answer.
    """
    if spec.drop is None or not read_drop(spec.drop).is_bound:
        return spec.num_kept
    there = sum(piece.grid_t - piece.lost_rows for piece in account.pieces)
    return account.tokens + (spec.grid_thw[0] - there) * spec.cells


def _check_pieces(name: str, spec: ClipSpec, account: _Account, report: Report) -> None:
    """The segments of a clip lie end to end from its start, with the frames that were planned."""
    if not account.pieces:
        return
    pieces = sorted(account.pieces, key=lambda piece: (piece.start, piece.stop))
    before = spec.start_pts
    for piece in pieces:
        if piece.start != before:
            word = "overlaps what comes before it" if piece.start < before else "leaves a gap"
            report(f"{name}: segment [{piece.start}, {piece.stop}) {word}, which ends at {before}")
        before = piece.stop
    if before > spec.stop_pts:
        report(f"{name}: ends at {before}, the plan at {spec.stop_pts}")
    if len(pieces) > 1 and spec.lattice.rule.first:
        report(
            f"{name}: is in {len(pieces)} segments, though only the first of them can begin with "
            "the latent of one frame"
        )
    if any(piece.padded_frames for piece in pieces[:-1]):
        report(f"{name}: has padded frames before its last segment")
    grid_t = sum(piece.grid_t for piece in pieces)
    if grid_t > spec.grid_thw[0] or (grid_t < spec.grid_thw[0]) != (before < spec.stop_pts):
        report(f"{name}: has {grid_t} grid rows up to {before}, the plan {spec.grid_thw[0]}")
    pts = [time for piece in pieces for time in piece.pts]
    indices = [index for piece in pieces for index in piece.indices]
    if pts != spec.frame_pts[: len(pts)].tolist():
        report(f"{name}: frame_pts are not those of the plan")
    if indices != spec.frame_indices[: len(indices)].tolist():
        report(f"{name}: frame_indices are not those of the plan")


def _planned_values(spec: ClipSpec, planned: PlannedSource) -> dict[str, Any]:
    """What the row of every segment of a clip must say."""
    info, source = planned.info, planned.source
    assert info is not None, "a clip has a probed source"
    duration = planned.duration_seconds
    shown, scaled = info.part_at(int(spec.frame_indices[0])).display_size, spec.fit.scaled
    return {
        "source": source.name,
        "source_root": source.source_root,
        "split": source.split,
        "view_of": spec.view_of,
        "size": list(spec.size),
        "crop": None if spec.fit.crop is None else list(spec.fit.crop),
        "pad": list(spec.fit.pad),
        "tubelet_size": spec.tubelet_size,
        "patch_size": list(spec.patch_size),
        "drop": spec.drop,
        "extra": spec.extra,
        "time_base": str(info.time_base),
        "source_fps": planned.num_frames / duration if duration else None,
        "sampled_fps": None if spec.sampled_fps is None else float(spec.sampled_fps),
        "num_source_frames": spec.num_source_frames,
        "scale": [scaled[0] / shown[0], scaled[1] / shown[1]],
        "aspect_error": aspect_error(shown, scaled),
        "pts_repaired": info.pts_repaired,
    }
