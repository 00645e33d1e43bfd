"""The rows of plan.parquet: made of what a probe found, and read as clips, sources and losses."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from spacepatch.data import ClipRange, ClipSpec, Fit, Loss, Part, Source, VideoInfo
from spacepatch.framerules import Lattice
from spacepatch.pipeline.plan import PlannedSource
from spacepatch.shards import PLAN
from spacepatch.shards.tables import schema_of

if TYPE_CHECKING:
    import pyarrow as pa

Find = Callable[[str], Source | None]
"""The source of an id, as listed now: the plan does not say where files lie."""


def clip_rows(planned: PlannedSource, clips: Iterable[ClipSpec]) -> Iterator[dict[str, Any]]:
    """The rows of some clips of one source."""
    columns = _source_columns(planned) | {"ranges": ranges_json(planned.source)}
    for clip in clips:
        yield {
            **columns,
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
        # Once: of many ranges there are as many clips.
        columns["ranges"] = None


def loss_rows(planned: PlannedSource, losses: Sequence[Loss]) -> Iterator[dict[str, Any]]:
    """The rows of what is known to be lost of one source."""
    columns = _source_columns(planned) if losses else {}
    columns["ranges"] = ranges_json(planned.source)
    for loss in losses:
        yield {
            **columns,
            "task": -1,
            "stage": loss.stage,
            "reason": loss.reason,
            "num_frames_lost": loss.num_frames,
            "message": loss.message,
        }
        columns["ranges"] = None


def ranges_json(source: Source) -> str:
    """What is asked for of a source: JSON of [start, stop] of each range, fractions of a second as
    text, or null; those with neither are none."""
    spans = [span_of(asked) for asked in source.ranges]
    return json.dumps([] if spans == [(None, None)] else spans)


def span_of(asked: ClipRange) -> tuple[str | None, str | None]:
    """[start, stop) of a range as `ranges_json` has it."""
    start, stop = asked.start_seconds, asked.stop_seconds
    return None if start is None else str(start), None if stop is None else str(stop)


def _source_columns(planned: PlannedSource) -> dict[str, Any]:
    source = planned.source
    return {
        "split": source.split,
        "source": source.name,
        "source_root": source.source_root,
        "source_id": source.source_id,
        "content_id": planned.content_id,
        "bytes": source.num_bytes,
        "info": _info_json(planned),
        "num_selected": planned.num_selected,
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


def rows_table(rows: Iterable[dict[str, Any]]) -> pa.Table:
    """Rows as Arrow has them, with all columns of the plan."""
    import pyarrow as pa

    return pa.Table.from_pylist(list(rows), schema=schema_of(tuple(PLAN.items())))


def digests_of(table: pa.Table, starts: Sequence[int]) -> list[str]:
    """32 hex digits of each task: blake2b-128 of its rows, column by column.

    Of each column how many values each row has (-1: none), and then the values: numbers, in lists
    or not, as little-endian int64, texts in UTF-8.

    Args:
        starts: the first row of each task, and where the last one ends.
    """
    digests = [hashlib.blake2b(digest_size=16) for _ in starts[1:]]
    for name, kind in PLAN.items():
        lengths, content, size = _flat(table[name].combine_chunks(), kind)
        ends = np.concatenate([[0], np.cumsum(np.maximum(lengths, 0))]) * size
        counts = lengths.astype("<i8").tobytes()
        for digest, first, stop in zip(digests, starts, starts[1:], strict=False):
            digest.update(f"{name}\0{stop - first}\0".encode())
            digest.update(counts[8 * first : 8 * stop])
            digest.update(content[ends[first] : ends[stop]])
    return [digest.hexdigest() for digest in digests]


def _flat(column: pa.Array, kind: str) -> tuple[np.ndarray, bytes, int]:
    """Values of each row, the bytes of all values, and the bytes of one."""
    import pyarrow.compute as pc

    def numbers(values: pa.Array) -> np.ndarray:
        filled: np.ndarray = pc.fill_null(values, 0).to_numpy(zero_copy_only=False)
        return filled.astype("<i8")

    if kind == "string":
        content = "".join(filter(None, column.to_pylist())).encode()
        return numbers(pc.fill_null(pc.binary_length(column), -1)), content, 1
    if kind.startswith("list"):
        lengths = numbers(pc.fill_null(pc.list_value_length(column), -1))
        return lengths, numbers(pc.list_flatten(column)).tobytes(), 8
    # A number that is not there has no value.
    is_there = pc.is_valid(column).to_numpy(zero_copy_only=False)
    return np.where(is_there, 1, -1), numbers(column.drop_null()).tobytes(), 8


class RowReader:
    """Rows of one plan become clips and the sources that they are of."""

    def __init__(self, lattice: Lattice, find: Find) -> None:
        self.sources: list[PlannedSource] = []
        self._lattice, self._find = lattice, find
        self._numbers: dict[str, int] = {}

    def clip(self, row: dict[str, Any]) -> ClipSpec:
        """Its source gets a row of `sources`."""
        return _read_clip(row, self.source(row), self._lattice)

    def source(self, row: dict[str, Any]) -> int:
        identity = row["source_id"]
        if identity not in self._numbers:
            self._numbers[identity] = len(self.sources)
            self.sources.append(read_source(row, self._find))
        return self._numbers[identity]


def read_loss(row: dict[str, Any]) -> Loss:
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


def read_source(row: dict[str, Any], find: Find) -> PlannedSource:
    """Of a row that has the source's ranges, where these matter: its first one in a task."""
    source = find(row["source_id"]) or Source(
        uri="",
        name="",
        source_root=0,
        source_id="",
        num_bytes=row["bytes"],
        ranges=tuple(
            ClipRange(start and _fraction(start), stop and _fraction(stop))
            for start, stop in json.loads(row.get("ranges") or "[]")
        ),
    )
    # As planned, under whichever name it is listed now.
    source = replace(
        source,
        name=row["source"],
        source_root=row["source_root"],
        source_id=row["source_id"],
        split=row["split"],
    )
    if row["info"] is None:
        return PlannedSource(source, row["content_id"], None, 0, 0.0, row["num_selected"])
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
    return PlannedSource(source, row["content_id"], info, num_frames, duration, row["num_selected"])


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


@lru_cache(maxsize=1024)
def _fraction(text: str) -> Fraction:
    """Few differ in a plan of many clips."""
    return Fraction(text)
