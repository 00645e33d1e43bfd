"""Prove that a dataset is whole: every file, every count, every time, each tar read once."""

from __future__ import annotations

from collections.abc import Container, Iterable
from fractions import Fraction
from itertools import pairwise
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from spacepatch.data import Task
from spacepatch.errors import ShardError
from spacepatch.inspection.encoders import known_encoder
from spacepatch.inspection.findings import Findings, Problem, Report
from spacepatch.inspection.folders import (
    PLAN_DOCUMENT,
    SHARD_FILE,
    listed_generations,
    listed_stems,
    locate,
    names_in,
    read_document,
)
from spacepatch.inspection.merged import check_merged
from spacepatch.inspection.plans import check_later_plans, check_plan_document, check_task_rows
from spacepatch.inspection.segments import Origin
from spacepatch.inspection.shard import FoundShard, check_shard
from spacepatch.pipeline.generations import PLAN_FILE
from spacepatch.pipeline.plan import Plan
from spacepatch.pipeline.planfile import count_generations, open_plan
from spacepatch.shards import DATASET, TABLES, shard_stem
from spacepatch.storage import PRIVATE, open_folder


def verify(path: str | Path, *, sample: int | None = None) -> list[Problem]:
    """Hold a dataset against its own receipts, tables, plan and the rules of the format.

    Each tar is read once, front to back; memory is one pack and the table of one shard, besides
    the plan, the sources, the losses and 32 bytes a segment. Nothing is decoded, no source read.

    Args:
        path: an output folder, finished or not; or one shard (its tar or receipt), which is held
            against the plan too where that lies beside it.
        sample: read the packs of only this many shards, spread evenly; everything else is checked
            of all of them.

    Returns:
        What is wrong; empty for a clean dataset. At most `findings.MOST_PROBLEMS` of one file.

    Raises:
        ShardError: `path` is nothing of ours.
    """
    located = locate(open_folder(path))
    findings = Findings()
    if located.stem is None:
        _verify_folder(located.folder, findings, sample)
    else:
        _verify_alone(located.folder, located.stem, findings)
    return findings.problems


def _verify_alone(folder: Path, stem: str, findings: Findings) -> None:
    """One shard, with its plan if that is at hand."""
    document = plan = None
    if (folder / PLAN_DOCUMENT).is_file():
        document, plan = _read_plan(folder, findings)
    tasks = _tasks_by_stem(plan)
    if stem not in tasks:
        plan = None
    check_shard(
        folder,
        stem,
        findings=findings,
        origin=_origin(plan, document if plan else None),
        task=tasks.get(stem),
    )


def _verify_folder(folder: Path, findings: Findings, sample: int | None) -> None:
    is_finished = (folder / DATASET).is_file()
    dataset = _read(folder / DATASET, findings) if is_finished else None
    count = count_generations(folder)
    finished = listed_generations(dataset or {}) or count
    document, plan = _read_plan(folder, findings, min(finished, count))
    if (is_finished and dataset is None) or (document is None and not is_finished):
        return  # damaged or of a newer format: what follows would be about our reading of it
    is_sound = False
    if document is not None:
        is_sound = check_plan_document(PLAN_DOCUMENT, document, plan, findings)
    later = set()
    if plan is not None and document is not None:
        later = check_later_plans(folder, document, finished, count, findings)
    if plan is not None and is_sound:
        check_overlaps(plan, findings.at("plan.parquet"))
    tasks = _tasks_by_stem(plan)
    stems = list(tasks) or listed_stems(dataset or {})
    origin = _origin(plan, document or dataset)
    chosen = _choose(stems, sample)
    found: dict[str, FoundShard | None] = {}
    for stem in stems:
        if not is_finished and not (folder / f"{stem}.json").exists():
            continue
        found[stem] = check_shard(
            folder,
            stem,
            findings=findings,
            origin=origin,
            task=tasks.get(stem),
            read_tar=stem in chosen,
        )
    _check_ids(found, findings)
    if not is_finished:
        done = sum(1 for shard in found.values() if shard is not None)
        findings.add(
            PLAN_DOCUMENT,
            f"not finished: {done} of {len(stems)} tasks are done; tokenize again to go on",
        )
    _check_strays(folder, document or dataset or {}, stems, later, found, findings, is_finished)
    if dataset is not None:
        check_merged(folder, dataset, document, plan, found, findings)


def _read(path: Path, findings: Findings) -> dict[str, Any] | None:
    try:
        return read_document(path)
    except ShardError as error:
        findings.add(path.name, str(error).removeprefix(f"{path}: "))
        return None


def _read_plan(
    folder: Path, findings: Findings, generations: int | None = None
) -> tuple[dict[str, Any] | None, Plan | None]:
    """plan.json and the plan, as far as they can be read."""
    document = _read(folder / PLAN_DOCUMENT, findings)
    if document is None:
        return None, None
    try:
        stored = open_plan(folder, generations=generations)
        plan = stored.whole()
        check_task_rows(stored, findings)
        return document, plan
    except ShardError as error:
        path, _, message = str(error).partition(": ")
        findings.add(PurePath(path).name, message)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        findings.add(PLAN_DOCUMENT, f"damaged, or not that of plan.parquet ({error!r})")
    return document, None


def _tasks_by_stem(plan: Plan | None) -> dict[str, Task]:
    if plan is None:
        return {}
    return {shard_stem(plan.name, task.split, task.number): task for task in plan.tasks}


def _origin(plan: Plan | None, document: dict[str, Any] | None) -> Origin:
    document = document or {}
    prints, settings = document.get("fingerprints"), document.get("settings")
    token = prints.get("token") if isinstance(prints, dict) else None
    try:
        encoder = known_encoder(document.get("encoder"))
    except ValueError:
        encoder = None  # reported with its document
    return Origin(plan, token, settings if isinstance(settings, dict) else {}, encoder)


def _choose(stems: list[str], sample: int | None) -> set[str]:
    """`sample` of the shards, spread evenly."""
    if sample is None or sample >= len(stems):
        return set(stems)
    return {stems[k * len(stems) // sample] for k in range(sample)}


def check_overlaps(plan: Plan, report: Report) -> None:
    """Report clips of one source and view that overlap, unless windows or a manifest ask for it.

    That the segments of a clip do not is checked with the clip.
    """
    seconds, stride = plan.settings["clip_seconds"], plan.settings["clip_stride"]
    is_asked = seconds and stride and Fraction(stride) < Fraction(seconds)
    if is_asked:
        return
    spans = sorted(
        (clip.source, clip.view, clip.start_pts, clip.stop_pts, clip.clip)
        for task in plan.tasks
        for clip in task.clips
        if not plan.sources[clip.source].source.ranges
    )
    for before, after in pairwise(spans):
        if before[:2] == after[:2] and after[2] < before[3]:
            name = plan.sources[before[0]].source.name
            report(f"{name}: clips {before[4]} and {after[4]} overlap")


def _check_ids(found: dict[str, FoundShard | None], findings: Findings) -> None:
    """Segment ids are unique across the dataset."""
    columns = [
        shard.segment_ids
        for shard in found.values()
        if shard is not None and shard.segment_ids is not None
    ]
    if not columns:
        return
    ids, counts = np.unique(np.concatenate(columns), return_counts=True)
    for identity, count in zip(ids[counts > 1], counts[counts > 1], strict=True):
        findings.add("segments.parquet", f"segment_id {identity.decode()} occurs {count} times")


def _check_strays(
    folder: Path,
    document: dict[str, Any],
    stems: Iterable[str],
    later: Container[str],
    found: dict[str, FoundShard | None],
    findings: Findings,
    is_finished: bool,
) -> None:
    """Files that look like ours and that no receipt accounts for.

    Args:
        later: stems of shards of generations that dataset.json does not list yet.
    """
    known = {DATASET, PRIVATE, *TABLES}
    planned = set(stems)
    for name in names_in(folder):
        match = SHARD_FILE.fullmatch(name)
        if name in known or match is None or PLAN_FILE.fullmatch(name):
            continue
        stem = match["stem"]
        if stem in later:
            continue
        shard = found.get(stem)
        if stem in planned:
            is_listed = shard is None or name == f"{stem}.json" or name in shard.receipt.files
            if not is_listed and is_finished:
                findings.add(name, "unexpected: the receipt of its shard names no such file")
        elif stem.startswith(f"{document.get('name')}-"):
            findings.add(name, "unexpected: no task of the plan writes it")
        else:
            findings.add(name, "of another plan: move it to a folder of its own")
