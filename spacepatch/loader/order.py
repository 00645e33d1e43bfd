"""The order of an epoch: which packs make a step, and which of them are whose."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from spacepatch.randomness import Draws

UNEVEN = ("pad", "drop")
"""What is done where the packs of an epoch do not share out evenly: some are given twice, or some
are left out."""

Consumed = Mapping[str, int]
"""Of each group, how many of its packs were given."""


@dataclass(frozen=True, slots=True)
class EpochCounts:
    """What an epoch gives, on all ranks together."""

    steps: int
    """Of each rank."""
    packs: int
    """That there are."""
    repeated: int
    """Given twice or more, so that all ranks have as many steps and all batches are full."""
    dropped: int
    """Left out for the same reason."""


@dataclass(frozen=True, slots=True)
class EpochOrder:
    """The packs of an epoch, in groups that can make a batch with one another.

    The order of a group goes by seed and epoch alone; only where a step begins and ends hangs on
    how many packs it takes. So an epoch can be gone on with in steps of another size.
    """

    groups: Mapping[str, np.ndarray]
    """``(n, ..)`` of each group, a row a pack, in their order."""
    step_size: int
    """Packs of a step, on all ranks together: all of one group."""
    uneven: str
    """A word of `UNEVEN`."""
    key: tuple[int, int] | None
    """Seed and epoch, by which it is drawn whose turn it is; None: one group after the other."""

    def counts(self, consumed: Consumed) -> EpochCounts:
        """Of what is left after that."""
        left = [len(packs) - consumed.get(name, 0) for name, packs in self.groups.items()]
        rests = [number % self.step_size for number in left]
        pads = self.uneven == "pad"
        full = sum(number // self.step_size for number in left)
        return EpochCounts(
            steps=full + pads * sum(rest > 0 for rest in rests),
            packs=sum(left),
            repeated=sum(-number % self.step_size for number in left) if pads else 0,
            dropped=0 if pads else sum(rests),
        )

    def steps(self, consumed: Consumed) -> Iterator[tuple[np.ndarray, dict[str, int]]]:
        """What is left after `consumed`: the rows of each step, and what is consumed after it."""
        given = {name: consumed.get(name, 0) for name in self.groups}
        while name := self._next_group(given):
            packs, start = self.groups[name], given[name]
            places = np.arange(start, start + self.step_size) % len(packs)
            given = given | {name: min(start + self.step_size, len(packs))}
            yield packs[places], given

    def _next_group(self, given: Consumed) -> str | None:
        """One with enough packs left, as likely as it has many of them."""
        least = 1 if self.uneven == "pad" else self.step_size
        left = {name: len(packs) - given[name] for name, packs in self.groups.items()}
        names = [name for name, number in left.items() if number >= least]
        if len(names) < 2 or self.key is None:
            return names[0] if names else None
        draws = Draws(*self.key, "group", sum(given.values()))
        drawn = draws.integer(sum(left[name] for name in names))
        for name in names:
            drawn -= left[name]
            if drawn < 0:
                return name
        raise AssertionError(drawn)


def rank_and_world(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """As given, or of `torch.distributed`, or as torchrun sets RANK and WORLD_SIZE, or one alone.

    Raises:
        ValueError: one is given without the other, or the rank is not below the world's size.
    """
    if (rank is None) != (world_size is None):
        raise ValueError(f"rank {rank} and world_size {world_size}: give both or neither")
    if rank is None or world_size is None:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
        else:
            rank = int(os.environ.get("RANK", "0"))
            world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} is not one of 0 to {world_size - 1} (world_size)")
    return rank, world_size
