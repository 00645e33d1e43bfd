"""Write one shard: the tar of packs, its index, its table of segments."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from crc32c import crc32c

from spacepatch.codecs import Compressed
from spacepatch.data import ClipSpec
from spacepatch.shards.compressing import compressing, describe_codecs
from spacepatch.shards.hashing import ShardHasher
from spacepatch.shards.tables import SEGMENTS, write_table
from spacepatch.shards.version import FORMAT_VERSION
from spacepatch.stages import stage, timed
from spacepatch.storage import publish, publish_bytes
from spacepatch.token_dtypes import storage_of
from spacepatch.tubelets import token_width

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
PACK_JSON_REFERENCE = (
    "source_root",
    "source_id",
    "clip_start_pts",
    "clip_stop_pts",
    "tokens_crc32c",
)
"""And with store refs, so that the tokens can be made again; the checksum is null where nobody has
made them yet."""


@dataclass(frozen=True, slots=True)
class Layout:
    """What is the same for every pack of a dataset."""

    pack_length: int
    token_dtype: str
    token_widths: tuple[int, ...]
    """Values in a token, the largest first; a pack holds tokens of one width."""
    index: str
    """full | compact"""
    position_dtype: str
    order: str = "raster"
    store: str = "tokens"
    """tokens | refs | compressed"""
    channels: int = 3
    halo: int = 0
    """Pixels around its patch that a token covers too."""
    run_lengths: bool = False
    """How many tubelets each token stands for is stored."""
    visible: bool = False
    """A mask is stored."""
    pixel_tubelet: tuple[int, int, int] | None = None
    """(frames, height, width) of the pixel tokens beside those of an encoder; None: none are."""
    floor: float | None = None
    """With store compressed, the PSNR in dB that each segment has at least; None: no loss."""

    @property
    def members(self) -> list[str]:
        """Members of a sample, in order."""
        if self.store == "refs":
            return ["segments.npy", "pack.json"]
        # Corrupt frames drop rows under any settings, so compact always has the raster index.
        index = {"full": ["segment_ids.npy", "positions.npy"], "compact": ["kept.npy"]}
        return [
            "tokens.bin" if self.store == "compressed" else "tokens.npy",
            "segments.npy",
            *index[self.index],
            *(["run_lengths.npy"] if self.run_lengths else []),
            *(["visible.npy"] if self.visible else []),
            *(["pixels.npy", "pixel_segments.npy"] if self.pixel_tubelet else []),
            "pack.json",
        ]

    @property
    def token_width(self) -> int | None:
        """Of every token; None where packs differ."""
        return self.token_widths[0] if len(self.token_widths) == 1 else None

    def width_of(self, clip: ClipSpec) -> int:
        """Values in a token of a clip."""
        return token_width(clip.tubelet_size, clip.patch_size, self.channels, self.halo)

    @property
    def pixel_width(self) -> int:
        """Values in a pixel token; 0 where there is none."""
        return (
            token_width(self.pixel_tubelet[0], self.pixel_tubelet[1:]) if self.pixel_tubelet else 0
        )

    @property
    def storage(self) -> str:
        """dtype of tokens.npy: `token_dtype`, or what its bits are stored as."""
        return storage_of(self.token_dtype)

    def content_bytes(self, width: int) -> int:
        """Bytes of a token of `width` values by itself."""
        return width * np.dtype(self.storage).itemsize

    def token_bytes(self, width: int) -> int:
        """Bytes on disk of a token of `width` values, with its share of ids and positions."""
        content = self.content_bytes(width)
        content += 2 * self.run_lengths + self.visible
        if self.index == "full":
            return content + 4 + 3 * np.dtype(self.position_dtype).itemsize
        return content + 4


@dataclass(frozen=True, slots=True)
class SegmentContent:
    """One segment to be written."""

    row: dict[str, Any]
    """Its row of segments.parquet, but for shard, pack, offset and tokens_crc32c."""
    tokens: np.ndarray
    """(num_kept, D), C-contiguous: a slice of the arena; with store refs also (0, D), where they
    are not at hand: then its row has tokens_crc32c."""
    kept: np.ndarray
    """(num_kept,) uint32: raster index of each token in the segment's grid, in the order stored."""
    run_lengths: np.ndarray | None = None
    """(num_kept,) uint16: tubelets in time that each token stands for."""
    visible: np.ndarray | None = None
    """(num_kept,) uint8: 1 = visible to the encoder."""
    pixels: np.ndarray | None = None
    """(P, D) uint8: the pixel tokens of the same frames, where they are stored too."""
    pixel_grid: tuple[int, int, int] = (0, 0, 0)
    """Theirs; none of them is dropped."""


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
    threads: int = 1,
) -> tuple[dict[str, dict[str, Any]], list[int]]:
    """Publish tar, index and table of one shard, each whole or not at all.

    The same packs give the same bytes: fixed mtime, owner, mode and order.

    Args:
        threads: that compress, with store compressed.

    Returns:
        Bytes and sha256 of each file, and the crc32c of each pack.

    Raises:
        OSError: the disk is full or cannot be written.
    """
    index = np.zeros((len(packs), len(layout.members), 2), np.uint64)
    rows: list[dict[str, Any]] = []
    size = 0

    def write(file: IO[bytes]) -> None:
        nonlocal size
        for pack, contents in enumerate(packs):
            key = f"{stem}-{pack:06d}"
            hasher.begin_pack()
            members = timed("pack", _members(contents, layout, rows, number, pack, next(made)))
            for place, (member, parts) in enumerate(members):
                length = sum(len(part) for part in parts)
                header = _header(f"{key}.{member}", length)
                index[pack, place] = size + len(header), length
                padding = bytes(-length % BLOCK)
                hasher.add(header, parts, padding)
                for part in (header, *parts, padding):
                    file.write(part)
                size += len(header) + length + len(padding)
        end = bytes(2 * BLOCK)
        hasher.add(end, (), b"")
        file.write(end)
        size += len(end)

    with closing(ShardHasher()) as hasher, compressing(packs, layout, threads) as made:
        publish(folder / f"{stem}.tar", write)
        sha256, checksums = hasher.finish()
    files = {f"{stem}.tar": {"bytes": size, "sha256": sha256}}

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
    made: Sequence[Compressed],
) -> Iterator[tuple[str, list[Any]]]:
    """Each member's name with its data in parts, so that no pack is ever copied together."""
    table = np.zeros((len(contents), 8), np.int32)
    offset = 0
    described = []
    keys = PACK_JSON_SEGMENT + (PACK_JSON_REFERENCE if layout.store == "refs" else ())
    for place, content in enumerate(contents):
        row = content.row | {"shard": number, "pack": pack, "offset": offset}
        if len(content.tokens) == row["num_kept"]:
            with stage("hash"):
                row["tokens_crc32c"] = crc32c(_bytes_of(content.tokens))
        elif layout.store != "refs":
            raise ValueError(f"{row['segment_id']}: {len(content.tokens)} tokens at hand")
        row["psnr"] = made[place].psnr if made else None
        row["extra"] = json.dumps(row["extra"], sort_keys=True, ensure_ascii=False)
        rows.append(row)
        table[place] = (offset, row["num_kept"], *row["grid_thw"], row["tubelet_size"],
                        *row["patch_size"])  # fmt: skip
        described.append({key: row[key] for key in keys} | {"extra": content.row["extra"]})
        offset += row["num_kept"]

    width = contents[0].tokens.shape[1]
    if layout.store == "tokens":
        header = _npy_header(layout.storage, (offset, width))
        yield "tokens.npy", [header, *(_bytes_of(content.tokens) for content in contents)]
    elif layout.store == "compressed":
        yield "tokens.bin", [one.content for one in made]
    yield "segments.npy", _npy(table)
    if layout.store == "refs":
        pass  # whoever makes the tokens has their places too
    elif layout.index == "full":
        ids = np.repeat(np.arange(1, len(contents) + 1, dtype=np.int32), table[:, 1])
        yield "segment_ids.npy", _npy(ids)
        positions = np.concatenate(
            [positions_in(content.kept, content.row["grid_thw"]) for content in contents]
        )
        yield "positions.npy", _npy(positions.astype(layout.position_dtype))
    else:
        yield "kept.npy", _npy(np.concatenate([content.kept for content in contents]))
    for name, arrays in (
        ("run_lengths.npy", [content.run_lengths for content in contents]),
        ("visible.npy", [content.visible for content in contents]),
    ):
        if name in layout.members:
            yield name, _npy(np.concatenate([array for array in arrays if array is not None]))
    if layout.pixel_tubelet is not None:
        yield from _pixel_members(contents, layout)
    document = {
        "format_version": FORMAT_VERSION,
        "store": layout.store,
        "pack_length": layout.pack_length,
        "token_width": width,
        "token_dtype": layout.token_dtype,
        "order": layout.order,
        "segments": described,
    }
    if made:
        document |= describe_codecs(contents, made, layout)
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    yield "pack.json", [text.encode()]


def _pixel_members(
    contents: Sequence[SegmentContent], layout: Layout
) -> Iterator[tuple[str, list[Any]]]:
    """The pixel tokens of the segments, one after the other, and where each begins."""
    assert layout.pixel_tubelet is not None, "there are such"
    parts = [content.pixels for content in contents if content.pixels is not None]
    table = np.zeros((len(contents), 8), np.int32)
    table[:, 1] = [len(part) for part in parts]
    table[:, 0] = np.cumsum(table[:, 1]) - table[:, 1]
    table[:, 2:5] = [content.pixel_grid for content in contents]
    table[:, 5:] = layout.pixel_tubelet
    header = _npy_header("uint8", (int(table[:, 1].sum()), layout.pixel_width))
    yield "pixels.npy", [header, *(_bytes_of(part) for part in parts)]
    yield "pixel_segments.npy", _npy(table)


def positions_in(kept: np.ndarray, grid: Sequence[int]) -> np.ndarray:
    """``(N, 3)`` int64 positions (t, h, w) of ``(N,)`` raster indices in a grid."""
    _, height, width = grid
    raster = kept.astype(np.int64)
    cells = height * width
    return np.stack([raster // cells, raster % cells // width, raster % width], axis=-1)


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
