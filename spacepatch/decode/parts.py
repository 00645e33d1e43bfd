"""Where a stream changes the size of its pictures, from its keyframes' headers."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Any, NamedTuple

from spacepatch.decode.hollow import NeedsPackets, headers_in

if TYPE_CHECKING:
    from av.bitstream import BitStreamFilterContext
    from av.packet import Packet
    from av.video.stream import VideoStream

_ANNEX_B = {"h264": "h264_mp4toannexb,", "hevc": "hevc_mp4toannexb,"}
_WITH_HEADERS = frozenset("h264 hevc av1 mpeg1video mpeg2video mpeg4 vc1".split())
"""Codecs whose headers FFmpeg's filter `extract_extradata` finds in a packet."""
_SIZE_IN_PACKET = {"vp8": slice(6, 10), "vp9": slice(0, 10)}
"""Where the bytes lie that tell the size of a keyframe (RFC 6386 9.1, VP9 bitstream 6.2)."""


class Size(NamedTuple):
    """What a decoder says of a picture."""

    coded_size: tuple[int, int]
    """(h, w)."""
    pixel_aspect_ratio: Fraction
    """Of the codec; 0 where it says nothing."""


class SizeWatch:
    """Tells the size of keyframes; decodes one only where its header differs from the one before.

    In codecs that it does not know (those where each picture stands alone) it sees no change.
    """

    def __init__(self, stream: VideoStream, *, max_pixels: int, hollow: bool = False) -> None:
        """`hollow`: of a keyframe there is nothing but its header."""
        self._stream, self._max_pixels, self._hollow = stream, max_pixels, hollow
        self._codec = stream.codec_context.codec.canonical_name
        self._extradata = stream.codec_context.extradata
        self._header: bytes | None = None
        self._sizes: dict[bytes, Size | None] = {}
        self._filter: BitStreamFilterContext | None = None
        if self._codec in _WITH_HEADERS:
            from av.bitstream import BitStreamFilterContext

            chain = _ANNEX_B.get(self._codec, "") + "extract_extradata"
            self._filter = BitStreamFilterContext(chain, in_stream=stream)

    def changed_to(self, packet: Packet[Any]) -> Size | None:
        """The size from this keyframe on, where its header is not that of the keyframe before.

        Raises:
            NeedsPackets: it would have to be decoded, and is hollow.
        """
        before, self._header = self._header, self._header_of(packet) or self._header
        if self._header == before or self._header is None:
            return None
        if before is None:
            return None  # the first one: the size that the container and the codec told
        if self._hollow:
            raise NeedsPackets
        if self._header not in self._sizes:
            self._sizes[self._header] = self._decode(packet)
        return self._sizes[self._header]

    def _header_of(self, packet: Packet[Any]) -> bytes | None:
        from av.error import FFmpegError
        from av.packet import Packet

        if self._codec in _SIZE_IN_PACKET:
            return bytes(memoryview(packet)[_SIZE_IN_PACKET[self._codec]])
        if packet.has_sidedata("new_extradata"):
            # Another sample description of an MP4: what the decoder gets with this packet.
            self._extradata = bytes(packet.get_sidedata("new_extradata"))
            return self._extradata
        if self._filter is None:
            return None
        content = bytes(packet)
        if self._hollow:
            content = headers_in(content, self._codec, self._extradata or b"")
        if not content:
            return None
        copy = Packet(content)  # the filter empties what it is given
        copy.time_base = packet.time_base
        try:
            for found in self._filter.filter(copy):
                if found.has_sidedata("new_extradata"):
                    return bytes(found.get_sidedata("new_extradata"))
        except FFmpegError:
            self._filter.flush()  # a damaged packet: the decoder will tell
        return None

    def _decode(self, packet: Packet[Any]) -> Size | None:
        """Decode one keyframe by itself; None where that fails."""
        from av.codec import CodecContext
        from av.error import FFmpegError
        from av.packet import Packet
        from av.video.codeccontext import VideoCodecContext

        context = CodecContext.create(self._stream.codec_context.codec.name, "r")
        assert isinstance(context, VideoCodecContext)
        context.extradata = self._extradata
        context.thread_count = 1
        context.options = {"max_pixels": str(self._max_pixels)}
        copy = Packet(bytes(packet))
        copy.time_base = packet.time_base
        try:
            frames = [*context.decode(copy), *context.decode(None)]
        except FFmpegError:
            return None
        if not frames:
            return None
        ratio = context.sample_aspect_ratio or Fraction(0)
        return Size((frames[0].height, frames[0].width), ratio)
