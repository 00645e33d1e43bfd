"""How the pictures of a TIFF are compressed."""

from __future__ import annotations

import struct
from typing import BinaryIO

COMPRESSION = 259
"""The tag of a directory entry that says it (TIFF 6.0, section 8)."""
JPEG = frozenset({6, 7})
"""Old and new JPEG inside a TIFF: FFmpeg decodes such pictures to black, and says nothing."""
MAX_ENTRIES = 1000


def holds_jpeg(file: BinaryIO, offset: int = 0) -> bool:
    """Whether the first picture of the TIFF that begins at `offset` is compressed as JPEG."""
    file.seek(offset)
    head = file.read(8)
    order = {b"II": "<", b"MM": ">"}.get(head[:2])
    if order is None or len(head) < 8:
        return False
    file.seek(offset + struct.unpack(f"{order}I", head[4:])[0])
    count = int.from_bytes(file.read(2), "little" if order == "<" else "big")
    for _ in range(min(count, MAX_ENTRIES)):
        entry = file.read(12)
        if len(entry) < 12:
            return False
        tag, _, _, value = struct.unpack(f"{order}HHIH", entry[:10])
        if tag == COMPRESSION:
            return value in JPEG
    return False
