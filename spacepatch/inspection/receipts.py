"""Whether a receipt can be worked with: a torn or edited one may still be JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from spacepatch.errors import ShardError
from spacepatch.shards import ShardReceipt, read_receipt

TOKEN_DTYPES = ("uint8", "float16", "float32", "uint16", "uint32")

OBSERVED = {"rotation", "mirrored", "matrix", "range", "tagged"}


def read_sound_receipt(path: Path) -> ShardReceipt:
    """`read_receipt`, and a `ShardError` for one whose fields are of other kinds."""
    receipt = read_receipt(path)
    faults = receipt_faults(receipt)
    if faults:
        raise ShardError(f"{path}: damaged ({faults[0]}); look with spacepatch verify")
    return receipt


def receipt_faults(receipt: ShardReceipt) -> list[str]:
    """What makes a receipt unusable: fields of other kinds than the format says."""
    faults = []
    for key in ("task", "packs", "segments", "tokens", "pack_length"):
        value = getattr(receipt, key)
        if type(value) is not int or value < 0:
            faults.append(f"{key} is {value!r}, not a count")
    for key in ("task_id", "plan_id", "split"):
        if not isinstance(getattr(receipt, key), str):
            faults.append(f"{key} is no text")
    if receipt.token_dtype not in TOKEN_DTYPES:
        faults.append(f"token_dtype is {receipt.token_dtype!r}")
    if not _is_list(receipt.members, str) or len(set(receipt.members)) != len(receipt.members):
        faults.append("members is no list of names")
    if not _is_list(receipt.pack_crc32c, int) or len(receipt.pack_crc32c) != receipt.packs:
        faults.append("pack_crc32c is not one number a pack")
    faults += _width_faults(receipt)
    entries = receipt.files.values() if isinstance(receipt.files, dict) else [None]
    if not all(
        isinstance(entry, dict)
        and type(entry.get("bytes")) is int
        and isinstance(entry.get("sha256"), str)
        for entry in entries
    ):
        faults.append("files does not give bytes and sha256 of each")
    observed = receipt.observed.values() if isinstance(receipt.observed, dict) else [None]
    if not all(isinstance(seen, dict) and seen.keys() >= OBSERVED for seen in observed):
        faults.append(f"observed does not give {', '.join(sorted(OBSERVED))} of each source")
    if not _is_list(receipt.losses, dict):
        return [*faults, "losses is no list of rows"]
    for loss in receipt.losses:
        counts = (loss.get("num_frames"), loss.get("num_tokens"))
        if not all(type(count) is int and count >= 0 for count in counts):
            faults.append("a loss has no counts")
        texts = ("source", "source_id", "message", "split")
        if not all(isinstance(loss.get(key), str) for key in texts):
            faults.append("a loss does not name its source and message")
    return faults


def _width_faults(receipt: ShardReceipt) -> list[str]:
    widths = receipt.pack_token_widths
    if not _is_list(widths, int) or len(widths) != receipt.packs or min(widths, default=1) < 1:
        return ["pack_token_widths is not one number of values a pack"]
    if widths != sorted(widths, reverse=True):
        return [f"pack_token_widths is {widths}, not the widest first"]
    width = receipt.token_width
    if width is not None and (type(width) is not int or {*widths, width} != {width}):
        return [f"token_width is {width!r}, pack_token_widths is {widths}"]
    return []


def _is_list(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(isinstance(entry, kind) for entry in value)
