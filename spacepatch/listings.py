"""Sources in order, in memory while they are few and on disk once they are many."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
import weakref
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any, overload

import numpy as np

from spacepatch.data import ClipRange, Source

GROUP = 1024
"""Sources that are written, and read, together."""
MOST_IN_MEMORY = 16 * GROUP
"""Some 10 MB of them."""
NAMED_IGNORED = 5
"""Of files that are passed over, the first ones are named."""


class SourceTable(Sequence[Source]):
    """An immutable sequence of sources that may be ten million: of each it keeps 8 bytes in memory.

    Beyond `MOST_IN_MEMORY` they lie in an unlinked file of the folder for temporary files
    (`TMPDIR`), some 300 bytes each.

    Raises:
        OSError: that folder has no room.
    """

    def __init__(self, sources: Iterable[Source] = ()) -> None:
        self._keys = array("Q")
        self._held: list[Source] = []
        """Those that are not in the file; all of them where there is none."""
        self._file: int | None = None
        self._borders = array("q", [0])
        """Of the groups in the file: where each begins, and where the last one ends."""
        for source in sources:
            self._keys.append(key_of(source.source_id))
            self._held.append(source)
            if len(self._held) >= (MOST_IN_MEMORY if self._file is None else GROUP):
                self._spill()
        self._places: np.ndarray | None = None
        self._read_group = lru_cache(maxsize=4)(self._read_group_anew)

    def __len__(self) -> int:
        return len(self._keys)

    @overload
    def __getitem__(self, place: int) -> Source: ...
    @overload
    def __getitem__(self, place: slice) -> tuple[Source, ...]: ...
    def __getitem__(self, place: int | slice) -> Source | tuple[Source, ...]:
        if isinstance(place, slice):
            return tuple(self[each] for each in range(*place.indices(len(self))))
        if not -len(self) <= place < len(self):
            raise IndexError(place)
        group, own = divmod(place % len(self), GROUP)
        if group < len(self._borders) - 1:
            return self._read_group(group)[own]
        return self._held[place % len(self) - (len(self._borders) - 1) * GROUP]

    def __iter__(self) -> Iterator[Source]:
        for group in range(len(self._borders) - 1):
            yield from self._read_group_anew(group)
        yield from self._held

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(map(lambda a, b: a == b, self, other))

    __hash__ = None  # type: ignore[assignment]

    @property
    def keys(self) -> np.ndarray:
        """(n,) uint64: the first 8 bytes of each source's id."""
        return np.frombuffer(self._keys, np.uint64)

    def find(self, source_id: str) -> Source | None:
        """The source of that id; None: it is not among them."""
        if self._places is None:
            # In the order of their keys; 8 bytes each.
            self._places = np.argsort(self.keys, kind="stable")
        key = np.uint64(key_of(source_id))
        place = int(np.searchsorted(self.keys, key, sorter=self._places))
        while place < len(self) and self.keys[self._places[place]] == key:
            found = self[int(self._places[place])]
            if found.source_id == source_id:
                return found
            place += 1
        return None

    def _spill(self) -> None:
        if self._file is None:
            self._file, path = tempfile.mkstemp(prefix="spacepatch-sources-")
            weakref.finalize(self, os.close, self._file)
            Path(path).unlink()
        try:
            for first in range(0, len(self._held), GROUP):
                rows = [_values_of(source) for source in self._held[first : first + GROUP]]
                content = json.dumps(rows).encode()
                while content:
                    written = os.write(self._file, content)
                    content = content[written:]
                self._borders.append(os.lseek(self._file, 0, os.SEEK_CUR))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise OSError(
                error.errno,
                "no room for the list of the sources; set TMPDIR to a folder with some",
                tempfile.gettempdir(),
            ) from None
        self._held = []

    def _read_group_anew(self, group: int) -> list[Source]:
        assert self._file is not None, "there are groups"
        first, stop = self._borders[group : group + 2]
        # At most 2 GB come at a time: a manifest may say much of a source.
        content = b""
        while len(content) < stop - first:
            content += os.pread(self._file, stop - first - len(content), first + len(content))
        return [_source_of(values) for values in json.loads(content)]


@dataclass(frozen=True, slots=True)
class Listing:
    """What the SOURCE arguments name."""

    sources: SourceTable
    num_ignored: int
    """Files and members that are hidden, no media by name or not regular; a hidden or linked folder
    is one. What says something of a tar's video is none."""
    missing: SourceTable = field(default_factory=SourceTable)
    """What a list or manifest names, or a folder holds, and cannot be read: losses, not errors."""
    ignored: tuple[str, ...] = ()
    """Names of the first few files that are ignored; none of members of tars."""

    def __len__(self) -> int:
        return len(self.sources) + len(self.missing)

    def find(self, source_id: str) -> Source | None:
        """The source of that id, missing or not; None: it is not among them."""
        return self.sources.find(source_id) or self.missing.find(source_id)

    def inputs(self) -> str:
        """A fingerprint of the names, ranges and columns of all sources, in whatever order: what a
        manifest can change."""
        total = 0
        for table in (self.sources, self.missing):
            for source in table:
                content = json.dumps([source.source_id, _ranges_of(source)], sort_keys=True)
                digest = hashlib.blake2b(content.encode(), digest_size=32).digest()
                total += int.from_bytes(digest, "big")
        return f"{total % 2**256:064x}"


@dataclass(slots=True)
class Tally:
    """What is counted while sources are listed."""

    num_ignored: int = 0
    ignored: list[str] = field(default_factory=list)
    """Names of the first few."""
    num_missing: int = 0

    def ignore(self, name: str) -> None:
        """Pass over a file, or a folder with all that is in it."""
        self.num_ignored += 1
        if len(self.ignored) < NAMED_IGNORED:
            self.ignored.append(name)


def key_of(source_id: str) -> int:
    """Its first 8 bytes, as a number: of ten million no two are likely to be alike."""
    return int(source_id[:16], 16)


def _ranges_of(source: Source) -> list[list[Any]]:
    return [
        [
            None if asked.start_seconds is None else str(asked.start_seconds),
            None if asked.stop_seconds is None else str(asked.stop_seconds),
            asked.extra,
        ]
        for asked in source.ranges
    ]


def _values_of(source: Source) -> list[Any]:
    """Its fields, as JSON has them."""
    return [
        _ranges_of(source) if name == "ranges" else getattr(source, name)
        for name in Source.__dataclass_fields__
    ]


def _source_of(values: list[Any]) -> Source:
    fields = dict(zip(Source.__dataclass_fields__, values, strict=True))
    fields["ranges"] = tuple(
        ClipRange(
            None if start is None else Fraction(start), None if stop is None else Fraction(stop), x
        )
        for start, stop, x in fields["ranges"]
    )
    return Source(**fields)
