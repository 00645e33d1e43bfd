"""Write a plan: once and durably, for every later start and every rank to read."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import accumulate, groupby
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from spacepatch.config import fingerprint
from spacepatch.data import Loss
from spacepatch.pipeline.generations import FIRST, Addition, plan_name
from spacepatch.pipeline.plan import Plan, PlannedTask
from spacepatch.pipeline.planfile import StoredPlan, open_plan
from spacepatch.pipeline.planrows import clip_rows, digests_of, loss_rows, rows_table
from spacepatch.shards import FORMAT_VERSION, PLAN
from spacepatch.shards.tables import write_batches
from spacepatch.storage import publish_bytes

if TYPE_CHECKING:
    import pyarrow as pa

GROUP_ROWS = 4096
GROUP_VALUES = 2**17
"""Of a row group, at most, in its list of frames (more only where a single clip has them): some
4 MB, which is what a reader has in memory."""


def write_plan(folder: Path, plan: Plan) -> StoredPlan:
    """Make a plan durable that is in memory; see `write_plan_rows`."""
    by_source: dict[str, list[Loss]] = {}
    for loss in plan.losses:
        by_source.setdefault(loss.source_id, []).append(loss)
    tasks = (
        rows_table(
            row
            for source, clips in groupby(task.clips, key=lambda clip: clip.source)
            for row in clip_rows(plan.sources[source], clips)
        )
        for task in plan.tasks
    )
    planned_of = {planned.source.source_id: planned for planned in plan.sources}
    # In their own order: a source of clips, which comes with its task, may have lost a part too.
    losses = rows_table(
        row for identity, own in by_source.items() for row in loss_rows(planned_of[identity], own)
    )
    sources = {identity: planned.source for identity, planned in planned_of.items()}
    write_plan_rows(folder, plan, tasks, [losses], num_sources=len(plan.sources))
    return open_plan(folder, sources.get)


def write_plan_rows(
    folder: Path,
    head: Plan,
    tasks: Iterable[pa.Table],
    losses: Iterable[pa.Table],
    *,
    num_sources: int,
    addition: Addition = FIRST,
) -> None:
    """Make a plan durable: plan.parquet, then plan.json, which makes it valid.

    Args:
        head: of the plan, whose own rows are not looked at.
        tasks: of each in turn the rows of its clips; what they say of task and order is passed
            over.
        losses: rows of what is lost before decoding.
        addition: what there is to say of a later generation, whose files are named after it.
    """
    import pyarrow as pa

    numbered: list[PlannedTask] = []
    digests: list[str] = []

    def rows() -> Iterator[pa.Table]:
        for group in _groups(tasks):
            first = addition.first_task + len(numbered)
            starts = [0, *accumulate(map(len, group))]
            table = _number(pa.concat_tables(group), first, starts)
            for number, own in enumerate(group, first):
                numbered.append(planned_task(own, number))
            digests.extend(digests_of(table, starts))
            yield table
        yield from losses

    sha256 = write_batches(
        folder / f"{plan_name(addition.number)}.parquet", PLAN, _row_groups(rows())
    )
    identity = {
        "fingerprints": head.fingerprints,
        "seed": head.settings["seed"],
        "selection": {key: head.settings[key] for key in ("limit", "sample", "split")},
        "rows": sha256,
    }
    plan_id = fingerprint(identity)
    document = {
        "format_version": FORMAT_VERSION,
        "plan_id": plan_id,
        "plan_sha256": sha256,
        "name": head.name if addition.number else head.settings["name"] or plan_id[:8],
        "settings": head.settings,
        "fingerprints": head.fingerprints,
        "environment": head.environment,
        "layout": asdict(head.layout),
        "placement": asdict(head.placement),
        "num_sources": num_sources,
        "num_ignored": head.num_ignored,
        "inputs": head.inputs,
        "encoder": None if head.encoder is None else head.encoder.to_json(),
        "tasks": {
            "split": [task.split for task in numbered],
            "rows_digest": digests,
            **{
                name: [getattr(task, name) for task in numbered]
                for name in ("num_clips", "num_jobs", "num_frames", "num_tokens")
            },
        },
        **addition.document(),
    }
    text = json.dumps(document, sort_keys=True, indent=1, ensure_ascii=False)
    publish_bytes(folder / f"{plan_name(addition.number)}.json", text.encode() + b"\n")


def _groups(tasks: Iterable[pa.Table]) -> Iterator[list[pa.Table]]:
    """Tasks of which several are looked at in one go: it takes hardly longer than one."""
    group: list[pa.Table] = []
    rows = 0
    for table in tasks:
        group.append(table)
        rows += len(table)
        if rows >= GROUP_ROWS:
            yield group
            group, rows = [], 0
    if group:
        yield group


def _number(table: pa.Table, number: int, starts: Sequence[int]) -> pa.Table:
    """With the places that its rows have among the tasks, from task `number` on."""
    import pyarrow as pa

    lengths = np.diff(starts)
    columns = {name: table[name] for name in PLAN}
    columns["task"] = pa.array(np.repeat(np.arange(len(lengths)) + number, lengths), pa.int32())
    places = np.arange(starts[-1]) - np.repeat(starts[:-1], lengths)
    columns["order"] = pa.array(places, pa.int32())
    return pa.table(columns).combine_chunks()


def planned_task(table: pa.Table, number: int) -> PlannedTask:
    """What the rows of a task come to; its id is for the plan's JSON to tell."""
    import pyarrow.compute as pc

    return PlannedTask(
        number=number,
        split=table["split"][0].as_py(),
        task_id="",
        num_clips=len(table),
        num_jobs=pc.count_distinct(table["source_id"]).as_py(),
        num_frames=pc.sum(pc.list_value_length(table["frame_pts"])).as_py(),
        num_tokens=pc.sum(table["num_kept"]).as_py(),
    )


def _row_groups(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The same rows in row groups whose borders depend on the rows alone."""
    import pyarrow as pa
    import pyarrow.compute as pc

    held: list[pa.Table] = []
    rows = values = 0
    for table in tables:
        lengths = pc.fill_null(pc.list_value_length(table["frame_pts"]), 0).to_numpy()
        first = 0
        for place, length in enumerate(lengths.tolist()):
            if rows and (rows == GROUP_ROWS or values + length > GROUP_VALUES):
                yield pa.concat_tables([*held, table.slice(first, place - first)]).combine_chunks()
                held, rows, values, first = [], 0, 0, place
            rows += 1
            values += length
        held.append(table.slice(first))
    if rows:
        yield pa.concat_tables(held).combine_chunks()
