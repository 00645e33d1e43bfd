"""An object as a file that can seek, read in ranges."""

from __future__ import annotations

import io
from collections.abc import Callable


class RangeFile(io.RawIOBase):
    """So many bytes, of which any range can be had; every read gets all that it asks for."""

    def __init__(self, size: int, read_range: Callable[[int, int], bytes]) -> None:
        """Args:
        read_range: the bytes [start, stop), all of them; both lie inside.
        """
        self.size, self._read_range, self._position = size, read_range, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, position: int, whence: int = io.SEEK_SET) -> int:
        position += {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        if position < 0:
            raise OSError(22, "Invalid argument")
        self._position = position
        return position

    def read(self, size: int | None = -1) -> bytes:
        start, stop = self._position, self.size
        if size is not None and size >= 0:
            stop = min(stop, start + size)
        if start >= stop:
            return b""
        content = self._read_range(start, stop)
        self._position = stop
        return content

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        content = self.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)
