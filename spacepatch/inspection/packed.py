"""Count what packs hold: the lengths of their segments, and what attention within them costs."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from spacepatch.balancing import Spread
from spacepatch.errors import ShardError
from spacepatch.inspection.folders import listed_stems, read_batches, read_document
from spacepatch.inspection.receipts import read_sound_receipt
from spacepatch.shards import DATASET, ShardReceipt, receipt_path

PLACE_COLUMNS = ("shard", "pack", "num_kept")


def attention_of(folder: Path) -> dict[str, Any]:
    """`PackCounts.attention` of a finished dataset.

    Raises:
        ShardError: it is none, or damaged.
    """
    packed = PackCounts()
    for stem in listed_stems(read_document(folder / DATASET)):
        packed.add_shard(read_sound_receipt(receipt_path(folder, stem)))
    for batch in read_batches(folder / "segments.parquet", PLACE_COLUMNS):
        packed.add_segments(*(batch.column(name).to_numpy() for name in PLACE_COLUMNS))
    return packed.attention()


class PackCounts:
    """The packs of some shards: 24 bytes a pack, and what distinct lengths take."""

    def __init__(self) -> None:
        self.lengths: dict[int, Counter[int]] = defaultdict(Counter)
        """By token width, how many segments there are of each length."""
        self._widths: dict[int, np.ndarray] = {}
        self._costs: dict[int, np.ndarray] = {}
        self._unbalanced: Spread | None = Spread()

    def add_shard(self, receipt: ShardReceipt) -> None:
        """One shard that has packs."""
        self._widths[receipt.task] = np.array(receipt.pack_token_widths, np.int64)
        self._costs[receipt.task] = np.zeros(receipt.packs, np.int64)
        if receipt.unbalanced is None or self._unbalanced is None:
            self._unbalanced = None
        else:
            self._unbalanced += Spread(*receipt.unbalanced)

    def add_segments(self, shards: np.ndarray, packs: np.ndarray, tokens: np.ndarray) -> None:
        """Segments of shards that were added.

        Args:
            shards, packs, tokens: ``(n,)`` ints, of each segment.

        Raises:
            ShardError: there is no such pack.
        """
        for shard in np.unique(shards).tolist():
            own = shards == shard
            places, lengths = packs[own], tokens[own].astype(np.int64)
            costs = self._costs.get(shard, np.zeros(0, np.int64))
            if places.min() < 0 or places.max() >= len(costs):
                raise ShardError(
                    f"segments.parquet: names packs that shard {shard} does not have; look with "
                    "spacepatch verify"
                )
            np.add.at(costs, places, np.square(lengths))
            widths = self._widths[shard][places]
            for width in np.unique(widths).tolist():
                distinct, counts = np.unique(lengths[widths == width], return_counts=True)
                self.lengths[width].update(
                    dict(zip(distinct.tolist(), counts.tolist(), strict=True))
                )

    def attention(self) -> dict[str, Any]:
        """How evenly the cost of attention (the sum of squared lengths) is spread over packs.

        Returns:
            JSON-able: `max_over_mean`, `variation` (standard deviation / mean), and `unbalanced`,
            the same of the packs before they were balanced; None where they were not.
        """
        spread = sum(map(Spread.of, self._costs.values()), Spread())
        is_balanced = self._unbalanced is not None and bool(self._costs)
        before = self._unbalanced.to_json() if self._unbalanced and is_balanced else None
        return spread.to_json() | {"unbalanced": before}
