"""What a plan comes to: tokens, packs for each packer, shards, bytes, better pack lengths."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from spacepatch.bounds import LowerBound, bound_packs
from spacepatch.listings import key_of
from spacepatch.packers import ALL_PACKERS, NEEDS_SCIPY
from spacepatch.packing import count_packs, lower_bound
from spacepatch.pipeline.encoded import encoder_of_receipt
from spacepatch.pipeline.placement import Placement
from spacepatch.pipeline.plan import Plan, PlannedTask
from spacepatch.pipeline.planfile import StoredPlan
from spacepatch.pipeline.runs import lengths_of_rows, pixel_bytes
from spacepatch.pipeline.sourcesurvey import SourceSurvey

if TYPE_CHECKING:
    import pyarrow as pa

LOW_FILL = 0.95
"""Fill below which a plan warns."""
NEAR = 0.25
"""How far from the pack length asked for better ones are looked for, as a share of it."""
CANDIDATES = 129

PACK_OVERHEAD = 5 * 512 + 5 * 128 + 256
"""Bytes of tar headers, npy headers and padding in a pack, about."""
SEGMENT_OVERHEAD = 1200
"""Bytes a segment adds to pack.json and the table, about."""


MOST_LISTED = 10_000
"""Sources that a forecast lists one by one."""


def forecast(plan: StoredPlan, *, thorough: bool = False) -> dict[str, Any]:
    """The figures of `spacepatch plan`, from integers alone; one task at a time is in memory.

    Args:
        thorough: prove the best lower bound there is, however long it takes.

    Returns:
        JSON-able: `sources` (a list; None where there are more than `MOST_LISTED`), `totals` (with
        the plain `lower_bound`, tokens / pack length, and `scanned`, see `StoredPlan.num_scanned`),
        `lower_bound` (the best one, see `LowerBound`), `packers` (those that are quick, and the
        chosen one), `better_pack_lengths`, `warnings`, `duplicates`, `encoder` (None: pixels),
        `token_dtype`, `store` (if compressed, bytes are those of tokens as they are),
        `pixel_tubelet` (of `also pixels`).
    """
    head = plan.head
    chosen = "cut-to-fit" if head.placement.cut_to_fit else head.placement.packer
    names = [name for name in ALL_PACKERS if name not in NEEDS_SCIPY or name == chosen]
    names += ["cut-to-fit"] if _can_cut(head) else []
    figures = _Figures(head, {name: _placement(head, name) for name in names})
    survey = SourceSurvey(is_listed=plan.num_sources <= MOST_LISTED)
    for task in plan.tasks:
        rows = plan.rows(task)
        figures.add(rows, plan, task)
        survey.add(rows)
    losses: Counter[str] = Counter()
    for row in plan.loss_rows():
        losses[row["reason"]] += 1
        survey.add_loss(row)

    length, tokens = head.layout.pack_length, plan.num_tokens
    packers = {
        name: {"packs": packs, "fill": _fill(tokens, packs, length)}
        for name, packs in figures.packs.items()
    }
    packs = figures.packs[chosen]
    fill = _fill(tokens, packs, length)
    better = _better_lengths(head, survey.spans)
    bound = sum(
        lower_bound(sum(size * count for size, count in sizes.items()), pack_length=length)
        for sizes in figures.histograms.values()
    )
    warnings = []
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
        "sources": survey.rows(),
        "totals": {
            "sources": plan.num_sources,
            "ignored": head.num_ignored,
            "scanned": plan.num_scanned,
            "clips": plan.num_clips,
            "frames": sum(task.num_frames for task in plan.tasks),
            "seconds": survey.seconds,
            "tokens": tokens,
            "is_bound": head.is_bound,
            "packer": chosen,
            "pack_length": length,
            "packs": packs,
            "lower_bound": bound,
            "fill": fill,
            "shards": len(plan.tasks),
            "bytes": figures.num_bytes + packs * PACK_OVERHEAD + plan.num_clips * SEGMENT_OVERHEAD,
            "losses": dict(sorted(losses.items())),
        },
        "lower_bound": _bound(head, figures, packs, bound, thorough=thorough).to_json(),
        "packers": packers,
        "better_pack_lengths": better,
        "duplicates": _duplicates(plan, survey),
        "warnings": warnings,
        "encoder": None if head.encoder is None else encoder_of_receipt(head.encoder),
        "token_dtype": head.layout.token_dtype,
        "store": head.settings["store"],
        "pixel_tubelet": head.layout.pixel_tubelet,
    }


class _Figures:
    """What the tasks come to, for each packer."""

    def __init__(self, head: Plan, placements: dict[str, Placement]) -> None:
        self._layout, self._placements = head.layout, placements
        self.packs: Counter[str] = Counter(dict.fromkeys(placements, 0))
        self.histograms: dict[int, Counter[int]] = defaultdict(Counter)
        """By width, how many clips there are of each number of tokens."""
        self.num_bytes = 0
        """Of tokens, with those of pixels beside them; before they are compressed."""

    def add(self, rows: pa.Table, plan: StoredPlan, task: PlannedTask) -> None:
        lengths = lengths_of_rows(rows, self._layout)
        for name, placement in self._placements.items():
            self.packs[name] += sum(placement.count(lengths).values())
        for width, sizes in lengths.histograms().items():
            self.histograms[width].update(sizes)
            tokens = sum(size * count for size, count in sizes.items())
            if self._layout.store != "refs":
                self.num_bytes += tokens * self._layout.token_bytes(width)
        if self._layout.pixel_tubelet is not None:
            clips = plan.part(task).tasks[0].clips
            self.num_bytes += sum(pixel_bytes(clip, self._layout) for clip in clips)


def _bound(head: Plan, figures: _Figures, packs: int, plain: int, *, thorough: bool) -> LowerBound:
    """Of the packs of whole segments; of what may be cut, or kept in part, by their tokens."""
    placement = head.placement
    if placement.cut_to_fit or head.is_bound:
        return LowerBound(plain, "tokens")
    return bound_packs(
        {width: dict(sizes) for width, sizes in sorted(figures.histograms.items(), reverse=True)},
        pack_length=placement.pack_length,
        max_segments=placement.max_segments,
        packs=packs,
        thorough=thorough,
    )


def _can_cut(head: Plan) -> bool:
    """Whether cut_to_fit is possible: dropping leaves no whole rows to cut between, pixels beside
    the tokens are not cut with them, and a first latent of one frame is at the start alone."""
    begins_alone = head.encoder is not None and head.encoder.lattice.rule.first
    is_alone = head.layout.pixel_tubelet is None
    return head.settings["drop"] is None and is_alone and not begins_alone


def _placement(head: Plan, name: str) -> Placement:
    if name == "cut-to-fit":
        packer = "best-fit-decreasing"
        return replace(head.placement, cut_to_fit=True, packer=packer, window=None, balance=None)
    window = head.placement.window if name == "first-fit" else None
    return replace(head.placement, cut_to_fit=False, packer=name, window=window)


def _fill(tokens: int, packs: int, length: int) -> float:
    return tokens / (packs * length) if packs else 0.0


def _better_lengths(head: Plan, spans: Counter[tuple[int, int]]) -> list[dict[str, Any]]:
    """The three pack lengths near the one asked for that fill best, if any is better."""
    asked = head.settings
    if asked["drop"] or asked["clip_seconds"] or asked["views"] != "1" or "," in asked["patch"]:
        return []  # what could be cut elsewhere is then not one stretch of video after the other
    if head.encoder is not None and head.encoder.lattice.rule.first:
        return []  # each piece has a first latent of one frame: rows do not add up
    length = head.layout.pack_length
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
        if (result := fill_at(spans, int(value), head.placement.max_segments)) is not None
        for packs, fill in [result]
    ]
    here = fill_at(spans, length, head.placement.max_segments)
    found = [entry for entry in found if here is None or entry["fill"] > here[1]]
    return sorted(found, key=lambda entry: (-entry["fill"], entry["pack_length"]))[:3]


def fill_at(
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


def _duplicates(plan: StoredPlan, survey: SourceSurvey) -> list[list[str]]:
    """Names of sources with the same content: they stay, but should be known."""
    repeated = survey.repeated()
    groups: dict[str, dict[str, str]] = defaultdict(dict)
    for rows in plan.tables(["content_id", "source_id", "source"]) if repeated else ():
        for row in rows.to_pylist():
            if row["source_id"] in plan.identities.superseded:
                continue  # it is the same source as the one that followed it
            if row["content_id"] and key_of(row["content_id"]) in repeated:
                groups[row["content_id"]][row["source_id"]] = row["source"]
    return sorted(sorted(names.values()) for names in groups.values() if len(names) > 1)
