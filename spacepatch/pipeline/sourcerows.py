"""The rows of sources.parquet: what became of each source, in all of its tasks together."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spacepatch.pipeline.plan import PlannedSource
from spacepatch.pipeline.planfile import StoredPlan
from spacepatch.pipeline.planrows import read_source
from spacepatch.pipeline.sorting import KEY, in_order
from spacepatch.shards import ShardReceipt
from spacepatch.shards.tables import schema_of

if TYPE_CHECKING:
    import pyarrow as pa

SOURCE = "split source source_root source_id content_id bytes info num_selected".split()
"""Columns of the plan that say what a source is."""
COUNTS = ("clips", "selected", "segments", "tokens", "written", "lost")

RECORDS = {
    KEY: "binary",
    **dict.fromkeys(("split", "source", "source_id", "content_id", "info"), "string"),
    **dict.fromkeys(("source_root", "bytes", "num_selected", *COUNTS), "int64"),
    "observed": "string",
}
"""What one task says of one source."""

Row = dict[str, Any]


def records_of_task(rows: pa.Table, segments: pa.Table | None, receipt: ShardReceipt) -> pa.Table:
    """What a task says of its sources.

    Args:
        rows: of its clips in the plan.
        segments: the table of its shard; None: everything was lost.
    """
    found: dict[str, Row] = {}
    for row in rows.select([*SOURCE, "frame_pts"]).to_pylist():
        record = found.setdefault(row["source_id"], _record(row))
        record["clips"] += 1
        record["selected"] += len(row["frame_pts"])
    columns = ["source_id", "valid_frames", "num_kept"]
    for row in [] if segments is None else segments.select(columns).to_pylist():
        record = found[row["source_id"]]
        record["segments"] += 1
        record["written"] += row["valid_frames"]
        record["tokens"] += row["num_kept"]
    for loss in receipt.losses:
        found[loss["source_id"]]["lost"] += loss["num_frames"]
    for identity, seen in receipt.observed.items():
        found[identity]["observed"] = json.dumps(seen, sort_keys=True)
    return _table(found.values())


def records_of_losses(plan: StoredPlan) -> Iterator[pa.Table]:
    """What is known before decoding: no clip of a task has these frames."""
    records = []
    for row in plan.loss_rows():
        records.append(_record(row) | dict.fromkeys(("selected", "lost"), row["num_frames_lost"]))
        if len(records) == 1024:
            yield _table(records)
            records = []
    yield _table(records)


def _record(row: Row) -> Row:
    # By their names, in the order of the SOURCE arguments.
    key = row["source_root"].to_bytes(4, "big") + f"{row['source']}\0{row['source_id']}".encode()
    return {KEY: key, **{name: row[name] for name in SOURCE}, **dict.fromkeys(COUNTS, 0)}


def _table(records: Iterable[Row]) -> pa.Table:
    import pyarrow as pa

    return pa.Table.from_pylist(list(records), schema=schema_of(tuple(RECORDS.items())))


def source_rows(
    records: Iterable[pa.Table], settings: dict[str, Any], scratch: Path
) -> Iterator[Row]:
    """One row a source, sorted by argument and name.

    Args:
        records: in the order of the tasks.
        scratch: as of `in_order`.
    """
    for table in in_order(records, scratch):
        for _, own in groupby(table.to_pylist(), key=lambda record: record["source_id"]):
            yield _row(list(own), settings)


def _row(records: list[Row], settings: dict[str, Any]) -> Row:
    counts: Counter[str] = Counter()
    observed: dict[str, Any] = {}
    for record in records:
        counts.update({name: record[name] for name in COUNTS})
        # Tasks see different frames of one source: what any of them saw holds.
        observed = json.loads(record["observed"] or "{}") | observed
    return {
        **_describe(read_source(records[0], lambda identity: None), observed, settings),
        "num_clips": counts["clips"],
        "num_segments": counts["segments"],
        "num_tokens": counts["tokens"],
        "frames_selected": counts["selected"],
        "frames_written": counts["written"],
        "frames_lost": counts["lost"],
    }


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


HDR_HANDLED = {"tonemap": "tone mapped to BT.709", "skip": "skipped", "raw": "raw"}


def handled_alpha(settings: dict[str, Any]) -> str:
    """What became of the alpha of sources that have it."""
    return "kept" if settings["alpha"] else f"composited on {settings['background']}"
