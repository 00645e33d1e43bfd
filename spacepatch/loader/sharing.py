"""How the packs of an epoch are shared out."""

from __future__ import annotations

from dataclasses import dataclass


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
