"""What a finished dataset says of its packs, before any of them is read."""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as parquet

from spacepatch.errors import ShardError
from spacepatch.shards import DATASET, ShardReader, check_version
from spacepatch.shards.tables import openable

if TYPE_CHECKING:
    from spacepatch.loader.variation import DrawnPatches


@dataclass(frozen=True, slots=True)
class Run:
    """Packs of one shard that lie together and have tokens of one width."""

    shard: str
    """Its name, without ending."""
    shard_packs: int
    """All packs of the shard."""
    width: int
    """Values of a token."""
    first: int
    """The first of them in the shard."""
    packs: int


class PackList:
    """The packs of some runs, in their order, by number."""

    def __init__(self, runs: Sequence[Run], patches: DrawnPatches | None = None) -> None:
        """Of the packs as stored; with `patches` as they are made, in widths that are drawn."""
        self.runs, self.patches = tuple(runs), patches
        self._starts = [0, *accumulate(run.packs for run in self.runs)]
        self._drawn: tuple[int, np.ndarray] | None = None
        """An epoch, and the width of each pack in it."""

    def __len__(self) -> int:
        return self._starts[-1]

    def find(self, index: int) -> tuple[Run, int]:
        """The run of a pack, and its number in the shard."""
        place = bisect_right(self._starts, index) - 1
        run = self.runs[place]
        return run, run.first + index - self._starts[place]

    def widths(self) -> list[int]:
        """Of the tokens of all packs, the widest first; where they are drawn, of all epochs."""
        stored = {run.width for run in self.runs}
        return sorted(self.patches.widths if self.patches else stored, reverse=True)

    def of_width(self, width: int, epoch: int) -> np.ndarray:
        """``(n,)`` int64: the numbers of the packs whose tokens are so wide in an epoch."""
        return np.asarray(np.flatnonzero(self.each_width(epoch) == width))

    def each_width(self, epoch: int) -> np.ndarray:
        """``(packs,)`` int64: how wide the tokens of each pack are in an epoch."""
        epoch = epoch if self.patches else 0
        # Kept: of a million packs it takes a while to draw.
        if self._drawn is None or self._drawn[0] != epoch:
            parts = [np.zeros(0, np.int64), *(self._widths_of(run, epoch) for run in self.runs)]
            self._drawn = epoch, np.concatenate(parts)
        return self._drawn[1]

    def _widths_of(self, run: Run, epoch: int) -> np.ndarray:
        if self.patches is None:
            return np.full(run.packs, run.width)
        drawn = self.patches.of_shard(run.shard, run.first + run.packs, epoch)[run.first :]
        return np.asarray(np.array(self.patches.widths)[drawn])

    def without(self, shards: Sequence[str]) -> PackList:
        return PackList([run for run in self.runs if run.shard not in shards], self.patches)


def read_dataset(folder: Path) -> dict[str, Any]:
    """dataset.json.

    Raises:
        ShardError: it is missing, unreadable, or of a newer format.
    """
    path = folder / DATASET
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if not folder.exists():
            raise ShardError(f"{folder}: no such folder") from None
        raise ShardError(
            f"{folder}: no dataset.json: not a dataset, or an unfinished one; "
            "run spacepatch tokenize to the end"
        ) from None
    except (ValueError, OSError) as error:
        raise ShardError(f"{path}: cannot be read ({error})") from None
    check_version(document, str(path))
    return document  # type: ignore[no-any-return]


def list_packs(
    document: dict[str, Any],
    *,
    folder: Path,
    split: str | None,
    token_width: int | None,
    patches: DrawnPatches | None = None,
) -> PackList:
    """All packs that dataset.json lists, or those of a split or width.

    Raises:
        ValueError: there is no such split or width, or widths are drawn.
        ShardError: a name is none that a shard may have.
    """
    shards = document["shards"]
    if split is not None:
        known = sorted({shard["split"] for shard in shards})
        if split not in known:
            there = "none: it was made without --split" if known == [""] else known
            raise ValueError(f"split {split!r}: {folder} has {there}")
        shards = [shard for shard in shards if shard["split"] == split]
    runs = []
    for shard in shards:
        if not re.fullmatch(r"[0-9A-Za-z_-]{1,80}", str(shard["name"])):
            raise ShardError(f"{folder / DATASET}: {shard['name']!r} is no shard's name")
        first = 0
        # Before there were several widths, dataset.json named the one.
        whole = [[document.get("token_width"), shard["packs"]]]
        for width, packs in shard.get("token_widths", whole):
            runs.append(Run(shard["name"], shard["packs"], width, first, packs))
            first += packs
    if token_width is not None and patches is not None:
        raise ValueError(
            f"token_width {token_width}: with vary patch each pack has another width each epoch: "
            "PackLoader makes batches of one width"
        )
    if token_width is not None:
        widths = sorted({run.width for run in runs})
        if token_width not in widths:
            raise ValueError(f"token_width {token_width}: {folder} has {widths}")
        runs = [run for run in runs if run.width == token_width]
    return PackList(runs, patches)


def open_shard(
    folder: Path, document: dict[str, Any], run: Run, reader: type[ShardReader]
) -> ShardReader:
    """Raises a ShardError where it is not the shard that dataset.json lists."""
    opened = reader(folder / f"{run.shard}.tar")
    if len(opened) != run.shard_packs:
        raise ShardError(
            f"{opened.path}: has {len(opened)} packs, dataset.json says {run.shard_packs}; "
            "run spacepatch tokenize to the end"
        )
    for name in ("plan_id", "pack_length", "token_dtype", "members"):
        found, listed = getattr(opened.receipt, name), document[name]
        if list(found) != listed if name == "members" else found != listed:
            raise ShardError(
                f"{opened.path}: is of another dataset: its {name} is {found}, "
                f"dataset.json says {listed}; copy the folder again as a whole"
            )
    return opened


@dataclass(frozen=True, slots=True)
class SegmentTable:
    """What of each stored segment says how large packs are, from segments.parquet."""

    keys: np.ndarray
    """int64, of each pack and not of each segment: the number of its shard, and its own, sorted."""
    pack: np.ndarray
    """int64: which of these it lies in."""
    num_kept: np.ndarray
    """int64: its tokens, as stored."""
    grid_thw: np.ndarray
    """``(.., 3)`` int64."""

    @classmethod
    def of_folder(cls, folder: Path) -> SegmentTable:
        """Raises a ShardError where the table cannot be read."""
        path = folder / "segments.parquet"
        try:
            table = parquet.read_table(
                openable(path), columns=["shard", "pack", "num_kept", "grid_thw"]
            )
        except (OSError, ValueError) as error:
            raise ShardError(f"{path}: cannot be read ({error})") from None
        shard, pack, num_kept = (
            table[name].to_numpy().astype(np.int64) for name in ("shard", "pack", "num_kept")
        )
        keys, numbers = np.unique(shard << 32 | pack, return_inverse=True)
        grids = table["grid_thw"].combine_chunks().flatten().to_numpy()
        return cls(keys, numbers, num_kept, grids.astype(np.int64).reshape(-1, 3))

    def places_of(self, packs: PackList) -> np.ndarray:
        """``(packs,)`` int64: where the packs of a list are among those of the table."""
        keys = []
        for run in packs.runs:
            number = int(run.shard.rpartition("-")[2])  # NAME-000000
            keys.append((number << 32) + np.arange(run.first, run.first + run.packs))
        return np.searchsorted(self.keys, np.concatenate(keys))

    def most_segments(self) -> int:
        """Of any pack."""
        return int(np.bincount(self.pack, minlength=1).max())

    def longest(self) -> int:
        """Tokens of the longest segment as stored."""
        return int(self.num_kept.max(initial=0))

    def per_pack(self, lengths: np.ndarray) -> np.ndarray:
        """``(packs,)`` int64: the sum of what each segment has."""
        return np.bincount(self.pack, weights=lengths, minlength=1).astype(np.int64)

    def longest_pack(self, multiple: int) -> int:
        """Tokens of the longest pack once each segment is filled up to a multiple of so many."""
        return int(self.per_pack(-(-self.num_kept // multiple) * multiple).max())
