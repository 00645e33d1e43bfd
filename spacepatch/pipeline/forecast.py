"""What a plan comes to: tokens, packs for each packer, shards, bytes, better pack lengths."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import replace
from typing import Any

import numpy as np

from spacepatch.bounds import LowerBound, bound_packs
from spacepatch.packers import ALL_PACKERS, NEEDS_SCIPY
from spacepatch.packing import count_packs
from spacepatch.pipeline.encoded import encoder_of_receipt
from spacepatch.pipeline.placement import Lengths, Placement
from spacepatch.pipeline.planfile import Plan
from spacepatch.pipeline.planning import clip_bytes

LOW_FILL = 0.95
"""Fill below which a plan warns."""
NEAR = 0.25
"""How far from the pack length asked for better ones are looked for, as a share of it."""
CANDIDATES = 129

PACK_OVERHEAD = 5 * 512 + 5 * 128 + 256
"""Bytes of tar headers, npy headers and padding in a pack, about."""
SEGMENT_OVERHEAD = 1200
"""Bytes a segment adds to pack.json and the table, about."""


def forecast(plan: Plan, *, thorough: bool = False) -> dict[str, Any]:
    """The figures of `spacepatch plan`, from integers alone.

    Args:
        thorough: prove the best lower bound there is, however long it takes.

    Returns:
        JSON-able: `sources` (a list), `totals` (with the plain `lower_bound`, tokens / pack
        length, and `scanned`, see `Plan.num_scanned`), `lower_bound` (the best one, see
        `LowerBound`), `packers` (those that are quick, and the chosen one), `better_pack_lengths`,
        `warnings`, `duplicates`, `encoder` (None: pixels), `token_dtype`, `pixel_tubelet` (of
        `also pixels`).
    """
    length = plan.layout.pack_length
    tokens = plan.num_tokens
    packers: dict[str, dict[str, Any]] = {}
    chosen = "cut-to-fit" if plan.placement.cut_to_fit else plan.placement.packer
    names = [name for name in ALL_PACKERS if name not in NEEDS_SCIPY or name == chosen]
    names += ["cut-to-fit"] if _can_cut(plan) else []
    lengths = [Lengths.of(task.clips, plan.layout) for task in plan.tasks]
    for name in names:
        placement = _placement(plan, name)
        packs = sum(sum(placement.count(own).values()) for own in lengths)
        packers[name] = {"packs": packs, "fill": _fill(tokens, packs, length)}
    packs = packers[chosen]["packs"]
    fill = packers[chosen]["fill"]
    warnings = []
    better = _better_lengths(plan)
    bound = plan.placement.lower_bound(_all_lengths(plan))
    if packs > bound and fill < LOW_FILL:
        advice = []
        if packers.get("cut-to-fit", packers[chosen])["packs"] < packs:
            advice.append(f"--cut-to-fit reaches {packers['cut-to-fit']['fill']:.1%}")
        if better:
            best = better[0]
            advice.append(f"--pack-length {best['pack_length']} reaches {best['fill']:.1%}")
        hint = f": {' and '.join(advice)}" if advice else ""
        warnings.append(f"fill is {fill:.1%}, below {LOW_FILL:.0%}{hint}")
    return {
        "sources": _source_rows(plan),
        "totals": {
            "sources": len(plan.sources),
            "ignored": plan.num_ignored,
            "scanned": plan.num_scanned,
            "clips": plan.num_clips,
            "frames": sum(len(clip.frame_pts) for task in plan.tasks for clip in task.clips),
            "seconds": sum(entry.duration_seconds for entry in plan.sources),
            "tokens": tokens,
            "is_bound": plan.is_bound,
            "packer": chosen,
            "pack_length": length,
            "packs": packs,
            "lower_bound": bound,
            "fill": fill,
            "shards": len(plan.tasks),
            "bytes": _token_bytes(plan) + packs * PACK_OVERHEAD + plan.num_clips * SEGMENT_OVERHEAD,
            "losses": dict(sorted(Counter(loss.reason for loss in plan.losses).items())),
        },
        "lower_bound": _bound(plan, packs, bound, thorough=thorough).to_json(),
        "packers": packers,
        "better_pack_lengths": better,
        "duplicates": _duplicates(plan),
        "warnings": warnings,
        "encoder": None if plan.encoder is None else encoder_of_receipt(plan.encoder),
        "token_dtype": plan.layout.token_dtype,
        "pixel_tubelet": plan.layout.pixel_tubelet,
    }


def _bound(plan: Plan, packs: int, plain: int, *, thorough: bool) -> LowerBound:
    """Of the packs of whole segments; of what may be cut, or kept in part, by their tokens."""
    placement = plan.placement
    if placement.cut_to_fit or plan.is_bound:
        return LowerBound(plain, "tokens")
    return bound_packs(
        _all_lengths(plan).histograms(),
        pack_length=placement.pack_length,
        max_segments=placement.max_segments,
        packs=packs,
        thorough=thorough,
    )


def _can_cut(plan: Plan) -> bool:
    """Whether cut_to_fit is possible: dropping leaves no whole rows to cut between, pixels beside
    the tokens are not cut with them, and a first latent of one frame is at the start alone."""
    begins_alone = plan.encoder is not None and plan.encoder.lattice.rule.first
    is_alone = plan.layout.pixel_tubelet is None
    return plan.settings["drop"] is None and is_alone and not begins_alone


def _placement(plan: Plan, name: str) -> Placement:
    if name == "cut-to-fit":
        packer = "best-fit-decreasing"
        return replace(plan.placement, cut_to_fit=True, packer=packer, window=None, balance=None)
    window = plan.placement.window if name == "first-fit" else None
    return replace(plan.placement, cut_to_fit=False, packer=name, window=window)


def _all_lengths(plan: Plan) -> Lengths:
    return Lengths.of([clip for task in plan.tasks for clip in task.clips], plan.layout)


def _token_bytes(plan: Plan) -> int:
    return sum(clip_bytes(clip, plan.layout) for task in plan.tasks for clip in task.clips)


def _fill(tokens: int, packs: int, length: int) -> float:
    return tokens / (packs * length) if packs else 0.0


def _better_lengths(plan: Plan) -> list[dict[str, Any]]:
    """The three pack lengths near the one asked for that fill best, if any is better."""
    asked = plan.settings
    if asked["drop"] or asked["clip_seconds"] or asked["views"] != "1" or "," in asked["patch"]:
        return []  # what could be cut elsewhere is then not one stretch of video after the other
    if plan.encoder is not None and plan.encoder.lattice.rule.first:
        return []  # each piece has a first latent of one frame: rows do not add up
    spans = Counter(_spans(plan))
    length = plan.layout.pack_length
    if not spans:
        return []
    low, high = max(1, int(length * (1 - NEAR))), int(length * (1 + NEAR))
    candidates = np.unique(np.linspace(low, high, CANDIDATES).round().astype(int))
    # Round numbers are easier to live with.
    step = 64 if length >= 1024 else 8 if length >= 64 else 1
    candidates = np.unique([max(step, int(value) // step * step) for value in candidates])
    found = [
        {"pack_length": int(value), "packs": packs, "fill": fill}
        for value in candidates
        if (result := _fill_at(spans, int(value), plan.placement.max_segments)) is not None
        for packs, fill in [result]
    ]
    here = _fill_at(spans, length, plan.placement.max_segments)
    found = [entry for entry in found if here is None or entry["fill"] > here[1]]
    return sorted(found, key=lambda entry: (-entry["fill"], entry["pack_length"]))[:3]


def _spans(plan: Plan) -> list[tuple[int, int]]:
    """(rows, tokens a row) of each stretch of video before it was cut to fit the pack length."""
    by_source = defaultdict(list)
    for task in plan.tasks:
        for clip in task.clips:
            by_source[clip.source].append(clip)
    spans = []
    for clips in by_source.values():
        clips.sort(key=lambda clip: clip.clip)
        rows, before = 0, None
        for clip in clips:
            if before is not None and before.stop_pts != clip.start_pts:
                spans.append((rows, before.cells))
                rows = 0
            rows, before = rows + clip.grid_thw[0], clip
        if before is not None:
            spans.append((rows, before.cells))
    return spans


def _fill_at(
    spans: Counter[tuple[int, int]], length: int, max_segments: int | None
) -> tuple[int, float] | None:
    """(packs, fill) of best-fit-decreasing at another pack length; None where a row exceeds it."""
    histogram = np.zeros(length + 1, np.int64)
    for (rows, cells), count in spans.items():
        most = length // cells
        if most == 0:
            return None
        histogram[most * cells] += rows // most * count
        if rows % most:
            histogram[rows % most * cells] += count
    tokens = int((histogram * np.arange(length + 1)).sum())
    packs = count_packs(histogram, pack_length=length, max_segments=max_segments)
    return packs, _fill(tokens, packs, length)


def _duplicates(plan: Plan) -> list[list[str]]:
    """Names of sources with the same content: they stay, but should be known."""
    groups = defaultdict(list)
    for entry in plan.sources:
        if entry.content_id:
            groups[entry.content_id].append(entry.source.name)
    return [names for names in groups.values() if len(names) > 1]


def _source_rows(plan: Plan) -> list[dict[str, Any]]:
    frames: Counter[int] = Counter()
    tokens: Counter[int] = Counter()
    clips: Counter[int] = Counter()
    sizes: dict[int, tuple[int, int]] = {}
    rates: dict[int, float | None] = {}
    for task in plan.tasks:
        for clip in task.clips:
            frames[clip.source] += len(clip.frame_pts)
            tokens[clip.source] += clip.num_kept
            clips[clip.source] += 1
            sizes[clip.source] = clip.size
            rates[clip.source] = None if clip.sampled_fps is None else float(clip.sampled_fps)
    losses = defaultdict(list)
    for loss in plan.losses:
        losses[loss.source_id].append({"reason": loss.reason, "message": loss.message})
    rows = []
    order = sorted(
        range(len(plan.sources)),
        key=lambda row: (
            plan.sources[row].source.source_root,
            plan.sources[row].source.name.encode(),
        ),
    )
    for row in order:
        entry = plan.sources[row]
        info = entry.info
        rows.append(
            {
                "source": entry.source.name,
                "split": entry.source.split,
                "display_size": list(info.display_size) if info else None,
                "size": list(sizes[row]) if row in sizes else None,
                "seconds": entry.duration_seconds,
                "source_fps": entry.num_frames / entry.duration_seconds
                if entry.duration_seconds
                else None,
                "sampled_fps": rates.get(row),
                "source_frames": entry.num_frames,
                "frames": frames[row],
                "clips": clips[row],
                "tokens": tokens[row],
                "losses": losses[entry.source.source_id],
            }
        )
    return rows
