"""What lies at a URL: an object, or the objects below a prefix, by the rules of local folders."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cache
from glob import has_magic
from typing import Any

from spacepatch.data import Source
from spacepatch.errors import ConfigError
from spacepatch.listings import Listing, SourceTable
from spacepatch.remote.errors import NotConfiguredError, explain
from spacepatch.remote.reading import size_of
from spacepatch.remote.stores import ask
from spacepatch.remote.urls import is_url, is_web, path_of, protocol_of, shown

ASKED_AT_ONCE = 16
"""Objects of a list whose sizes are asked for side by side."""


@dataclass(frozen=True, slots=True)
class Entry:
    """An object."""

    url: str
    name: str
    """Relative to what was asked for."""
    size: int
    """Bytes."""


def kind_of(url: str) -> str:
    """``file``, ``folder`` or ``glob``.

    Raises:
        ConfigError: there is nothing, or the store does not let us see it.
    """
    if has_magic(url.split("/")[2]) and not is_web(url):
        raise ConfigError(f"{shown(url)}: name one bucket; patterns are for what is inside")
    try:
        info = ask(url, lambda fs, path: fs.info(path))
    except OSError as error:
        is_missing = isinstance(error, FileNotFoundError)
        if is_missing and has_magic(path_of(url)) and not is_web(url):
            return "glob"
        raise ConfigError(explain(url, error)) from None
    if info["type"] == "directory":
        return "folder"
    if is_web(url) and url.endswith("/"):
        raise ConfigError(f"{shown(url)}: a web server has no folders; name its files in a list")
    return "file"


def objects_below(url: str, is_wanted: Callable[[str], bool]) -> tuple[list[Entry], set[str]]:
    """The objects below a folder whose names are wanted, in any order, and the names of the others:
    a hidden folder stands for all in it, of which none is wanted.

    Raises:
        ConfigError: the store does not list them.
    """
    found: list[Entry] = []
    left_out: set[str] = set()
    for entry in _find(url):
        parts = entry.name.split("/")
        dot = next((n for n, part in enumerate(parts) if part.startswith(".")), len(parts))
        if is_wanted(entry.name):
            found.append(entry)
        else:
            left_out.add("/".join(parts[: dot + 1]) + "/" * (dot + 1 < len(parts)))
    return found, left_out


def objects_like(pattern: str) -> Iterator[Entry]:
    """The objects that a pattern matches as `glob.glob(recursive=True)` would; names are relative
    to the part before the first part with magic.

    Raises:
        ConfigError: the store does not list them.
    """
    protocol, _, rest = pattern.partition("://")
    parts = rest.split("/")
    magic = next(index for index, part in enumerate(parts) if has_magic(part))
    wanted = tuple(part for part in parts[magic:] if part)
    depth = None if "**" in wanted else len(wanted)
    for entry in _find(f"{protocol}://{'/'.join(parts[:magic])}", depth):
        if _matches(tuple(entry.name.split("/")), wanted):
            yield entry


def _find(url: str, depth: int | None = None) -> Iterator[Entry]:
    def find(fs: Any, path: str) -> tuple[str, dict[str, dict[str, Any]]]:
        path = path.rstrip("/")
        return path, fs.find(path, maxdepth=depth, detail=True)

    try:
        path, found = ask(url, find)
    except OSError as error:
        raise ConfigError(explain(url, error)) from None
    base = url.rstrip("/")
    for key, info in found.items():
        name = key[len(path) :].lstrip("/")
        # Consoles make an empty object for a folder.
        if info["type"] == "file" and name and not key.endswith("/"):
            yield Entry(f"{base}/{name}", name, int(info["size"]))


def _matches(parts: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    """Hidden parts are matched by what begins with a dot only; ``**`` is any number of others."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        if _matches(parts, pattern[1:]):
            return True
        is_seen = bool(parts) and not parts[0].startswith(".")
        return is_seen and _matches(parts[1:], pattern)
    if not parts or (parts[0].startswith(".") and not pattern[0].startswith(".")):
        return False
    return fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


def sizes_of(urls: Sequence[str]) -> Iterator[int | None]:
    """Bytes of each object, in their order; None: there is none. 0 where the store did not say
    now: a probe finds out why, and that loss can be retried.

    Raises:
        ConfigError: nobody said who we are; it will be the same for each.
    """

    def size(url: str) -> int | None:
        try:
            return size_of(url)
        except FileNotFoundError:
            return None
        except NotConfiguredError as error:
            raise ConfigError(explain(url, error)) from None
        except OSError:
            return 0

    if not urls:
        return
    with ThreadPoolExecutor(ASKED_AT_ONCE) as threads:
        yield from threads.map(size, urls)


def reachable(listing: Listing) -> Listing:
    """The same, with the objects of ``memory://`` as files: workers do not share our memory."""

    def is_own(source: Source) -> bool:
        return is_url(source.uri) and protocol_of(source.uri) == "memory"

    if not any(map(is_own, listing.sources)):
        return listing

    @cache
    def copy(url: str) -> str:
        with tempfile.NamedTemporaryFile(dir=_folder().name, delete=False) as file:
            file.write(ask(url, lambda fs, path: fs.cat_file(path)))
        return file.name

    copies = (
        replace(source, uri=copy(source.uri)) if is_own(source) else source
        for source in listing.sources
    )
    return replace(listing, sources=SourceTable(copies))


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    """Gone at the end of this process."""
    return tempfile.TemporaryDirectory(prefix="spacepatch-memory-")
