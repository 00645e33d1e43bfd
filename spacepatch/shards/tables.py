"""The Parquet tables of a dataset: their columns, and how they are written and read."""

from __future__ import annotations

import hashlib
import itertools
from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from spacepatch.errors import ShardError
from spacepatch.storage import is_on_store, publish

if TYPE_CHECKING:
    import pyarrow as pa

DATASET = "dataset.json"
"""What makes a folder a dataset; written last of all."""
TABLES = ("segments.parquet", "sources.parquet", "losses.parquet")
"""The merged tables of a dataset."""

PAIR = "list<int32>"
"""(h, w), or (t, h, w) for grids and tubelets."""

SEGMENTS = {
    "segment_id": "string",
    "source": "string",
    "source_root": "int32",
    "source_id": "string",
    "split": "string",
    "clip": "int32",
    "view": "int32",
    "view_of": "int32",
    "shard": "int32",
    "pack": "int32",
    "offset": "int32",
    "num_tokens": "int32",
    "num_kept": "int32",
    "grid_thw": PAIR,
    "size": PAIR,
    "seconds": "list<float64>",
    "extra": "string",
    "clip_start_pts": "int64",
    "clip_stop_pts": "int64",
    "time_base": "string",
    "frame_pts": "list<int64>",
    "frame_indices": "list<int32>",
    "source_fps": "float64",
    "sampled_fps": "float64",
    "num_source_frames": "int32",
    "valid_frames": "int32",
    "padded_frames": "int32",
    "repeated_frames": "int32",
    "corrupt_frames": "int32",
    "damaged_frames": "int32",
    "tail": "string",
    "crop": PAIR,
    "pad": PAIR,
    "scale": "list<float64>",
    "aspect_error": "float64",
    "tubelet_size": "int32",
    "patch_size": PAIR,
    "halo": "int32",
    "layout": "string",
    "order": "string",
    "drop": "string",
    "decoder": "string",
    "pts_repaired": "string",
    "tokens_crc32c": "uint32",
    "psnr": "float64",
}
"""One row a segment, in the order of shards, packs and segments. Times are exact: seconds =
frame_pts x time_base. `extra` is JSON."""

SOURCES = {
    "source": "string",
    "source_root": "int32",
    "source_id": "string",
    "split": "string",
    "content_id": "string",
    "bytes": "int64",
    "container": "string",
    "codec": "string",
    "stream_index": "int32",
    "coded_size": PAIR,
    "display_size": PAIR,
    "rotation": "int32",
    "mirrored": "bool",
    "pixel_aspect_ratio": "string",
    "pixel_format": "string",
    "colour_matrix": "string",
    "colour_range": "string",
    "colour_primaries": "string",
    "colour_transfer": "string",
    "colour_tagged": "string",
    "bit_depth": "int32",
    "hdr": "string",
    "interlaced": "string",
    "alpha": "string",
    "declined": "string",
    "time_base": "string",
    "duration_seconds": "float64",
    "source_fps": "float64",
    "num_packets": "int64",
    "num_frames": "int64",
    "header_frames": "int64",
    "header_seconds": "float64",
    "pts_repaired": "string",
    "num_clips": "int32",
    "num_segments": "int32",
    "num_tokens": "int64",
    "frames_selected": "int64",
    "frames_written": "int64",
    "frames_lost": "int64",
}
"""One row a source, losses or not. frames_selected = frames_written + frames_lost."""

LOSSES = {
    "source": "string",
    "source_root": "int32",
    "source_id": "string",
    "split": "string",
    "clip": "int32",
    "stage": "string",
    "reason": "string",
    "num_frames": "int64",
    "num_tokens": "int64",
    "message": "string",
    "retryable": "bool",
}

PLAN = {
    "task": "int32",
    "order": "int32",
    "split": "string",
    "source": "string",
    "source_root": "int32",
    "source_id": "string",
    "content_id": "string",
    "bytes": "int64",
    "ranges": "string",
    "info": "string",
    "num_selected": "int64",
    "clip": "int32",
    "view": "int32",
    "view_of": "int32",
    "clip_start_pts": "int64",
    "clip_stop_pts": "int64",
    "frame_pts": "list<int64>",
    "frame_indices": "list<int32>",
    "sample_pts": "list<int64>",
    "key_indices": "list<int32>",
    "key_pts": "list<int64>",
    "sampled_fps": "string",
    "scaled": PAIR,
    "size": PAIR,
    "offset": PAIR,
    "tubelet_size": "int32",
    "patch_size": PAIR,
    "grid_thw": PAIR,
    "num_tokens": "int64",
    "num_kept": "int64",
    "drop": "string",
    "num_source_frames": "int32",
    "extra": "string",
    "stage": "string",
    "reason": "string",
    "num_frames_lost": "int64",
    "message": "string",
}
"""One row a clip, in task order; then, with task = -1, one row a loss known before decoding.
`info` is what the probe found, as JSON; `ranges`, on the first row that a source has in a task or
among the losses, what was asked for of it: JSON of [start, stop] of each range."""


@cache
def schema_of(columns: tuple[tuple[str, str], ...]) -> pa.Schema:
    import pyarrow as pa

    types = {
        "string": pa.string(),
        "binary": pa.binary(),
        "bool": pa.bool_(),
        "int32": pa.int32(),
        "uint32": pa.uint32(),
        "int64": pa.int64(),
        "float64": pa.float64(),
        "list<int32>": pa.list_(pa.int32()),
        "list<int64>": pa.list_(pa.int64()),
        "list<float64>": pa.list_(pa.float64()),
    }
    return pa.schema([(name, types[kind]) for name, kind in columns])


def write_table(path: Path, columns: dict[str, str], rows: Iterable[dict[str, Any]]) -> str:
    """Publish rows as Parquet; the same rows give the same bytes.

    Returns:
        The sha256 of the file.
    """
    import pyarrow as pa

    schema = schema_of(tuple(columns.items()))
    return write_batches(path, columns, [pa.Table.from_pylist(list(rows), schema=schema)])


def write_batches(path: Path, columns: dict[str, str], tables: Iterable[pa.Table]) -> str:
    """`write_table` for tables that come one by one, a row group each."""
    import pyarrow.parquet as parquet

    digest = hashlib.sha256()

    def write(file: IO[bytes]) -> None:
        schema = schema_of(tuple(columns.items()))
        hashing = _Hashing(file, digest)
        # No time stands in a list twice: a dictionary of them costs memory and doubles the file.
        repeating = [name for name, kind in columns.items() if not kind.startswith("list")]
        with parquet.ParquetWriter(
            hashing, schema, compression="zstd", use_dictionary=repeating
        ) as writer:
            for table in tables:
                if len(table):
                    writer.write_table(table)

    publish(path, write)
    return digest.hexdigest()


GROUP_ROWS = 1024


def batches_of(columns: dict[str, str], rows: Iterable[dict[str, Any]]) -> Iterator[pa.Table]:
    """Rows that come one by one, for `write_batches`."""
    import pyarrow as pa

    schema, left = schema_of(tuple(columns.items())), iter(rows)
    while group := list(itertools.islice(left, GROUP_ROWS)):
        yield pa.Table.from_pylist(group, schema=schema)


class _Hashing:
    """A file that hashes what is written to it, so that nothing is read back for its checksum."""

    def __init__(self, file: IO[bytes], digest: Any) -> None:
        self._file, self._digest, self.closed = file, digest, False

    def write(self, content: Any) -> int:
        self._digest.update(content)
        return self._file.write(content)

    def tell(self) -> int:
        return self._file.tell()

    def flush(self) -> None:
        self._file.flush()

    def writable(self) -> bool:
        return True

    def close(self) -> None:
        """The file is closed by who opened it."""


def read_table(path: Path, columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """The rows of a table.

    Raises:
        ShardError: it is missing or damaged.
    """
    return read_arrow(path, columns).to_pylist()  # type: ignore[no-any-return]


class ParquetTable:
    """A table of which one row group at a time is in memory; errors as of `read_table`."""

    def __init__(self, path: Path) -> None:
        import pyarrow.parquet as parquet

        self._path = path
        with _reading(path):
            self._file = parquet.ParquetFile(openable(path))
        metadata = self._file.metadata
        counts = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        self._starts = [0, *itertools.accumulate(counts)]
        self._last: tuple[int, pa.Table] | None = None
        """The row group that was read last, and its number."""

    def groups(self, columns: Collection[str]) -> Iterator[pa.Table]:
        """Some columns of each row group in turn."""
        for group in range(len(self._starts) - 1):
            with _reading(self._path):
                yield self._file.read_row_group(group, columns=list(columns))

    def between(self, first: int, stop: int) -> pa.Table:
        """Rows [first, stop)."""
        import pyarrow as pa

        parts = []
        for group in range(bisect_right(self._starts, first) - 1, len(self._starts) - 1):
            start = self._starts[group]
            if start >= stop:
                break
            parts.append(self._group(group)[max(first - start, 0) : stop - start])
        return pa.concat_tables(parts) if parts else self._file.schema_arrow.empty_table()

    def rows_from(self, first: int) -> Iterator[dict[str, Any]]:
        """Row `first` and all after it, by column."""
        while first < self._starts[-1]:
            stop = self._starts[bisect_right(self._starts, first)]
            yield from self.between(first, stop).to_pylist()
            first = stop

    def _group(self, group: int) -> pa.Table:
        if self._last is None or self._last[0] != group:
            with _reading(self._path):
                self._last = group, self._file.read_row_group(group)
        return self._last[1]


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except FileNotFoundError:
        raise ShardError(f"{path}: missing") from None
    except (pa.ArrowException, OSError) as error:
        raise ShardError(f"{path}: cannot be read as Parquet: {_first_line(error)}") from None


def openable(path: Path) -> Any:
    """What pyarrow opens: a path on local disk, or an open file of an object store; errors of the
    store as of `Path.open`."""
    # Absolute: of `run:2/plan.parquet` pyarrow would make a URL.
    return path.open("rb") if is_on_store(path) else path.absolute()


def read_arrow(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """A table as pyarrow has it; errors as of `read_table`."""
    import pyarrow.parquet as parquet

    with _reading(path):
        return parquet.ParquetFile(openable(path)).read(columns=columns)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
