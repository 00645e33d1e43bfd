"""The plan on disk: written once and durably, read by every later start and every rank."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from spacepatch.config import fingerprint
from spacepatch.data import ClipSpec, EncoderFacts, Fit, Loss, Part, Source, Task, VideoInfo
from spacepatch.errors import ShardError
from spacepatch.framerules import PIXELS, Lattice
from spacepatch.pipeline.placement import Placement
from spacepatch.shards import (
    FORMAT_VERSION,
    PLAN,
    Layout,
    check_version,
)
from spacepatch.shards.tables import read_rows, write_rows
from spacepatch.sources import Listing
from spacepatch.storage import publish_bytes


@dataclass(frozen=True, slots=True)
class PlannedSource:
    """A source with what its probe found."""

    source: Source
    content_id: str
    info: VideoInfo | None
    """Without its table of frames; None: it could not be probed."""
    num_frames: int
    duration_seconds: float


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run will do: every rank and every later start reads the same one."""

    plan_id: str
    """Empty until it is written."""
    name: str
    settings: dict[str, Any]
    """The effective settings that are part of a fingerprint."""
    fingerprints: dict[str, str]
    environment: dict[str, str]
    layout: Layout
    placement: Placement
    sources: tuple[PlannedSource, ...]
    tasks: tuple[Task, ...]
    losses: tuple[Loss, ...]
    """Known before decoding: sources that cannot be probed, clips that the settings rule out."""
    num_ignored: int
    inputs: str
    """Fingerprint of what the SOURCE arguments say: names, ranges, columns."""
    encoder: EncoderFacts | None = None
    """None: pixels are cut."""
    num_scanned: int | None = None
    """Sources whose packets were read although headers were asked for; not on disk, where the same
    bytes lie either way. None: nobody asked, or the plan was made by a former start."""

    @property
    def num_tokens(self) -> int:
        """Kept ones: exact, or with `is_bound` the most that there can be."""
        return sum(clip.num_kept for task in self.tasks for clip in task.clips)

    @property
    def is_bound(self) -> bool:
        """Whether what is kept depends on the pictures: static tubelets are dropped."""
        return self.layout.run_lengths

    @property
    def num_clips(self) -> int:
        return sum(len(task.clips) for task in self.tasks)


def write_plan(folder: Path, plan: Plan) -> Plan:
    """Make the plan durable: plan.parquet, then plan.json, which makes it valid.

    Returns:
        The plan as every later start reads it.
    """
    sha256 = write_rows(folder / "plan.parquet", PLAN, _rows(plan), longest="frame_pts")
    identity = {
        "fingerprints": plan.fingerprints,
        "seed": plan.settings["seed"],
        "selection": {key: plan.settings[key] for key in ("limit", "sample", "split")},
        "rows": sha256,
    }
    plan_id = fingerprint(identity)
    document = {
        "format_version": FORMAT_VERSION,
        "plan_id": plan_id,
        "plan_sha256": sha256,
        "name": plan.settings["name"] or plan_id[:8],
        "settings": plan.settings,
        "fingerprints": plan.fingerprints,
        "environment": plan.environment,
        "layout": asdict(plan.layout),
        "placement": asdict(plan.placement),
        "num_ignored": plan.num_ignored,
        "inputs": plan.inputs,
        "encoder": None if plan.encoder is None else plan.encoder.to_json(),
    }
    text = json.dumps(document, sort_keys=True, indent=1, ensure_ascii=False)
    publish_bytes(folder / "plan.json", text.encode() + b"\n")
    sources = {planned.source.source_id: planned.source for planned in plan.sources}
    return replace(read_plan(folder, sources), num_scanned=plan.num_scanned)


def _rows(plan: Plan) -> Iterator[dict[str, Any]]:
    infos = [_info_json(planned) for planned in plan.sources]
    for task in plan.tasks:
        for order, clip in enumerate(task.clips):
            yield {
                **_source_columns(plan.sources[clip.source], infos[clip.source]),
                "task": task.number,
                "order": order,
                "clip": clip.clip,
                "view": clip.view,
                "view_of": clip.view_of,
                "clip_start_pts": clip.start_pts,
                "clip_stop_pts": clip.stop_pts,
                "frame_pts": clip.frame_pts,
                "frame_indices": clip.frame_indices,
                "sample_pts": clip.sample_pts,
                "key_indices": clip.keyframes[:, 0],
                "key_pts": clip.keyframes[:, 1],
                "sampled_fps": None if clip.sampled_fps is None else str(clip.sampled_fps),
                "scaled": clip.fit.scaled,
                "size": clip.fit.size,
                "offset": clip.fit.offset,
                "tubelet_size": clip.tubelet_size,
                "patch_size": clip.patch_size,
                "grid_thw": clip.grid_thw,
                "num_tokens": clip.num_tokens,
                "num_kept": clip.num_kept,
                "drop": clip.drop,
                "num_source_frames": clip.num_source_frames,
                "extra": json.dumps(clip.extra, sort_keys=True, ensure_ascii=False),
            }
    by_id = {planned.source.source_id: row for row, planned in enumerate(plan.sources)}
    for loss in plan.losses:
        row = by_id[loss.source_id]
        yield {
            **_source_columns(plan.sources[row], infos[row]),
            "task": -1,
            "stage": loss.stage,
            "reason": loss.reason,
            "num_frames_lost": loss.num_frames,
            "message": loss.message,
        }


def _source_columns(planned: PlannedSource, info: str | None) -> dict[str, Any]:
    source = planned.source
    return {
        "split": source.split,
        "source": source.name,
        "source_root": source.source_root,
        "source_id": source.source_id,
        "content_id": planned.content_id,
        "bytes": source.num_bytes,
        "info": info,
    }


def _info_json(planned: PlannedSource) -> str | None:
    if planned.info is None:
        return None
    # Not by `asdict`, whose copies of every value would take longer than all else of a row.
    values = _fields_of(planned.info)
    del values["frame_pts"], values["keyframes"]
    values["time_base"] = str(planned.info.time_base)
    values["parts"] = [
        _fields_of(part) | {"pixel_aspect_ratio": str(part.pixel_aspect_ratio)}
        for part in planned.info.parts
    ]
    values["num_frames"] = planned.num_frames
    values["duration_seconds"] = planned.duration_seconds
    return json.dumps(values, sort_keys=True)


def _fields_of(record: Any) -> dict[str, Any]:
    return {name: getattr(record, name) for name in record.__dataclass_fields__}


def read_plan(
    folder: Path, sources: dict[str, Source], *, wanted: Callable[[int], bool] | None = None
) -> Plan:
    """Read the plan of an output folder.

    Args:
        sources: the sources as listed now, by id: the plan does not say where files lie.
        wanted: which tasks, by their numbers; the plan then has these, the sources of their clips,
            and all losses. None: all of it.

    Raises:
        ShardError: it is missing, damaged or of a newer version.
    """
    document = read_plan_document(folder)
    path = folder / "plan.parquet"
    try:
        with path.open("rb") as file:
            actual = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise ShardError(f"{path}: missing; start again with --overwrite") from None
    if actual != document["plan_sha256"]:
        raise ShardError(f"{path}: is not the file that plan.json names; use --overwrite")
    prints = document["fingerprints"]
    found = document.get("encoder")
    encoder = None if found is None else EncoderFacts.from_json(found)
    lattice = PIXELS if encoder is None else encoder.lattice
    planned: dict[str, int] = {}
    records: list[PlannedSource] = []
    clips: dict[int, list[ClipSpec]] = defaultdict(list)
    splits: dict[int, str] = {}
    digests: dict[int, Any] = {}
    losses: list[Loss] = []

    def is_read(task: int) -> bool:
        return wanted is None or task < 0 or wanted(task)

    for row in read_rows(path, where=("task", is_read)):
        if wanted is not None and row["task"] < 0:
            losses.append(_read_loss(row))
            continue
        identity = row["source_id"]
        if identity not in planned:
            planned[identity] = len(records)
            records.append(_read_source(row, sources))
        if row["task"] < 0:
            losses.append(_read_loss(row))
            continue
        number = row["task"]
        clips[number].append(_read_clip(row, planned[identity], lattice))
        splits[number] = row["split"]
        digest = digests.setdefault(number, hashlib.blake2b(digest_size=16))
        digest.update(json.dumps(row, sort_keys=True).encode())
    tasks = [
        Task(
            number,
            splits[number],
            fingerprint({"fingerprints": prints, "rows": digests[number].hexdigest()}),
            tuple(clips[number]),
        )
        for number in sorted(clips)
    ]
    return Plan(
        plan_id=document["plan_id"],
        name=document["name"],
        settings=document["settings"],
        fingerprints=prints,
        environment=document["environment"],
        layout=_read_layout(document["layout"]),
        placement=Placement(**document["placement"]),
        sources=tuple(records),
        tasks=tuple(tasks),
        losses=tuple(losses),
        num_ignored=document["num_ignored"],
        inputs=document["inputs"],
        encoder=encoder,
    )


def _read_layout(values: dict[str, Any]) -> Layout:
    tubelet = values.get("pixel_tubelet")
    tuples = {"token_widths": tuple(values["token_widths"])}
    return Layout(**(values | tuples | {"pixel_tubelet": tubelet and tuple(tubelet)}))


def read_plan_document(folder: Path) -> dict[str, Any]:
    """plan.json of an output folder; errors as of `read_plan`."""
    path = folder / "plan.json"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ShardError(f"{folder}: no plan.json: not an output folder of spacepatch") from None
    except ValueError as error:
        raise ShardError(f"{path}: damaged ({error})") from None
    check_version(document, str(path))
    return document  # type: ignore[no-any-return]


@lru_cache(maxsize=1024)
def _fraction(text: str) -> Fraction:
    """Few differ in a plan of many clips."""
    return Fraction(text)


def _read_source(row: dict[str, Any], sources: dict[str, Source]) -> PlannedSource:
    source = sources.get(row["source_id"]) or Source(
        uri="",
        name=row["source"],
        source_root=row["source_root"],
        source_id=row["source_id"],
        num_bytes=row["bytes"],
        split=row["split"],
    )
    if row["info"] is None:
        return PlannedSource(source, row["content_id"], None, 0, 0.0)
    values = json.loads(row["info"])
    num_frames, duration = values.pop("num_frames"), values.pop("duration_seconds")
    info = VideoInfo(
        **{
            **values,
            "parts": tuple(
                Part(
                    part["first"],
                    part["first_pts"],
                    tuple(part["coded_size"]),
                    tuple(part["display_size"]),
                    _fraction(part["pixel_aspect_ratio"]),
                )
                for part in values["parts"]
            ),
            "time_base": _fraction(values["time_base"]),
            "frame_pts": np.empty(0, np.int64),
        }
    )
    return PlannedSource(source, row["content_id"], info, num_frames, duration)


def _read_loss(row: dict[str, Any]) -> Loss:
    return Loss(
        source=row["source"],
        source_id=row["source_id"],
        clip=None,
        stage=row["stage"],
        reason=row["reason"],
        num_frames=row["num_frames_lost"],
        num_tokens=0,
        message=row["message"],
        split=row["split"],
        source_root=row["source_root"],
    )


def _read_clip(row: dict[str, Any], source: int, lattice: Lattice) -> ClipSpec:
    return ClipSpec(
        source=source,
        clip=row["clip"],
        view=row["view"],
        view_of=row["view_of"],
        start_pts=row["clip_start_pts"],
        stop_pts=row["clip_stop_pts"],
        frame_pts=np.array(row["frame_pts"], np.int64),
        frame_indices=np.array(row["frame_indices"], np.int32),
        keyframes=np.array([row["key_indices"], row["key_pts"]], np.int64).T,
        sample_pts=np.array(row["sample_pts"], np.int64),
        sampled_fps=None if row["sampled_fps"] is None else _fraction(row["sampled_fps"]),
        fit=Fit(tuple(row["scaled"]), tuple(row["size"]), tuple(row["offset"])),
        tubelet_size=row["tubelet_size"],
        patch_size=tuple(row["patch_size"]),
        grid_thw=tuple(row["grid_thw"]),
        num_kept=row["num_kept"],
        drop=row["drop"],
        num_source_frames=row["num_source_frames"],
        extra=json.loads(row["extra"]),
        lattice=lattice,
    )


def inputs_fingerprint(listing: Listing) -> str:
    """Of the names, ranges and columns of all sources: what a manifest can change."""
    content = [
        (
            source.source_id,
            [
                (str(asked.start_seconds), str(asked.stop_seconds), asked.extra)
                for asked in source.ranges
            ],
        )
        for source in sorted(
            (*listing.sources, *listing.missing), key=lambda source: source.source_id
        )
    ]
    return fingerprint({"inputs": content})
