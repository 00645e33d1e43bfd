"""Steps of packs that come in a stream: each worker of each rank has its own share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from spacepatch.loader.order import EpochCounts
from spacepatch.loader.sharing import Sharing, shared
from spacepatch.loader.stream import PackStream, Slot
from spacepatch.randomness import Draws

Batches = Callable[[list[dict[str, Any]]], Any]


class StreamedSteps:
    """The same numbers of ranks and workers give the same packs in the same order."""

    def __init__(
        self, packs: PackStream, sharing: Sharing, *, collate_fn: Batches, options: dict[str, Any]
    ) -> None:
        self._packs, self._sharing = packs, sharing
        self._shares = _Shares(packs, sharing, collate_fn)
        self._loader: DataLoader[Any] = DataLoader(
            self._shares, batch_size=None, num_workers=sharing.num_workers, **options
        )

    def identity(self) -> dict[str, Any]:
        sharing = self._sharing
        return self._packs.identity() | {
            "shuffle": sharing.shuffle,
            "shuffle_buffer": self._packs.shuffle_buffer,
            "batch_size": sharing.batch_size,
            "num_workers": sharing.num_workers,
            "world_size": sharing.world_size,
            "uneven": sharing.uneven,
        }

    def counts(self, epoch: int, progress: Mapping[str, int]) -> EpochCounts:
        total = self._shares.num_slots
        batches = self._shares.num_batches(epoch)
        listed = self._shares.num_packs(epoch)
        given = {width: batches[width] * total * self._sharing.batch_size for width in listed}
        steps = sum(batches.values()) * max(1, self._sharing.num_workers)
        return EpochCounts(
            steps=steps - progress.get("steps", 0),
            packs=sum(listed.values()),
            repeated=sum(max(0, given[width] - listed[width]) for width in listed),
            dropped=sum(max(0, listed[width] - given[width]) for width in listed),
        )

    def check(self, epoch: int, progress: Mapping[str, int]) -> None:
        """Raises a ValueError where the epoch cannot have come so far."""
        steps = self.counts(epoch, {}).steps
        if set(progress) - {"steps"} or not 0 <= progress.get("steps", 0) <= steps:
            raise ValueError(f"the state is at {dict(progress)} of {steps} steps")

    def given(self, epoch: int, progress: Mapping[str, int]) -> dict[str, int]:
        """The packs that were given in this epoch, those that are given twice counted twice."""
        steps = progress.get("steps", 0)
        packs = steps * self._sharing.batch_size * self._sharing.world_size
        return {str(self._packs.folder): packs}

    def batches(
        self, epoch: int, progress: Mapping[str, int]
    ) -> Iterator[tuple[Any, dict[str, int]]]:
        """What is left of an epoch: each batch, with how many steps were made after it."""
        steps = progress.get("steps", 0)
        self._shares.begin(epoch, steps)
        for batch in self._loader:
            steps += 1
            yield batch, {"steps": steps}


class _Shares(IterableDataset[Any]):
    """The batches of one worker. Workers take turns, so batch t is of worker t modulo workers."""

    def __init__(self, packs: PackStream, sharing: Sharing, collate_fn: Batches) -> None:
        self._packs, self._sharing, self._collate = packs, sharing, collate_fn
        self._num_workers = max(1, sharing.num_workers)
        self.num_slots = sharing.world_size * self._num_workers
        # Persistent workers begin each epoch with what stands here.
        self._start = shared(torch.zeros(2, dtype=torch.int64))

    def begin(self, epoch: int, step: int) -> None:
        self._start[0], self._start[1] = epoch, step

    def num_packs(self, epoch: int) -> dict[int, int]:
        """Of each token width that packs have in an epoch."""
        packs = self._packs.packs
        found = {width: len(packs.of_width(width, epoch)) for width in packs.widths()}
        return {width: num_packs for width, num_packs in found.items() if num_packs}

    def num_batches(self, epoch: int) -> dict[int, int]:
        """Of each token width, the batches of each worker."""
        size, pads = self._sharing.batch_size, self._sharing.uneven == "pad"
        # Shares differ by one pack: the longest is rounded up, or the shortest down.
        return {
            width: (num_packs + pads * (self.num_slots * size - 1)) // self.num_slots // size
            for width, num_packs in self.num_packs(epoch).items()
        }

    def __iter__(self) -> Iterator[Any]:
        epoch, step = self._start.tolist()
        info = get_worker_info()
        # The first worker of the loader goes on with the turn that is next.
        worker = ((0 if info is None else info.id) + step) % self._num_workers
        done = max(0, -(-(step - worker) // self._num_workers))
        slot = Slot(self._sharing.rank * self._num_workers + worker, self.num_slots)
        shares = self._packs.shares(epoch, slot, shuffle=self._sharing.shuffle)
        widths = self._widths(epoch, worker)
        size = self._sharing.batch_size
        streams = {}
        for width, batches in self.num_batches(epoch).items():
            own = shares[width]
            if not len(own):  # fewer packs than workers
                everything = self._packs.in_order(epoch, shuffle=self._sharing.shuffle)[width]
                own = everything[slot.number % len(everything)][None]
            # Of what is given twice, the first of its own share.
            numbers = own[np.arange(batches * size) % len(own)]
            before = int((widths[:done] == width).sum()) * size
            streams[width] = self._packs.packs_of(
                numbers[before:], epoch, shuffle=self._sharing.shuffle
            )
        for width in widths[done:].tolist():
            yield self._collate([next(streams[width]) for _ in range(size)])

    def _widths(self, epoch: int, worker: int) -> np.ndarray:
        """The token width of each batch: of the same worker, the same on all ranks."""
        batches = self.num_batches(epoch)
        widths = np.repeat(list(batches), list(batches.values()))
        if self._sharing.shuffle and len(batches) > 1:
            draws = Draws(self._packs.seed, epoch, "widths", worker)
            widths = widths[draws.order(len(widths))]
        return widths

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        shared(self._start)
