"""Packs one after the other, read from each shard in the order that it is stored in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from spacepatch.loader.listing import open_shard
from spacepatch.loader.order import rank_and_world
from spacepatch.loader.packs import Packs
from spacepatch.randomness import Draws
from spacepatch.shards import PackMembers, SequentialShardReader, ShardReader


@dataclass(frozen=True, slots=True)
class Slot:
    """A process that reads: a worker of a rank."""

    number: int
    total: int
    """Of all ranks."""


class PackStream(Packs, IterableDataset[dict[str, Any]]):
    """The packs of a finished dataset, in order: shards are drawn by seed and epoch, and shared out
    among ranks and workers as ranges of equal length, so that each reads from few shards, from the
    front to the back. For disks and file systems where reading here and there is slow.

    Packs that are read together (`shuffle_buffer`) come in drawn order; from the whole dataset
    `PackDataset` draws.

    In a `PackLoader` it resumes and has equal steps on all ranks. In a DataLoader of your own each
    worker gives its share of one epoch, after `set_epoch`.
    """

    def __init__(self, folder: str | Path, *, shuffle_buffer: int = 16, **options: Any) -> None:
        """Take the options of `Packs`.

        Args:
            shuffle_buffer: packs that are read ahead and given in drawn order. Each worker holds
                so many in memory, of each token width: 16 of 8192 tokens of 1536 bytes are 200 MB.
        """
        if shuffle_buffer < 1:
            raise ValueError(f"shuffle_buffer is {shuffle_buffer}, must be 1 or above")
        super().__init__(folder, **options)
        self.shuffle_buffer = shuffle_buffer
        self._reader: tuple[str, ShardReader] | None = None
        self._rank_and_world: tuple[int, int] | None = None

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The packs of this rank and worker, of the epoch that is set; see
        `PackDataset.__getitem__`."""
        info = get_worker_info()
        worker, num_workers = (0, 1) if info is None else (info.id, info.num_workers)
        rank, world_size = self._rank_and_world or rank_and_world(None, None)
        slot = Slot(rank * num_workers + worker, world_size * num_workers)
        epoch = int(self._shared.epoch)
        for numbers in self.shares(epoch, slot, shuffle=True).values():
            yield from self.packs_of(numbers, epoch, shuffle=True)

    def shares(self, epoch: int, slot: Slot, *, shuffle: bool) -> dict[int, np.ndarray]:
        """Of each token width ``(n,)`` int64: the packs of a slot, in the order that it gives them.

        Packs that are read together lie together.
        """
        shares = {}
        for width, numbers in self.in_order(epoch, shuffle=shuffle).items():
            first = len(numbers) * slot.number // slot.total
            own = numbers[first : len(numbers) * (slot.number + 1) // slot.total]
            draws = Draws(self.seed, epoch, "buffer", width, slot.number, slot.total)
            if shuffle:
                buffers = np.arange(len(own)) // self.shuffle_buffer
                own = own[np.lexsort((draws.uniforms(len(own)), buffers))]
            shares[width] = own
        return shares

    def in_order(self, epoch: int, *, shuffle: bool) -> dict[int, np.ndarray]:
        """Of each token width ``(n,)`` int64: the packs of all slots, shard after shard."""
        places = self._places(epoch, shuffle=shuffle)
        runs = self.packs.runs
        drawn = np.repeat([places[run.shard] for run in runs], [run.packs for run in runs])
        order: dict[int, np.ndarray] = {}
        for width in self.packs.widths():
            numbers = self.packs.of_width(width, epoch)
            order[width] = numbers[np.argsort(drawn[numbers], kind="stable")]
        return order

    def packs_of(
        self, numbers: np.ndarray, epoch: int, *, shuffle: bool
    ) -> Iterator[dict[str, Any]]:
        """These packs, in this order; read in the order of the shards, a buffer at a time."""
        places = self._places(epoch, shuffle=shuffle)
        buffers = [
            numbers[first : first + self.shuffle_buffer].tolist()
            for first in range(0, len(numbers), self.shuffle_buffer)
        ]

        def in_order(wanted: list[int]) -> list[int]:
            return sorted(
                set(wanted), key=lambda number: (places[self.packs.find(number)[0].shard], number)
            )

        for place, wanted in enumerate(buffers):
            self.expect_packs(in_order(wanted), self._open, epoch=epoch)
            read = {
                number: self.stored(number, self._read, epoch=epoch) for number in in_order(wanted)
            }
            if self.packs_ahead:
                for following in buffers[place + 1 : place + 2]:
                    self.expect_packs(in_order(following), self._open, epoch=epoch)
            for number in wanted:
                yield self.tensors(read[number], epoch=epoch)
            read.clear()  # or the next buffer would be read beside this one

    def __getstate__(self) -> dict[str, Any]:
        # A worker that is spawned knows nothing of torch.distributed.
        return self.__dict__ | {
            "_reader": None,
            "_rank_and_world": self._rank_and_world or rank_and_world(None, None),
        }

    def _places(self, epoch: int, *, shuffle: bool) -> dict[str, int]:
        """Of each shard, when its turn comes."""
        shards = list(dict.fromkeys(run.shard for run in self.packs.runs))
        order = np.arange(len(shards))
        if shuffle:
            order = Draws(self.seed, epoch, "shards").order(len(shards))
        return {shards[number]: place for place, number in enumerate(order.tolist())}

    def _read(self, number: int, epoch: int) -> PackMembers:
        return self.read_pack(number, self._open(number), epoch=epoch)

    def _open(self, number: int) -> ShardReader:
        """The shard of a pack; the one before is closed."""
        run, _ = self.packs.find(number)
        if self._reader is None or self._reader[0] != run.shard:
            self._reader = None
            reader = open_shard(self.folder, self.document, run, SequentialShardReader)
            self._reader = run.shard, reader
        return self._reader[1]
