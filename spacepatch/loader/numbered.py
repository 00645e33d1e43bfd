"""Steps of packs that are read by number: one order for all, shared out among ranks and workers."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from torch.utils.data import DataLoader, Dataset

from spacepatch.loader.order import Consumed, EpochCounts, EpochOrder
from spacepatch.loader.sharing import Sharing

if TYPE_CHECKING:
    from spacepatch.loader.dataset import PackDataset
    from spacepatch.loader.mixing import PackMix

Key = tuple[int, int, int]
"""(dataset, epoch, number) of a pack."""


class NumberedSteps:
    """Any number of ranks and workers gives the same packs in the same order."""

    def __init__(
        self,
        packs: PackDataset | PackMix,
        sharing: Sharing,
        *,
        collate_fn: Callable[[list[dict[str, Any]]], Any],
        options: dict[str, Any],
    ) -> None:
        self._packs, self._sharing = packs, sharing
        numbered = _Numbered(packs.datasets)
        self._keys = _Keys(numbered)
        self._drawn: tuple[int, EpochOrder] | None = None
        self._loader: DataLoader[Any] = DataLoader(
            numbered,
            batch_sampler=self._keys,
            collate_fn=collate_fn,
            num_workers=sharing.num_workers,
            **options,
        )

    def identity(self) -> dict[str, Any]:
        return self._packs.identity() | {"shuffle": self._sharing.shuffle}

    def counts(self, epoch: int, progress: Consumed) -> EpochCounts:
        return self._order(epoch).counts(progress)

    def check(self, epoch: int, progress: Consumed) -> None:
        """Raises a ValueError where the epoch cannot have come so far."""
        packs = {name: len(rows) for name, rows in self._order(epoch).groups.items()}
        if any(not 0 <= number <= packs.get(name, -1) for name, number in progress.items()):
            raise ValueError(f"the state is at {dict(progress)} of {packs} packs")

    def given(self, epoch: int, progress: Consumed) -> dict[str, int]:
        """Of each dataset, the packs that were given in this epoch."""
        groups = self._order(epoch).groups
        return {
            name: sum(
                int((rows[: progress.get(group, 0), 0] == number).sum())
                for group, rows in groups.items()
            )
            for number, name in enumerate(self._packs.names)
        }

    def batches(
        self, epoch: int, progress: Consumed
    ) -> Iterator[tuple[dict[str, Any], dict[str, int]]]:
        """What is left of an epoch: each batch, with what is consumed after it."""
        self._keys.begin(self._order(epoch).steps(progress), self._sharing)
        for batch in self._loader:
            yield batch, self._keys.consumed.popleft()

    def _order(self, epoch: int) -> EpochOrder:
        # Kept: of a million packs it takes a while to draw.
        if self._drawn is None or self._drawn[0] != epoch:
            self._drawn = epoch, self._draw(epoch)
        return self._drawn[1]

    def _draw(self, epoch: int) -> EpochOrder:
        return EpochOrder(
            self._packs.groups(epoch, shuffle=self._sharing.shuffle),
            self._sharing.batch_size * self._sharing.world_size,
            self._sharing.uneven,
            (self._packs.seed, epoch) if self._sharing.shuffle else None,
        )


class _Keys:
    """The keys of one rank's batches, and what is consumed after each. A loader asks for keys some
    batches before it gives those out."""

    def __init__(self, packs: _Numbered) -> None:
        self._packs = packs
        self.consumed: deque[dict[str, int]] = deque()

    def begin(self, steps: Iterator[Any], sharing: Sharing) -> None:
        self._steps, self._sharing = steps, sharing
        self.consumed.clear()

    def __iter__(self) -> Iterator[list[Key]]:
        size = self._sharing.batch_size
        first = self._sharing.rank * size
        ahead = -(-self._packs.packs_ahead // size)
        upcoming: deque[tuple[list[Key], dict[str, int]]] = deque()
        for rows, consumed in self._steps:
            upcoming.append(([tuple(row) for row in rows[first : first + size].tolist()], consumed))
            if ahead:
                self._packs.expect(upcoming[-1][0])
            if len(upcoming) > ahead:
                yield self._next_of(upcoming)
        while upcoming:
            yield self._next_of(upcoming)

    def _next_of(self, upcoming: deque[tuple[list[Key], dict[str, int]]]) -> list[Key]:
        keys, consumed = upcoming.popleft()
        self.consumed.append(consumed)
        return keys


class _Numbered(Dataset[dict[str, Any]]):
    def __init__(self, datasets: Sequence[PackDataset]) -> None:
        self._datasets = tuple(datasets)

    @property
    def packs_ahead(self) -> int:
        """That are worth expecting before they are asked for, in the process that shares out."""
        return max(packs.packs_ahead for packs in self._datasets)

    def __getitem__(self, key: Key) -> dict[str, Any]:
        dataset, epoch, number = key
        return self._datasets[dataset].read(number, epoch=epoch)

    def __getitems__(self, keys: Sequence[Key]) -> list[dict[str, Any]]:
        """Of a batch."""
        self.expect(keys)
        return [self[key] for key in keys]

    def expect(self, keys: Sequence[Key]) -> None:
        for place, packs in enumerate(self._datasets):
            own = [(epoch, number) for dataset, epoch, number in keys if dataset == place]
            for wanted in dict.fromkeys(epoch for epoch, _ in own):
                packs.expect([number for epoch, number in own if epoch == wanted], epoch=wanted)
