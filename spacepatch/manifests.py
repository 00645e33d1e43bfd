"""Read lists and manifests: rows, the times in them, and where they may lead."""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import json
import re
import tarfile
from array import array
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from spacepatch.data import ClipRange
from spacepatch.errors import ConfigError
from spacepatch.metadata import jsonable
from spacepatch.remote import is_url, open_source, shown
from spacepatch.remote.urls import below, check_url, folder_of, is_web, name_in
from spacepatch.remote.web import refuse_private

EXTENSIONS = ("csv", "jsonl", "parquet")
"""Of files that are manifests by their name."""

RESERVED_COLUMNS = ("uri", "start", "end")
"""Manifest columns that we read; every other one travels to the segment (`id` included)."""


@dataclass(frozen=True, slots=True)
class ListBase:
    """What the paths in lists are relative to, and whether they may lead to web servers."""

    root: Path | str | None
    """Given by the user: a folder, or the URL of one; None: where the list lies."""
    allow_network: bool

    @classmethod
    def of(cls, root: Path | str | None, allow_network: bool) -> ListBase:
        if root is None or not is_url(str(root)):
            return cls(None if root is None else Path(root), allow_network)
        try:
            url = check_url(str(root), allow_network=allow_network)
        except ValueError as error:
            raise ConfigError(f"--root {error}") from None
        return cls(f"{url.rstrip('/')}/" if is_url(url) else Path(url), allow_network)

    def find(self, uri: str, where: Path | str) -> tuple[Path | str, str]:
        """(path or URL, name) of what a list at `where` names.

        Raises:
            ValueError: it lies where this list must not lead to.
        """
        root = self.root or (folder_of(where) if isinstance(where, str) else where.parent)
        if isinstance(root, str):
            return below(uri, root)
        if not is_url(uri):
            return _below(uri, root)
        if isinstance(where, str):
            raise ValueError(f"{shown(uri)} lies outside {root}; say where with --root")
        # A list of the user's own may lead to any store.
        url = check_url(uri, allow_network=self.allow_network)
        if is_web(url):
            refuse_private(url)
        return (url, shown(url)) if is_url(url) else _below(url, root)


@contextmanager
def blaming(where: str) -> Iterator[None]:
    """What is wrong with a line, a row or a tar becomes an error that says which one it is."""
    try:
        yield
    except (ValueError, csv.Error, tarfile.TarError, OSError) as error:
        raise ConfigError(f"{where}: {error}") from None


def manifest_entries(path: Path | str) -> Iterator[tuple[str, list[ClipRange], int]]:
    """What a manifest at a path or URL asks for: of each uri its ranges, in the order of the rows,
    and the number of its first row; in the order of first mention.

    It is read twice, so that of most no more than a row is in memory: 8 bytes of each stay there,
    and the ranges of those uris whose rows do not follow each other.

    Raises:
        ConfigError: a row cannot be read, or asks for what another one did.
    """
    keys = array("Q", (_key(uri) for uri, _, _ in _ranges(path)))
    scattered = _scattered(np.frombuffer(keys, np.uint64))
    collected: dict[str, list[tuple[ClipRange, int]]] = defaultdict(list)
    for uri, asked, number in _ranges(path) if scattered else ():
        if _key(uri) in scattered:
            collected[uri].append((asked, number))
    mentioned: set[str] = set()
    for uri, group in itertools.groupby(_ranges(path), key=lambda row: row[0]):
        if uri in mentioned:
            continue
        if uri in collected:
            mentioned.add(uri)
        rows = collected.get(uri) or [(asked, number) for _, asked, number in group]
        seen: set[tuple[Fraction, Fraction | None]] = set()
        for asked, number in rows:
            span = asked.start_seconds or Fraction(0), asked.stop_seconds
            if span in seen:
                where = f"{shown(str(path))}: row {number}"
                raise ConfigError(f"{where}: repeats the range of an earlier row of {shown(uri)}")
            seen.add(span)
        yield uri, [asked for asked, _ in rows], rows[0][1]


def _ranges(path: Path | str) -> Iterator[tuple[str, ClipRange, int]]:
    """(uri, range, number) of each row."""
    rows = _rows(path)
    for number in itertools.count(1):
        with blaming(f"{shown(str(path))}: row {number}"):
            row = next(rows, None)
            if row is None:
                return
            uri = row.get("uri")
            if not uri or not isinstance(uri, str):
                raise ValueError(f"has no uri; columns are {', '.join(row)}")
            start, stop = parse_seconds(row, "start"), parse_seconds(row, "end")
            if stop is not None and stop <= (start or 0):
                raise ValueError(f"end {row['end']} is not after {row.get('start') or 0}")
            extra = {key: value for key, value in row.items() if key not in RESERVED_COLUMNS}
            asked = ClipRange(start, stop, jsonable(extra))
        yield uri, asked, number


def _key(uri: str) -> int:
    content = uri.encode(errors="surrogatepass")
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big")


def _scattered(keys: np.ndarray) -> frozenset[int]:
    """Those that occur again after others."""
    groups = keys[np.flatnonzero(np.diff(keys, prepend=~keys[:1]) != 0)]
    ordered = np.sort(groups)
    return frozenset(ordered[1:][ordered[1:] == ordered[:-1]].tolist())


def _rows(path: Path | str) -> Iterator[dict[str, Any]]:
    """By column.

    Raises:
        ValueError, csv.Error, OSError: the next row cannot be read.
    """
    kind = PurePosixPath(name_in(path) if isinstance(path, str) else path).suffix.lower()
    raw = open_source(path, anew=True)
    if kind == ".csv":
        with io.TextIOWrapper(raw, "utf-8-sig", newline="") as file:
            for row in csv.DictReader(file):
                if None in row:
                    raise ValueError("more cells than the header has; quote commas")
                yield row
    elif kind == ".jsonl":
        # Lines end at \n alone: U+2028 may be part of a caption.
        with io.TextIOWrapper(raw, "utf-8-sig", newline="\n") as file:
            for line in filter(str.strip, file):
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError("no JSON object")
                yield row
    else:
        import pyarrow.parquet as parquet

        with raw:
            for batch in parquet.ParquetFile(raw).iter_batches():
                yield from batch.to_pylist()


def parse_seconds(row: dict[str, Any], column: str) -> Fraction | None:
    """`3.5`, `90` or `1:02:03.5` to seconds; None where empty."""
    value = row.get(column)
    if value is None or value == "" or value != value:  # NaN of a parquet column
        return None
    number = r"(?:\d{1,9}(?:\.\d*)?|\.\d+)(?:e[+-]?\d\d?)?"
    clock = rf"(?:(?:(\d{{1,9}}):)?(\d{{1,9}}):)?({number})"
    match = re.fullmatch(clock, str(value).strip().lower())
    if match is None:
        raise ValueError(f"{column} {value!r} is no time; write seconds or H:MM:SS")
    hours, minutes, seconds = match.groups("0")
    return (int(hours) * 60 + int(minutes)) * 60 + Fraction(seconds)


def _below(uri: str, root: Path) -> tuple[Path, str]:
    """A path that a list names, resolved, and its name; a ValueError outside its root."""
    base = root.resolve()
    try:
        path = (base / uri).resolve()
    except ValueError:  # NUL, or half a surrogate pair
        path = None
    if path is None:
        raise ValueError(f"{uri!r} is no local path")
    if not path.is_relative_to(base):
        raise ValueError(f"{uri} lies outside {base}; say where the files lie with --root")
    return path, path.relative_to(base).as_posix()
