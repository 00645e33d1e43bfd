"""What differs between two datasets: what they were made with, of what, and what came out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from spacepatch.errors import ShardError
from spacepatch.inspection.distances import check_installed, compare_channels, compare_segments
from spacepatch.inspection.folders import read_batches, read_document
from spacepatch.shards import DATASET
from spacepatch.storage import open_folder

SECTIONS = ("settings", "fingerprints", "environment", "encoder", "tables")
"""Objects in dataset.json, compared field by field."""

EXAMPLES = 5
"""Rows named of each kind of difference."""

CLIP = "source_id clip_start_pts clip_stop_pts time_base view".split()
"""What makes two segments the same one: from the same source, the same stretch of time, the same
variant. Not `segment_id`, in which the settings are: with other ones all would be others."""

NOTHING = "-"
"""What stands for a value that is not there."""


def compare(first: str | Path, second: str | Path) -> dict[str, Any]:
    """Compare two finished datasets by their dataset.json and tables.

    They are the same where dataset.json is: it has the sha256 of the tables, which have the
    checksum of each segment's tokens and its place. Whether files still are what they were is for
    `verify` to say. Else their tables are read in pieces, of which two hashes a row are kept.

    Returns:
        JSON-able. ``same``; ``first`` and ``second``: ``path``, ``name``, ``plan_id``. The others
        are None where they are the same:

        - ``fields``: by `SECTIONS`, and ``other`` fields of dataset.json, those that differ, with
          ``first`` and ``second`` (None: not there).
        - ``totals``: each, equal or not, with ``first`` and ``second``.
        - ``sources``: how many in ``first``, ``second``, ``both``, ``only_in_first``,
          ``only_in_second`` and ``changed`` (in both, with other content), and ``examples``: of the
          last three, names.
        - ``segments``: likewise, by `CLIP`; ``changed`` are those with other tokens, by their
          checksums; ``unchecked`` those in both that have none in one of them, as references that
          nobody has decoded. ``examples`` have ``source``, ``clip``, ``view``.
        - ``losses``: by reason ``rows`` and ``frames`` in ``first`` and ``second``.
        - ``distributions``: see `compare_segments`. ``channels``: see `compare_channels`.

    Raises:
        ShardError: one is no finished dataset, or damaged.
        MissingDependencyError: they differ, and there is no scipy.
    """
    folders = open_folder(first), open_folder(second)
    documents = [_document(folder) for folder in folders]
    about = [
        {"path": str(folder), "name": document["name"], "plan_id": document["plan_id"]}
        for folder, document in zip(folders, documents, strict=True)
    ]
    found: dict[str, Any] = {
        "same": documents[0] == documents[1],
        "first": about[0],
        "second": about[1],
        **dict.fromkeys("fields totals sources segments losses distributions channels".split()),
    }
    if found["same"]:
        return found
    check_installed()
    return found | {
        "fields": _fields(*documents),
        "totals": _totals(*(document["totals"] for document in documents)),
        "sources": _sources(*folders),
        "segments": _segments(*folders),
        "losses": _losses(*folders),
        "distributions": compare_segments(*folders),
        "channels": compare_channels(*folders, documents),
    }


def _document(folder: Path) -> dict[str, Any]:
    if not (folder / DATASET).is_file():
        raise ShardError(
            f"{folder}: no {DATASET}: not a dataset, or an unfinished one; give the --out of a "
            "finished run"
        )
    required = "plan_id name settings shards totals".split()
    return read_document(folder / DATASET, required=required)


# --- dataset.json ------------------------------------------------------------------------------


def _fields(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    fields = {
        section: _differing(first.get(section) or {}, second.get(section) or {})
        for section in SECTIONS
    }
    # Told by themselves, or in numbers.
    told = (*SECTIONS, "totals", "shards", "name", "plan_id")
    others = [
        {key: value for key, value in document.items() if key not in told}
        for document in (first, second)
    ]
    return fields | {"other": _differing(*others)}


def _differing(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    return {
        key: {"first": first.get(key), "second": second.get(key)}
        for key in sorted(first.keys() | second.keys())
        if first.get(key) != second.get(key)
    }


def _totals(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    keys = [key for key in sorted(first.keys() | second.keys()) if key != "losses"]
    return {key: {"first": first.get(key), "second": second.get(key)} for key in keys}


# --- tables ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Rows:
    """What the rows of a table are, and what they hold, as hashes of 64 bits: that two of ten
    million meet by chance happens once in 300,000 times."""

    table: Path
    keys: np.ndarray
    """``(n,)`` uint64."""
    values: np.ndarray
    """``(n,)`` uint64."""

    def named(self, places: np.ndarray, columns: Sequence[str]) -> list[dict[str, Any]]:
        """These columns of some rows.

        Args:
            places: ``(k,)`` numbers of rows, in order.
        """
        wanted, found, start = places.tolist(), [], 0
        for batch in read_batches(self.table, columns):
            while wanted and wanted[0] < start + len(batch):
                found.extend(batch.slice(wanted.pop(0) - start, 1).to_pylist())
            if not wanted:
                break
            start += len(batch)
        return found


def _read(table: Path, keys: Sequence[str], values: Sequence[str]) -> _Rows:
    hashes: list[list[bytes]] = [[], []]
    for batch in read_batches(table, [*keys, *values]):
        for found, columns in zip(hashes, (keys, values), strict=True):
            found.append(b"".join(map(_hash, _joined(batch, columns))))
    return _Rows(table, *(np.frombuffer(b"".join(found), np.uint64) for found in hashes))


def _joined(batch: Any, columns: Sequence[str]) -> list[str]:
    import pyarrow as pa
    import pyarrow.compute as compute

    texts = [batch.column(name).cast(pa.string()).fill_null(NOTHING) for name in columns]
    return compute.binary_join_element_wise(*texts, " ").to_pylist()  # type: ignore[no-any-return]


def _hash(text: str) -> bytes:
    return blake2b(text.encode(), digest_size=8).digest()


def _sources(first: Path, second: Path) -> dict[str, Any]:
    rows = [
        _read(folder / "sources.parquet", ["source_id"], ["content_id"])
        for folder in (first, second)
    ]
    found = _matched(rows[0], rows[1], ["source"])
    examples = found["examples"]
    return found | {
        "examples": {kind: [row["source"] for row in examples[kind]] for kind in examples}
    }


def _segments(first: Path, second: Path) -> dict[str, Any]:
    rows = [
        _read(folder / "segments.parquet", CLIP, ["tokens_crc32c"]) for folder in (first, second)
    ]
    unknown = int(np.frombuffer(_hash(NOTHING), np.uint64)[0])
    return _matched(rows[0], rows[1], ["source", "clip", "view"], unknown=unknown)


def _matched(
    first: _Rows, second: _Rows, columns: Sequence[str], *, unknown: int | None = None
) -> dict[str, Any]:
    """Args:
    unknown: the value of rows of which nobody knows what they hold; None: there are none.
    """
    _, ours, theirs = np.intersect1d(first.keys, second.keys, return_indices=True)
    values = first.values[ours], second.values[theirs]
    is_changed = values[0] != values[1]
    unchecked = {}
    if unknown is not None:
        is_unknown = (values[0] == np.uint64(unknown)) | (values[1] == np.uint64(unknown))
        is_changed &= ~is_unknown
        unchecked = {"unchecked": int(is_unknown.sum())}
    kinds = {
        "only_in_first": (first, _without(len(first.keys), ours)),
        "only_in_second": (second, _without(len(second.keys), theirs)),
        "changed": (first, np.sort(ours[is_changed])),
    }
    return {
        "first": len(first.keys),
        "second": len(second.keys),
        "both": len(ours),
        **{kind: len(places) for kind, (_, places) in kinds.items()},
        **unchecked,
        "examples": {
            kind: rows.named(places[:EXAMPLES], columns) for kind, (rows, places) in kinds.items()
        },
    }


def _without(count: int, places: np.ndarray) -> np.ndarray:
    is_left = np.ones(count, bool)
    is_left[places] = False
    return np.flatnonzero(is_left)


def _losses(first: Path, second: Path) -> dict[str, Any]:
    counts: dict[str, dict[str, dict[str, int]]] = {}
    for side, folder in (("first", first), ("second", second)):
        for batch in read_batches(folder / "losses.parquet", ["reason", "num_frames"]):
            for row in batch.to_pylist():
                none = {key: {"rows": 0, "frames": 0} for key in ("first", "second")}
                entry = counts.setdefault(row["reason"], none)[side]
                entry["rows"] += 1
                entry["frames"] += row["num_frames"]
    return dict(sorted(counts.items()))
