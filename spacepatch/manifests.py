"""Read lists and manifests: rows, the times in them, and where they may lead."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import Any

from spacepatch.errors import ConfigError
from spacepatch.remote import is_url, open_source, shown
from spacepatch.remote.urls import below, check_url, folder_of, is_web, name_in
from spacepatch.remote.web import refuse_private

EXTENSIONS = ("csv", "jsonl", "parquet")
"""Of files that are manifests by their name."""


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


def manifest_rows(path: Path | str) -> Iterator[dict[str, Any]]:
    """The rows of a manifest at a path or URL, by column.

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
