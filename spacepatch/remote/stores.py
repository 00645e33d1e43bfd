"""Ask a store, with patience: only here file systems of fsspec are made and requests repeated.

Each process makes file systems of its own: fsspec keeps them by process, and nothing of ours holds
one.
"""

from __future__ import annotations

import errno
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from spacepatch.errors import SpacepatchError
from spacepatch.extras import needed
from spacepatch.remote.errors import AnswerError, let_go, told
from spacepatch.remote.urls import PACKAGES, is_web, protocol_of

WAITS = (0.5, 1, 2, 4, 8)
"""Seconds before each repetition of a request, times 0.5 to 1.5; beside those of each library,
which do not know all: bodies that are too short, for example."""
FINAL = (errno.ENOENT, errno.EEXIST, errno.EACCES, errno.EINVAL, errno.EOPNOTSUPP)
"""Of the errors of `told`, those that no repetition mends."""
SILENT = (errno.EHOSTUNREACH, errno.ETIMEDOUT)
"""Those that are no answer."""
OURS = (AssertionError, NameError, NotImplementedError, TypeError)
"""Mistakes in programs. A KeyError, say, is what libraries raise at an odd answer."""

VERSION_KEYS = (
    "ETag", "etag", "md5Hash", "generation", "blob_id", "xet_hash", "Content-MD5", "Digest",
    "LastModified", "Last-Modified", "updated", "modified", "mtime", "created", "last_modified",
)  # fmt: skip
"""What stores call the mark by which one version of an object differs from the next."""

_answered: set[str] = set()
"""Buckets and servers of which this process has had an answer."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Stat:
    """What a store says of an object."""

    size: int
    """Bytes."""
    version: str
    """Differs from that of the same URL with other content; empty where the store has none."""


def ask(url: str, request: Callable[[Any, str], T]) -> T:
    """What a request answers, after several tries where the store is busy or the line breaks.

    Args:
        request: of the file system of fsspec for this URL, and the path in it.

    Raises:
        FileNotFoundError, FileExistsError, PermissionError, OSError: as `told` says it.
        MissingDependencyError: fsspec, or what it needs for this protocol, is not installed.
    """
    server = "/".join(url.split("/", 3)[:3])
    for number, wait in enumerate((*WAITS, None)):
        try:
            answer = request(*_filesystem(url))
            _answered.add(server)
            return answer
        except (*OURS, SpacepatchError):
            raise
        except Exception as error:
            let_go(error)
            found = told(error, url)
            if found.errno not in SILENT:
                _answered.add(server)
            # A wrong endpoint is told within seconds.
            is_nowhere = number > 0 and server not in _answered
            if wait is None or is_nowhere or found.errno in FINAL:
                raise found from (None if found is error or is_web(url) else error)
        time.sleep(wait * random.uniform(0.5, 1.5))
    raise AssertionError("the last try returns or raises")


def kind_of_store(url: str) -> Any:
    """The class of fsspec's file systems for a URL.

    Raises:
        MissingDependencyError: as of `ask`.
    """
    protocol = protocol_of(url)
    fsspec = needed("fsspec", "fsspec", by=f"{protocol}://", extra="remote")
    try:
        return fsspec.get_filesystem_class(protocol)
    except ImportError:
        needed(PACKAGES[protocol], PACKAGES[protocol], by=f"{protocol}://")
        raise


def _filesystem(url: str) -> tuple[Any, str]:
    kind = kind_of_store(url)
    if is_web(url):
        from spacepatch.remote.web import web_filesystem

        return web_filesystem(url), url
    # What was listed before says nothing of what is there now.
    return kind(use_listings_cache=False), kind._strip_protocol(url)


def stat(url: str) -> Stat:
    """Size and version of an object.

    Raises:
        OSError: as of `ask`.
    """

    def look(fs: Any, path: str) -> Stat:
        info = fs.info(path)
        size = info.get("size")
        if size is None or info.get("type") == "directory":
            raise AnswerError(errno.EINVAL, "the store does not tell its size")
        marks = [f"{key}={info[key]}" for key in VERSION_KEYS if info.get(key)]
        return Stat(int(size), " ".join(marks))

    return ask(url, look)


def fetch(url: str, start: int, stop: int) -> bytes:
    """Bytes [start, stop) of an object, all of them.

    Raises:
        OSError: as of `ask`.
    """

    def read(fs: Any, path: str) -> bytes:
        content: bytes = fs.cat_file(path, start=start, end=stop) if stop > start else b""
        if len(content) != stop - start:
            raise AnswerError(errno.EIO, f"{len(content)} bytes came of {stop - start}")
        return content

    return ask(url, read)
