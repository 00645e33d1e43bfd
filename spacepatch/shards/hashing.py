"""Hash a shard while it is written."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from crc32c import crc32c

from spacepatch.stages import is_looked_at, stage


class ShardHasher:
    """sha256 of a tar, and crc32c of the data of each of its packs, in a thread of their own: the
    system copies what is written while the same bytes are hashed.

    While stages are measured, nothing runs beside another.
    """

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._checksums: list[int] = []
        self._thread = None if is_looked_at() else ThreadPoolExecutor(1, "spacepatch-hasher")
        self._last: Future[None] | None = None

    def begin_pack(self) -> None:
        """What follows is of the next pack."""
        self._run(self._begin)

    def add(self, before: bytes, data: Sequence[Any], after: bytes) -> None:
        """A piece of the tar, of which `data` is what the pack's checksum is of; none of it may
        change until `finish`."""
        self._run(self._add, before, data, after)

    def finish(self) -> tuple[str, list[int]]:
        """The tar's sha256 in hex digits, and the crc32c of each pack."""
        if self._last is not None:
            self._last.result()
        return self._digest.hexdigest(), self._checksums

    def close(self) -> None:
        """Touch none of the data any more."""
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)

    def _run(self, function: Any, *arguments: Any) -> None:
        if self._thread is None:
            function(*arguments)
        else:
            self._last = self._thread.submit(function, *arguments)

    def _begin(self) -> None:
        self._checksums.append(0)

    def _add(self, before: bytes, data: Sequence[Any], after: bytes) -> None:
        with stage("hash"):
            for part in (before, *data, after):
                self._digest.update(part)
            for part in data:
                self._checksums[-1] = crc32c(part, self._checksums[-1])
