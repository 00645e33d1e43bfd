"""Sort rows by a key: in memory while they are few, by way of the disk once they are many."""

from __future__ import annotations

import tempfile
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa

KEY = "key"
"""The column that rows are sorted by: bytes."""

HELD_BYTES = 2**26
"""Of rows that are sorted in memory; more are written out, sorted, this many at a time."""
BUCKETS = 512
"""Parts that what is on disk is read back in: ten million rows of a plan are 25 MB each."""


def in_order(tables: Iterable[pa.Table], scratch: Path) -> Iterator[pa.Table]:
    """The same rows by their keys, those of equal keys in the order that they came in.

    Args:
        tables: of one schema, with a column `KEY`.
        scratch: a folder for an unlinked file of as many bytes as the rows have.

    Yields:
        Tables; no key is in two of them.

    Raises:
        OSError: `scratch` has no room.
    """
    held: list[pa.Table] = []
    size = 0
    with tempfile.TemporaryFile(prefix="order-", dir=scratch) as file:
        buckets: _Buckets | None = None
        for table in tables:
            held.append(table)
            size += table.nbytes
            if size >= HELD_BYTES:
                rows = _sorted(held)
                buckets = buckets or _Buckets(file, rows)
                buckets.add(rows)
                held, size = [], 0
        if buckets is None:
            if held:
                yield _sorted(held)
            return
        if held:
            buckets.add(_sorted(held))
        held = []
        yield from buckets.read()


class _Buckets:
    """Rows on disk by ranges of their keys, of each range some from each time."""

    def __init__(self, file: IO[bytes], rows: pa.Table) -> None:
        self._file = file
        # Ranges that the first rows fill evenly, which the others then nearly do.
        keys = rows[KEY]
        self._borders = sorted(
            {keys[len(rows) * number // BUCKETS].as_py() for number in range(1, BUCKETS)}
        )
        self._places: dict[int, list[tuple[int, int]]] = defaultdict(list)
        """Of each range, where its parts lie: (offset, bytes)."""

    def add(self, rows: pa.Table) -> None:
        """Take sorted rows."""
        import pyarrow as pa

        options = pa.ipc.IpcWriteOptions(compression="lz4")
        keys = rows[KEY].to_pylist()
        ranges = [bisect_right(self._borders, key) for key in keys]
        changes = [place for place, (one, two) in enumerate(pairwise(ranges), 1) if one != two]
        for first, stop in pairwise([0, *changes, len(rows)]):
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, rows.schema, options=options) as writer:
                writer.write_table(rows[first:stop])
            content = sink.getvalue()
            self._places[ranges[first]].append((self._file.tell(), content.size))
            self._file.write(content)

    def read(self) -> Iterator[pa.Table]:
        """The rows of one range after the other."""
        import pyarrow as pa

        for number in sorted(self._places):
            parts = []
            for offset, size in self._places[number]:
                self._file.seek(offset)
                parts.append(pa.ipc.open_stream(self._file.read(size)).read_all())
            yield _sorted(parts)


def _sorted(tables: Sequence[pa.Table]) -> pa.Table:
    import pyarrow as pa
    import pyarrow.compute as pc

    table = pa.concat_tables(tables)
    # Stable, as pyarrow says.
    order = pc.sort_indices(table, sort_keys=[(KEY, "ascending")])
    return table.take(order).combine_chunks()
