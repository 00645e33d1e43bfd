"""Finish a run: receipts become the merged tables and dataset.json, written last of all."""

from __future__ import annotations

import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from spacepatch.data import POLICY_REASONS, RETRYABLE_REASONS, EncoderFacts, Loss, Task
from spacepatch.errors import ShardError
from spacepatch.normalization import NORMALIZATIONS
from spacepatch.packing import lower_bound
from spacepatch.pipeline.encoded import encoder_of_dataset
from spacepatch.pipeline.planfile import Plan, PlannedSource
from spacepatch.shards import (
    DATASET,
    FORMAT_VERSION,
    LOSSES,
    SEGMENTS,
    SOURCES,
    TABLES,
    ShardReceipt,
    read_receipt,
    receipt_path,
    shard_stem,
    write_table,
)
from spacepatch.shards.tables import read_arrow, write_batches
from spacepatch.storage import publish_bytes, remove


@dataclass(frozen=True, slots=True)
class RunSummary:
    """How a run ended."""

    totals: dict[str, Any]
    losses: tuple[Loss, ...]
    lost_sources: tuple[str, ...]
    """Names of sources of which nothing is in the shards, though the settings asked for it."""


def finish_run(folder: Path, plan: Plan) -> RunSummary:
    """Merge the receipts. Idempotent: interrupted anywhere, it is simply done again.

    Raises:
        ShardError: a task has no receipt, or a table of a shard is damaged.
    """
    receipts = [_receipt(folder, plan, task) for task in plan.tasks]
    stems = [shard_stem(plan.name, task.split, task.number) for task in plan.tasks]
    full = [stem for stem, receipt in zip(stems, receipts, strict=True) if receipt.packs]
    losses = [*plan.losses, *(_loss(row) for receipt in receipts for row in receipt.losses)]

    counts = _count_segments(folder, full)
    tables = {
        "segments.parquet": write_batches(
            folder / "segments.parquet",
            SEGMENTS,
            (read_arrow(folder / f"{stem}.segments.parquet") for stem in full),
        )
    }
    observed: dict[str, dict[str, Any]] = {}
    for receipt in receipts:
        for identity, seen in receipt.observed.items():
            # Tasks see different frames of one source: what any of them saw holds.
            observed[identity] = {**seen, **observed.get(identity, {})}
    rows = _source_rows(plan, losses, counts, observed)
    tables["sources.parquet"] = write_table(folder / "sources.parquet", SOURCES, rows)
    tables["losses.parquet"] = write_table(
        folder / "losses.parquet", LOSSES, [_loss_row(loss) for loss in losses]
    )

    totals = _totals(plan, receipts, losses, rows)
    document = {
        "format_version": FORMAT_VERSION,
        "plan_id": plan.plan_id,
        "plans": ["plan.parquet"],
        "name": plan.name,
        "settings": plan.settings,
        "fingerprints": plan.fingerprints,
        "environment": plan.environment,
        "kind": plan.settings["kind"],
        "store": plan.layout.store,
        "members": plan.layout.members,
        "token_dtype": plan.layout.token_dtype,
        "token_width": plan.layout.token_width,
        "token_widths": list(plan.layout.token_widths),
        "position_dtype": plan.layout.position_dtype,
        "pack_length": plan.layout.pack_length,
        "constants": constants_of(plan.settings, plan.encoder),
        "encoder": None if plan.encoder is None else encoder_of_dataset(plan.encoder, receipts),
        "pixels": pixels_of(plan, receipts),
        "totals": totals,
        "tables": tables,
        "shards": [
            {
                "name": stem,
                "split": receipt.split,
                "packs": receipt.packs,
                "segments": receipt.segments,
                "tokens": receipt.tokens,
                "bytes": receipt.num_bytes,
                "token_widths": widths_of(receipt),
            }
            for stem, receipt in zip(stems, receipts, strict=True)
            if receipt.packs
        ],
    }
    text = json.dumps(document, sort_keys=True, indent=1, ensure_ascii=False)
    publish_bytes(folder / DATASET, text.encode() + b"\n")
    return RunSummary(totals, tuple(losses), tuple(_lost_sources(rows, losses)))


def finished_losses(folder: Path, plan: Plan, tasks: list[Task]) -> list[Loss]:
    """Losses of tasks that have their receipts."""
    return [_loss(row) for task in tasks for row in _receipt(folder, plan, task).losses]


def unfinish(folder: Path) -> None:
    """Take away dataset.json and the merged tables: nobody reads a dataset that is being mended."""
    remove([folder / DATASET, *(folder / name for name in TABLES)])


def forget_retryable(folder: Path, plan: Plan) -> None:
    """Take back what jobs lost for environmental reasons, so that it is done again."""
    again = []
    for task in plan.tasks:
        path = receipt_path(folder, shard_stem(plan.name, task.split, task.number))
        if path.exists() and any(
            row["reason"] in RETRYABLE_REASONS for row in read_receipt(path).losses
        ):
            again.append(task)
    if again:
        unfinish(folder)
        stems = [shard_stem(plan.name, task.split, task.number) for task in again]
        remove([receipt_path(folder, stem) for stem in stems])


def _receipt(folder: Path, plan: Plan, task: Task) -> ShardReceipt:
    path = receipt_path(folder, shard_stem(plan.name, task.split, task.number))
    receipt = read_receipt(path)
    if receipt.task_id != task.task_id:
        raise ShardError(f"{path}: is of another plan; start again with --overwrite")
    return receipt


def _count_segments(folder: Path, stems: list[str]) -> dict[str, Counter[str]]:
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for stem in stems:
        columns = ["source_id", "valid_frames", "num_kept"]
        table = read_arrow(folder / f"{stem}.segments.parquet", columns)
        for row in table.to_pylist():
            count = counts[row["source_id"]]
            count["segments"] += 1
            count["frames"] += row["valid_frames"]
            count["tokens"] += row["num_kept"]
    return counts


def _source_rows(
    plan: Plan,
    losses: list[Loss],
    counts: dict[str, Counter[str]],
    observed: dict[str, dict[str, Any]],
) -> list[dict[str, Any]]:
    selected: Counter[str] = Counter()
    clips: Counter[str] = Counter()
    for task in plan.tasks:
        for clip in task.clips:
            identity = plan.sources[clip.source].source.source_id
            selected[identity] += len(clip.frame_pts)
            clips[identity] += 1
    lost: Counter[str] = Counter()
    for loss in losses:
        lost[loss.source_id] += loss.num_frames
    for loss in plan.losses:
        # Ruled out before any task, so no clip of a task has these frames.
        selected[loss.source_id] += loss.num_frames
    order = sorted(
        plan.sources, key=lambda entry: (entry.source.source_root, entry.source.name.encode())
    )
    rows = []
    for planned in order:
        identity = planned.source.source_id
        count = counts.get(identity, Counter())
        rows.append(
            {
                **_describe(planned, observed.get(identity, {}), plan.settings),
                "num_clips": clips[identity],
                "num_segments": count["segments"],
                "num_tokens": count["tokens"],
                "frames_selected": selected[identity],
                "frames_written": count["frames"],
                "frames_lost": lost[identity],
            }
        )
    return rows


def _describe(
    planned: PlannedSource, observed: dict[str, Any], settings: dict[str, Any]
) -> dict[str, Any]:
    source, info = planned.source, planned.info
    row: dict[str, Any] = {
        "source": source.name,
        "source_root": source.source_root,
        "source_id": source.source_id,
        "split": source.split,
        "content_id": planned.content_id,
        "bytes": source.num_bytes,
    }
    if info is None:
        return row
    return row | {
        "container": info.container,
        "codec": info.codec,
        "stream_index": info.stream_index,
        "coded_size": info.coded_size,
        "display_size": info.display_size,
        # A picture's own matrix is the truth; a header shows no mirroring.
        "rotation": observed.get("rotation", info.rotation),
        "mirrored": observed.get("mirrored"),
        "pixel_aspect_ratio": str(info.pixel_aspect_ratio),
        "pixel_format": info.pixel_format,
        "colour_matrix": observed.get("matrix", info.colour["matrix"]),
        "colour_range": observed.get("range", info.colour["range"]),
        "colour_primaries": info.colour["primaries"],
        "colour_transfer": info.colour["transfer"],
        "colour_tagged": observed.get("tagged", info.colour["tagged"]),
        "bit_depth": info.bit_depth,
        "hdr": f"{info.hdr}, {HDR_HANDLED[settings['hdr']]}" if info.hdr else "",
        "interlaced": ", ".join(filter(None, (info.interlaced, observed.get("fields")))),
        "alpha": handled_alpha(settings) if info.alpha else "",
        "declined": observed.get("declined", ""),
        "time_base": str(info.time_base),
        "duration_seconds": planned.duration_seconds,
        "source_fps": planned.num_frames / planned.duration_seconds
        if planned.duration_seconds
        else None,
        "num_packets": info.num_packets,
        "num_frames": planned.num_frames,
        "header_frames": info.header_frames,
        "header_seconds": info.header_seconds,
        "pts_repaired": info.pts_repaired,
    }


def constants_of(settings: dict[str, Any], encoder: EncoderFacts | None = None) -> dict[str, Any]:
    """What turns stored values into what a model takes: the loader applies it."""
    if encoder is None:
        return {"scale": 255, "channels": 4 if settings["alpha"] else 3, **_normalize_of(settings)}
    if encoder.kind == "codes":
        return {"channels": encoder.channels, "codebook_size": encoder.codebook_size}
    # Of the model's own config, whatever it does not say is None.
    return {"channels": encoder.channels, "latents_are": "raw", **encoder.constants}


def _normalize_of(settings: dict[str, Any]) -> dict[str, Any]:
    name = settings["normalize"]
    return {"normalize": {"name": name, **asdict(NORMALIZATIONS[name])}}


def pixels_of(plan: Plan, receipts: Sequence[ShardReceipt]) -> dict[str, Any] | None:
    """What dataset.json says of the pixel tokens beside those of an encoder; None: there are none.

    `pack_length` is what the most of them in a pack come to: what a loader pads to.
    """
    layout = plan.layout
    if layout.pixel_tubelet is None:
        return None
    return {
        "tubelet": list(layout.pixel_tubelet),
        "token_width": layout.pixel_width,
        "tokens": sum(receipt.pixel_tokens for receipt in receipts),
        "pack_length": max((receipt.pack_pixel_tokens for receipt in receipts), default=0),
        **_normalize_of(plan.settings),
    }


def widths_of(receipt: ShardReceipt) -> list[list[int]]:
    """[token width, packs] of a shard, in the order that its packs lie in."""
    return [
        [width, len(list(packs))] for width, packs in itertools.groupby(receipt.pack_token_widths)
    ]


HDR_HANDLED = {"tonemap": "tone mapped to BT.709", "skip": "skipped", "raw": "raw"}


def handled_alpha(settings: dict[str, Any]) -> str:
    """What became of the alpha of sources that have it."""
    return "kept" if settings["alpha"] else f"composited on {settings['background']}"


def _lost_sources(rows: list[dict[str, Any]], losses: list[Loss]) -> list[str]:
    reasons = defaultdict(set)
    for loss in losses:
        reasons[loss.source_id].add(loss.reason)
    return [
        row["source"]
        for row in rows
        if not row["num_segments"] and reasons[row["source_id"]] - POLICY_REASONS
    ]


def _totals(
    plan: Plan, receipts: list[ShardReceipt], losses: list[Loss], rows: list[dict[str, Any]]
) -> dict[str, Any]:
    packs = sum(receipt.packs for receipt in receipts)
    tokens = sum(receipt.tokens for receipt in receipts)
    capacity = packs * plan.layout.pack_length
    return {
        "sources": len(plan.sources),
        "sources_with_segments": sum(1 for row in rows if row["num_segments"]),
        "ignored": plan.num_ignored,
        "declined": sum(1 for row in rows if row.get("declined")),
        "clips": plan.num_clips,
        "segments": sum(receipt.segments for receipt in receipts),
        "tokens": tokens,
        "planned_tokens": plan.num_tokens,
        "packs": packs,
        "lower_bound": lower_bound(tokens, pack_length=plan.layout.pack_length),
        "fill": tokens / capacity if capacity else 0.0,
        "shards": sum(1 for receipt in receipts if receipt.packs),
        "bytes": sum(receipt.num_bytes for receipt in receipts),
        "losses": dict(sorted(Counter(loss.reason for loss in losses).items())),
        "frames_selected": sum(row["frames_selected"] for row in rows),
        "frames_written": sum(row["frames_written"] for row in rows),
        "frames_lost": sum(row["frames_lost"] for row in rows),
    }


def _loss(row: dict[str, Any]) -> Loss:
    return Loss(**{key: row[key] for key in Loss.__dataclass_fields__ if key in row})


def _loss_row(loss: Loss) -> dict[str, Any]:
    return {name: getattr(loss, name) for name in LOSSES}
