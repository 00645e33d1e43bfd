"""How far apart two datasets are: Wasserstein distances of what their segments and latents are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from spacepatch.errors import ShardError
from spacepatch.extras import needed
from spacepatch.inspection.counting import HISTOGRAMS, VALUE_COLUMNS, values_of
from spacepatch.inspection.folders import read_batches
from spacepatch.pipeline.encoded import by_channel
from spacepatch.shards import ShardReader
from spacepatch.token_dtypes import from_stored

PACKS_SAMPLED = 16
"""Of each dataset, for the values of its channels: with packs of 8,192 tokens of a VAE half a
million of each channel."""

MERGED_AT_ONCE = 2**18


def check_installed() -> None:
    """First, before tables are read for minutes.

    Raises:
        MissingDependencyError: there is no scipy.
    """
    _stats()


def _stats() -> Any:
    return needed("scipy.stats", "scipy", by="compare", extra="compare")


class Distribution:
    """Distinct values and how often each occurs: 16 bytes a distinct value, however many rows."""

    def __init__(self) -> None:
        self.num_unknown = 0
        self._values = np.zeros(0)
        self._counts = np.zeros(0, np.int64)
        self._waiting: list[np.ndarray] = []
        self._num_waiting = 0

    def add(self, values: np.ndarray) -> None:
        """Some more: ``(n,)`` float64, NaN where there is none."""
        known = values[~np.isnan(values)]
        self.num_unknown += len(values) - len(known)
        self._waiting.append(known)
        self._num_waiting += len(known)
        # As many as there are already, so that merging costs what sorting once does.
        if self._num_waiting > max(MERGED_AT_ONCE, len(self._values)):
            self._merge()

    def _merge(self) -> None:
        distinct, counts = np.unique(np.concatenate(self._waiting), return_counts=True)
        both = np.concatenate([self._values, distinct])
        self._values, places = np.unique(both, return_inverse=True)
        merged = np.zeros(len(self._values), np.int64)
        np.add.at(merged, places, np.concatenate([self._counts, counts]))
        self._counts, self._waiting, self._num_waiting = merged, [], 0

    def counted(self) -> tuple[np.ndarray, np.ndarray]:
        """``(k,)`` float64 distinct values in order, and ``(k,)`` int64 how often each occurs."""
        if self._waiting:
            self._merge()
        return self._values, self._counts

    def to_json(self) -> dict[str, Any]:
        values, counts = self.counted()
        known = int(counts.sum())
        mean = float(values @ counts) / known if known else None
        return {"mean": mean, "known": known, "unknown": self.num_unknown}


def compare_segments(first: Path, second: Path) -> dict[str, dict[str, Any]]:
    """Of each of `HISTOGRAMS`: how the segments of two datasets are spread over it.

    Returns:
        By name ``first`` and ``second`` (``mean``, segments with a value: ``known``, and without:
        ``unknown``) and ``distance``, in the unit of the values; None where either has none.

    Raises:
        ShardError: segments.parquet is missing or damaged.
        MissingDependencyError: there is no scipy.
    """
    found = [_distributions(folder / "segments.parquet") for folder in (first, second)]
    return {
        name: {
            "first": found[0][name].to_json(),
            "second": found[1][name].to_json(),
            "distance": _distance(found[0][name], found[1][name]),
        }
        for name in HISTOGRAMS
    }


def _distributions(table: Path) -> dict[str, Distribution]:
    found = {name: Distribution() for name in HISTOGRAMS}
    for batch in read_batches(table, VALUE_COLUMNS):
        for name, values in values_of(batch).items():
            found[name].add(values)
    return found


def _distance(first: Distribution, second: Distribution) -> float | None:
    values, counts = first.counted()
    others, weights = second.counted()
    if not len(values) or not len(others):
        return None
    return float(_stats().wasserstein_distance(values, others, counts, weights))


def compare_channels(
    first: Path, second: Path, documents: Sequence[dict[str, Any]]
) -> dict[str, Any] | None:
    """How the latents of two datasets are spread, channel by channel.

    `mean` and `std` are those of dataset.json, of everything that was written. They say nothing of
    the shape, and a distance needs the values: it is of `PACKS_SAMPLED` packs of each, evenly
    spread over the dataset.

    Args:
        documents: dataset.json of both.

    Returns:
        ``packs`` read of each, and ``channels``: a row a channel, with ``mean`` and ``std`` in
        both and ``distance``, in the unit of the latents. None where not both are latents of as
        many channels: pixels have no encoder, and codes are names without a distance.

    Raises:
        ShardError: a shard is missing or damaged.
        MissingDependencyError: there is no scipy.
    """
    encoders = [document.get("encoder") or {} for document in documents]
    counts = [len(encoder.get("mean") or ()) for encoder in encoders]
    if not counts[0] or counts[0] != counts[1]:
        return None
    stats = _stats()
    samples = [
        _sample(folder, document, counts[0])
        for folder, document in zip((first, second), documents, strict=True)
    ]
    if not all(len(values) for _, values in samples):
        return None
    rows = []
    for channel in range(counts[0]):
        one, other = (values[:, channel] for _, values in samples)
        row: dict[str, Any] = {"channel": channel}
        for side, encoder in zip(("first", "second"), encoders, strict=True):
            row[side] = {key: encoder[key][channel] for key in ("mean", "std")}
        rows.append(row | {"distance": float(stats.wasserstein_distance(one, other))})
    return {"packs": {"first": samples[0][0], "second": samples[1][0]}, "channels": rows}


def _sample(folder: Path, document: dict[str, Any], channels: int) -> tuple[int, np.ndarray]:
    """Packs read, and their values as ``(n, C)`` float64."""
    shards = document["shards"]
    ends = np.cumsum([shard["packs"] for shard in shards])
    total = int(ends[-1]) if len(ends) else 0
    count = min(PACKS_SAMPLED, total)
    # The middles of equal parts.
    chosen = (2 * np.arange(count) + 1) * total // (2 * max(count, 1))
    found = [np.zeros((0, channels))]
    for place in chosen.tolist():
        shard = int(np.searchsorted(ends, place, side="right"))
        tar = folder / f"{shards[shard]['name']}.tar"
        with ShardReader(tar) as reader:
            pack = reader.read(place - int(ends[shard]) + shards[shard]["packs"])
            try:
                values = by_channel(
                    from_stored(pack.tokens, pack.token_dtype).astype(np.float64),
                    channels=channels,
                    layout=document["settings"]["layout"],
                )
            except (ValueError, KeyError) as error:
                what = json.dumps(document["settings"].get("layout"))
                raise ShardError(
                    f"{tar}: its tokens are no latents of {channels} channels in layout {what} "
                    f"({error}); look with spacepatch verify"
                ) from None
            found.append(values)
    return count, np.concatenate(found)
