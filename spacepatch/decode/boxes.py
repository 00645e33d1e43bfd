"""What the boxes of an MP4 or QuickTime file claim, before FFmpeg makes memory of it."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import BinaryIO

from spacepatch.decode.magic import ENCRYPTED
from spacepatch.errors import ProbeError

MAX_BOXES = 1_000_000
"""Boxes that are looked at: more than a day of fragments of a second has."""
PARENTS = frozenset({b"moov", b"trak", b"mdia", b"minf", b"stbl", b"moof", b"traf"})
"""Boxes that hold boxes, on the way to those that we read."""
PER_SAMPLE_FIELDS = 0xF00
"""Flags of a `trun` of which each stands for 4 bytes a sample."""


def check_boxes(file: BinaryIO, *, start: int, num_bytes: int, max_samples: int) -> None:
    """Refuse a file that claims more samples than it has bytes, or none that can be seen.

    FFmpeg takes 70 bytes for each sample that a table claims, and a table that says "10**8 samples
    of 1 byte" takes 20: 7 GB, before a packet is read.

    Args:
        start, num_bytes: where it lies in `file`.
        max_samples: of one video track.

    Raises:
        ProbeError: `too_large`, or `encrypted` where every video track is.
    """
    handler, claimed = b"", 0
    formats = []
    for kind, place, size in _boxes(file, start, start + num_bytes):
        file.seek(place)
        if kind == b"hdlr":  # version, flags, predefined, then the type of track
            handler = file.read(12)[8:]
        elif kind == b"stsd" and handler == b"vide":  # version, flags, count; an entry is a box
            formats.append(file.read(16)[12:])
        elif kind == b"stsz" and size >= 12:
            _, sample_size, count = struct.unpack(">III", file.read(12).ljust(12, b"\0"))
            # Where every sample has a size of its own, a table of them is in the file.
            claimed += count if sample_size else 0
            if handler == b"vide" and count > max_samples:
                message = f"a video track of {count} samples; cut it into shorter files"
                raise ProbeError(message, reason="too_large")
        elif kind == b"trun" and size >= 8:
            flags, count = struct.unpack(">II", file.read(8).ljust(8, b"\0"))
            claimed += 0 if flags & PER_SAMPLE_FIELDS else count
        if claimed > num_bytes:
            raise ProbeError(
                f"claims {claimed} samples, and has {num_bytes} bytes: damaged; mux it anew",
                reason="too_large",
            )
    if formats and set(formats) == {b"encv"}:
        raise ProbeError(ENCRYPTED, reason="encrypted")


def media_ranges(file: BinaryIO, *, start: int, num_bytes: int) -> tuple[tuple[int, int], ...]:
    """Where a file holds media data, if its header lists all samples; empty if it may not.

    Args:
        start, num_bytes: where it lies in `file`.

    Returns:
        (first, stop) of the contents of each outermost `mdat`, increasing, counted from `start`.
        None of a file in fragments, each of which has its own index, nor of one whose boxes do not
        fill it: what comes then, FFmpeg may read otherwise.
    """
    ranges = []
    end, has_index = start, False
    for kind, place, size in _boxes(file, start, start + num_bytes):
        if kind == b"moof":
            return ()
        has_index |= kind == b"moov"
        if place < end:
            continue  # inside another box
        end = place + size
        if kind == b"mdat":
            ranges.append((place - start, end - start))
    is_whole = end + 8 > start + num_bytes
    return tuple(ranges) if has_index and is_whole else ()


def _boxes(file: BinaryIO, start: int, stop: int) -> Iterator[tuple[bytes, int, int]]:
    """(kind, place, size) of the contents of boxes, in order; parents before what they hold."""
    ends = [stop]
    for _ in range(MAX_BOXES):
        while ends and start + 8 > ends[-1]:
            start = max(start, ends.pop())
        if not ends:
            return
        file.seek(start)
        header = file.read(16)
        if len(header) < 8:
            return
        size, head = int.from_bytes(header[:4], "big"), 8
        if size == 1:
            size, head = int.from_bytes(header[8:], "big"), 16
        elif size == 0:  # to the end
            size = ends[-1] - start
        if size < head:
            return
        kind, end = header[4:8], min(start + size, ends[-1])
        yield kind, start + head, end - start - head
        if kind in PARENTS:
            ends.append(end)
            start += head
        else:
            start = end
