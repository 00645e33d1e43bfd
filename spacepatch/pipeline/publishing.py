"""Publish what a task made: its packs in order, its shard, then its receipt."""

from __future__ import annotations

import hashlib
from dataclasses import astuple
from pathlib import Path
from typing import Any

from spacepatch.balancing import Spread
from spacepatch.data import Task
from spacepatch.pipeline.encoded import channel_sums, encoder_of_receipt, pixel_counts
from spacepatch.pipeline.plan import Plan
from spacepatch.shards import (
    SHARD_ENDINGS,
    SegmentContent,
    ShardReceipt,
    shard_stem,
    write_shard,
)
from spacepatch.shards.receipts import write_receipt
from spacepatch.stages import stage
from spacepatch.storage import remove


def publish_task(
    folder: Path,
    plan: Plan,
    task: Task,
    packs: list[list[SegmentContent]],
    *,
    losses: list[dict[str, Any]],
    observed: dict[str, dict[str, Any]],
    unbalanced: Spread | None,
    threads: int = 1,
) -> ShardReceipt:
    """Write the shard of a task, in the order of `order_packs`, and its receipt last.

    Args:
        packs: none, where everything was lost.
        losses: as `Loss` has them.
        unbalanced: of the packs before they were balanced; None: they were not. Of no packs the
            receipt has none.
        threads: that compress tokens.
    """
    layout = plan.layout
    with stage("pack"):
        ordered = order_packs(plan, packs)
    stem = shard_stem(plan.name, task.split, task.number)
    files: dict[str, dict[str, Any]] = {}
    checksums: list[int] = []
    if ordered:
        with stage("write"):
            files, checksums = write_shard(
                folder,
                stem=stem,
                number=task.number,
                packs=ordered,
                layout=layout,
                threads=threads,
            )
    else:
        # A run that was killed before its receipt may have left a shard of an earlier attempt.
        remove([folder / f"{stem}.{ending}" for ending in SHARD_ENDINGS])
    rows = [content.row for pack in ordered for content in pack]
    receipt = ShardReceipt(
        task=task.number,
        task_id=task.task_id,
        plan_id=plan.plan_id,
        split=task.split,
        packs=len(ordered),
        segments=len(rows),
        tokens=sum(row["num_kept"] for row in rows),
        members=layout.members,
        token_dtype=layout.token_dtype,
        token_width=layout.token_width,
        pack_token_widths=[pack[0].tokens.shape[1] for pack in ordered],
        pack_length=layout.pack_length,
        files=files,
        pack_crc32c=checksums,
        losses=losses,
        observed=observed,
        encoder=None if plan.encoder is None else encoder_of_receipt(plan.encoder),
        channel_sums=channel_sums(plan, ordered),
        unbalanced=list(astuple(unbalanced)) if ordered and unbalanced is not None else None,
        **pixel_counts(ordered),
    )
    with stage("write"):
        write_receipt(folder, stem, receipt)
    return receipt


def order_packs(plan: Plan, packs: list[list[SegmentContent]]) -> list[list[SegmentContent]]:
    """Seeded order of packs, so that a shard does not begin with all of its longest clips; the
    segments of a pack by their ids, so that no source has a place of its own. Packs of one token
    width lie together, the widest first."""

    def key(identity: str) -> bytes:
        content = f"{plan.settings['seed']}\0order\0{identity}".encode()
        return hashlib.blake2b(content, digest_size=16).digest()

    def place(pack: list[SegmentContent]) -> tuple[int, bytes]:
        return -pack[0].tokens.shape[1], min(key(content.row["segment_id"]) for content in pack)

    inner = [sorted(pack, key=lambda content: key(content.row["segment_id"])) for pack in packs]
    return sorted(inner, key=place)
