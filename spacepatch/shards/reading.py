"""Read one shard: by memory map and index, with our own decoders for npy and json only."""

from __future__ import annotations

import io
import json
import mmap
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from tokenize import TokenError
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from crc32c import crc32c

from spacepatch.errors import ShardError
from spacepatch.shards.agreement import (
    check_document,
    check_pixels,
    check_positions,
    check_references,
    check_rows,
    check_segments,
)
from spacepatch.shards.compressing import read_compressed
from spacepatch.shards.receipts import ShardReceipt, read_receipt
from spacepatch.shards.version import check_version
from spacepatch.storage import is_on_store

if TYPE_CHECKING:
    from spacepatch.remote.paths import StorePath


@dataclass(frozen=True, slots=True)
class PackMembers:
    """One pack as stored, whichever index it has."""

    key: str
    tokens: np.ndarray
    """(N, D), read-only, backed by the memory map. Of bfloat16 the bits, as uint16."""
    token_dtype: str
    """What `tokens` are: their dtype, or ``bfloat16``."""
    segments: np.ndarray
    """(S, 8) int32: offset, num_kept, T, H, W, tubelet_size, patch_h, patch_w."""
    segment_ids: np.ndarray
    """(N,) int32, 1-based."""
    positions: np.ndarray
    """(N, 3): t, h, w in the segment's grid."""
    run_lengths: np.ndarray | None
    """(N,) uint16: tubelets in time that each token stands for, where static ones are dropped."""
    visible: np.ndarray | None
    """(N,) uint8: a stored mask, 1 = visible to the encoder."""
    pixels: np.ndarray | None
    """(P, D) uint8: pixel tokens of the same segments, beside those of an encoder."""
    pixel_segments: np.ndarray | None
    """(S, 8) int32: as `segments`, of the pixel tokens: a whole grid each."""
    document: dict[str, Any]
    """pack.json."""


@dataclass(frozen=True, slots=True)
class PackReferences:
    """One pack of store refs: what its segments are, without their tokens."""

    key: str
    width: int
    """Values of a token, once it is made."""
    segments: np.ndarray
    """(S, 8) int32, as of `PackMembers`."""
    document: dict[str, Any]
    """pack.json."""


class ShardReader:
    """The packs of one shard, in order; each pack's checksum is verified when it is first read."""

    def __new__(cls, tar: Path, **_: Any) -> ShardReader:
        # There is no map of an object: its packs are read whole, as whoever reads in order does.
        return super().__new__(SequentialShardReader if is_on_store(tar) else cls)

    def __init__(self, tar: Path, *, receipt: ShardReceipt | None = None) -> None:
        """Open `NAME-000000.tar` with its index and receipt beside it.

        Raises:
            ShardError: a file is missing or does not agree with the others.
        """
        self.path = tar
        self.stem = tar.name.removesuffix(".tar")
        self.receipt = receipt or read_receipt(tar.with_name(f"{self.stem}.json"))
        self._checked: set[int] = set()
        try:
            self._size = self._open(tar)
        except (OSError, ValueError) as error:
            raise ShardError(f"{tar}: cannot be opened ({error})") from None
        size = self.receipt.files.get(tar.name, {}).get("bytes")
        if self._size != size:
            raise ShardError(f"{tar}: is {self._size} bytes, its receipt says {size}: cut off?")
        index = tar.with_name(f"{self.stem}.index.npy")
        try:
            content = index.read_bytes()
        except OSError:
            raise ShardError(f"{index}: missing; the shard is not complete") from None
        self._index = _read_npy(content, str(index))
        if len(self.receipt.pack_crc32c) != self.receipt.packs:
            raise ShardError(f"{tar}: its receipt does not give a crc32c for each pack")
        expected = (self.receipt.packs, len(self.receipt.members), 2)
        if self._index.shape != expected or self._index.dtype != np.uint64:
            raise ShardError(f"{index}: is {self._index.shape}, the receipt says {expected}")

    def __len__(self) -> int:
        return self.receipt.packs

    def __enter__(self) -> ShardReader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Arrays that were handed out keep the map alive until they are gone."""
        try:
            self._map.close()
        except BufferError:
            return

    def member(self, pack: int, name: str) -> memoryview:
        """The stored bytes of one member.

        Raises:
            ShardError: the index points outside the tar, or there is no such member.
        """
        try:
            place = self.receipt.members.index(name)
        except ValueError:
            raise ShardError(f"{self.path}: packs have no member {name}") from None
        offset, size = (int(value) for value in self._index[pack, place])
        if offset + size > self._size:
            raise ShardError(f"{self.path}: cut off: pack {pack} ends at byte {offset + size}")
        return self._content(offset, size)

    def crc32c(self, pack: int) -> int:
        """Checksum of the data of a pack's members, in order."""
        checksum = 0
        for name in self.receipt.members:
            checksum = crc32c(self.member(pack, name), checksum)
        return checksum

    def document(self, pack: int) -> dict[str, Any]:
        """pack.json of one pack."""
        where = f"{self.path}: pack {pack}: pack.json"
        try:
            document = json.loads(bytes(self.member(pack, "pack.json")))
        except (ValueError, RecursionError):
            raise ShardError(f"{where} is damaged") from None
        if not isinstance(document, dict):
            raise ShardError(f"{where} is damaged")
        check_version(document, where)
        return document

    def array(self, pack: int, name: str) -> np.ndarray:
        """One npy member, backed by the memory map."""
        return _read_npy(self.member(pack, name), f"{self.path}: pack {pack}: {name}")

    def references(self, pack: int) -> PackReferences:
        """One pack of store refs.

        Raises:
            ShardError: as of `read`.
        """
        is_first = self._check_bytes(pack)
        segments, where = self.array(pack, "segments.npy"), f"{self.path}: pack {pack}"
        found = PackReferences(
            key=f"{self.stem}-{pack:06d}",
            width=self.receipt.pack_token_widths[pack],
            segments=segments,
            document=self.document(pack),
        )
        if is_first:
            check_segments(segments, None, where)
            check_document(found.document, segments, where)
            check_references(found.document, where)
            self._checked.add(pack)
        return found

    def read(self, pack: int) -> PackMembers:
        """One pack.

        Raises:
            ShardError: its checksum is not that of the receipt, a member is damaged, or it holds
                references and no tokens.
        """
        if self.receipt.store == "refs":
            raise ShardError(
                f"{self.path}: holds references, no tokens: they are made when a loader is given "
                "source_root, or by spacepatch convert --store tokens --source-root DIR"
            )
        is_first = self._check_bytes(pack)
        segments = self.array(pack, "segments.npy")
        where = f"{self.path}: pack {pack}"
        if is_first:
            check_segments(segments, None, where)
        num_tokens = int(segments[:, 1].sum())
        ids = np.repeat(np.arange(1, len(segments) + 1, dtype=np.int32), segments[:, 1])
        if "positions.npy" in self.receipt.members:
            positions = self.array(pack, "positions.npy")
        else:
            kept = self.array(pack, "kept.npy")
            check_rows(kept, num_tokens, "kept.npy", where)
            positions = positions_of_kept(kept, segments)
        if is_first:
            check_positions(positions, segments, where)
        document = self.document(pack)
        tokens = self._tokens(pack, segments, positions, document, where)
        if is_first:
            self._check_tokens(tokens, pack, where)
            check_segments(segments, len(tokens), where)
        made = PackMembers(
            key=f"{self.stem}-{pack:06d}",
            tokens=tokens,
            token_dtype=self.receipt.token_dtype,
            segments=segments,
            segment_ids=ids,
            positions=positions,
            run_lengths=self._optional(pack, "run_lengths.npy"),
            visible=self._optional(pack, "visible.npy"),
            pixels=self._optional(pack, "pixels.npy"),
            pixel_segments=self._optional(pack, "pixel_segments.npy"),
            document=document,
        )
        if is_first:
            self._check(made, where)
            self._checked.add(pack)
        return made

    def _check_bytes(self, pack: int) -> bool:
        """Whether a pack is read for the first time; then by its checksum."""
        is_first = pack not in self._checked
        if is_first and self.crc32c(pack) != self.receipt.pack_crc32c[pack]:
            raise ShardError(
                f"{self.path}: pack {pack} is damaged (crc32c differs from the receipt); "
                "run spacepatch verify, then tokenize again"
            )
        return is_first

    def _tokens(
        self,
        pack: int,
        segments: np.ndarray,
        positions: np.ndarray,
        document: dict[str, Any],
        where: str,
    ) -> np.ndarray:
        """``(N, D)``: as they are stored, or what was compressed."""
        if self.receipt.store == "tokens":
            return self.array(pack, "tokens.npy")
        return read_compressed(
            self.member(pack, "tokens.bin"),
            document,
            segments,
            kept_of_positions(positions, segments),
            width=self.receipt.pack_token_widths[pack],
            where=where,
        )

    def _check_tokens(self, tokens: np.ndarray, pack: int, where: str) -> None:
        dtype, width = self.receipt.token_dtype, self.receipt.pack_token_widths[pack]
        stored = np.dtype("uint16" if dtype == "bfloat16" else dtype)
        if tokens.ndim != 2 or (tokens.shape[1], tokens.dtype) != (width, stored):
            raise ShardError(
                f"{where}: tokens.npy is {tokens.dtype} {tokens.shape}, the receipt says "
                f"{stored} (N, {width})"
            )

    def _check(self, pack: PackMembers, where: str) -> None:
        num_tokens = len(pack.tokens)
        check_document(pack.document, pack.segments, where)
        check_rows(pack.run_lengths, num_tokens, "run_lengths.npy", where)
        check_rows(pack.visible, num_tokens, "visible.npy", where)
        if pack.pixels is not None and pack.pixel_segments is not None:
            check_pixels(pack.pixels, pack.pixel_segments, len(pack.segments), where)

    def _open(self, tar: Path) -> int:
        """Returns its size in bytes."""
        with tar.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return len(self._map)

    def _content(self, offset: int, size: int) -> memoryview:
        return memoryview(self._map)[offset : offset + size]

    def _optional(self, pack: int, name: str) -> np.ndarray | None:
        return self.array(pack, name) if name in self.receipt.members else None


class SequentialShardReader(ShardReader):
    """The same by one read of a whole pack, not by map: for packs that are read in order, from
    disks and file systems where reading here and there is slow."""

    def read(self, pack: int) -> PackMembers:
        """One pack; its arrays are backed by memory of its own."""
        (first, _), *_, (last, size) = self._index[pack].tolist()
        if not first <= last <= last + size <= self._size:
            raise ShardError(f"{self.path}: cut off: pack {pack} ends at byte {last + size}")
        self._held = first, self._read(first, last + size - first)
        return super().read(pack)

    def close(self) -> None:
        self._held = 0, memoryview(b"")

    def _open(self, tar: Path) -> int:
        self.close()
        return tar.stat().st_size

    def _read(self, offset: int, size: int) -> memoryview:
        if is_on_store(self.path):
            return self._range(self.path, offset, size)
        # Opened each time: workers that were forked would share one place in an open file.
        content = memoryview(bytearray(size))
        length = 0
        try:
            with self.path.open("rb", buffering=0) as file:
                file.seek(offset)
                while length < size and (num_bytes := file.readinto(content[length:])):
                    length += num_bytes
        except OSError as error:
            raise ShardError(f"{self.path}: cannot be read ({error})") from None
        if length < size:
            raise ShardError(f"{self.path}: cut off at byte {offset + length}")
        return content.toreadonly()

    def _range(self, tar: StorePath, offset: int, size: int) -> memoryview:
        try:
            return memoryview(tar.read_range(offset, offset + size))
        except OSError as error:
            raise ShardError(f"{tar}: cannot be read ({error})") from None

    def _content(self, offset: int, size: int) -> memoryview:
        start, content = self._held
        if start <= offset and offset + size <= start + len(content):
            return content[offset - start : offset - start + size]
        return self._read(offset, size)


def kept_of_positions(positions: np.ndarray, segments: np.ndarray) -> np.ndarray:
    """``(N,)`` uint32 raster indices from ``(N, 3)`` positions and ``(S, 8)`` segments."""
    grids = np.repeat(segments[:, 2:5].astype(np.int64), segments[:, 1], axis=0)
    t, h, w = positions.astype(np.int64).T
    raster: np.ndarray = ((t * grids[:, 1] + h) * grids[:, 2] + w).astype(np.uint32)
    return raster


def positions_of_kept(kept: np.ndarray, segments: np.ndarray) -> np.ndarray:
    """``(N, 3)`` int32 positions (t, h, w) from ``(N,)`` raster indices and ``(S, 8)`` segments."""
    grids = np.repeat(segments[:, 2:5].astype(np.int64), segments[:, 1], axis=0)
    raster = kept.astype(np.int64)
    width, cells = grids[:, 2], grids[:, 1] * grids[:, 2]
    return np.stack([raster // cells, raster % cells // width, raster % width], -1).astype(np.int32)


def _read_npy(content: Any, where: str) -> np.ndarray:
    """An npy member (version 1 or 2), never with pickled objects; no copy of the data."""
    view = memoryview(content)
    # Version, and the length of what follows: two bytes, or four.
    length = int.from_bytes(view[8:10], "little") if bytes(view[6:7]) == b"\1" else 4096
    try:
        shape, dtype, start = _read_header(bytes(view[: min(10 + length, 4096)]))
        return np.frombuffer(view[start:], dtype).reshape(shape)
    except (
        KeyError,
        MemoryError,
        RecursionError,
        SyntaxError,
        TokenError,
        TypeError,
        ValueError,
    ) as error:
        raise ShardError(f"{where}: no plain npy ({error})") from None


@lru_cache(maxsize=256)
def _read_header(content: bytes) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Shape, dtype and where the data begin. Full packs have one header: it is read once."""
    buffer = io.BytesIO(content)
    version = np.lib.format.read_magic(buffer)
    read = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}
    shape, fortran, dtype = read[version[0]](buffer)
    if dtype.hasobject or fortran or min(shape, default=0) < 0:
        raise ValueError(f"{dtype}, {shape}: objects, Fortran order or a negative length")
    return shape, dtype, buffer.tell()
