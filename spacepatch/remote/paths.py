"""Paths on object stores: what is asked of a `Path` here, of an object."""

from __future__ import annotations

import errno
import io
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from upath.extensions import ProxyUPath

from spacepatch.errors import ConfigError, SpacepatchError, StoreError
from spacepatch.remote.errors import explain
from spacepatch.remote.ranges import RangeFile
from spacepatch.remote.stores import ask, fetch, kind_of_store
from spacepatch.remote.urls import check_folder

READ_BYTES = 8 << 20
"""Of a request, where a file is read from front to back."""

T = TypeVar("T")


def open_store(url: str, *, writes: bool) -> StorePath:
    """The path of a URL; nothing is asked of the store yet.

    Raises:
        ConfigError: there is no such kind of store, or it cannot be written.
        MissingDependencyError: a package for it is not installed.
    """
    try:
        url = check_folder(url, writes=writes)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    kind_of_store(url)
    return StorePath(url)


class StorePath(ProxyUPath):
    """A path of which requests are repeated where that may help; see `spacepatch.remote.stores`.

    Listings are not cached: what another process wrote is seen.
    """

    def ask(self, request: Callable[[Any, str], T]) -> T:
        """What a request to its file system of fsspec answers, of its path there.

        Raises:
            FileNotFoundError, FileExistsError: as the store says.
            StoreError: it denies the request, or does not answer.
        """
        with _explained(self):
            return ask(str(self), request)

    def details(self) -> dict[str, Any]:
        """What the store says of it: `size` and `type`, and checksums where it has them."""
        found: dict[str, Any] = self.ask(lambda fs, path: fs.info(path))
        return found

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        """With the size alone."""
        found = self.details()
        if found["type"] != "file":
            raise FileNotFoundError(errno.ENOENT, "is no object", str(self))
        return os.stat_result((0, 0, 0, 0, 0, 0, int(found["size"]), 0, 0, 0))

    def exists(self, *, follow_symlinks: bool = True) -> bool:
        return self._kind() is not None

    def is_file(self) -> bool:
        return self._kind() == "file"

    def is_dir(self) -> bool:
        return self._kind() == "directory"

    def sizes(self) -> dict[str, int]:
        """Of the objects directly below, by name; empty where there are none."""
        try:
            found = self.ask(lambda fs, path: fs.ls(path, detail=True))
        except FileNotFoundError:
            return {}
        return {
            name_of(entry["name"]): int(entry["size"])
            for entry in found
            if entry["type"] == "file" and entry["name"].strip("/") != self.path.strip("/")
        }

    def iterdir(self) -> Iterator[StorePath]:
        found = self.ask(lambda fs, path: fs.ls(path, detail=False))
        own = self.path.strip("/")
        return iter([self / name_of(name) for name in found if name.strip("/") != own])

    def open(self, mode: str = "rb", buffering: int = -1, **_: Any) -> Any:  # type: ignore[override]
        """To be read, by ranges; `buffering` is READ_BYTES, or none with 0."""
        assert mode == "rb", "objects are written by `upload`"
        raw = RangeFile(self.stat().st_size, self.read_range)
        return raw if buffering == 0 else io.BufferedReader(raw, max(min(READ_BYTES, raw.size), 1))

    def read_bytes(self) -> bytes:
        return self.read_range(0, self.stat().st_size)

    def read_text(self, *_: Any, **__: Any) -> str:
        return self.read_bytes().decode("utf-8")

    def read_range(self, start: int, stop: int) -> bytes:
        """The bytes [start, stop), all of them."""
        with _explained(self):
            return fetch(str(self), start, stop)

    def unlink(self, missing_ok: bool = False) -> None:
        try:
            self.ask(lambda fs, path: fs.rm_file(path))
        except FileNotFoundError:
            if not missing_ok:
                raise

    def create(self, content: bytes) -> bool:
        """Make a small object where there is none: False, where one is or another was quicker."""

        def put(fs: Any, path: str) -> None:
            try:
                fs.pipe_file(path, content, mode="create")
            except OSError as error:
                if re.search("pre-?condition", str(error), re.IGNORECASE):
                    raise FileExistsError from error
                raise

        try:
            self.ask(put)
        except FileNotFoundError:
            bucket = self.path.strip("/").partition("/")[0]
            raise StoreError(
                f"{self}: there is no bucket {bucket}: make it, or give another --out"
            ) from None
        except FileExistsError:
            # Ours, where a repeated request found what the first one had made.
            pass
        with suppress(FileNotFoundError):
            return self.read_bytes() == content
        return False

    def overwrite(self, content: bytes) -> None:
        """Make a small object, or another one of it."""
        self.ask(lambda fs, path: fs.pipe_file(path, content))

    def _kind(self) -> str | None:
        try:
            return str(self.details()["type"])
        except FileNotFoundError:
            return None


@contextmanager
def _explained(path: StorePath) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, FileExistsError, SpacepatchError):
        raise
    except OSError as error:
        raise StoreError(explain(str(path), error)) from error


def name_of(path: str) -> str:
    """The last part of a path in a store."""
    return path.rstrip("/").rpartition("/")[2]
