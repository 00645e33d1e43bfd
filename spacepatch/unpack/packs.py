"""The files that the segments of one pack become, made in a worker, which writes none itself."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from spacepatch.data import EncoderFacts
from spacepatch.errors import EncodeError, ShardError, SourceError
from spacepatch.latents.encoders import EncoderSettings
from spacepatch.shards import PackMembers, ShardReader
from spacepatch.stored_frames import frames_of_pixels, frames_of_tokens, kept_cells, row_starts
from spacepatch.unpack.files import EXACT, FORMATS, Files, Frames

FACTS = "segment.json"
KEPT, VISIBLE = "kept.npy", "visible.npy"
"""``(T, H, W)`` bool, by cells of the grid; each only where it is not all True, or there is one."""

COLUMNS = {
    "folder": "string",
    "segment_id": "string",
    "source": "string",
    "source_root": "int32",
    "source_id": "string",
    "split": "string",
    "clip": "int32",
    "view": "int32",
    "size": "list<int32>",
    "time_base": "string",
    "frame_pts": "list<int64>",
    "frame_indices": "list<int32>",
    "frame_seconds": "list<float64>",
    "lost_frames": "list<int32>",
    "padded_frames": "int32",
    "num_tokens": "int32",
    "num_kept": "int32",
    "is_exact": "bool",
    "extra": "string",
}
"""Of unpacked.parquet, and of each segment.json."""


@dataclass(frozen=True, slots=True)
class PackRequest:
    """A pack to be unpacked."""

    tar: Path
    pack: int
    rows: Sequence[dict[str, Any]]
    """Of segments.parquet, of those of its segments that are wanted."""
    format: str
    """One of `FORMATS`."""
    uses_pixels: bool
    """Whether the pixel tokens beside those of an encoder are unpacked, and not these."""
    facts: EncoderFacts | None
    encoder: EncoderSettings | None
    """None also where nothing is decoded."""


def unpack_pack(request: PackRequest) -> dict[str, Files] | str:
    """Make the files of segments of a pack.

    Returns:
        By segment id those of each; or why the pack cannot be unpacked.

    Raises:
        ConfigError: the encoder has no decoder.
    """
    try:
        with ShardReader(request.tar) as reader:
            if not 0 <= request.pack < len(reader):
                raise ShardError(f"{request.tar}: has no pack {request.pack}")
            pack = reader.read(request.pack)
            made = {row["segment_id"]: _files_of(request, pack, row) for row in request.rows}
            del pack  # or the map of the shard stays open
            return made
    except (ShardError, EncodeError, SourceError) as error:
        return str(error)


def _files_of(request: PackRequest, pack: PackMembers, row: dict[str, Any]) -> Files:
    number = _number_of(pack, row)
    span = slice(row["offset"], row["offset"] + row["num_kept"])
    t, h, w = pack.positions[span].astype(np.int64).T
    cells = (t * row["grid_thw"][1] + h) * row["grid_thw"][2] + w
    kept = kept_cells(cells, row)
    num_frames, facts = len(row["frame_pts"]), request.facts
    lost: list[int] = []
    if request.uses_pixels:
        assert pack.pixels is not None and pack.pixel_segments is not None
        frames = frames_of_pixels(pack.pixels, pack.pixel_segments[number], row=row)
    else:
        frames = frames_of_tokens(
            pack.tokens[span],
            cells,
            row=row,
            token_dtype=pack.token_dtype,
            facts=facts,
            encoder=request.encoder,
        )
        starts = row_starts(row, facts)
        for empty in np.flatnonzero(~kept.any(axis=(1, 2))):
            lost += range(starts[empty], min(starts[empty + 1], num_frames))
    if len(frames) < num_frames:
        raise ShardError(
            f"{pack.key}: {row['segment_id']} has {num_frames} frames, its tokens less"
        )
    made = Frames(
        frames[:num_frames],
        [number for number in range(num_frames) if number not in set(lost)],
        row["frame_pts"],
        Fraction(row["time_base"]),
    )
    holds_all = request.uses_pixels or bool(kept.all())
    is_exact = request.format in EXACT and holds_all and (request.uses_pixels or facts is None)

    files = FORMATS[request.format](made)
    if not holds_all:
        files[KEPT] = _npy(kept)
    if pack.visible is not None:
        files[VISIBLE] = _npy(kept_cells(cells[pack.visible[span] != 0], row))
    described = _describe(row, made, lost, is_exact)
    return files | {FACTS: json.dumps(described, sort_keys=True).encode() + b"\n"}


def _npy(values: np.ndarray) -> bytes:
    content = io.BytesIO()
    np.save(content, values)
    return content.getvalue()


def _number_of(pack: PackMembers, row: dict[str, Any]) -> int:
    """Which segment of the pack a row of segments.parquet is."""
    wanted = [row["offset"], row["num_kept"], *row["grid_thw"], row["tubelet_size"]]
    wanted += row["patch_size"]
    found = [
        number
        for number, entry in enumerate(pack.document["segments"])
        if entry["segment_id"] == row["segment_id"]
    ]
    if len(found) != 1 or pack.segments[found[0]].tolist() != wanted:
        raise ShardError(
            f"{pack.key}: is not what segments.parquet says of {row['segment_id']}; look with "
            "spacepatch verify"
        )
    return found[0]


def _describe(row: dict[str, Any], made: Frames, lost: list[int], is_exact: bool) -> dict[str, Any]:
    """A row of `COLUMNS`."""
    found = {key: row[key] for key in COLUMNS if key in row}
    return found | {
        "folder": row["segment_id"],
        "frame_seconds": [float(pts * made.time_base) for pts in made.pts],
        "lost_frames": lost,
        "is_exact": is_exact,
    }
