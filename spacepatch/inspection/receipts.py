"""Whether a receipt can be worked with: a torn or edited one may still be JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from spacepatch.errors import ShardError
from spacepatch.inspection.encoders import KnownEncoder, known_encoder, sums_fault
from spacepatch.inspection.findings import Report
from spacepatch.shards import ShardReceipt, read_receipt

TOKEN_DTYPES = ("uint8", "float16", "float32", "bfloat16", "uint16", "uint32")

COUNTS = "task packs segments tokens pack_length pixel_tokens pack_pixel_tokens".split()

ENCODING_REASONS = ("encoder_trim", "nonfinite_latent")
"""Reasons of losses that only encoding has."""

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
    for key in COUNTS:
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
    faults += _width_faults(receipt) + _encoder_faults(receipt)
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
    spread = receipt.unbalanced
    if spread is not None and not (_is_list(spread, int) and len(spread) == 4 and min(spread) >= 0):
        faults.append(f"unbalanced is {spread!r}, not four counts")
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


def _encoder_faults(receipt: ShardReceipt) -> list[str]:
    try:
        encoder = known_encoder(receipt.encoder)
    except ValueError as error:
        return [str(error)]
    fault = sums_fault(receipt.channel_sums, 0 if encoder is None else encoder.channels)
    return [fault] if fault else []


def check_encoded(receipt: ShardReceipt, encoder: KnownEncoder | None, report: Report) -> None:
    """Report where a sound receipt is not one of tokens of this encoder; None: of pixels."""
    dtypes = ("uint8",) if encoder is None else encoder.token_dtypes
    if receipt.token_dtype not in dtypes:
        what = "pixels" if encoder is None else encoder.kind
        report(f"token_dtype of {what} is {receipt.token_dtype}, not {' or '.join(dtypes)}")
    has_sums = bool(receipt.packs) and encoder is not None and encoder.kind == "latents"
    if has_sums != (receipt.channel_sums is not None):
        report(f"channel_sums is {'missing' if has_sums else 'given, without latents'}")
    has_pixels = bool(receipt.packs) and encoder is not None and "pixels.npy" in receipt.members
    if has_pixels != bool(receipt.pixel_tokens):
        report(f"pixel_tokens is {receipt.pixel_tokens}, with members {receipt.members}")
    for loss in receipt.losses:
        at_encoding = loss.get("stage") == "encode"
        reason, what = loss.get("reason"), f"{loss['source']}: {loss.get('reason')}"
        if (at_encoding or reason in ENCODING_REASONS) and encoder is None:
            report(f"{what} at stage {loss.get('stage')}, though there is no encoder")
        elif reason in ENCODING_REASONS and not at_encoding:
            report(f"{what} at stage {loss.get('stage')}, not encode")
        elif reason == "nonfinite_latent" and encoder is not None and encoder.kind != "latents":
            report(f"{what}, of {encoder.kind}")
        elif reason == "tail_dropped" and encoder is not None:
            report(f"{what}, with an encoder: its frames are trimmed (encoder_trim)")


def _is_list(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(isinstance(entry, kind) for entry in value)
