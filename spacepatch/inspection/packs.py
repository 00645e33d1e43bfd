"""Check one pack: its members against each other, the index, the receipt and the table's rows."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from crc32c import crc32c

from spacepatch.errors import ShardError
from spacepatch.inspection.findings import Findings, Report
from spacepatch.inspection.kept import KeptRules, check_kept
from spacepatch.inspection.pixels import PIXEL_SEGMENTS, PIXELS
from spacepatch.inspection.segments import Row
from spacepatch.inspection.tars import Sample
from spacepatch.inspection.totals import PackTotals
from spacepatch.shards import ShardReceipt, check_version
from spacepatch.shards.compressing import read_compressed
from spacepatch.shards.reading import kept_of_positions
from spacepatch.shards.writing import PACK_JSON_REFERENCE
from spacepatch.token_dtypes import storage_of

SEGMENTS = "segments.npy"

DTYPES = {
    SEGMENTS: ("int32",),
    "segment_ids.npy": ("int32",),
    "positions.npy": ("int16", "int32"),
    "kept.npy": ("uint32",),
    "run_lengths.npy": ("uint16",),
    "visible.npy": ("uint8",),
}
"""Of every member but tokens, whose dtype the receipt names."""

SEGMENT_COLUMNS = ("offset", "num_kept", "T", "H", "W", "tubelet_size", "patch_h", "patch_w")

NPY_HEADER = re.compile(
    rb"\{'descr': '(?P<descr>[<|][biuf][1248])', 'fortran_order': False, "
    rb"'shape': \((?P<shape>[0-9, ]{1,60})\), \} *\n"
)
"""Our own reading of the header: numpy's evaluates it, and fails in more ways than one."""

DESCRIBED = (
    "segment_id source clip view grid_thw offset num_tokens num_kept size seconds".split()
    # and extra, which is JSON in the table and an object in pack.json
)


def check_pack(
    sample: Sample,
    *,
    where: str,
    findings: Findings,
    receipt: ShardReceipt,
    pack: int,
    rows: Sequence[Row] | None,
    rules: KeptRules,
    totals: PackTotals,
    places: np.ndarray | None,
) -> None:
    """Report everything that is wrong with one pack.

    Args:
        pack: its place in the shard.
        rows: of segments.parquet, in order; None where that is damaged.
        totals: to which the pack is added.
        places: ``(members, 2)`` of the index: offset and size of each member's data.
    """
    report = findings.at(where)
    for place, name in enumerate(receipt.members):
        if places is not None and name in sample.places:
            listed = (int(places[place, 0]), int(places[place, 1]))
            if listed != sample.places[name]:
                offset, size = sample.places[name]
                report(
                    f"{name} has {size} bytes at {offset}, the index says "
                    f"{listed[1]} at {listed[0]}"
                )
    crc = 0
    for name in receipt.members:
        crc = crc32c(sample.contents.get(name, b""), crc)
    if crc != receipt.pack_crc32c[pack]:
        report("its crc32c differs from the receipt")
    width = receipt.pack_token_widths[pack]
    arrays = _arrays(sample, receipt, width, rules, report)
    if rows is None:
        totals.pass_over()
        return
    _check_document(sample, receipt, width, rows, rules, report)
    segments = arrays.get(SEGMENTS)
    if segments is None or not _check_segments(segments, receipt, rows, report):
        totals.pass_over()
        return

    def at(place: int) -> Report:
        row = rows[place]
        return findings.at(f"{where}: segment {place + 1} ({row['source']} clip {row['clip']})")

    totals.add(arrays, rows, report=report, at=at)
    tokens = arrays.get("tokens.npy")
    if receipt.store == "compressed":
        tokens = _decompressed(sample, arrays, rows, width, report)
    if tokens is not None:
        for place, row in enumerate(rows):
            if row["psnr"] is not None:
                continue  # the checksum is of what they were before
            part = tokens[row["offset"] : row["offset"] + row["num_kept"]]
            if crc32c(np.ascontiguousarray(part).data.cast("B")) != row["tokens_crc32c"]:
                at(place)("its tokens are not those of tokens_crc32c")
    ids = arrays.get("segment_ids.npy")
    if ids is not None:
        expected = np.repeat(np.arange(1, len(rows) + 1), segments[:, 1])
        if not np.array_equal(ids, expected):
            report(f"segment_ids.npy is not 1 to {len(rows)}, each as often as it has tokens")
    check_kept(arrays, rows, rules=rules, at=at)


def _decompressed(
    sample: Sample,
    arrays: dict[str, np.ndarray],
    rows: Sequence[Row],
    width: int,
    report: Report,
) -> np.ndarray | None:
    """The tokens of tokens.bin; None, and reported, where they are none."""
    segments, content = arrays[SEGMENTS], sample.contents.get("tokens.bin")
    kept = arrays.get("kept.npy")
    if kept is None and "positions.npy" in arrays:
        kept = kept_of_positions(arrays["positions.npy"], segments)
    if content is None or kept is None:
        return None  # reported as missing, or as of another shape
    try:
        document = json.loads(sample.contents["pack.json"])
        return read_compressed(
            memoryview(content), document, segments, kept, width=width, where="tokens.bin"
        )
    except ShardError as error:
        report(str(error))
    except (KeyError, ValueError, RecursionError, AttributeError, TypeError):
        pass  # pack.json, reported by itself
    return None


def _arrays(
    sample: Sample, receipt: ShardReceipt, width: int, rules: KeptRules, report: Report
) -> dict[str, np.ndarray]:
    """The npy members that are as declared."""
    arrays: dict[str, np.ndarray] = {}
    for name in receipt.members:
        if not name.endswith(".npy") or name not in sample.contents:
            continue
        try:
            arrays[name] = read_npy(sample.contents[name])
        except ValueError as error:
            report(f"{name} is no plain npy ({error})")
    segments = arrays.get(SEGMENTS)
    if segments is None:
        return {}  # nothing says how long the others must be
    if segments.ndim != 2 or segments.shape[1] != 8 or str(segments.dtype) not in DTYPES[SEGMENTS]:
        report(f"segments.npy is {segments.dtype} {segments.shape}, not int32 (S, 8)")
        return {}
    num_tokens = int(segments[:, 1].sum(dtype=np.int64))
    shapes = {
        "tokens.npy": (num_tokens, width),
        "positions.npy": (num_tokens, 3),
        SEGMENTS: segments.shape,
    }
    expected = {**DTYPES, "tokens.npy": (storage_of(receipt.token_dtype),)}
    if rules.origin.plan is not None:
        expected["positions.npy"] = (rules.origin.plan.layout.position_dtype,)
    for name, array in list(arrays.items()):
        if name in (PIXELS, PIXEL_SEGMENTS):
            continue  # held against the frames
        shape = shapes.get(name, (num_tokens,))
        dtypes = expected.get(name, (str(array.dtype),))
        if array.shape != shape or str(array.dtype) not in dtypes:
            report(f"{name} is {array.dtype} {array.shape}, not {' or '.join(dtypes)} {shape}")
            del arrays[name]
    return arrays


def _check_segments(
    segments: np.ndarray, receipt: ShardReceipt, rows: Sequence[Row], report: Report
) -> bool:
    """Whether segments.npy says the same as the table, so that the arrays can be cut by it."""
    expected = np.array(
        [
            [row["offset"], row["num_kept"], *row["grid_thw"], row["tubelet_size"],
             *row["patch_size"]]
            for row in rows
        ],
        np.int64,
    ).reshape(-1, 8)  # fmt: skip
    if segments.shape != expected.shape:
        report(f"has {len(segments)} segments, segments.parquet has {len(rows)}")
        return False
    if not len(rows):
        report("has no segments")
        return False
    for place, column in np.argwhere(segments != expected)[:3]:
        report(
            f"segments.npy: segment {place + 1} has {SEGMENT_COLUMNS[column]} "
            f"{segments[place, column]}, segments.parquet {expected[place, column]}"
        )
    ends = np.cumsum(expected[:, 1])
    if not np.array_equal(expected[:, 0], ends - expected[:, 1]):
        report("its segments do not lie one after the other (offset)")
        return False
    if ends[-1] > receipt.pack_length:
        report(f"has {ends[-1]} tokens, more than pack_length {receipt.pack_length}")
    return bool(np.array_equal(segments, expected))


def _check_document(
    sample: Sample,
    receipt: ShardReceipt,
    width: int,
    rows: Sequence[Row],
    rules: KeptRules,
    report: Report,
) -> None:
    content = sample.contents.get("pack.json")
    if content is None:
        return
    try:
        document = json.loads(content)
        check_version(document, "pack.json")
    except ShardError as error:
        report(str(error))
        return
    except (ValueError, RecursionError, AttributeError):
        report("pack.json is damaged")
        return
    plan = rules.origin.plan
    constants = {
        "format_version": receipt.format_version,
        "store": plan.layout.store if plan is not None else document.get("store"),
        "pack_length": receipt.pack_length,
        "token_width": width,
        "token_dtype": receipt.token_dtype,
        "order": rows[0]["order"] if rows else None,
    }
    for key, value in constants.items():
        if document.get(key) != value:
            report(f"pack.json: {key} is {document.get(key)!r}, not {value!r}")
    keys = [*DESCRIBED, *(PACK_JSON_REFERENCE if receipt.store == "refs" else ())]
    described = document.get("segments")
    if not isinstance(described, list) or len(described) != len(rows):
        report(f"pack.json does not describe the {len(rows)} segments of segments.parquet")
        return
    for place, (found, row) in enumerate(zip(described, rows, strict=True)):
        found = found if isinstance(found, dict) else {}
        expected = {key: row[key] for key in keys} | {"extra": _extra(row)}
        wrong = [key for key, value in expected.items() if found.get(key) != value]
        if wrong:
            report(
                f"pack.json: segment {place + 1} has {wrong[0]} {_short(found.get(wrong[0]))}, "
                f"segments.parquet {_short(expected[wrong[0]])}"
            )


def _extra(row: Row) -> Any:
    try:
        return json.loads(row["extra"])
    except (ValueError, RecursionError):
        return row["extra"]


def read_npy(content: bytes) -> np.ndarray:
    """An npy of version 1, C order, no objects, nothing after the data.

    Raises:
        ValueError: anything else.
    """
    if content[:8] != b"\x93NUMPY\x01\x00":
        raise ValueError("not npy version 1.0")
    start = 10 + int.from_bytes(content[8:10], "little")
    header = NPY_HEADER.fullmatch(content[10:start])
    if header is None:
        raise ValueError("its header is not one that numpy writes for a plain array")
    shape = [int(side) for side in header["shape"].split(b",") if side.strip()]
    return np.frombuffer(memoryview(content)[start:], header["descr"].decode()).reshape(shape)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
