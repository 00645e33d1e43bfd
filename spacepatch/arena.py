"""The arena: the tokens of one task, written in place by its jobs, in memory that dies with us."""

from __future__ import annotations

import mmap
import os
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import numpy as np

MADV_POPULATE_WRITE = 23
"""See madvise(2)."""


class Arena:
    """Bytes that a parent shares with its workers.

    On Linux an anonymous memory file, which no crash can leave behind; elsewhere a file in
    `folder`, removed at the end and swept by the next run.
    """

    def __init__(self, num_bytes: int, *, folder: Path) -> None:
        self.num_bytes = num_bytes
        size = max(num_bytes, 1)
        self._file: Path | None = None
        if sys.platform == "linux":
            self._descriptor = os.memfd_create("spacepatch-arena")
            self.path = f"/proc/{os.getpid()}/fd/{self._descriptor}"
        else:
            self._descriptor, name = tempfile.mkstemp(prefix="arena.tmp-", dir=folder)
            self._file = Path(name)
            self.path = name
        os.ftruncate(self._descriptor, size)
        self._map = mmap.mmap(self._descriptor, size)

    def enlarge(self, num_bytes: int) -> None:
        """Have at least so many bytes. Views must be gone by then."""
        if num_bytes > self.num_bytes:
            self._map.close()
            os.ftruncate(self._descriptor, num_bytes)
            self._map = mmap.mmap(self._descriptor, num_bytes)
            self.num_bytes = num_bytes

    def __enter__(self) -> Arena:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def tokens(self, offset: int, *, count: int, dtype: str, width: int) -> np.ndarray:
        """``(count, width)`` view from a byte on."""
        return np.frombuffer(self._map, dtype, count * width, offset).reshape(count, width)

    def close(self) -> None:
        """Give the memory back. Views must be gone by then."""
        self._map.close()
        os.close(self._descriptor)
        if self._file is not None:
            self._file.unlink(missing_ok=True)


class Arenas:
    """Arenas that serve one task after the other: memory that the system has cleared and given once
    costs a tenth of new memory."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._spare: list[Arena] = []

    def take(self, num_bytes: int) -> Arena:
        """An arena of at least so many bytes, whatever was in them."""
        if not self._spare:
            return Arena(num_bytes, folder=self._folder)
        arena = self._spare.pop()
        arena.enlarge(num_bytes)
        return arena

    def give_back(self, arena: Arena) -> None:
        """Of an arena that nobody writes to any more."""
        self._spare.append(arena)

    def close(self) -> None:
        """Give the memory of those that were given back to the system."""
        while self._spare:
            self._spare.pop().close()


class ArenaSlice:
    """A worker's window on [offset, offset + num_bytes) of an arena."""

    def __init__(self, path: str, *, offset: int, num_bytes: int) -> None:
        start = offset - offset % mmap.ALLOCATIONGRANULARITY
        with Path(path).open("r+b") as file:
            # A clip of no tokens, and so a window of no bytes, cannot be planned.
            self._map = mmap.mmap(file.fileno(), offset - start + num_bytes, offset=start)
        self._start = start

    def enter_pages(self) -> None:
        """Have the kernel enter all pages at once, where all will be written: a fault for each of
        them costs a quarter more, of new memory, and several times as much of used memory."""
        if sys.platform == "linux":
            with suppress(OSError):  # Linux before 5.14
                self._map.madvise(MADV_POPULATE_WRITE)

    def tokens(self, offset: int, *, count: int, dtype: str, width: int) -> np.ndarray:
        """``(count, width)`` writable view; `offset` is counted from the start of the arena."""
        start = offset - self._start
        return np.frombuffer(self._map, dtype, count * width, start).reshape(count, width)

    def close(self) -> None:
        """Unmap; where an error still holds a view, the map goes with it."""
        try:
            self._map.close()
        except BufferError:
            return
