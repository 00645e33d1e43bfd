"""Remote objects as files: ranges that grow as reading goes on, kept in memory and on disk.

A read in a new place fetches little more than it asks for; one that goes on where bytes that we
have end fetches twice as many as those. So a header costs little, and a video few requests.
"""

from __future__ import annotations

import itertools
import os
import threading
from bisect import bisect_left, bisect_right, insort
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import BinaryIO, cast

from spacepatch.errors import StoreError
from spacepatch.remote.blocks import BLOCK, BlockCache
from spacepatch.remote.errors import NotConfiguredError, explain
from spacepatch.remote.ranges import RangeFile
from spacepatch.remote.stores import Stat, fetch, stat
from spacepatch.remote.urls import is_url

LEAST, MOST = 8 * 1024, 4 * 1024**2
"""Bytes of a request in a new place, and of one far into a long read."""
MEMORY = 24 * 1024**2
"""Bytes of objects that a process remembers: one after the other asks for the same header."""
VARIABLES = ("AWS_", "AZURE_", "FSSPEC_", "GOOGLE_", "GCSFS_", "HF_", "STORAGE_EMULATOR_HOST")
"""How the names of the ecosystem's variables begin."""
MAX_STATS = 4096
"""Objects whose size and version a process remembers."""


def configure(
    cache_dir: str | None, cache_bytes: int, variables: Mapping[str, str] | None = None
) -> None:
    """Where this process keeps blocks of remote objects, and how many bytes (0: nowhere).

    Args:
        variables: of another process's environment, see `store_variables`.
    """
    global _cache
    os.environ.update(variables or {})
    folder = Path(cache_dir) if cache_dir else default_folder()
    _cache = BlockCache(folder / "blocks", cache_bytes) if cache_bytes and folder else None


def store_variables() -> dict[str, str]:
    """What this environment says of stores. Workers are forked from a process that may have been
    started before it was said."""
    return {name: value for name, value in os.environ.items() if name.startswith(VARIABLES)}


def check_credentials(uris: Iterable[str]) -> None:
    """Raise a StoreError where this process lacks those for the first one that is at a URL."""
    for url in filter(is_url, uris):
        try:
            size_of(url)
        except NotConfiguredError as error:
            raise StoreError(explain(url, error)) from None
        except OSError:
            pass  # it may be this one alone
        return


def default_folder() -> Path | None:
    """In the user's folder for caches; None: there is no such user."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "spacepatch"
    except RuntimeError:
        return None


def open_source(uri: str | Path, *, anew: bool = False) -> BinaryIO:
    """A source as a binary file that can seek; an object as it was when this process last asked
    for its size.

    Args:
        anew: as it is now.

    Raises:
        OSError: it is not there, or cannot be read; as reading from it does.
    """
    if not is_url(str(uri)):
        return Path(uri).open("rb")
    found = _memory.stat(str(uri), anew)
    return cast(BinaryIO, RangeFile(found.size, partial(_memory.read, str(uri), found)))


def size_of(uri: str) -> int:
    """Bytes that the file or object has now.

    Raises:
        OSError: it is not there, or cannot be asked.
    """
    return _memory.stat(uri, anew=True).size if is_url(uri) else Path(uri).stat().st_size


_Key = tuple[str, int, str]


class _Memory:
    """What this process knows of remote objects: sizes, and bytes in extents."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stats: OrderedDict[str, Stat] = OrderedDict()
        self._extents: OrderedDict[tuple[_Key, int], bytes] = OrderedDict()
        self._starts: dict[_Key, list[int]] = {}
        self._num_bytes = 0
        self._unnamed = itertools.count()

    def stat(self, url: str, anew: bool) -> Stat:
        with self._lock:
            known = self._stats.get(url)
        if known is not None and not anew:
            return known
        found = stat(url)
        if not found.version:
            # Nobody can tell whether it is the one of before: nothing of that is used.
            found = Stat(found.size, f"?{next(self._unnamed)}")
        with self._lock:
            self._stats[url] = found
            self._stats.move_to_end(url)
            while len(self._stats) > MAX_STATS:
                self._stats.popitem(last=False)
        return found

    def read(self, url: str, found: Stat, start: int, stop: int) -> bytes:
        """Bytes [start, stop) of one version of an object."""
        parts = []
        while start < stop:
            first, content = self._at(url, found, start, stop)
            parts.append(content[start - first : stop - first])
            start += len(parts[-1])
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _at(self, url: str, found: Stat, position: int, stop: int) -> tuple[int, bytes]:
        """(start, bytes) of an extent that holds `position`, fetched if need be."""
        key = url, found.size, found.version
        extent = self._find(key, position) or self._from_disk(key, position)
        if extent is not None:
            return extent
        first, last = self._range(key, position, stop)
        content = fetch(url, first, last)
        self._add(key, first, content)
        if _cache is not None and not found.version.startswith("?"):
            for number in range(first // BLOCK, -(-last // BLOCK)):
                self._to_disk(_cache, key, number)
        return first, content

    def _range(self, key: _Key, position: int, stop: int) -> tuple[int, int]:
        """What is to be fetched where bytes [position, stop) are wanted."""
        size = key[1]
        if size <= BLOCK:
            return 0, size  # one request, where the beginning and the end would be two
        before = self._find(key, position - 1)
        length = max(LEAST, stop - position)
        if before is not None:
            length = min(MOST, max(length, 2 * len(before[1])))
        end = position + length
        if length >= BLOCK:
            end = -(-end // BLOCK) * BLOCK
        end = min(end, size)
        with self._lock:
            starts = self._starts.get(key, [])
            place = bisect_right(starts, position)
            if place < len(starts):
                end = min(end, starts[place])
        if _cache is not None:
            for number in range(position // BLOCK + 1, -(-end // BLOCK)):
                if _cache.path(*key, number).exists():
                    return position, number * BLOCK
        return position, end

    def _find(self, key: _Key, position: int) -> tuple[int, bytes] | None:
        with self._lock:
            starts = self._starts.get(key, [])
            place = bisect_right(starts, position) - 1
            if place < 0:
                return None
            start = starts[place]
            content = self._extents[key, start]
            if position >= start + len(content):
                return None
            self._extents.move_to_end((key, start))
            return start, content

    def _add(self, key: _Key, start: int, content: bytes) -> None:
        with self._lock:
            starts = self._starts.setdefault(key, [])
            first = bisect_left(starts, start)
            if (key, start) in self._extents and len(self._extents[key, start]) > len(content):
                return  # another thread was faster
            # What lies inside goes: so the extent that begins last before a place holds it, or
            # none does.
            while first < len(starts) and starts[first] + len(
                self._extents[key, starts[first]]
            ) <= start + len(content):
                self._forget(key, starts[first])
            insort(starts, start)
            self._extents[key, start] = content
            self._num_bytes += len(content)
            self._starts[key] = starts
            while self._num_bytes > MEMORY and len(self._extents) > 1:
                self._forget(*next(iter(self._extents)))

    def _forget(self, key: _Key, start: int) -> None:
        self._num_bytes -= len(self._extents.pop((key, start)))
        starts = self._starts[key]
        starts.remove(start)
        if not starts:
            del self._starts[key]

    def _from_disk(self, key: _Key, position: int) -> tuple[int, bytes] | None:
        if _cache is None:
            return None
        first = position // BLOCK * BLOCK
        path = _cache.path(*key, position // BLOCK)
        content = _cache.get(path, min(BLOCK, key[1] - first))
        if content is None:
            return None
        self._add(key, first, content)
        return first, content

    def _to_disk(self, cache: BlockCache, key: _Key, number: int) -> None:
        """Keep a block of which all bytes are there."""
        place, stop = number * BLOCK, min((number + 1) * BLOCK, key[1])
        parts = []
        while place < stop:
            extent = self._find(key, place)
            if extent is None:
                return
            start, content = extent
            parts.append(content[place - start : stop - start])
            place += len(parts[-1])
        cache.put(cache.path(*key, number), b"".join(parts))


_cache: BlockCache | None = None
_memory = _Memory()
