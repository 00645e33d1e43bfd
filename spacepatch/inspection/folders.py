"""What lies at a path: a dataset, an unfinished run, or one shard; and how its files are read."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spacepatch.errors import ShardError
from spacepatch.pipeline.generations import plan_name
from spacepatch.pipeline.planfile import count_generations
from spacepatch.shards import DATASET, TABLES, check_version
from spacepatch.shards.tables import openable

if TYPE_CHECKING:
    import pyarrow as pa

PLAN_DOCUMENT = "plan.json"

SHARD_FILE = re.compile(
    r"(?P<stem>[0-9A-Za-z_-]+-[0-9]{6})\.(tar|index\.npy|segments\.parquet|json)"
)
"""Names of the four files of a shard."""

BATCH_ROWS = 16384


@dataclass(frozen=True, slots=True)
class Located:
    """What a path that the user gave means."""

    folder: Path
    stem: str | None
    """The one shard that is meant; None: the whole folder."""


def locate(path: Path) -> Located:
    """Find out what `path` is: an output folder, or a file of one shard.

    Raises:
        ShardError: neither; says what to give instead.
    """
    if path.is_dir():
        if (path / DATASET).is_file() or (path / PLAN_DOCUMENT).is_file():
            return Located(path, None)
        matches = (SHARD_FILE.fullmatch(name) for name in names_in(path))
        stems = sorted({match["stem"] for match in matches if match})
        hint = f", or one of its shards, such as {path / stems[0]}.tar" if stems else ""
        raise ShardError(
            f"{path}: holds no dataset.json and no plan.json, so it is no output folder of "
            f"spacepatch; give the folder that --out named{hint}"
        )
    if not path.exists():
        raise ShardError(f"{path}: no such file or folder; give an output folder or a shard's .tar")
    if path.name in (DATASET, PLAN_DOCUMENT, *TABLES):
        return Located(path.parent, None)
    match = SHARD_FILE.fullmatch(path.name)
    if match is None:
        raise ShardError(
            f"{path}: is no file of a shard; give an output folder, or a shard's NAME-000000.tar"
        )
    return Located(path.parent, match["stem"])


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def read_document(path: Path, *, required: Sequence[str] = ()) -> dict[str, Any]:
    """dataset.json or plan.json.

    Raises:
        ShardError: it is missing, damaged or of a newer version.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ShardError(f"{path}: missing") from None
    except (ValueError, RecursionError, OSError) as error:
        raise ShardError(f"{path}: damaged ({error})") from None
    if not isinstance(document, dict):
        raise ShardError(f"{path}: damaged (no JSON object)")
    check_version(document, str(path))
    absent = [key for key in required if key not in document]
    if absent:
        raise ShardError(f"{path}: damaged (no {', '.join(absent)})")
    return document


def read_finished(folder: Path) -> dict[str, Any]:
    """dataset.json of a finished dataset.

    Raises:
        ShardError: it is none, or damaged.
    """
    if locate(folder).stem is not None or not (folder / DATASET).is_file():
        raise ShardError(
            f"{folder}: is no finished dataset (no {DATASET}): give the folder that --out named, "
            "after spacepatch tokenize has run to its end"
        )
    return read_document(folder / DATASET)


def listed_stems(document: dict[str, Any]) -> list[str]:
    """The shards that dataset.json lists."""
    listed = document.get("shards")
    entries = listed if isinstance(listed, list) else []
    names = [entry.get("name") for entry in entries if isinstance(entry, dict)]
    return [name for name in names if isinstance(name, str) and SHARD_FILE.fullmatch(f"{name}.tar")]


def listed_generations(document: dict[str, Any]) -> int:
    """Of the plan, those that dataset.json lists; 0: it does not list them as it must."""
    plans = document.get("plans")
    names = [f"{plan_name(number)}.parquet" for number in range(len(plans or ()))]
    return len(names) if plans == names else 0


def plan_batches(
    folder: Path, document: dict[str, Any], columns: Sequence[str]
) -> Iterator[pa.RecordBatch]:
    """`read_batches` of the plan: of the generations that `document` lists, if that is
    dataset.json; of an unfinished run of all."""
    count = listed_generations(document) if "plans" in document else count_generations(folder)
    for number in range(count):
        yield from read_batches(folder / f"{plan_name(number)}.parquet", columns)


def read_batches(path: Path, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """The wanted columns of a table, piece by piece, so that memory is flat.

    Raises:
        ShardError: it is missing or damaged, or lacks a column.
    """
    import pyarrow as pa
    import pyarrow.parquet as parquet

    try:
        with parquet.ParquetFile(openable(path)) as file:
            absent = [name for name in columns if name not in file.schema_arrow.names]
            if absent:
                raise ShardError(f"{path}: has no column {', '.join(absent)}")
            yield from file.iter_batches(batch_size=BATCH_ROWS, columns=list(columns))
    except FileNotFoundError:
        raise ShardError(f"{path}: missing") from None
    except (pa.ArrowException, OSError) as error:
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise ShardError(f"{path}: cannot be read as Parquet: {first_line}") from None
