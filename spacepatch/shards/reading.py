"""Read one shard: by memory map and index, with our own decoders for npy and json only."""

from __future__ import annotations

import io
import json
import mmap
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from types import TracebackType
from typing import Any

import numpy as np
from crc32c import crc32c

from spacepatch.errors import ShardError
from spacepatch.shards.receipts import ShardReceipt, read_receipt
from spacepatch.shards.version import check_version


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


class ShardReader:
    """The packs of one shard, in order; each pack's checksum is verified when it is first read."""

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
            with tar.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise ShardError(f"{tar}: cannot be opened ({error})") from None
        size = self.receipt.files.get(tar.name, {}).get("bytes")
        if len(self._map) != size:
            raise ShardError(f"{tar}: is {len(self._map)} bytes, its receipt says {size}: cut off?")
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
        if offset + size > len(self._map):
            raise ShardError(f"{self.path}: cut off: pack {pack} ends at byte {offset + size}")
        return memoryview(self._map)[offset : offset + size]

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
        except ValueError:
            raise ShardError(f"{where} is damaged") from None
        check_version(document, where)
        return document  # type: ignore[no-any-return]

    def array(self, pack: int, name: str) -> np.ndarray:
        """One npy member, backed by the memory map."""
        return _read_npy(self.member(pack, name), f"{self.path}: pack {pack}: {name}")

    def read(self, pack: int) -> PackMembers:
        """One pack.

        Raises:
            ShardError: its checksum is not that of the receipt, or a member is damaged.
        """
        if pack not in self._checked:
            if self.crc32c(pack) != self.receipt.pack_crc32c[pack]:
                raise ShardError(
                    f"{self.path}: pack {pack} is damaged (crc32c differs from the receipt); "
                    "run spacepatch verify, then tokenize again"
                )
            self._checked.add(pack)
        tokens = self.array(pack, "tokens.npy")
        segments = self.array(pack, "segments.npy")
        ids = np.repeat(np.arange(1, len(segments) + 1, dtype=np.int32), segments[:, 1])
        if "positions.npy" in self.receipt.members:
            positions = self.array(pack, "positions.npy")
        else:
            positions = positions_of_kept(self.array(pack, "kept.npy"), segments)
        return PackMembers(
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
            document=self.document(pack),
        )

    def _optional(self, pack: int, name: str) -> np.ndarray | None:
        return self.array(pack, name) if name in self.receipt.members else None


def positions_of_kept(kept: np.ndarray, segments: np.ndarray) -> np.ndarray:
    """``(N, 3)`` int32 positions (t, h, w) from ``(N,)`` raster indices and ``(S, 8)`` segments."""
    grids = np.repeat(segments[:, 2:5].astype(np.int64), segments[:, 1], axis=0)
    raster = kept.astype(np.int64)
    width, cells = grids[:, 2], grids[:, 1] * grids[:, 2]
    return np.stack([raster // cells, raster % cells // width, raster % width], -1).astype(np.int32)


def _read_npy(content: Any, where: str) -> np.ndarray:
    """An npy member (version 1 or 2), never with pickled objects; no copy of the data."""
    view = memoryview(content)
    buffer = io.BytesIO(bytes(view[: min(len(view), 4096)]))
    try:
        version = np.lib.format.read_magic(buffer)
        read = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}
        shape, fortran, dtype = read[version[0]](buffer)
        if dtype.hasobject or fortran:
            raise ValueError("objects or Fortran order")
        return np.frombuffer(view[buffer.tell() :], dtype).reshape(shape)
    except (ValueError, KeyError, TypeError, SyntaxError, TokenError) as error:
        raise ShardError(f"{where}: no plain npy ({error})") from None
