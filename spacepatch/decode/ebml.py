"""Whether a Matroska file is as long as it says."""

from __future__ import annotations

from typing import BinaryIO

HEADER, SEGMENT = 0x1A45DFA3, 0x18538067
"""Ids of the two elements that a file consists of (RFC 9559)."""


def segment_is_whole(file: BinaryIO, *, start: int, num_bytes: int) -> bool:
    """Whether the file holds all of its segment; False where the segment does not say its size."""
    file.seek(start)
    head = file.read(4096)
    if int.from_bytes(head[:4], "big") != HEADER:
        return False
    size, position = _read_size(head, 4)
    if size is None:
        return False
    position += size
    if int.from_bytes(head[position : position + 4], "big") != SEGMENT:
        return False
    size, position = _read_size(head, position + 4)
    return size is not None and position + size <= num_bytes


def _read_size(head: bytes, position: int) -> tuple[int | None, int]:
    """The size of an element (None: unknown), and where its content begins (RFC 8794)."""
    first = head[position] if position < len(head) else 0
    length = 9 - first.bit_length()
    if length > 8:
        return None, position
    value = int.from_bytes(head[position : position + length], "big") - (1 << 7 * length)
    unknown = value == (1 << 7 * length) - 1
    return None if unknown else value, position + length
