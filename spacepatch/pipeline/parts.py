"""Sources probed in parts, each of which is kept: a plan that was interrupted goes on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spacepatch.data import RETRYABLE_REASONS, Source
from spacepatch.errors import ShardError
from spacepatch.listings import key_of
from spacepatch.pipeline.sorting import KEY
from spacepatch.shards import PLAN
from spacepatch.shards.tables import read_arrow, schema_of, write_batches
from spacepatch.storage import is_on_store, remove, sizes_in

if TYPE_CHECKING:
    import pyarrow as pa

PART_COLUMNS = {**PLAN, KEY: "binary", "pixel_bytes": "int64"}
"""Of a clip or a loss that has no place among the tasks yet."""

MEAN_SOURCES, MOST_SOURCES = 512, 2048
"""Of a part."""

Row = dict[str, Any]


@dataclass(slots=True)
class Part:
    """Consecutive sources; where a part ends depends on the sources themselves, so that one more
    or less of them changes no part but its own."""

    name: str
    sources: list[Source]
    rows: dict[int, list[Row]] = field(default_factory=dict)
    """Of each of its sources, once that is probed."""

    @property
    def is_whole(self) -> bool:
        return len(self.rows) == len(self.sources)


def cut_into_parts(sources: Iterable[Source], *, settings: str) -> Iterator[Part]:
    """Parts whose names say what is in them.

    Args:
        settings: a fingerprint of what else their rows depend on.
    """
    part: list[Source] = []
    digest = hashlib.blake2b(settings.encode(), digest_size=16)
    for source in sources:
        part.append(source)
        digest.update(repr(source).encode(errors="surrogatepass"))
        if key_of(source.source_id) % MEAN_SOURCES == 0 or len(part) == MOST_SOURCES:
            yield Part(digest.hexdigest(), part)
            part, digest = [], hashlib.blake2b(settings.encode(), digest_size=16)
    if part:
        yield Part(digest.hexdigest(), part)


class PartFiles:
    """Parts on disk, in a folder that holds nothing else."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        if not is_on_store(folder):
            folder.mkdir(parents=True, exist_ok=True)
        names = set(sizes_in(folder))
        # What was lost to the environment may be found now.
        remove(sorted(folder / name for name in names if name.endswith(ONCE)))
        self._kept = {name.removesuffix(KEPT) for name in names if not name.endswith(ONCE)}

    def has(self, name: str) -> bool:
        """Whether a start before this one has kept a part, and the disk has kept it whole."""
        if name not in self._kept:
            return False
        try:
            self.read(name)
        except ShardError:
            self._kept.remove(name)
        return name in self._kept

    def write(self, part: Part) -> None:
        """Keep what was found in a whole part; a later start probes again what may end better."""
        import pyarrow as pa

        rows = [row for place in range(len(part.sources)) for row in part.rows[place]]
        again = any(row.get("reason") in RETRYABLE_REASONS for row in rows)
        table = pa.Table.from_pylist(rows, schema=schema_of(tuple(PART_COLUMNS.items())))
        write_batches(self._path(part.name, again), PART_COLUMNS, [table])
        if not again:
            self._kept.add(part.name)

    def read(self, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        """The rows of a part; errors as of `read_table`."""
        return read_arrow(self._path(name, name not in self._kept), columns)

    def _path(self, name: str, is_once: bool) -> Path:
        return self._folder / f"{name}{ONCE if is_once else KEPT}"


def clips_among(rows: pa.Table) -> pa.Table:
    """Of the rows of a part those of clips."""
    import pyarrow.compute as pc

    return rows.filter(pc.is_null(rows["reason"]))


def losses_among(rows: pa.Table) -> pa.Table:
    """Of the rows of a part those of losses, as they stand in the plan."""
    import pyarrow.compute as pc

    return rows.filter(pc.is_valid(rows["reason"])).select(list(PLAN))


KEPT, ONCE = ".parquet", ".once.parquet"
"""Endings of parts that a later start goes on with, and of those that it probes again."""
