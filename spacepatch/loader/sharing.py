"""How the packs of an epoch are shared out, and what the processes that read them share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True, slots=True)
class Sharing:
    """Among batches, ranks and workers."""

    batch_size: int
    """Packs of a batch of one rank."""
    num_workers: int
    """Processes of a rank that read; 0: the rank itself."""
    rank: int
    world_size: int
    uneven: str
    """A word of `UNEVEN`."""
    shuffle: bool


class SharedState:
    """What all processes that read packs see, those too that have started before it changed."""

    def __init__(self, num_packs: int) -> None:
        self.epoch = shared(torch.zeros((), dtype=torch.int64))
        self.drop_rate = shared(torch.full((), math.nan, dtype=torch.float64))
        """nan: none was set."""
        self.bad = shared(torch.zeros(num_packs, dtype=torch.uint8))
        """Of each pack, whether it was found to be damaged."""
        self.tokens = shared(torch.zeros(num_packs, dtype=torch.int32))
        """Of each pack, the tokens that it had when it was last read; 0: it was not."""
        self.lacking = shared(torch.zeros(num_packs, dtype=torch.int32))
        """Of each pack, the segments that it lacked then."""

    @property
    def mean_tokens(self) -> float:
        """Of the packs that were read; nan before the first one."""
        counts = self.tokens[self.tokens > 0]
        return float(counts.double().mean())

    def __setstate__(self, state: dict[str, Any]) -> None:
        # A worker gets the memory itself; a plain pickle made a copy, for workers of its own.
        self.__dict__.update({name: shared(value) for name, value in state.items()})


def shared(value: torch.Tensor) -> torch.Tensor:
    """The same tensor, whose memory the processes that it is handed to have too."""
    return value.share_memory_()  # type: ignore[no-any-return, no-untyped-call]
