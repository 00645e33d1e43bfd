"""The tokens of one segment, in a worker: as they are stored, or made again where they are not."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from crc32c import crc32c

from spacepatch.clipwriter import TokenSettings
from spacepatch.data import ClipSpec
from spacepatch.errors import ShardError
from spacepatch.jobs import Job, tokens_of
from spacepatch.pipeline.segments import clip_of_segment, visible_of
from spacepatch.shards import ShardReader
from spacepatch.stored_frames import frames_of_pixels
from spacepatch.tubelets import cells_of_rows


@dataclass(frozen=True, slots=True)
class Request:
    """A segment to be looked at."""

    tar: Path
    row: dict[str, Any]
    """Of segments.parquet."""
    clip: ClipSpec
    """That the segment is a part of."""
    settings: TokenSettings
    job: Job | None
    """That makes the clip again; None: its source is not at hand."""
    std: tuple[float, ...] | None = None
    """Of each channel of the dataset's latents."""
    make_again: bool = True
    """Whether its tokens are, and not only its frames."""
    num_shown: int = 0
    """Frames to be sent back."""
    references: Mapping[str, Any] | None = None
    """Of a dataset of references its settings: the tokens are made of the source."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A segment as it lies in its pack, or as it would."""

    tokens: np.ndarray
    """``(n, D)``."""
    places: np.ndarray
    """``(n,)`` int64: raster index of each in the segment's grid."""
    pixels: np.ndarray | None
    """``(T, H, W, C)``: the frames of the pixel tokens beside those of an encoder."""
    visible: np.ndarray | None
    """``(n,)`` uint8: a stored mask."""


def read_stored(request: Request) -> Stored:
    """Those that lie in its pack.

    Raises:
        ShardError: the shard is damaged, or not what the tables say.
    """
    row, clip, settings = request.row, request.clip, request.settings
    with ShardReader(request.tar) as reader:
        _check_pack(request, reader)
        pack = reader.read(row["pack"])
        place = _place_of(request, pack.segments)
        span = slice(row["offset"], row["offset"] + row["num_kept"])
        grid = np.array(row["grid_thw"], np.int64)
        shape = row["num_kept"], settings.width_of(clip)
        if pack.tokens[span].shape != shape or not (pack.positions[span] < grid).all():
            raise ShardError(DISAGREE)
        t, h, w = pack.positions[span].astype(np.int64).T
        pixels = None
        if pack.pixels is not None and pack.pixel_segments is not None:
            pixels = frames_of_pixels(pack.pixels, pack.pixel_segments[place], row=row)
        # Copies: the map of the shard is closed with it.
        return Stored(
            pack.tokens[span].copy(),
            (t * grid[1] + h) * grid[2] + w,
            pixels,
            None if pack.visible is None else pack.visible[span].copy(),
        )


def make_stored(
    request: Request, job: Job, settings: Mapping[str, Any]
) -> tuple[Stored, bool | None]:
    """Those that the source gives now of references; and whether they have the checksum that they
    should have: None where nobody has noted one.

    Raises:
        ShardError: they are not as many as were packed, or as of `read_stored`.
    """
    row = request.row
    with ShardReader(request.tar) as reader:
        _check_pack(request, reader)
        _place_of(request, reader.references(row["pack"]).segments)
    clip = clip_of_segment(request.clip, row)
    ((tokens, made),) = tokens_of(replace(job, clips=(clip,)))
    if made.num_kept != row["num_kept"] or made.grid_t != row["grid_thw"][0]:
        losses = [f"{loss.reason}: {loss.message}" for loss in made.losses]
        why = f" ({'; '.join(losses)})" if losses else ""
        raise ShardError(
            f"its source gives {made.num_kept} tokens of the {row['num_kept']} that it was packed "
            f"with{why}: restore its source, or tokenize again with --checked"
        )
    checksum = row["tokens_crc32c"]
    is_same = None if checksum is None else crc32c(tokens.data.cast("B")) == checksum
    places = made.kept
    if places is None:
        places = cells_of_rows(made.rows, *clip.grid_thw[1:], merge=request.settings.merge)
    visible = visible_of(dict(settings), row, places)
    return Stored(tokens, places.astype(np.int64), None, visible), is_same


def first_row(request: Request) -> int:
    """The row of the clip's grid that the segment begins with: several are cut of one clip."""
    start = request.row["clip_start_pts"]
    if start == request.clip.start_pts:
        return 0
    return int(np.searchsorted(request.clip.row_pts, start))


def _check_pack(request: Request, reader: ShardReader) -> None:
    pack = request.row["pack"]
    if not 0 <= pack < len(reader):
        raise ShardError(f"segments.parquet says pack {pack}, there are {len(reader)}")


def _place_of(request: Request, segments: np.ndarray) -> int:
    """Which of the ``(S, 8)`` segments of its pack it is; a ShardError where they do not agree."""
    row, clip = request.row, request.clip
    places = np.flatnonzero(segments[:, 0] == row["offset"])
    expected = [row["offset"], row["num_kept"], *row["grid_thw"]]
    expected += [clip.tubelet_size, *clip.patch_size]
    if (
        len(places) != 1
        or segments[places[0]].tolist() != expected
        or tuple(row["grid_thw"][1:]) != clip.grid_thw[1:]
        or not first_row(request) + row["grid_thw"][0] <= clip.grid_thw[0]
        or row["num_tokens"] != math.prod(row["grid_thw"])
        or not 1 <= len(row["frame_pts"]) <= clip.row_starts[row["grid_thw"][0]]
    ):
        raise ShardError(DISAGREE)
    return int(places[0])


DISAGREE = "its row of segments.parquet, its pack and its clip do not agree"
