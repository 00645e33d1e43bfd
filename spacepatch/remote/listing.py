"""What lies at a URL: an object, or the objects below a prefix, by the rules of local folders."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cache
from glob import has_magic
from typing import Any

from spacepatch.data import Source
from spacepatch.errors import ConfigError
from spacepatch.remote.reading import size_of
from spacepatch.remote.stores import NotConfiguredError, explain, filesystem, patiently
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
    place, path = filesystem(url)
    try:
        info = patiently(lambda: place.info(path), url)
    except FileNotFoundError as error:
        if has_magic(path_of(url)) and not is_web(url):
            return "glob"
        raise explain(url, error) from None
    except OSError as error:
        raise explain(url, error) from None
    if info["type"] == "directory":
        return "folder"
    if is_web(url) and url.endswith("/"):
        raise ConfigError(f"{shown(url)}: a web server has no folders; name its files in a list")
    return "file"


def objects_below(url: str, is_wanted: Callable[[str], bool]) -> tuple[list[Entry], int]:
    """The objects below a folder whose names are wanted, in any order, and how many are left out:
    a hidden folder counts as one, of which none is wanted.

    Raises:
        ConfigError: the store does not list them.
    """
    found, left_out = [], set()
    for entry in _find(url):
        parts = entry.name.split("/")
        dot = next((n for n, part in enumerate(parts) if part.startswith(".")), len(parts))
        if is_wanted(entry.name):
            found.append(entry)
        else:
            left_out.add("/".join(parts[: dot + 1]))
    return found, len(left_out)


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
    place, path = filesystem(url)
    path = path.rstrip("/")
    try:
        found: dict[str, dict[str, Any]] = patiently(
            lambda: place.find(path, maxdepth=depth, detail=True), url
        )
    except OSError as error:
        raise explain(url, error) from None
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

    def ask(url: str) -> int | None:
        try:
            return size_of(url)
        except FileNotFoundError:
            return None
        except NotConfiguredError as error:
            raise explain(url, error) from None
        except OSError:
            return 0

    if not urls:
        return
    with ThreadPoolExecutor(ASKED_AT_ONCE) as threads:
        yield from threads.map(ask, urls)


def reachable(sources: Iterable[Source]) -> tuple[Source, ...]:
    """The same sources, those at ``memory://`` as files: workers do not share our memory."""

    @cache
    def copy(url: str) -> str:
        place, path = filesystem(url)
        with tempfile.NamedTemporaryFile(dir=_folder().name, delete=False) as file:
            file.write(place.cat_file(path))
        return file.name

    return tuple(
        replace(source, uri=copy(source.uri))
        if is_url(source.uri) and protocol_of(source.uri) == "memory"
        else source
        for source in sources
    )


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    """Gone at the end of this process."""
    return tempfile.TemporaryDirectory(prefix="spacepatch-memory-")
