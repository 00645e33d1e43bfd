"""The report of a plan: what there will be, before anything of it is made."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from spacepatch.bounds import LowerBound
from spacepatch.data import Loss
from spacepatch.inspection.counting import HISTOGRAMS, bins_of, count_bins
from spacepatch.pipeline.placement import Lengths
from spacepatch.pipeline.plan import Plan
from spacepatch.pipeline.planfile import StoredPlan
from spacepatch.pipeline.runs import clip_bytes
from spacepatch.pipeline.sampled_clips import seconds_of
from spacepatch.report.charts import draw_bars
from spacepatch.report.histograms import SegmentCounts, rows_of, sides_of
from spacepatch.report.otherwise import Shard, choose_shards, try_lengths
from spacepatch.report.planned_packs import planned_packs, planned_row
from spacepatch.report.records import (
    Chart,
    Page,
    Section,
    Table,
    Tile,
    short_of,
    size_of,
    span_of,
)
from spacepatch.report.sections import (
    SHOWN_TITLES,
    chosen_settings,
    histogram,
    lengths_chart,
    losses_section,
    packers_chart,
    run_section,
    shards_section,
)
from spacepatch.wording import bytes_of, counted

SOURCES_LISTED = 300
EXAMPLES = 3


def report_plan(stored: StoredPlan, figures: dict[str, Any], trial: dict[str, Any] | str) -> Page:
    """Describe a plan as a page; of a large one, charts of clips are of some of its tasks.

    Args:
        figures: of `forecast`.
        trial: of `bench`, on a sample of the same sources; or why there is none.
    """
    totals = figures["totals"]
    listed = [{"task": task, "segments": task.num_clips} for task in stored.tasks]
    plan = stored.parts([row["task"] for row in choose_shards(listed)] if listed else [])
    sections = [
        _estimate(totals, figures["store"], trial),
        run_section(
            settings=plan.settings,
            fingerprints=plan.fingerprints,
            environment=plan.environment,
            facts=[*chosen_settings(plan.settings), *_facts(plan, figures)],
            title="What will be run",
        ),
    ]
    if plan.num_clips:
        shards = _shards(plan)
        sections += [
            shards_section(shards, pack_length=plan.layout.pack_length, splits={}),
            planned_packs(plan),
            _segments(plan),
            _otherwise(plan, figures, shards, totals["shards"]),
        ]
    sections.append(
        losses_section(
            _losses(stored.losses()),
            hint="What is lost before anything is decoded; decoding may find more.",
        )
    )
    sources = (figures["sources"] or [])[:SOURCES_LISTED]
    sections.append(_sources(sources, totals["sources"]))
    return Page(
        what="plan",
        title=f"Plan of {counted(totals['sources'], 'source')}",
        lead=f"{counted(totals['clips'], 'segment')} in packs of {totals['pack_length']:,} tokens, "
        "from headers and packets: nothing has been decoded.",
        tiles=tuple(_tiles(figures, trial)),
        sections=tuple(sections),
        notes=tuple(_notes(plan, figures, totals["shards"])),
        footer="Counts are from headers and packets. Times were measured on the machine that made "
        "this page. It holds all that it shows and asks no network.",
        figures=dict(figures) | {"sources": sources, "trial": trial},
    )


def _notes(plan: Plan, figures: dict[str, Any], num_tasks: int) -> Iterator[str]:
    if len(plan.tasks) < num_tasks:
        yield (
            f"Charts of shards, packs and segments are of {len(plan.tasks):,} of {num_tasks:,} "
            "shards, evenly spread; all other figures are of the whole plan."
        )
    if not figures["totals"]["sources"]:
        yield "No video was found: give a folder, a file or a manifest that has some."
    elif not plan.num_clips:
        yield "No source gives a segment; the reasons are below."
    yield from figures["warnings"]
    for names in figures["duplicates"][:EXAMPLES]:
        yield f"The same file: {', '.join(names[:EXAMPLES])}"


def _tiles(figures: dict[str, Any], trial: dict[str, Any] | str) -> Iterator[Tile]:
    totals = figures["totals"]
    most = "≤ " if totals["is_bound"] else ""
    yield Tile("Sources", f"{totals['sources']:,}", f"{span_of(totals['seconds'])} of video")
    yield Tile("Segments", f"{totals['clips']:,}", f"{totals['frames']:,} frames")
    yield Tile("Tokens", most + short_of(totals["tokens"]), f"{figures['token_dtype']} values")
    bound = LowerBound(**figures["lower_bound"])
    yield Tile("Packs", f"{most}{totals['packs']:,}", f"at least {bound.packs:,} needed")
    yield Tile("Fill", f"{totals['fill']:.2%}", f"by {totals['packer']}")
    at_most = "≤ " if figures["store"].startswith("compressed") else most
    size = f"{at_most or 'about '}{bytes_of(totals['bytes'])}"
    yield Tile("Shards", f"{totals['shards']:,}", size)
    if isinstance(trial, dict) and trial["best"] is not None:
        expected = trial["expected"]
        yield Tile(
            "Expected time",
            f"about {span_of(expected['seconds'])}",
            f"with {counted(trial['best'], 'worker')} here",
        )
    losses = sum(totals["losses"].values())
    yield Tile("Losses", f"{losses:,}", "known before decoding")


def _facts(plan: Plan, figures: dict[str, Any]) -> list[tuple[str, str]]:
    encoder = figures["encoder"]
    patches = plan.settings["patch"].replace("x", " × ")
    facts = [("Tubelet t × h × w", patches), ("Packer", figures["totals"]["packer"])]
    if encoder is None:
        return [("Kind", "pixels"), *facts]
    return [
        ("Kind", encoder["kind"]),
        *facts,
        ("Encoder", encoder["name"]),
        ("Frames of a latent", str(encoder["rule"])),
        ("Stride t × h × w", " × ".join(map(str, encoder["stride"]))),
    ]


# --- time and bytes ----------------------------------------------------------------------------


def _estimate(totals: dict[str, Any], store: str, trial: dict[str, Any] | str) -> Section:
    is_bound = totals["is_bound"] or store.startswith("compressed")
    most = "at most " if is_bound else "about "
    facts = [("Bytes of the shards", most + bytes_of(totals["bytes"]))]
    if isinstance(trial, str):
        text = f"There is no estimate of time: the trial could not run: {trial}"
        return Section("estimate", "Time and bytes", (text,), tuple(facts))
    sample, expected, best = trial["sample"], trial["expected"], trial["best"]
    texts = [
        f"From a short trial on this machine, of {counted(sample['clips'], 'clip')} of "
        f"{counted(sample['sources'], 'source')}"
        + ("" if sample["is_all"] else ", drawn by the seed")
        + ". spacepatch bench measures for longer."
    ]
    if trial["machine"]["is_busy"]:
        texts.append("The machine was busy with other work: do not trust these times.")
    if best is None:
        texts.append("Every run lost tokens that one worker had: see --worker-memory.")
    else:
        facts += [
            ("Expected time", f"about {span_of(expected['seconds'])}"),
            ("Of that planning", span_of(expected["planning_seconds"])),
            ("Best here", f"--workers {best}"),
        ]
    rows = trial["workers"]
    workers = draw_bars(
        "Tokens a second by workers",
        [(counted(row["workers"], "worker"), row["tokens_per_second"]) for row in rows],
        columns=("workers", "tokens a second"),
        marked=None if best is None else counted(best, "worker"),
    )
    stages = sorted(trial["stages"].items(), key=lambda item: -item[1]["seconds"])
    shares = draw_bars(
        "Where the time of one worker goes",
        [(name, row["share"]) for name, row in stages],
        columns=("stage", "share"),
        numbers=[f"{row['share']:.1%}" for _, row in stages],
    )
    return Section("estimate", "Time and bytes", tuple(texts), tuple(facts), (workers, shares))


# --- shards and packs --------------------------------------------------------------------------


def _shards(plan: Plan) -> list[dict[str, Any]]:
    """A row a task, as `summarize` has one a shard."""
    rows = []
    for task in plan.tasks:
        lengths = Lengths.of(task.clips, plan.layout)
        packs = sum(plan.placement.count(lengths).values())
        tokens = int(lengths.tokens.sum())
        rows.append(
            {
                "name": f"shard {task.number:,}",
                "task": task,
                "packs": packs,
                "segments": len(task.clips),
                "tokens": tokens,
                "bytes": sum(clip_bytes(clip, plan.layout) for clip in task.clips),
                "fill": tokens / (packs * plan.layout.pack_length),
            }
        )
    return rows


# --- segments ----------------------------------------------------------------------------------


def _segments(plan: Plan) -> Section:
    clips = [clip for task in plan.tasks for clip in task.clips]
    rows = [planned_row(plan, clip, clip.grid_thw[0], clip.num_kept)[0] for clip in clips]
    sizes = np.array([clip.size for clip in clips])
    nan = float("nan")
    values = {
        "tokens": [clip.num_kept for clip in clips],
        "duration_seconds": [seconds_of(plan, clip) for clip in clips],
        "source_fps": [nan if row["source_fps"] is None else row["source_fps"] for row in rows],
        "sampled_fps": [nan if row["sampled_fps"] is None else row["sampled_fps"] for row in rows],
        "aspect_ratio": sizes[:, 1] / sizes[:, 0],
    }
    charts: list[Chart] = []
    for key, (title, unit) in SHOWN_TITLES.items():
        counts = count_bins(np.array(values[key], np.float64), HISTOGRAMS[key])
        charts += histogram(title, rows_of(bins_of(key, counts)), unit=unit)
    held = SegmentCounts(plan.layout.pack_length)
    held.add_segments(sizes, np.array([row["aspect_error"] for row in rows]))
    shown = [planned.info.display_size for planned in plan.sources if planned.info is not None]
    charts += histogram("Shorter side before", sides_of(shown), unit="pixels", of="sources")
    charts += histogram("Shorter side after", held.sides, unit="pixels")
    charts += histogram("Aspect error", held.errors, unit="error")
    return Section("segments", "Segments", charts=tuple(charts))


def _otherwise(
    plan: Plan, figures: dict[str, Any], shards: list[dict[str, Any]], num_tasks: int
) -> Section:
    totals = figures["totals"]
    read = []
    for shard in shards:
        lengths = Lengths.of(shard["task"].clips, plan.layout)
        whole = [clip.num_kept == clip.num_tokens for clip in shard["task"].clips]
        first = plan.encoder is not None and plan.encoder.lattice.rule.first
        rows = np.where(np.array(whole) & (not first), lengths.tokens // lengths.cells, 1)
        read.append(Shard(Lengths(lengths.tokens, lengths.tokens // rows, lengths.widths), rows))
    lengths_found = try_lengths(
        read, pack_length=plan.layout.pack_length, max_segments=plan.placement.max_segments
    )
    near = [
        (row["pack_length"], row["packs"], f"{row['fill']:.2%}")
        for row in figures["better_pack_lengths"]
    ]
    tables = []
    if near:
        columns = ("pack length", "packs", "fill")
        tables.append(Table.of(columns, near, title="Better pack lengths nearby"))
    charts = (
        packers_chart(
            {name: entry["packs"] for name, entry in figures["packers"].items()},
            tokens=totals["tokens"],
            pack_length=totals["pack_length"],
            chosen=totals["packer"],
            note="of all shards, each packed by itself",
        ),
        lengths_chart(
            lengths_found,
            pack_length=plan.layout.pack_length,
            note=f"of {len(shards):,} of {num_tasks:,} shards, by best-fit-decreasing",
        ),
    )
    return Section("otherwise", "Packed otherwise", charts=charts, tables=tuple(tables))


# --- losses and sources ------------------------------------------------------------------------


def _losses(losses: Iterable[Loss]) -> list[dict[str, Any]]:
    """By reason, as `summarize` has them."""
    found: dict[str, dict[str, Any]] = {}
    for loss in losses:
        empty = {"reason": loss.reason, "retryable": loss.retryable, "examples": []}
        row = found.setdefault(loss.reason, empty | {"rows": 0, "frames": 0, "tokens": 0})
        row["rows"] += 1
        row["frames"] += loss.num_frames
        row["tokens"] += loss.num_tokens
        if len(row["examples"]) < EXAMPLES:
            keys = ("source", "clip", "stage", "message")
            row["examples"].append({key: getattr(loss, key) for key in keys})
    return sorted(found.values(), key=lambda row: (-row["rows"], row["reason"]))


def _sources(sources: Sequence[dict[str, Any]], total: int) -> Section:
    rows = [
        (
            row["source"],
            size_of(row["display_size"]),
            size_of(row["size"]),
            row["seconds"],
            row["frames"],
            row["clips"],
            row["tokens"],
        )
        for row in sources
    ]
    columns = ("source", "size", "resized", "seconds", "frames", "segments", "tokens")
    texts: tuple[str, ...] = ()
    if len(sources) < total:
        texts = (f"{len(sources):,} of {total:,} are listed.",)
    table = Table.of(columns, rows, title="List", is_folded=True)
    return Section("sources", "Sources", texts, tables=(table,))
