"""Check what finishing a run writes: the merged tables, and dataset.json with them."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spacepatch.data import LOSS_REASONS, RETRYABLE_REASONS
from spacepatch.errors import ShardError
from spacepatch.inspection.dataset import Found, check_dataset
from spacepatch.inspection.findings import Findings, Report
from spacepatch.inspection.folders import read_batches
from spacepatch.inspection.tables import read_checked
from spacepatch.pipeline.plan import Plan, PlannedSource
from spacepatch.pipeline.sourcerows import HDR_HANDLED, handled_alpha
from spacepatch.shards import DATASET, LOSSES, SEGMENTS, SOURCES, TABLES
from spacepatch.shards.tables import read_arrow

if TYPE_CHECKING:
    import pyarrow as pa

REQUIRED_SOURCES = (
    "source source_root source_id split content_id bytes num_clips num_segments num_tokens "
    "frames_selected frames_written frames_lost"
).split()


def check_merged(
    folder: Path,
    dataset: dict[str, Any],
    document: dict[str, Any] | None,
    plan: Plan | None,
    found: Found,
    findings: Findings,
) -> None:
    """Report where the merged tables or dataset.json disagree with shards, plan or each other.

    Args:
        document: plan.json, if there is one.
    """
    _check_hashes(folder, dataset, findings)
    written = _check_segments(folder, dataset, found, findings.at("segments.parquet"))
    losses = _check_losses(folder, plan, found, findings.at("losses.parquet"))
    sources = _check_sources(folder, plan, found, written, losses, findings)
    check_dataset(dataset, document, plan, found, losses, sources, findings.at(DATASET))


def _check_hashes(folder: Path, dataset: dict[str, Any], findings: Findings) -> None:
    hashes = dataset.get("tables")
    for name in TABLES:
        path = folder / name
        if not path.is_file():
            continue  # reported by who reads it
        with path.open("rb") as file:
            actual = hashlib.file_digest(file, "sha256").hexdigest()
        if not isinstance(hashes, dict) or hashes.get(name) != actual:
            findings.add(name, "its sha256 is not that of dataset.json")


# --- segments.parquet --------------------------------------------------------------------------


def _check_segments(
    folder: Path, dataset: dict[str, Any], found: Found, report: Report
) -> dict[str, Counter[str]] | None:
    """The merged table is the shards' tables one after the other.

    Returns:
        By source_id what it holds: segments, frames, tokens.
    """
    path = folder / "segments.parquet"
    written: dict[str, Counter[str]] = defaultdict(Counter)
    try:
        merged = _Rows(path)
        for stem, shard in found.items():
            if shard is None:
                # Without a receipt dataset.json says how many rows to pass over.
                merged.take(_listed_segments(dataset, stem))
                continue
            ids = shard.segment_ids
            wanted = shard.receipt.segments if ids is None else len(ids)
            rows = merged.take(wanted)
            if len(rows) != wanted:
                report(f"ends within the segments of {stem}")
                break
            if ids is not None:
                own = read_arrow(folder / f"{stem}.segments.parquet")
                _compare(rows, own, stem, report)
        if len(merged.take(1)):
            report("has more rows than the shards")
        columns = ["source_id", "valid_frames", "num_kept"]
        for batch in read_batches(path, columns):
            for source_id, frames, tokens in zip(
                *(batch.column(name).to_pylist() for name in columns), strict=True
            ):
                count = written[source_id]
                count["segments"] += 1
                count["frames"] += frames or 0
                count["tokens"] += tokens or 0
    except ShardError as error:
        report(str(error).removeprefix(f"{path}: "))
        return None
    return written


class _Rows:
    """The rows of a table in order, as many at a time as are wanted."""

    def __init__(self, path: Path) -> None:
        self._batches: Iterator[pa.RecordBatch] = read_batches(path, list(SEGMENTS))
        self._waiting: list[pa.RecordBatch] = []

    def take(self, count: int) -> pa.Table:
        """The next `count` rows; fewer at the end."""
        import pyarrow as pa

        taken: list[pa.RecordBatch] = []
        while count > 0:
            if not self._waiting:
                batch = next(self._batches, None)
                if batch is None:
                    break
                self._waiting.append(batch)
            batch = self._waiting.pop()
            taken.append(batch.slice(0, count))
            if len(batch) > count:
                self._waiting.append(batch.slice(count))
            count -= len(taken[-1])
        return pa.Table.from_batches(taken) if taken else pa.table({})


def _listed_segments(dataset: dict[str, Any], stem: str) -> int:
    listed = dataset.get("shards")
    for entry in listed if isinstance(listed, list) else []:
        if isinstance(entry, dict) and entry.get("name") == stem:
            count = entry.get("segments")
            return count if isinstance(count, int) else 0
    return 0


def _compare(rows: pa.Table, table: pa.Table, stem: str, report: Report) -> None:
    for name in SEGMENTS:
        merged, own = rows.column(name), table.column(name)
        if not merged.equals(own):
            pairs = zip(merged.to_pylist(), own.to_pylist(), strict=True)
            row = next((place for place, pair in enumerate(pairs) if pair[0] != pair[1]), 0)
            report(f"{name} differs from {stem}.segments.parquet, first in its row {row}")


# --- losses.parquet ----------------------------------------------------------------------------


def _check_losses(
    folder: Path, plan: Plan | None, found: Found, report: Report
) -> list[dict[str, Any]] | None:
    """The losses of the plan, then those of the receipts, each with a reason of the closed list."""
    table = read_checked(
        folder / "losses.parquet", LOSSES, nullable=frozenset({"clip"}), report=report
    )
    if table is None:
        return None
    rows: list[dict[str, Any]] = table.select(list(LOSSES)).to_pylist()
    for place, row in enumerate(rows):
        if row["reason"] not in LOSS_REASONS:
            report(f"row {place}: reason {row['reason']!r} is not in the closed list")
        if row["retryable"] != (row["reason"] in RETRYABLE_REASONS):
            report(f"row {place}: retryable is {row['retryable']} for {row['reason']}")
    if plan is None or None in found.values():
        return rows
    expected = [asdict(loss) for loss in plan.losses]
    expected += [loss for shard in found.values() if shard for loss in shard.receipt.losses]
    if len(rows) != len(expected):
        report(f"has {len(rows)} rows, plan and receipts have {len(expected)} losses")
    for place, (row, loss) in enumerate(zip(rows, expected, strict=False)):
        wrong = [key for key in LOSSES if key != "retryable" and row[key] != loss.get(key)]
        if wrong:
            report(f"row {place} ({row['source']}): {wrong[0]} differs from plan and receipts")
    return rows


# --- sources.parquet ---------------------------------------------------------------------------


def _check_sources(
    folder: Path,
    plan: Plan | None,
    found: Found,
    written: dict[str, Counter[str]] | None,
    losses: list[dict[str, Any]] | None,
    findings: Findings,
) -> list[dict[str, Any]] | None:
    """Every source once, as probed, and its frames conserved."""
    report = findings.at("sources.parquet")
    nullable = frozenset(SOURCES) - frozenset(REQUIRED_SOURCES)
    table = read_checked(folder / "sources.parquet", SOURCES, nullable=nullable, report=report)
    if table is None:
        return None
    rows: list[dict[str, Any]] = table.select(list(SOURCES)).to_pylist()
    times = Counter(row["source_id"] for row in rows)
    for source_id in [source_id for source_id, count in times.items() if count > 1]:
        report(f"source_id {source_id} occurs {times[source_id]} times")
    lost: Counter[str] = Counter()
    for loss in losses or []:
        lost[loss["source_id"]] += loss["num_frames"]
    for row in rows:
        at = findings.at(f"sources.parquet: {row['source']}")
        selected, kept, gone = (row[f"frames_{key}"] for key in ("selected", "written", "lost"))
        if selected != kept + gone:
            at(f"{selected} frames selected, {kept} written and {gone} lost")
        if losses is not None and gone != lost[row["source_id"]]:
            at(f"{gone} frames lost, losses.parquet has {lost[row['source_id']]}")
        if written is not None:
            count = written.get(row["source_id"], Counter())
            for key, name in (
                ("frames_written", "frames"),
                ("num_segments", "segments"),
                ("num_tokens", "tokens"),
            ):
                if row[key] != count[name]:
                    at(f"{key} is {row[key]}, segments.parquet has {count[name]}")
    for source_id in (written or {}).keys() - times.keys():
        report(f"source_id {source_id} is missing, and segments.parquet has segments of it")
    for source_id in lost.keys() - times.keys():
        report(f"source_id {source_id} is missing, and losses.parquet has losses of it")
    if plan is not None:
        _check_planned(rows, plan, found, findings)
    return rows


def _check_planned(
    rows: list[dict[str, Any]], plan: Plan, found: Found, findings: Findings
) -> None:
    """Sources against the plan's, and against what the pictures showed."""
    selected: Counter[str] = Counter()
    clips: Counter[str] = Counter()
    for task in plan.tasks:
        for clip in task.clips:
            source_id = plan.sources[clip.source].source.source_id
            selected[source_id] += len(clip.frame_pts)
            clips[source_id] += 1
    for loss in plan.losses:
        selected[loss.source_id] += loss.num_frames
    observed: dict[str, Any] = {}
    for shard in found.values():
        for identity, seen in (shard.receipt.observed if shard is not None else {}).items():
            observed[identity] = {**seen, **observed.get(identity, {})}
    planned = {entry.source.source_id: entry for entry in plan.sources}
    report = findings.at("sources.parquet")
    for source_id in planned.keys() - {row["source_id"] for row in rows}:
        report(f"{planned[source_id].source.name} is planned and missing")
    for row in rows:
        at = findings.at(f"sources.parquet: {row['source']}")
        source_id = row["source_id"]
        if source_id not in planned:
            at("is no source of the plan")
            continue
        expected = _described(planned[source_id], observed.get(source_id), plan.settings)
        expected |= {"num_clips": clips[source_id], "frames_selected": selected[source_id]}
        for key, value in expected.items():
            if row[key] != value:
                at(f"{key} is {row[key]!r}, plan and receipts say {value!r}")


def _described(planned: PlannedSource, observed: Any, settings: dict[str, Any]) -> dict[str, Any]:
    """What a row of sources.parquet must say of a source, but for its counts."""
    source, info = planned.source, planned.info
    row: dict[str, Any] = dict.fromkeys(key for key in SOURCES if key not in REQUIRED_SOURCES)
    row |= {
        "source": source.name,
        "source_root": source.source_root,
        "split": source.split,
        "content_id": planned.content_id,
        "bytes": source.num_bytes,
    }
    if info is None:
        return row
    seconds = planned.duration_seconds
    row |= {key: getattr(info, key) for key in row if hasattr(info, key)}
    row |= {f"colour_{key}": value for key, value in info.colour.items() if key != "tagged"}
    row |= {
        "coded_size": list(info.coded_size),
        "display_size": list(info.display_size),
        "pixel_aspect_ratio": str(info.pixel_aspect_ratio),
        "time_base": str(info.time_base),
        "colour_tagged": info.colour["tagged"],
        "hdr": f"{info.hdr}, {HDR_HANDLED[settings['hdr']]}" if info.hdr else "",
        "alpha": handled_alpha(settings) if info.alpha else "",
        "declined": "",
        "duration_seconds": seconds,
        "num_frames": planned.num_frames,
        "source_fps": planned.num_frames / seconds if seconds else None,
    }
    # A picture's own word goes before the header's.
    columns = {"matrix": "colour_matrix", "range": "colour_range", "tagged": "colour_tagged"}
    for key, value in (observed if isinstance(observed, dict) else {}).items():
        column = columns[key] if key in columns else str(key)
        if column in row:
            row[column] = value
    if isinstance(observed, dict) and observed.get("fields"):
        row["interlaced"] = f"{info.interlaced}, {observed['fields']}"
    return row
