"""Prove that a dataset is whole: every file, every count, every time, each tar read once."""

from __future__ import annotations

import re
from collections.abc import Iterable
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

import spacepatch
from spacepatch.config import RunConfig, fingerprint
from spacepatch.data import EncoderFacts, Task
from spacepatch.errors import ConfigError, ShardError
from spacepatch.inspection.encoders import check_facts, known_encoder
from spacepatch.inspection.findings import Findings, Problem, Report
from spacepatch.inspection.folders import (
    PLAN_DOCUMENT,
    SHARD_FILE,
    listed_stems,
    locate,
    names_in,
    read_document,
)
from spacepatch.inspection.merged import check_merged
from spacepatch.inspection.segments import Origin
from spacepatch.inspection.shard import FoundShard, check_shard
from spacepatch.pipeline.placement import Placement
from spacepatch.pipeline.planfile import Plan, inputs_fingerprint, read_plan
from spacepatch.pipeline.planning import content_fingerprints, layout_of
from spacepatch.shards import DATASET, TABLES, shard_stem
from spacepatch.sources import Listing
from spacepatch.storage import PRIVATE, open_folder

FURTHER_PLAN = re.compile(r"plan-[0-9]{6}\.(parquet|json)")


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
    document, plan = _read_plan(folder, findings)
    if (is_finished and dataset is None) or (document is None and not is_finished):
        return  # damaged or of a newer format: what follows would be about our reading of it
    is_sound = False
    if document is not None:
        is_sound = _check_plan_document(document, plan, findings)
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
    _check_strays(folder, document or dataset or {}, stems, found, findings, is_finished)
    if dataset is not None:
        check_merged(folder, dataset, document, plan, found, findings)


def _read(path: Path, findings: Findings) -> dict[str, Any] | None:
    try:
        return read_document(path)
    except ShardError as error:
        findings.add(path.name, str(error).removeprefix(f"{path}: "))
        return None


def _read_plan(folder: Path, findings: Findings) -> tuple[dict[str, Any] | None, Plan | None]:
    """plan.json and the plan, as far as they can be read."""
    document = _read(folder / PLAN_DOCUMENT, findings)
    if document is None:
        return None, None
    try:
        return document, read_plan(folder, {})
    except ShardError as error:
        findings.add("plan.parquet", str(error).removeprefix(f"{folder / 'plan.parquet'}: "))
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


def _check_plan_document(document: dict[str, Any], plan: Plan | None, findings: Findings) -> bool:
    """The ids of plan.json are those of what it says; returns whether it has what it must."""
    report = findings.at(PLAN_DOCUMENT)
    try:
        prints, settings = document["fingerprints"], document["settings"]
        identity = {
            "fingerprints": prints,
            "seed": settings["seed"],
            "selection": {key: settings[key] for key in ("limit", "sample", "split")},
            "rows": document["plan_sha256"],
        }
        if document["plan_id"] != fingerprint(identity):
            report("plan_id is not that of its fingerprints, seed, selection and rows")
        if document["name"] != (settings["name"] or document["plan_id"][:8]):
            report(f"name {document['name']!r} is neither that of the settings nor of plan_id")
        if prints["environment"] != fingerprint(document["environment"]):
            report("fingerprints: environment is not that of the environment")
        if document["environment"].get("spacepatch") == spacepatch.__version__:
            # Another version may have had other settings.
            config, found = RunConfig(**settings), document.get("encoder")
            facts = None if found is None else EncoderFacts.from_json(found)
            for key, value in _fingerprints(config, settings, facts).items():
                if prints[key] != value:
                    report(f"fingerprints: {key} is not that of the settings")
            check_facts(facts, config, report)
            if Placement(**document["placement"]) != Placement.of(config):
                report("placement is not that of the settings")
            if plan is not None:
                clips = [clip for task in plan.tasks for clip in task.clips]
                if plan.layout != layout_of(config, clips, facts):
                    report("layout is not that of the settings")
    except (KeyError, TypeError, AttributeError, ConfigError, ValueError) as error:
        report(f"damaged ({error!r})")
        return False
    return True


def _fingerprints(
    config: RunConfig, settings: dict[str, Any], facts: EncoderFacts | None
) -> dict[str, str]:
    """As of `planning.fingerprints_of`, but for the environment: nothing that an encoder needs is
    asked for, and settings that came later are not in those of an older plan."""
    token = {key: value for key, value in config.part("token").items() if key in settings}
    layout = {key: value for key, value in config.part("layout").items() if key in settings}
    return content_fingerprints(token, layout, facts)


def check_overlaps(plan: Plan, report: Report) -> None:
    """Report clips of one source and view that overlap, unless windows or a manifest ask for it.

    That the segments of a clip do not is checked with the clip.
    """
    seconds, stride = plan.settings["clip_seconds"], plan.settings["clip_stride"]
    is_asked = seconds and stride and Fraction(stride) < Fraction(seconds)
    if is_asked or not _are_whole_videos(plan):
        return
    spans = sorted(
        (clip.source, clip.view, clip.start_pts, clip.stop_pts, clip.clip)
        for task in plan.tasks
        for clip in task.clips
    )
    for before, after in pairwise(spans):
        if before[:2] == after[:2] and after[2] < before[3]:
            name = plan.sources[before[0]].source.name
            report(f"{name}: clips {before[4]} and {after[4]} overlap")


def _are_whole_videos(plan: Plan) -> bool:
    """Whether no source has ranges of a manifest: the plan's fingerprint of the inputs is that of
    the bare sources then."""
    absent = {loss.source_id for loss in plan.losses if loss.reason == "unreadable"}
    absent &= {entry.source.source_id for entry in plan.sources if not entry.content_id}
    ordered = sorted(
        (entry.source for entry in plan.sources),
        key=lambda source: (source.source_root, source.name.encode()),
    )
    listing = Listing(
        sources=tuple(source for source in ordered if source.source_id not in absent),
        num_ignored=0,
        missing=tuple(source for source in ordered if source.source_id in absent),
    )
    return inputs_fingerprint(listing) == plan.inputs


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
    found: dict[str, FoundShard | None],
    findings: Findings,
    is_finished: bool,
) -> None:
    """Files that look like ours and that no receipt accounts for."""
    known = {DATASET, PLAN_DOCUMENT, "plan.parquet", PRIVATE, *TABLES}
    planned = set(stems)
    for name in names_in(folder):
        match = SHARD_FILE.fullmatch(name)
        if name in known or (match is None and not FURTHER_PLAN.fullmatch(name)):
            continue
        stem = match["stem"] if match else ""
        shard = found.get(stem)
        if stem in planned:
            is_listed = shard is None or name == f"{stem}.json" or name in shard.receipt.files
            if not is_listed and is_finished:
                findings.add(name, "unexpected: the receipt of its shard names no such file")
        elif stem.startswith(f"{document.get('name')}-"):
            findings.add(name, "unexpected: no task of the plan writes it")
        else:
            findings.add(name, "of another plan: move it to a folder of its own")
