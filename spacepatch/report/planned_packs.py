"""Packs of a plan as the page shows them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from spacepatch.data import ClipSpec
from spacepatch.pipeline.placement import Lengths
from spacepatch.pipeline.plan import Plan
from spacepatch.randomness import Draws
from spacepatch.report.provenance import show_segment
from spacepatch.report.records import Section, ShownPack
from spacepatch.report.samples import MOST_OF_PACK, PACKS
from spacepatch.report.sections import HOW_TO_OPEN
from spacepatch.report.thumbnails import Film
from spacepatch.resize.sizes import aspect_error
from spacepatch.wording import counted

Placed = tuple[ClipSpec, int, int]
"""A clip, or rows of it: how many rows of its grid, and tokens."""


def planned_packs(plan: Plan) -> Section:
    """A few packs, drawn by the settings, of tasks that are evenly spread."""
    wanted = min(PACKS, len(plan.tasks))
    borders = [part * len(plan.tasks) // wanted for part in range(wanted + 1)]
    draws = Draws(plan.settings["seed"], *plan.fingerprints.values(), "report")
    packs: list[ShownPack] = []
    for first, stop in pairwise(borders):
        task = plan.tasks[first + draws.integer(stop - first)]
        placed = plan.placement.place(Lengths.of(task.clips, plan.layout)).packs
        each = min(-(-PACKS // wanted), len(placed))
        for number in sorted(draws.order(len(placed))[:each].tolist()):
            pieces = [_piece(task.clips[item], low, high) for item, low, high in placed[number]]
            packs.append(_shown(plan, f"shard {task.number:,}, pack {number}", pieces))
    opens = HOW_TO_OPEN.format("where it is from")
    text = f"{counted(len(packs), 'pack')} as planned: {opens}"
    return Section("packs", "How packs will fill", (text,), packs=tuple(packs))


def _piece(clip: ClipSpec, first: int, last: int | None) -> Placed:
    if last is None:
        return clip, clip.grid_thw[0], clip.num_kept
    return clip, last - first, (last - first) * clip.cells


def _shown(plan: Plan, name: str, pieces: Sequence[Placed]) -> ShownPack:
    pack_length = plan.layout.pack_length
    tokens = sum(kept for _, _, kept in pieces)
    segments = [
        show_segment(*planned_row(plan, *piece), Film(()), "Nothing has been decoded yet.")
        for piece in pieces[:MOST_OF_PACK]
    ]
    return ShownPack(
        name=name,
        caption=f"{tokens:,} tokens, {counted(len(pieces), 'segment')}, "
        f"{tokens / pack_length:.1%} full",
        segments=tuple(segments),
        unshown=sum(kept for _, _, kept in pieces[MOST_OF_PACK:]),
        room=max(0, pack_length - tokens),
    )


def planned_row(
    plan: Plan, clip: ClipSpec, rows: int, kept: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What is known of a segment and its source, by the names of their tables.

    Args:
        rows, kept: of its grid, and its tokens: of the whole clip, or where packs may cut it less.
    """
    planned = plan.sources[clip.source]
    info = planned.info
    assert info is not None, "a clip has a probed source"
    size = info.part_at(int(clip.frame_indices[0])).display_size
    row = {
        "source": planned.source.name,
        "clip": clip.clip,
        "view": clip.view,
        "clip_start_pts": clip.start_pts,
        "clip_stop_pts": clip.stop_pts,
        "time_base": str(info.time_base),
        "num_tokens": rows * clip.cells,
        "num_kept": kept,
        "grid_thw": (rows, *clip.grid_thw[1:]),
        "size": clip.size,
        "drop": clip.drop,
        "tubelet_size": clip.tubelet_size,
        "patch_size": clip.patch_size,
        "aspect_error": aspect_error(size, clip.fit.scaled),
        "crop": clip.fit.crop,
        "pad": clip.fit.pad,
        "source_fps": _rate(plan, clip),
        "sampled_fps": None if clip.sampled_fps is None else float(clip.sampled_fps),
        "valid_frames": len(clip.frame_pts),
        "split": planned.source.split,
        "pts_repaired": info.pts_repaired,
        "extra": clip.extra,
    }
    return row, {"display_size": size, "container": info.container, "codec": info.codec}


def _rate(plan: Plan, clip: ClipSpec) -> float | None:
    planned = plan.sources[clip.source]
    return planned.num_frames / planned.duration_seconds if planned.duration_seconds else None
