"""Packs as PyTorch tensors.

dataset = PackDataset("shards/")
for batch in DataLoader(dataset, batch_size=4, shuffle=True, collate_fn=collate): ...
"""

from __future__ import annotations

import json
import os
import re
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from spacepatch.errors import ShardError
from spacepatch.shards import DATASET, PackMembers, ShardReader, check_version

MAX_OPEN_SHARDS = 128
"""Open at once in a process: each takes a file descriptor, of which macOS grants 256."""

STACKED = ("tokens", "segment_ids", "positions", "seconds")
"""Tensors of one row a token: of one shape in all padded packs."""


class PackDataset(Dataset[dict[str, Any]]):
    """All packs of a finished dataset, in the order of its shards, read in place from local files.

    Every process opens its own shards when it first reads them, so any kind of DataLoader worker
    will do. The checksum of a pack is verified before anything of it is handed out.
    """

    document: dict[str, Any]
    """dataset.json: settings, fingerprints, constants, totals."""
    pack_length: int
    """Tokens in a padded pack."""

    def __init__(
        self, folder: str | Path, *, padded: bool = True, split: str | None = None
    ) -> None:
        """Read dataset.json; no shard is opened yet.

        Args:
            folder: what `spacepatch tokenize --out` wrote.
            padded: fill every pack up to `pack_length` with zeros, so that packs stack to batches;
                without it packs are as long as what they hold, for kernels that take cu_seqlens.
            split: only the packs of this split; default: all.

        Raises:
            ShardError: the dataset is missing, unfinished, or of a newer format.
            ValueError: there is no such split.
        """
        self.folder = Path(folder)
        self.padded = padded
        self.document = _read_dataset(self.folder)
        self.pack_length = self.document["pack_length"]
        shards = self.document["shards"]
        if split is not None:
            known = sorted({shard["split"] for shard in shards})
            if split not in known:
                raise ValueError(f"split {split!r}: {self.folder} has {known}")
            shards = [shard for shard in shards if shard["split"] == split]
        for shard in shards:
            if not re.fullmatch(r"[0-9A-Za-z_-]{1,80}", str(shard["name"])):
                raise ShardError(f"{self.folder / DATASET}: {shard['name']!r} is no shard's name")
        self._shards: list[tuple[str, int]] = [(shard["name"], shard["packs"]) for shard in shards]
        self._starts = [0, *accumulate(packs for _, packs in self._shards)]
        self._readers: dict[int, ShardReader] = {}
        self._process = os.getpid()

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One pack of N tokens in S segments; N is `pack_length`, or without padding `num_tokens`.

        Returns:
            - ``tokens``: (N, D), in the dtype of the shards.
            - ``segment_ids``: (N,) int32, 1 to S, 0 = padding.
            - ``positions``: (N, 3) int32, t, h, w of each token in the grid of its segment.
            - ``seconds``: (N,) float64, the time of each token's grid row on its video's own clock.
            - ``cu_seqlens``: (S + 1,) int32, borders of the segments; padding is beyond the last.
            - ``max_seqlen``: int, tokens of the longest segment.
            - ``num_tokens``: int, tokens without padding.
            - ``grid_thw``: (S, 3) int32. Rows of a grid may have been dropped, so a segment can
              have fewer than t * h * w tokens; their positions stay true.
            - ``segments``: a dict a segment, as in pack.json: segment_id, source, clip, extra, ...

        Raises:
            IndexError: there is no such pack.
            ShardError: the shard is missing, damaged, or not the one that dataset.json lists.
        """
        index = range(len(self))[index]
        shard = bisect_right(self._starts, index) - 1
        pack = self._reader(shard).read(index - self._starts[shard])
        return _to_tensors(pack, length=self.pack_length if self.padded else len(pack.tokens))

    def __getstate__(self) -> dict[str, Any]:
        # A memory map cannot be pickled; a worker opens its own.
        return self.__dict__ | {"_readers": {}}

    def _reader(self, shard: int) -> ShardReader:
        if self._process != os.getpid():
            self._readers, self._process = {}, os.getpid()
        reader = self._readers.pop(shard, None)
        if reader is None:
            name, packs = self._shards[shard]
            reader = ShardReader(self.folder / f"{name}.tar")
            if len(reader) != packs:
                raise ShardError(
                    f"{reader.path}: has {len(reader)} packs, dataset.json says {packs}; "
                    "run spacepatch tokenize to the end"
                )
        # Last in the dict = last used; the map of one that falls out goes with its last array.
        self._readers[shard] = reader
        if len(self._readers) > MAX_OPEN_SHARDS:
            del self._readers[next(iter(self._readers))]
        return reader


def collate(packs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Make a batch of padded packs, as `DataLoader(..., collate_fn=collate)`.

    Returns:
        tokens (B, N, D), segment_ids (B, N), positions (B, N, 3) and seconds (B, N) as tensors;
        the others, whose shapes differ from pack to pack, as lists with one entry a pack.
    """
    return {
        name: torch.stack([pack[name] for pack in packs])
        if name in STACKED
        else [pack[name] for pack in packs]
        for name in packs[0]
    }


def _read_dataset(folder: Path) -> dict[str, Any]:
    path = folder / DATASET
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ShardError(
            f"{folder}: no dataset.json: not a dataset, or an unfinished one; "
            "run spacepatch tokenize to the end"
        ) from None
    except (ValueError, OSError) as error:
        raise ShardError(f"{path}: cannot be read ({error})") from None
    check_version(document, str(path))
    return document  # type: ignore[no-any-return]


def _to_tensors(pack: PackMembers, *, length: int) -> dict[str, Any]:
    described = pack.document["segments"]
    grids, lengths = pack.segments[:, 2:5], pack.segments[:, 1]
    # Of each token: where the rows of its segment start among the rows of all, and its own t.
    first_row = np.repeat(np.cumsum(grids[:, 0]) - grids[:, 0], lengths)
    row_seconds = np.concatenate([segment["seconds"] for segment in described])
    seconds = row_seconds[first_row + pack.positions[:, 0]]
    borders = np.concatenate([[0], np.cumsum(lengths)])
    return {
        "tokens": _padded(pack.tokens, length, pack.tokens.dtype),
        "segment_ids": _padded(pack.segment_ids, length, np.int32),
        "positions": _padded(pack.positions, length, np.int32),
        "seconds": _padded(seconds, length, np.float64),
        "cu_seqlens": torch.from_numpy(borders.astype(np.int32)),
        "max_seqlen": int(lengths.max()),
        "num_tokens": len(pack.tokens),
        "grid_thw": torch.from_numpy(grids.astype(np.int32)),
        "segments": described,
    }


def _padded(array: np.ndarray, length: int, dtype: Any) -> torch.Tensor:
    """A copy with zeros at its end: the map is read-only, and not ours once the shard is closed."""
    out = np.zeros((length, *array.shape[1:]), dtype)
    out[: len(array)] = array
    return torch.from_numpy(out)
