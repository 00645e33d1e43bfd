"""Probe a file without its pictures, where its header holds an index of all of them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from typing import TYPE_CHECKING

from spacepatch.decode.boxes import media_ranges
from spacepatch.decode.magic import HEAD_BYTES, demuxers_for
from spacepatch.errors import ProbeError
from spacepatch.remote import open_source

if TYPE_CHECKING:
    from av.video.stream import VideoStream

KEYFRAME_HEAD = 4096
"""Bytes of a keyframe that are read: parameter sets, messages (x264's has 700) and the header of
its first slice."""
LENGTH_SIZE_AT = {"h264": 4, "hevc": 21}
"""Byte of the sample description whose lowest two bits are, less one, how many bytes tell the
length of a unit (ISO/IEC 14496-15, 5.3.3 and 8.3.3)."""
WITH_HEADS = frozenset({*LENGTH_SIZE_AT, "av1", "mpeg4"})
"""Codecs whose keyframes begin with what FFmpeg's parser tells a keyframe by, or with a size."""
WITHOUT_HEADS = frozenset({"prores", "dnxhd", "mjpeg", "png", "rawvideo"})
"""Codecs in which each picture stands alone, and of whose packets nobody asks anything."""


class NeedsPackets(Exception):
    """The header of a file does not tell enough: its packets are to be read."""


class Hollow:
    """The bytes of a file that a probe does without: it gets zeros for them, which cost no reading.

    FFmpeg makes the time, length and flags of each packet of an MP4 from the index in its header.
    Of H.264 its parser decides once more what is a keyframe, and a stream may change its size at
    one: so the first bytes of the keyframes that the index lists are true ones.
    """

    def __init__(self, ranges: tuple[tuple[int, int], ...]) -> None:
        """`ranges`: [start, stop) of media data, increasing, from the file's first byte."""
        self._ranges = ranges
        self._heads: list[tuple[int, int]] | None = None

    def begin(self, stream: VideoStream) -> None:
        """From now on there are zeros: FFmpeg has seen what it wants to see of the first pictures.

        Raises:
            NeedsPackets: nobody has seen what it makes of zeros in this codec, or there is no
                index.
        """
        codec = stream.codec_context.codec.canonical_name
        if codec not in WITH_HEADS | WITHOUT_HEADS or not len(stream.index_entries):
            raise NeedsPackets
        if codec in LENGTH_SIZE_AT and (stream.codec_context.extradata or b"")[:1] != b"\x01":
            raise NeedsPackets  # units without lengths
        heads = {}
        if codec in WITH_HEADS:
            heads = {
                entry.pos: entry.pos + min(entry.size, KEYFRAME_HEAD)
                for entry in stream.index_entries
                if entry.is_keyframe
            }
        self._heads = sorted(heads.items())

    def needed(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """The parts of [start, stop) that have to be read, in order."""
        if self._heads is None:
            yield start, stop
            return
        for first, last in self._ranges:
            if last <= start or start >= stop:
                continue
            if start < first:
                yield start, min(first, stop)
                start = min(first, stop)
            inside = min(last, stop)
            place = bisect_left(self._heads, start - KEYFRAME_HEAD, key=lambda head: head[0])
            while place < len(self._heads) and self._heads[place][0] < inside:
                first, last = self._heads[place]
                first, last = max(first, start), min(last, inside)
                if first < last:
                    yield first, last
                place += 1
            start = max(start, inside)
        if start < stop:
            yield start, stop


def headers_in(head: bytes, codec: str, extradata: bytes) -> bytes:
    """What a keyframe holds before its first long unit: parameter sets and messages.

    Args:
        head: a packet of which the first bytes are true ones.
        codec, extradata: of its stream, which `Hollow.begin` took.
    """
    if codec not in LENGTH_SIZE_AT:
        return head
    num_bytes = (extradata[LENGTH_SIZE_AT[codec]] & 3) + 1
    stop, most = 0, min(len(head), KEYFRAME_HEAD)
    while stop + num_bytes <= most:
        end = stop + num_bytes + int.from_bytes(head[stop : stop + num_bytes], "big")
        if end > most:
            break
        stop = end
    return head[:stop]


def find_hollow(uri: str, *, offset: int | None, num_bytes: int) -> Hollow | None:
    """What of a file a probe need not read; None where that is not known.

    Raises:
        OSError: it cannot be read.
    """
    start = offset or 0
    with open_source(uri) as file:
        file.seek(start)
        try:
            demuxers = demuxers_for(file.read(min(HEAD_BYTES, num_bytes)), fallback="")
        except ProbeError:
            return None
        ranges = media_ranges(file, start=start, num_bytes=num_bytes) if demuxers == "mov" else ()
    return Hollow(ranges) if ranges else None
