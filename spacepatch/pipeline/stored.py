"""Segments as they lie in a shard, to be written anew."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from spacepatch.errors import ShardError
from spacepatch.shards import PackMembers, SegmentContent, ShardReader, ShardReceipt
from spacepatch.shards.receipts import missing_files
from spacepatch.shards.tables import read_table
from spacepatch.token_dtypes import storage_of


def read_packs(folder: Path, stem: str, receipt: ShardReceipt) -> Iterator[list[SegmentContent]]:
    """Each pack of a shard, in order, with its tokens.

    Raises:
        ShardError: it is damaged, or holds references.
    """
    if not receipt.packs:
        return
    with ShardReader(folder / f"{stem}.tar", receipt=receipt) as reader:
        rows = iter(read_table(folder / f"{stem}.segments.parquet"))
        for number in range(len(reader)):
            pack = reader.read(number)
            yield contents_of(pack, list(islice(rows, len(pack.segments))))


def read_references(
    folder: Path, stem: str, receipt: ShardReceipt
) -> Iterator[list[SegmentContent]]:
    """Each pack of a shard, in order, as references: by its table alone, whatever its store is.

    Raises:
        ShardError: it is damaged.
    """
    check_files(folder, receipt)
    if not receipt.packs:
        return
    packs: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for row in read_table(check_table(folder, stem, receipt)):
        packs[row["pack"]].append(row)
    for number, width in enumerate(receipt.pack_token_widths):
        yield [reference_of(row, width, receipt.token_dtype) for row in packs[number]]


def reference_of(row: dict[str, Any], width: int, token_dtype: str) -> SegmentContent:
    """A segment without its tokens, whose checksum stays.

    Args:
        row: of segments.parquet.
        width: of its tokens.
    """
    row = row | {"extra": json.loads(row["extra"])}
    none = np.empty((0, width), storage_of(token_dtype))
    return SegmentContent(row, none, np.empty(0, np.uint32))


def check_files(folder: Path, receipt: ShardReceipt) -> None:
    """Raise a ShardError where a file of a shard is not there, or of another size."""
    if absent := missing_files(folder, receipt):
        raise ShardError(
            f"{folder / absent[0]}: missing or of another size than its receipt says; "
            "look with spacepatch verify"
        )


def check_table(folder: Path, stem: str, receipt: ShardReceipt) -> Path:
    """Where the table of a shard lies; a ShardError where it is not the one of the receipt."""
    table = folder / f"{stem}.segments.parquet"
    with table.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if receipt.files[table.name]["sha256"] != actual:
        raise ShardError(
            f"{table}: is damaged (sha256 differs from the receipt); look with spacepatch verify"
        )
    return table


def contents_of(pack: PackMembers, rows: Sequence[dict[str, Any]]) -> list[SegmentContent]:
    """The segments of a pack: nothing of their tokens is copied.

    Args:
        rows: of segments.parquet, of all segments of the pack in their order.
    """
    contents = []
    pixels = [(slice(0), (0, 0, 0))] * len(rows)
    if pack.pixel_segments is not None:
        pixels = [
            (slice(offset, offset + count), (t, h, w))
            for offset, count, t, h, w, *_ in pack.pixel_segments.tolist()
        ]
    for row, (offset, num_kept, *_), (beside, grid) in zip(
        rows, pack.segments.tolist(), pixels, strict=True
    ):
        span = slice(offset, offset + num_kept)
        t, h, w = pack.positions[span].astype(np.int64).T
        kept = (t * row["grid_thw"][1] + h) * row["grid_thw"][2] + w
        contents.append(
            SegmentContent(
                row | {"extra": json.loads(row["extra"])},
                pack.tokens[span],
                kept.astype(np.uint32),
                None if pack.run_lengths is None else pack.run_lengths[span],
                None if pack.visible is None else pack.visible[span],
                None if pack.pixels is None else pack.pixels[beside],
                grid,
            )
        )
    return contents


def copied(content: SegmentContent) -> SegmentContent:
    """With arrays of its own: nothing holds the shard that it comes from."""
    return replace(
        content,
        tokens=content.tokens.copy(),
        run_lengths=None if content.run_lengths is None else content.run_lengths.copy(),
        visible=None if content.visible is None else content.visible.copy(),
        pixels=None if content.pixels is None else content.pixels.copy(),
    )
