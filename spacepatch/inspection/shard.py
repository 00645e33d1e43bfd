"""Check one shard: receipt, files, table, index, and every pack of the tar."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from spacepatch.data import LOSS_REASONS, STAGES, Task
from spacepatch.errors import ShardError
from spacepatch.inspection.accounts import ClipAccounts
from spacepatch.inspection.encoders import known_encoder
from spacepatch.inspection.findings import Findings, Report
from spacepatch.inspection.kept import KeptRules
from spacepatch.inspection.packs import check_pack, read_npy
from spacepatch.inspection.pixels import PIXELS
from spacepatch.inspection.receipts import check_encoded, receipt_faults
from spacepatch.inspection.segments import Origin, check_segment, is_sound
from spacepatch.inspection.tables import NULLABLE_SEGMENTS, read_checked
from spacepatch.inspection.tars import TarScan
from spacepatch.inspection.totals import PackTotals
from spacepatch.pipeline.encoded import encoder_of_receipt
from spacepatch.shards import SEGMENTS, ShardReceipt, read_receipt, receipt_path, shard_stem
from spacepatch.token_dtypes import storage_of

if TYPE_CHECKING:
    import pyarrow as pa

NPY_HEADER_BYTES = 4096
SMALL_MEMBER_BYTES = 64 << 20
"""What any member may have, pack.json above all, before it counts as damage."""


SAME = ("layout", "order", "tail", "halo")
"""Columns of segments.parquet that are the same for all of a dataset."""


@dataclass(frozen=True, slots=True)
class FoundShard:
    """What could be read of a shard."""

    receipt: ShardReceipt
    segment_ids: np.ndarray | None
    """(S,) bytes of 32; None where it has no segments.parquet, or a damaged one."""


def check_shard(
    folder: Path,
    stem: str,
    *,
    findings: Findings,
    origin: Origin,
    task: Task | None = None,
    read_tar: bool = True,
) -> FoundShard | None:
    """Report everything that is wrong with one shard.

    Args:
        task: what the plan says of it.
        read_tar: read and check the packs, not only the size of the tar.

    Returns:
        None where there is no receipt to go by.
    """
    report = findings.at(f"{stem}.json")
    path = receipt_path(folder, stem)
    try:
        receipt = read_receipt(path)
    except ShardError as error:
        report(str(error).removeprefix(f"{path}: "))
        return None
    faults = receipt_faults(receipt)
    for fault in faults:
        report(fault)
    if faults:
        return None
    if origin.plan is None and not origin.settings:
        origin = replace(origin, encoder=known_encoder(receipt.encoder))
    _check_receipt(receipt, stem, origin, task, report)
    table = None
    if receipt.packs:
        table = _check_table(folder, stem, receipt, findings, origin, task)
        rules = KeptRules.of(origin, task, receipt)
        _check_files(folder, stem, receipt, table, rules, findings, read_tar)
    elif receipt.files:
        report("has no packs, but names files")
    if task is not None and origin.plan is not None and not receipt.packs:
        ClipAccounts(origin.plan, task).settle(receipt.losses, report)
    if table is None:
        return FoundShard(receipt, None)
    return FoundShard(receipt, np.array(table.column("segment_id").to_pylist(), "S32"))


def _check_receipt(
    receipt: ShardReceipt, stem: str, origin: Origin, task: Task | None, report: Report
) -> None:
    """A receipt against its own name, the closed lists and the plan."""
    if not stem.endswith(shard_stem("", receipt.split, receipt.task)):
        report(f"is of task {receipt.task}, split {receipt.split!r}: not what its name says")
    if receipt.packs and receipt.tokens > receipt.packs * receipt.pack_length:
        report(f"{receipt.tokens} tokens do not fit {receipt.packs} packs")
    for loss in receipt.losses:
        if loss.get("reason") not in LOSS_REASONS:
            report(f"{loss['source']}: reason {loss.get('reason')!r} is not in the closed list")
        if loss.get("stage") not in STAGES:
            report(f"{loss['source']}: stage {loss.get('stage')!r} is not in the closed list")
    check_encoded(receipt, origin.encoder, report)
    plan = origin.plan
    if plan is None or task is None:
        return
    expected = {
        "encoder": None if plan.encoder is None else encoder_of_receipt(plan.encoder),
        "task": task.number,
        "task_id": task.task_id,
        "plan_id": plan.plan_id,
        "split": task.split,
        "members": plan.layout.members,
        "token_dtype": plan.layout.token_dtype,
        "token_width": plan.layout.token_width,
        "pack_length": plan.layout.pack_length,
    }
    for key, value in expected.items():
        if getattr(receipt, key) != value:
            report(f"{key} is {getattr(receipt, key)!r}, the plan says {value!r}")
    for width in sorted(set(receipt.pack_token_widths) - set(plan.layout.token_widths)):
        report(f"has packs of token width {width}, the plan says {plan.layout.token_widths}")
    planned = {plan.sources[clip.source].source.source_id for clip in task.clips}
    for source_id in sorted(receipt.observed.keys() - planned):
        report(f"observed: source {source_id} is not in this task")


# --- the table ---------------------------------------------------------------------------------


def _check_table(
    folder: Path,
    stem: str,
    receipt: ShardReceipt,
    findings: Findings,
    origin: Origin,
    task: Task | None,
) -> pa.Table | None:
    name = f"{stem}.segments.parquet"
    report = findings.at(name)
    if not (folder / name).is_file():
        return None  # reported with the other files
    table = read_checked(folder / name, SEGMENTS, nullable=NULLABLE_SEGMENTS, report=report)
    if table is None:
        return None
    if len(table) != receipt.segments:
        report(f"has {len(table)} rows, the receipt says {receipt.segments} segments")
    packs = table.column("pack").to_numpy()
    if (np.diff(packs) < 0).any() or np.unique(packs).tolist() != list(range(receipt.packs)):
        report(f"its rows are not in the order of packs 0 to {receipt.packs - 1}")
        return None
    cost = int(np.square(table.column("num_kept").to_numpy().astype(np.int64)).sum())
    if receipt.unbalanced is not None and receipt.unbalanced[0:3:2] != [receipt.packs, cost]:
        findings.at(f"{stem}.json")(
            f"unbalanced is {receipt.unbalanced}, not of {receipt.packs} packs that cost {cost}"
        )
    for key in SAME:
        values = sorted(set(table.column(key).to_pylist()))
        if len(values) > 1:
            report(f"{key} is not the same in every row: {', '.join(map(str, values))}")
    accounts = ClipAccounts(origin.plan, task) if origin.plan is not None and task else None
    num_tokens, num_values, are_sound = 0, 0, True
    unseen: set[str] = set()
    lost_in_encoding = {
        (loss["source_id"], loss.get("clip"))
        for loss in receipt.losses
        if loss.get("reason") == "nonfinite_latent"
    }
    for start, stop in _slices(packs):
        for number, row in enumerate(table.slice(start, stop - start).to_pylist()):
            at = findings.at(f"{name}: row {start + number} ({row['source']} clip {row['clip']})")
            if row["shard"] != receipt.task or row["split"] != receipt.split:
                at(f"is of shard {row['shard']}, split {row['split']!r}")
            if not is_sound(row, at):
                are_sound = False
                continue
            num_tokens += row["num_kept"]
            is_decoded = row["tokens_crc32c"] is not None
            if is_decoded and row["source_id"] not in receipt.observed:
                unseen.add(row["source"])
            width = receipt.pack_token_widths[row["pack"]]
            num_values += row["num_kept"] * width
            check_segment(row, at, origin=origin, width=width, store=receipt.store)
            is_whole = (row["source_id"], row["clip"]) not in lost_in_encoding
            if row["corrupt_frames"] and is_whole and PIXELS in receipt.members:
                at(
                    f"has {row['corrupt_frames']} corrupt frames, though a clip whose pixels are "
                    "stored too ends before the first of them"
                )
            if accounts is not None:
                accounts.add(row, at)
    for source in sorted(unseen):
        findings.add(f"{stem}.json", f"observed: {source} has segments and is not in it")
    if num_tokens != receipt.tokens and are_sound:
        report(f"its segments have {num_tokens} tokens, the receipt says {receipt.tokens}")
    if receipt.channel_sums is not None and are_sound:
        counts = receipt.channel_sums[0]
        if any(count * len(counts) != num_values for count in counts):
            report(f"its segments have {num_values} values, channel_sums of the receipt {counts}")
    if accounts is not None:
        accounts.settle(receipt.losses, report)
    elif are_sound:
        _check_overlaps(table, report)
    return table if are_sound else None


def _slices(packs: np.ndarray) -> list[tuple[int, int]]:
    """[start, stop) rows of each pack."""
    borders = [0, *(np.flatnonzero(np.diff(packs)) + 1).tolist(), len(packs)]
    return list(pairwise(borders))


def _check_overlaps(table: pa.Table, report: Report) -> None:
    """Segments of one clip and view do not overlap; with a plan, the accounts say so."""
    keys = ["source_id", "clip", "view", "clip_start_pts"]
    columns = [*keys, "clip_stop_pts", "source"]
    rows = table.select(columns).sort_by([(key, "ascending") for key in keys]).to_pylist()
    for row, following in pairwise(rows):
        is_same = all(row[key] == following[key] for key in keys[:3])
        if is_same and following["clip_start_pts"] < row["clip_stop_pts"]:
            report(f"{row['source']} clip {row['clip']}: segments overlap")


# --- the other files ---------------------------------------------------------------------------


def _check_files(
    folder: Path,
    stem: str,
    receipt: ShardReceipt,
    table: pa.Table | None,
    rules: KeptRules,
    findings: Findings,
    read_tar: bool,
) -> None:
    names = [f"{stem}.tar", f"{stem}.index.npy", f"{stem}.segments.parquet"]
    if sorted(receipt.files) != sorted(names):
        findings.add(f"{stem}.json", f"names {', '.join(sorted(receipt.files))} as its files")
    is_whole = True
    for name in names:
        entry, path = receipt.files.get(name), folder / name
        report = findings.at(name)
        if not path.is_file():
            report("missing")
            is_whole = is_whole and name != names[0]
            continue
        if entry is not None and path.stat().st_size != entry["bytes"]:
            report(f"has {path.stat().st_size} bytes, the receipt says {entry['bytes']}")
        elif entry is not None and name != names[0]:
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != entry["sha256"]:
                    report("its sha256 is not that of the receipt")
    index = _read_index(folder / names[1], receipt, findings.at(names[1]))
    if is_whole and read_tar:
        _check_tar(folder / names[0], stem, receipt, table, index, rules, findings)


def _read_index(path: Path, receipt: ShardReceipt, report: Report) -> np.ndarray | None:
    if not path.is_file():
        return None
    try:
        index = read_npy(path.read_bytes())
    except ValueError as error:
        report(f"is no plain npy ({error})")
        return None
    expected = (receipt.packs, len(receipt.members), 2)
    if index.shape != expected or index.dtype != np.uint64:
        report(f"is {index.dtype} {index.shape}, not uint64 {expected}")
        return None
    return index


def _check_tar(
    path: Path,
    stem: str,
    receipt: ShardReceipt,
    table: pa.Table | None,
    index: np.ndarray | None,
    rules: KeptRules,
    findings: Findings,
) -> None:
    report = findings.at(path.name)
    token_bytes = receipt.pack_token_widths[0] * np.dtype(storage_of(receipt.token_dtype)).itemsize
    largest = receipt.pack_length * max(token_bytes, 12) + NPY_HEADER_BYTES
    plan = rules.origin.plan
    if PIXELS in receipt.members:
        # How large they are, nothing says of a shard alone before its packs do.
        most = path.stat().st_size
        if plan is not None:
            content = receipt.pack_pixel_tokens * plan.layout.pixel_width
            most = min(most, content + NPY_HEADER_BYTES)
        largest = max(largest, most)
    totals = PackTotals(
        receipt, rules.origin.encoder, None if plan is None else plan.layout.pixel_tubelet
    )
    scan = TarScan(
        path,
        members=receipt.members,
        most_bytes=max(largest, SMALL_MEMBER_BYTES),
        report=report,
    )
    slices = _slices(table.column("pack").to_numpy()) if table is not None else []
    packs = 0
    for pack, sample in enumerate(scan):
        packs += 1
        if sample.key != f"{stem}-{pack:06d}":
            report(f"pack {pack} has key {sample.key}, not {stem}-{pack:06d}")
        if pack >= receipt.packs:
            continue
        rows = None
        if table is not None:
            start, stop = slices[pack]
            rows = table.slice(start, stop - start).to_pylist()
        check_pack(
            sample,
            where=f"{path.name}: pack {pack}",
            findings=findings,
            receipt=receipt,
            pack=pack,
            rows=rows,
            rules=rules,
            totals=totals,
            places=None if index is None else index[pack],
        )
    if packs != receipt.packs:
        report(f"holds {packs} packs, the receipt says {receipt.packs}")
    else:
        totals.settle(findings.at(f"{stem}.json"))
    entry = receipt.files.get(path.name)
    if entry is not None and scan.sha256 != entry["sha256"]:
        report("its sha256 is not that of the receipt")
