"""Write one shard: the tar of packs, its index, its table of segments."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from crc32c import crc32c

from spacepatch.shards.tables import SEGMENTS, write_table
from spacepatch.shards.version import FORMAT_VERSION
from spacepatch.storage import publish, publish_bytes

BLOCK = 512
SHARD_ENDINGS = ("tar", "index.npy", "segments.parquet")
"""Of the files of a shard, besides its receipt (json)."""
PACK_JSON_SEGMENT = (
    "segment_id",
    "source",
    "clip",
    "view",
    "grid_thw",
    "offset",
    "num_tokens",
    "num_kept",
    "size",
    "seconds",
    "extra",
)
"""What pack.json says of a segment: only what varies."""


@dataclass(frozen=True, slots=True)
class Layout:
    """What is the same for every pack of a dataset."""

    pack_length: int
    token_dtype: str
    token_width: int
    tubelet_size: int
    patch_size: tuple[int, int]
    index: str
    """full | compact"""
    position_dtype: str
    order: str = "raster"
    store: str = "tokens"

    @property
    def members(self) -> list[str]:
        """Members of a sample, in order."""
        if self.index == "full":
            return ["tokens.npy", "segments.npy", "segment_ids.npy", "positions.npy", "pack.json"]
        # Corrupt frames drop rows under any settings, so the raster index is always there.
        return ["tokens.npy", "segments.npy", "kept.npy", "pack.json"]

    @property
    def token_bytes(self) -> int:
        """Bytes of a token on disk, with its share of ids and positions."""
        content = self.token_width * np.dtype(self.token_dtype).itemsize
        if self.index == "full":
            return content + 4 + 3 * np.dtype(self.position_dtype).itemsize
        return content + 4


@dataclass(frozen=True, slots=True)
class SegmentContent:
    """One segment to be written."""

    row: dict[str, Any]
    """Its row of segments.parquet, but for shard, pack, offset and tokens_crc32c."""
    tokens: np.ndarray
    """(num_kept, D), C-contiguous: a slice of the arena."""
    rows: np.ndarray
    """(R,) int32: the grid rows (t) that were kept."""


def shard_stem(name: str, split: str, number: int) -> str:
    """``NAME-000000``, or ``NAME-SPLIT-000000``."""
    return f"{name}-{split}-{number:06d}" if split else f"{name}-{number:06d}"


def write_shard(
    folder: Path,
    *,
    stem: str,
    number: int,
    packs: Sequence[Sequence[SegmentContent]],
    layout: Layout,
) -> tuple[dict[str, dict[str, Any]], list[int]]:
    """Publish tar, index and table of one shard, each whole or not at all.

    The same packs give the same bytes: fixed mtime, owner, mode and order.

    Returns:
        Bytes and sha256 of each file, and the crc32c of each pack.

    Raises:
        OSError: the disk is full or cannot be written.
    """
    index = np.zeros((len(packs), len(layout.members), 2), np.uint64)
    checksums: list[int] = []
    rows: list[dict[str, Any]] = []
    digest = hashlib.sha256()
    size = 0

    def write(file: IO[bytes]) -> None:
        nonlocal size
        for pack, contents in enumerate(packs):
            key = f"{stem}-{pack:06d}"
            checksum = 0
            for place, (member, parts) in enumerate(_members(contents, layout, rows, number, pack)):
                length = sum(len(part) for part in parts)
                header = _header(f"{key}.{member}", length)
                index[pack, place] = size + len(header), length
                for part in (header, *parts, bytes(-length % BLOCK)):
                    file.write(part)
                    digest.update(part)
                for part in parts:
                    checksum = crc32c(part, checksum)
                size += len(header) + length + -length % BLOCK
            checksums.append(checksum)
        end = bytes(2 * BLOCK)
        file.write(end)
        digest.update(end)
        size += len(end)

    publish(folder / f"{stem}.tar", write)
    files = {f"{stem}.tar": {"bytes": size, "sha256": digest.hexdigest()}}

    content = _npy(index)
    joined = b"".join(bytes(part) for part in content)
    publish_bytes(folder / f"{stem}.index.npy", joined)
    files[f"{stem}.index.npy"] = {
        "bytes": len(joined),
        "sha256": hashlib.sha256(joined).hexdigest(),
    }

    table = folder / f"{stem}.segments.parquet"
    sha256 = write_table(table, SEGMENTS, rows)
    files[table.name] = {"bytes": table.stat().st_size, "sha256": sha256}
    return files, checksums


def _members(
    contents: Sequence[SegmentContent],
    layout: Layout,
    rows: list[dict[str, Any]],
    number: int,
    pack: int,
) -> Iterator[tuple[str, list[Any]]]:
    """Each member's name with its data in parts, so that no pack is ever copied together."""
    table = np.zeros((len(contents), 8), np.int32)
    offset = 0
    described = []
    for place, content in enumerate(contents):
        row = content.row | {"shard": number, "pack": pack, "offset": offset}
        row["tokens_crc32c"] = crc32c(_bytes_of(content.tokens))
        row["extra"] = json.dumps(row["extra"], sort_keys=True, ensure_ascii=False)
        rows.append(row)
        table[place] = (offset, row["num_kept"], *row["grid_thw"], layout.tubelet_size,
                        *layout.patch_size)  # fmt: skip
        described.append(
            {key: row[key] for key in PACK_JSON_SEGMENT} | {"extra": content.row["extra"]}
        )
        offset += row["num_kept"]

    header = _npy_header(layout.token_dtype, (offset, layout.token_width))
    yield "tokens.npy", [header, *(_bytes_of(content.tokens) for content in contents)]
    yield "segments.npy", _npy(table)
    grids = [(content.rows, content.row["grid_thw"]) for content in contents]
    if layout.index == "full":
        ids = np.repeat(np.arange(1, len(contents) + 1, dtype=np.int32), table[:, 1])
        yield "segment_ids.npy", _npy(ids)
        positions = [_positions(kept, grid, layout.position_dtype) for kept, grid in grids]
        yield "positions.npy", _npy(np.concatenate(positions))
    else:
        yield "kept.npy", _npy(np.concatenate([_kept(kept, grid) for kept, grid in grids]))
    document = {
        "format_version": FORMAT_VERSION,
        "store": layout.store,
        "pack_length": layout.pack_length,
        "token_width": layout.token_width,
        "token_dtype": layout.token_dtype,
        "order": layout.order,
        "segments": described,
    }
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    yield "pack.json", [text.encode()]


def _positions(rows: np.ndarray, grid: Sequence[int], dtype: str) -> np.ndarray:
    """(len(rows) * H * W, 3): t, h, w of each kept token, in raster order."""
    _, height, width = grid
    positions = np.empty((len(rows), height, width, 3), dtype)
    positions[..., 0] = rows[:, None, None]
    positions[..., 1] = np.arange(height)[None, :, None]
    positions[..., 2] = np.arange(width)
    return positions.reshape(-1, 3)


def _kept(rows: np.ndarray, grid: Sequence[int]) -> np.ndarray:
    """Raster index of each kept token in its segment's grid."""
    cells = grid[1] * grid[2]
    return (rows.astype(np.uint32)[:, None] * cells + np.arange(cells, dtype=np.uint32)).reshape(-1)


def _bytes_of(array: np.ndarray) -> memoryview:
    return np.ascontiguousarray(array).data.cast("B") if array.size else memoryview(b"")


def _npy(array: np.ndarray) -> list[Any]:
    return [_npy_header(array.dtype.str, array.shape), _bytes_of(array)]


def _npy_header(dtype: str, shape: tuple[int, ...]) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
    )
    return buffer.getvalue()


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode = size, 0, 0o644
    return info.tobuf(tarfile.USTAR_FORMAT)
