"""Find a pack or a segment that a user names, in a finished dataset."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from spacepatch.errors import ConfigError, ShardError
from spacepatch.inspection.folders import listed_stems, read_batches
from spacepatch.shards import SEGMENTS, shard_stem

Rows = list[dict[str, Any]]
"""Of segments.parquet."""


def rows_of_pack(folder: Path, dataset: dict[str, Any], name: str) -> Rows:
    """The segments of a pack, in their order.

    Args:
        dataset: dataset.json.
        name: its number, as `PackDataset` counts, from 0; or its key, NAME-000000-000003.

    Raises:
        ConfigError: there is no such pack.
        ShardError: tables are damaged.
    """
    stem, number = _find_pack(folder, dataset, name)
    rows = []
    for batch in read_batches(folder / f"{stem}.segments.parquet", list(SEGMENTS)):
        wanted = [place for place, pack in enumerate(batch["pack"].to_pylist()) if pack == number]
        rows += batch.take(wanted).to_pylist()
    if not rows:
        raise ShardError(f"{folder / stem}.segments.parquet: has no segment of pack {number}")
    return rows


def _find_pack(folder: Path, dataset: dict[str, Any], name: str) -> tuple[str, int]:
    """The name of its shard, and its number there."""
    stems = listed_stems(dataset)
    counts = {entry["name"]: int(entry["packs"]) for entry in dataset["shards"]}
    key = re.fullmatch(r"(.+-[0-9]{6})-([0-9]{6,9})", name)
    if key is not None and int(key[2]) < counts.get(key[1], 0):
        return key[1], int(key[2])
    total = sum(counts[stem] for stem in stems)
    if re.fullmatch(r"[0-9]{1,12}", name):
        left = int(name)
        for stem in stems:
            if left < counts[stem]:
                return stem, left
            left -= counts[stem]
    there = f"there are {total}, numbers 0 to {total - 1}" if total else "there are none"
    example = f", or by key, such as {stems[0]}-000000" if stems else ""
    raise ConfigError(f"{folder}: has no pack {name}: {there}{example}")


def row_of_segment(folder: Path, name: str) -> dict[str, Any]:
    """A segment by its id, or by so many of its first digits that no other has them.

    Raises:
        ConfigError: there is none, or several.
        ShardError: a table is damaged.
    """
    table, found, total, example = folder / "segments.parquet", list[tuple[str, int]](), 0, ""
    for batch in read_batches(table, ["segment_id"]):
        ids = batch.column(0).to_pylist()
        found += [(own, total + place) for place, own in enumerate(ids) if own.startswith(name)]
        total, example = total + len(ids), example or ids[0]
        if len(found) > 1:
            break
    if not found or not name:
        raise ConfigError(f"{folder}: has no segment {name}: there are {total}, such as {example}")
    if len(found) > 1:
        raise ConfigError(
            f"{folder}: several segments begin with {name}, {found[0][0]} and {found[1][0]}: give "
            "more digits"
        )
    first, place = 0, found[0][1]
    for batch in read_batches(table, list(SEGMENTS)):
        if place < first + len(batch):
            break
        first += len(batch)
    row: dict[str, Any] = batch.slice(place - first, 1).to_pylist()[0]
    return row


def packs_of(folder: Path, dataset: dict[str, Any]) -> Iterator[tuple[str, int, Rows]]:
    """All packs in their order: the shard's name, the number there, and the segments."""

    def rows() -> Iterator[dict[str, Any]]:
        for batch in read_batches(folder / "segments.parquet", list(SEGMENTS)):
            yield from batch.to_pylist()

    name = dataset["name"]
    places = groupby(rows(), lambda row: (row["split"], row["shard"], row["pack"]))
    for (split, shard, pack), own in places:
        yield shard_stem(name, split, shard), pack, list(own)
