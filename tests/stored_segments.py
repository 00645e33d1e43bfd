"""Segments as they are stored, read by tarfile, numpy and json alone, and their pictures."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow.parquet as parquet
from einops import rearrange
from loaded_packs import read_plainly

from spacepatch.data import Picture
from spacepatch.resize import make_frame

Name = tuple[str, int, int]
"""(source, clip, view): the same in every run that has the clip, whatever its settings."""


@dataclass
class Stored:
    """One segment."""

    row: dict[str, Any]
    """Of segments.parquet."""
    tokens: np.ndarray
    positions: np.ndarray
    """(n, 3): t, h, w."""
    run_lengths: np.ndarray | None

    @property
    def grid(self) -> tuple[int, int, int]:
        return tuple(self.row["grid_thw"])

    @property
    def raster(self) -> np.ndarray:
        """(n,) index of each token in its grid."""
        return np.ravel_multi_index(tuple(self.positions.T.astype(np.int64)), self.grid)

    @property
    def keep(self) -> np.ndarray:
        """(T, cells) bool."""
        keep = np.zeros(self.row["num_tokens"], bool)
        keep[self.raster] = True
        return keep.reshape(self.grid[0], -1)


def segments_of(out: Path) -> dict[Name, Stored]:
    """Every segment; none has the name of another."""
    rows = {
        row["segment_id"]: row for row in parquet.read_table(out / "segments.parquet").to_pylist()
    }
    found: dict[Name, Stored] = {}
    for pack in read_plainly(out):
        for segment in pack["pack"]["segments"]:
            row = rows.pop(segment["segment_id"])
            span = slice(segment["offset"], segment["offset"] + segment["num_kept"])
            if "positions" in pack:
                positions = pack["positions"][span]
            else:
                raster = pack["kept"][span].astype(np.int64)
                positions = np.stack(np.unravel_index(raster, segment["grid_thw"]), -1)
            name = row["source"], row["clip"], row["view"]
            assert name not in found
            lengths = pack.get("run_lengths")
            found[name] = Stored(
                row,
                pack["tokens"][span],
                positions,
                None if lengths is None else lengths[span],
            )
    assert not rows
    return found


def pictures_of(stored: Stored, channels: int = 3) -> np.ndarray:
    """(T, H, W, C): the frames of a segment whose tokens are all there, in raster order."""
    row = stored.row
    assert len(stored.tokens) == row["num_tokens"]
    pattern = {
        "c t p q": "(t h w) (c k p q) -> (t k) (h p) (w q) c",
        "t p q c": "(t h w) (k p q c) -> (t k) (h p) (w q) c",
    }[row["layout"]]
    t, h, w = stored.grid
    p, q = row["patch_size"]
    return rearrange(stored.tokens, pattern, t=t, h=h, w=w, p=p, q=q, c=channels)


def scaled_size(row: dict[str, Any], display_size: tuple[int, int]) -> tuple[int, int]:
    """(h, w) that the whole picture was scaled to."""
    height, width = (
        round(scale * side) for scale, side in zip(row["scale"], display_size, strict=True)
    )
    return height, width


def scaled_frames(path: Path, row: dict[str, Any], resampler: str = "bicubic") -> np.ndarray:
    """(n, h, w, 3): the whole pictures of an upright video at a segment's scale, by PyAV alone."""
    wanted = row["frame_indices"]
    frames: dict[int, np.ndarray] = {}
    with av.open(str(path)) as container:
        for index, frame in enumerate(container.decode(video=0)):
            if index in wanted:
                picture = Picture(frame, frame.pts, index, 0, False, False)
                size = scaled_size(row, (frame.height, frame.width))
                frames[index] = make_frame(picture, size=size, resampler=resampler)
            if index == max(wanted):
                break
    return np.stack([frames[index] for index in wanted])


def digests(out: Path) -> dict[str, str]:
    """sha256 of every file of the format."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.iterdir())
        if path.is_file()
    }
