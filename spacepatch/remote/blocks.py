"""A bounded cache of blocks of remote objects on a local disk, shared by all processes there.

A block is a file, written aside and renamed. Whatever goes wrong here costs time, never a run: a
block that is damaged or cannot be read is fetched anew, one that cannot be written is not kept.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path

BLOCK = 512 * 1024
"""Bytes of a block: with its checksum it is smaller than any file that a worker may write."""
CHECKSUM = 4
LOOKS = 64
"""Parts of the capacity after each of which a process looks at what all of them have written."""
ROOM = 8
"""Part of the capacity that is free after that, so that not every block makes another one go."""
STALE_SECONDS = 3600
"""After which a temporary file belongs to nobody."""


class BlockCache:
    """Blocks of objects in a folder; the least recently used ones go."""

    def __init__(self, folder: Path, capacity: int) -> None:
        """Args:
        capacity: bytes; what processes write between two looks may come to a few parts more.
        """
        self._folder, self._capacity = folder, capacity
        self._unseen = capacity  # looks before its first block: others may have filled it
        self._lock = threading.Lock()

    def path(self, url: str, size: int, version: str, number: int) -> Path:
        """Where a block of one version of an object is kept."""
        key = blake2b(f"{size}\0{version}\0{url}".encode("utf-8", "surrogatepass"), digest_size=16)
        name = key.hexdigest()
        return self._folder / name[:2] / f"{name}-{number}"

    def get(self, path: Path, size: int) -> bytes | None:
        """The `size` bytes of a block; None: it is not there."""
        import crc32c

        try:
            content = path.read_bytes()
            body = content[:-CHECKSUM]
            if len(body) == size and crc32c.crc32c(body) == int.from_bytes(content[size:], "big"):
                os.utime(path)  # used just now
                return body
            path.unlink()
        except OSError:
            pass
        return None

    def put(self, path: Path, content: bytes) -> None:
        """Keep a block, if that can be done."""
        import crc32c

        aside = path.parent / f".{path.name}.{os.getpid()}.{threading.get_ident()}"
        with self._lock:
            self._unseen += len(content)
            looks = self._unseen * LOOKS >= self._capacity
            if looks:
                self._unseen = 0
        try:
            if looks:
                self._trim(len(content))
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            aside.write_bytes(content + crc32c.crc32c(content).to_bytes(CHECKSUM, "big"))
            aside.replace(path)
        except OSError:
            with suppress(OSError):
                aside.unlink()

    def _trim(self, coming: int) -> None:
        """Remove the least recently used blocks, unless another process does so now."""
        from filelock import FileLock, Timeout

        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with suppress(Timeout), FileLock(self._folder / "lock", timeout=0):
            found = sorted(self._files())
            total = sum(size for _, size, _ in found) + coming
            if total <= self._capacity:
                return
            for _, size, path in found:
                if total <= self._capacity - self._capacity // ROOM:
                    break
                with suppress(OSError):
                    Path(path).unlink()
                total -= size

    def _files(self) -> Iterator[tuple[float, int, str]]:
        """(when it was used last, bytes, path) of each file in the folders of blocks."""
        now = time.time()
        for folder in os.scandir(self._folder):
            if not folder.is_dir():
                continue
            for entry in os.scandir(folder.path):
                with suppress(OSError):
                    status = entry.stat()
                    if entry.name.startswith(".") and now - status.st_mtime > STALE_SECONDS:
                        Path(entry.path).unlink()
                        continue
                    yield status.st_mtime, status.st_size, entry.path
