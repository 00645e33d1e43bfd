"""Check the columns of a Parquet table, whatever its rows say."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from spacepatch.errors import ShardError
from spacepatch.inspection.findings import Report
from spacepatch.shards.tables import read_arrow, schema_of

if TYPE_CHECKING:
    import pyarrow as pa

NULLABLE_SEGMENTS = frozenset(
    {"source_fps", "sampled_fps", "crop", "drop", "tokens_crc32c", "psnr"}
)


def read_checked(
    path: Path, columns: dict[str, str], *, nullable: frozenset[str], report: Report
) -> pa.Table | None:
    """A table whose columns are as the format says; None, and reported, if they are not."""
    try:
        table = read_arrow(path)
    except ShardError as error:
        report(str(error).removeprefix(f"{path}: "))
        return None
    faults = []
    for expected in schema_of(tuple(columns.items())):
        if expected.name not in table.schema.names:
            faults.append(f"has no column {expected.name}")
            continue
        column = table.column(expected.name)
        if column.type != expected.type:
            faults.append(f"column {expected.name} is {column.type}, not {expected.type}")
        elif _has_nulls(column, expected.name in nullable):
            faults.append(f"column {expected.name} has rows without a value")
    for fault in faults:
        report(fault)
    return None if faults else table


def _has_nulls(column: Any, is_nullable: bool) -> bool:
    import pyarrow as pa

    if column.null_count and not is_nullable:
        return True
    if pa.types.is_list(column.type):
        return bool(sum(chunk.flatten().null_count for chunk in column.chunks))
    return False
