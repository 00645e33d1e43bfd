"""Check what a row of segments.parquet says: of itself, and of the clip that was planned."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np

from spacepatch.data import ClipSpec, Task
from spacepatch.inspection.findings import Report
from spacepatch.pipeline.planfile import Plan, PlannedSource
from spacepatch.pipeline.segments import make_segment_id
from spacepatch.resize import aspect_error

Row = dict[str, Any]
"""A row of segments.parquet."""

PAIRS = {"grid_thw": 3, "size": 2, "patch_size": 2, "pad": 2, "scale": 2}
"""Entries of the lists of fixed length."""

SEGMENT_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class Origin:
    """What a dataset's documents say that a row must follow; None in all where a shard is alone."""

    plan: Plan | None = None
    token_fingerprint: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)


def is_sound(row: Row, report: Report) -> bool:
    """Whether a row can be reckoned with at all."""
    faults = [
        f"{key} has {len(row[key])} entries" for key, n in PAIRS.items() if len(row[key]) != n
    ]
    sides = (*row["grid_thw"], *row["size"], *row["patch_size"], row["tubelet_size"])
    if min(sides) < 1 or row["num_kept"] < 1 or row["offset"] < 0:
        faults.append("a length is not above 0")
    try:
        if Fraction(row["time_base"]) <= 0:
            faults.append(f"time_base is {row['time_base']}")
    except (ValueError, ZeroDivisionError):
        faults.append(f"time_base {row['time_base']!r} is no fraction")
    try:
        json.loads(row["extra"])
    except (ValueError, RecursionError):
        faults.append("extra is no JSON")
    for what in faults:
        report(what)
    return not faults


def check_segment(row: Row, report: Report, *, origin: Origin) -> None:
    """Report what a row (that `is_sound`) says against itself."""
    grid_t, grid_h, grid_w = row["grid_thw"]
    tubelet, (patch_h, patch_w) = row["tubelet_size"], row["patch_size"]
    if row["num_tokens"] != grid_t * grid_h * grid_w:
        report(f"num_tokens {row['num_tokens']} is not that of grid {tuple(row['grid_thw'])}")
    if row["num_kept"] > row["num_tokens"]:
        report(f"keeps {row['num_kept']} of {row['num_tokens']} tokens")
    if tuple(row["size"]) != (grid_h * patch_h, grid_w * patch_w):
        report(f"size {tuple(row['size'])} is not that of grid {tuple(row['grid_thw'])}")
    counts = ("valid_frames", "padded_frames", "repeated_frames", "corrupt_frames")
    for key in counts:
        if row[key] < 0:
            report(f"{key} is {row[key]}")
    num_frames = len(row["frame_pts"])
    if num_frames != row["valid_frames"] + row["corrupt_frames"]:
        report(
            f"has {num_frames} frames, not {row['valid_frames']} valid and "
            f"{row['corrupt_frames']} corrupt ones"
        )
    if num_frames + row["padded_frames"] != grid_t * tubelet:
        report(
            f"{num_frames} frames and {row['padded_frames']} padded ones do not fill "
            f"{grid_t} grid rows of {tubelet}"
        )
    _check_times(row, report)
    _check_identity(row, report, origin)


def _check_times(row: Row, report: Report) -> None:
    pts = np.array(row["frame_pts"], np.int64)
    indices = np.array(row["frame_indices"], np.int64)
    if len(pts) != len(indices):
        report(f"has {len(pts)} frame_pts and {len(indices)} frame_indices")
        return
    for name, values in (("frame_pts", pts), ("frame_indices", indices)):
        if (np.diff(values) < 0).any():
            report(f"{name} decreases")
    repeats = np.diff(indices) == 0
    if not np.array_equal(repeats, np.diff(pts) == 0):
        report("frame_pts and frame_indices do not repeat at the same places")
    if np.count_nonzero(repeats) != row["repeated_frames"]:
        report(f"repeats {np.count_nonzero(repeats)} frames, not {row['repeated_frames']}")
    start, stop = row["clip_start_pts"], row["clip_stop_pts"]
    if start >= stop:
        report(f"its clip [{start}, {stop}) is empty")
    elif len(pts) and pts.max() >= stop + _is_finer_than_ticks(row):
        report(f"has a frame at {pts.max()}, after its clip [{start}, {stop})")
    seconds = np.array(row["seconds"], np.float64)
    if (np.diff(seconds) < 0).any():
        report("seconds decrease")
    if (np.diff(seconds) == 0).any() and not row["repeated_frames"]:
        report("seconds stand still, though no frame is repeated")
    time_base = Fraction(row["time_base"])
    expected = [float(int(first) * time_base) for first in pts[:: row["tubelet_size"]]]
    if len(seconds) != row["grid_thw"][0]:
        report(f"has {len(seconds)} seconds for {row['grid_thw'][0]} grid rows")
    elif row["seconds"] != expected:
        report("seconds are not frame_pts x time_base of each grid row's first frame")


def _is_finer_than_ticks(row: Row) -> bool:
    """Whether there are more samples than ticks, so that samples on both sides of a cut can have
    the tick of the cut: borders are rounded down to ticks."""
    fps = row["sampled_fps"]
    return fps is not None and bool(Fraction(fps) * Fraction(row["time_base"]) > 1)


def _check_identity(row: Row, report: Report, origin: Origin) -> None:
    if not SEGMENT_ID.fullmatch(row["segment_id"]):
        report(f"segment_id {row['segment_id']!r} is not 32 hex digits")
    elif origin.token_fingerprint is not None:
        expected = make_segment_id(
            origin.token_fingerprint,
            seed=origin.settings.get("seed", 0),
            source_id=row["source_id"],
            start_pts=row["clip_start_pts"],
            stop_pts=row["clip_stop_pts"],
            time_base=row["time_base"],
            view=row["view"],
        )
        if row["segment_id"] != expected:
            report(f"segment_id {row['segment_id']} is not that of its source and times")
    patch = "x".join(map(str, (row["tubelet_size"], *row["patch_size"])))
    found = {"patch": patch, "layout": row["layout"], "tail": row["tail"]}
    for key, value in found.items():
        if key in origin.settings and origin.settings[key] != value:
            report(f"{key} is {value!r}, the settings say {origin.settings[key]!r}")


# --- against the plan --------------------------------------------------------------------------


@dataclass(slots=True)
class _Account:
    """What became of one planned clip."""

    pieces: list[tuple[int, int, list[int], list[int]]] = field(default_factory=list)
    """Of each segment: start, stop, frame_pts, frame_indices."""
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
            (row["clip_start_pts"], row["clip_stop_pts"], row["frame_pts"], row["frame_indices"])
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
            if sum(spec.num_tokens for spec in specs) != kept + tokens[clip]:
                report(
                    f"{name}: {sum(spec.num_tokens for spec in specs)} tokens planned, "
                    f"{kept} written and {tokens[clip]} lost"
                )
            for spec, account in zip(specs, accounts, strict=True):
                _check_pieces(name, spec, account, report)


def _check_pieces(name: str, spec: ClipSpec, account: _Account, report: Report) -> None:
    """The segments of a clip lie end to end from its start, with the frames that were planned."""
    if not account.pieces:
        return
    pieces = sorted(account.pieces, key=lambda piece: piece[:2])
    before = spec.start_pts
    for start, stop, _, _ in pieces:
        if start != before:
            word = "overlaps what comes before it" if start < before else "leaves a gap"
            report(f"{name}: segment [{start}, {stop}) {word}, which ends at {before}")
        before = stop
    if before > spec.stop_pts:
        report(f"{name}: ends at {before}, the plan at {spec.stop_pts}")
    pts = [time for piece in pieces for time in piece[2]]
    indices = [index for piece in pieces for index in piece[3]]
    if pts != spec.frame_pts[: len(pts)].tolist():
        report(f"{name}: frame_pts are not those of the plan")
    if indices != spec.frame_indices[: len(indices)].tolist():
        report(f"{name}: frame_indices are not those of the plan")


def _planned_values(spec: ClipSpec, planned: PlannedSource) -> dict[str, Any]:
    """What the row of every segment of a clip must say."""
    info, source = planned.info, planned.source
    assert info is not None, "a clip has a probed source"
    duration = planned.duration_seconds
    shown = info.part_at(int(spec.frame_indices[0])).display_size
    return {
        "source": source.name,
        "source_root": source.source_root,
        "split": source.split,
        "view_of": spec.clip,
        "size": list(spec.size),
        "extra": spec.extra,
        "time_base": str(info.time_base),
        "source_fps": planned.num_frames / duration if duration else None,
        "sampled_fps": None if spec.sampled_fps is None else float(spec.sampled_fps),
        "num_source_frames": spec.num_source_frames,
        "scale": [spec.size[0] / shown[0], spec.size[1] / shown[1]],
        "aspect_error": aspect_error(shown, spec.size),
        "pts_repaired": info.pts_repaired,
    }
