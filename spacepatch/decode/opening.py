"""Open a source safely: allow-lists of containers and codecs, limits, and members of tars."""

from __future__ import annotations

import errno
import io
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NoReturn

from spacepatch.decode.boxes import check_boxes
from spacepatch.decode.magic import (
    FORBIDDEN,
    HEAD_BYTES,
    NO_CONTAINER,
    PROBED_BYTES,
    check_disguise,
    check_encryption,
    demuxers_for,
)
from spacepatch.errors import DecodeError, ProbeError, SourceError, SpacepatchError
from spacepatch.remote import open_source, size_of

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.error import FFmpegError

    from spacepatch.decode.hollow import Hollow

FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,m4v,flv,live_flv,asf,ogg,gif,"
    "apng,mp3,aac,wav,flac,h264,hevc,obu,av1,ivf,mjpeg,dv,mxf,yuv4mpegpipe,"
    "png_pipe,jpeg_pipe,webp_pipe,bmp_pipe,tiff_pipe"
)
"""Demuxers that FFmpeg may choose from. None of them opens a second file: no concat, hls, dash,
imf, image2, sdp."""

CODECS = frozenset(
    "h264 hevc av1 vp8 vp9 mpeg4 mpeg2video mpeg1video prores mjpeg theora gif png apng webp bmp"
    " tiff flv1 h263 msmpeg4v1 msmpeg4v2 msmpeg4v3 wmv1 wmv2 wmv3 vc1 dvvideo dnxhd ffv1 huffyuv"
    " rawvideo".split()
)
"""Codecs (FFmpeg's canonical names) whose decoders may be opened."""
DECODERS_BY_OTHER_NAMES = frozenset({"libdav1d", "msmpeg4", "flv"})
"""Decoders of those codecs that FFmpeg does not name like the codec: av1, msmpeg4v3, flv1."""
CODEC_WHITELIST = ",".join(sorted(CODECS | DECODERS_BY_OTHER_NAMES))

QUICK_DEMUXERS = ("mov", "matroska")
"""Those that give parameter sets, times and sizes in a header."""

MAX_PIXELS = 8192 * 4320
"""Pixels in a picture above which a file is a bomb, not a video: the largest that a camera or a
codec's level makes of video. Checked before it is allocated."""
MAX_STREAMS = 256
"""Streams in a file, of any kind: a capture of a whole transponder has about 100, and FFmpeg makes
buffers and a decoder for each."""
MAX_PACKETS = 20_000_000
"""Packets after which a file is taken for an endless one: a week at 30 a second. What a probe
remembers of each is in memory."""
MAX_BYTES = 2**40
"""Size of a file above which it is a disk image or a sparse file: 1 TiB is a week at 14 Mbit/s."""
MAX_SECONDS = 7 * 24 * 3600
"""Time from the first frame to the end of the last one above which a file is a bomb too: a frame
that claims to stay for years would be sampled for years."""
TOO_LONG = f"lasts more than {MAX_SECONDS} s by its own account; cut it, or mend its times"
SHORT_MEMORY = 6 * MAX_PIXELS
"""Bytes that must be free for a failure to be the content's fault: one of the largest pictures,
of 3 channels of 16 bits."""

LEAST_PYAV = 15
BAD_FFMPEGS = frozenset({"7.1", "7.1.0", "n7.1"})


def raise_unless_damage(error: FFmpegError, kind: type[SourceError]) -> None:
    """Raise if an error tells of the machine, not of the content: no memory.

    What comes back is the end of the file, or damage in it; also where FFmpeg speaks of an
    input/output error, as it does of damaged Matroska: reads that fail are told by `Member`.
    """
    if error.errno == errno.ENOMEM or _memory_is_short():
        # Some decoders say of a buffer that they did not get that the data are invalid.
        raise kind(
            "no memory left for FFmpeg; raise --worker-memory", reason="out_of_memory"
        ) from None


def _memory_is_short() -> bool:
    """Whether this process is close to the limit that workers give themselves."""
    if not sys.platform.startswith("linux"):
        return False
    import resource

    limit, _ = resource.getrlimit(resource.RLIMIT_DATA)
    if limit == resource.RLIM_INFINITY:
        return False
    data_pages = int(Path("/proc/self/statm").read_text().split()[5])
    free = limit - data_pages * resource.getpagesize()
    return free < min(SHORT_MEMORY, limit // 8)


@contextmanager
def open_container(
    uri: str,
    *,
    offset: int | None = None,
    num_bytes: int | None = None,
    log_level: int | None = None,
    max_pixels: int = MAX_PIXELS,
    hollow: Hollow | None = None,
    quick: int | None = None,
) -> Iterator[InputContainer]:
    """A container opened with our allow-lists, closed at the end of the block.

    Args:
        offset, num_bytes: where the video lies in `uri`, when that is a tar.
        log_level: what FFmpeg may say, one of `av.logging`; by default nothing.
        max_pixels: pixels of a picture above which nothing is decoded.
        hollow: what need not be read.
        quick: index of a stream of which only pictures are wanted; None: what its first picture
            tells is too.

    Raises:
        ProbeError: it is empty, no video that FFmpeg reads, encrypted, of a forbidden kind, or
            claims too much.
        DecodeError: the system did not give us all of its bytes (`io`), also where the block
            itself ended well; or an error of FFmpeg came out of the block.
        OSError: the file cannot be opened, or not be read at all.
        SpacepatchError: this FFmpeg hangs on some videos.
    """
    import av
    from av.error import ArgumentError, FFmpegError

    refuse_old_ffmpeg()
    av.logging.set_level(log_level)
    if num_bytes is None:
        num_bytes = size_of(uri)
    if num_bytes == 0:
        raise ProbeError("the file is empty", reason="unreadable")
    if num_bytes > MAX_BYTES:
        message = f"a file of more than {MAX_BYTES} bytes; cut it into smaller ones"
        raise ProbeError(message, reason="too_large")
    with open_source(uri) as file:
        start = offset or 0
        file.seek(start)
        head = file.read(min(HEAD_BYTES, num_bytes))
        demuxers = demuxers_for(head, fallback=FORMATS)
        if b"\0" not in head:
            head += file.read(max(0, min(PROBED_BYTES, num_bytes) - len(head)))
        check_disguise(head)
        check_encryption(head, demuxers)
        if demuxers == "mov":
            check_boxes(file, start=start, num_bytes=num_bytes, max_samples=MAX_PACKETS)
        member = Member(file, start, num_bytes, hollow)
        options = {
            "format_whitelist": demuxers,
            # FFmpeg gets bytes from us, and no name: it has nothing to open by itself.
            "protocol_whitelist": "none",
            # It opens decoders by itself, to learn what the headers do not say.
            "codec_whitelist": CODEC_WHITELIST,
            "max_pixels": str(max_pixels),
            "max_streams": str(MAX_STREAMS),
            # Nobody looks at the picture that it decodes for what the headers do not say.
            "skip_loop_filter": "all",
            # What it reads for that is bounded by itself: 5 MB, and 90 s of the video at most.
        }
        # Where the bytes leave no choice, what FFmpeg would take them for does not count.
        only = None if "," in demuxers else demuxers
        container = None
        try:
            if quick is not None and demuxers in QUICK_DEMUXERS:
                container = _open_quickly(member, only, options, quick)
            if container is None:
                container = av.open(member, "r", only, options=options, metadata_errors="replace")
        except FFmpegError as error:
            if demuxers == FORMATS and isinstance(error, ArgumentError):
                # So it says of a demuxer that is not on the list.
                raise ProbeError(FORBIDDEN, reason="forbidden_format") from None
            _raise_why(error, member, options, only)
        try:
            for stream in container.streams:
                if stream.codec_context is not None:
                    # The options above are for the decoders that FFmpeg opens, not for ours.
                    stream.codec_context.options = {
                        "codec_whitelist": CODEC_WHITELIST,
                        "max_pixels": str(max_pixels),
                    }
            yield container
            member.raise_if_failed()
        except FFmpegError as error:
            member.raise_if_failed()
            raise_unless_damage(error, DecodeError)
            raise DecodeError(f"FFmpeg: {type(error).__name__}", reason="unreadable") from None
        except SourceError:
            member.raise_if_failed()
            raise
        finally:
            container.close()


def _open_quickly(
    member: Member, only: str | None, options: dict[str, str], index: int
) -> InputContainer | None:
    """A container of which FFmpeg decoded nothing, which takes longer than all else of opening
    one; None where a decoder of ours would then begin in another state.

    What H.264 says of its reordering (num_reorder_frames) is in the parameter sets, so that FFmpeg
    looks at the first picture for nothing but its colours, which a decoder sees for itself. Where
    it does not say, FFmpeg decodes until it knows, and a decoder begins with what was found.
    """
    import av
    from av.error import FFmpegError
    from av.video.stream import VideoStream

    with suppress(FFmpegError):
        quickly = options | {"skip_frame": "all", "probesize": "32"}
        container = av.open(member, "r", only, options=quickly, metadata_errors="replace")
        stream = container.streams[index] if index < len(container.streams) else None
        if (
            isinstance(stream, VideoStream)
            and stream.codec_context is not None
            and stream.codec_context.name == "h264"
            and stream.codec_context.has_b_frames
        ):
            return container
        container.close()
    member.seek(0)
    return None


@contextmanager
def open_member(uri: str, offset: int | None, num_bytes: int | None) -> Iterator[Member]:
    """The bytes of a source as a file of its own, for others than FFmpeg; no longer than they are.

    Raises:
        DecodeError: the system did not give us the bytes (reason `io`).
    """
    with open_source(uri) as file:
        there = max(0, file.seek(0, io.SEEK_END) - (offset or 0))
        member = Member(file, offset or 0, there if num_bytes is None else min(num_bytes, there))
        try:
            yield member
        except (SourceError, ValueError, struct.error):
            member.raise_if_failed()
            raise
        member.raise_if_failed()


class Member(io.RawIOBase):
    """Bytes [offset, offset + size) of a file, such as a tar's member, as a nameless file."""

    def __init__(
        self, file: BinaryIO, offset: int, size: int, hollow: Hollow | None = None
    ) -> None:
        """`hollow`: what is not read, and given as zeros."""
        self._file, self._offset, self._size, self._position = file, offset, size, 0
        self._hollow = hollow
        self.failed: OSError | None = None
        """What the system said of the last read that failed."""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, position: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = min(max(0, base + position), MAX_BYTES)
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        left = max(0, self._size - self._position)
        size = left if size is None or size < 0 else min(size, left)
        if size == 0:
            return b""
        try:
            if self._hollow is None:
                self._file.seek(self._offset + self._position)
                content = self._file.read(size)
            else:
                content = self._read_needed(self._hollow, size)
        except OSError as error:
            # PyAV would keep an exception, and raise it from whatever it does next, or print it.
            self.failed = error
            return b""
        self._position += len(content)
        return content

    def _read_needed(self, hollow: Hollow, size: int) -> bytes:
        """Zeros, but for what is needed; less where the file has become shorter."""
        here = self._position
        needed = list(hollow.needed(here, here + size))
        if not needed:
            return bytes(size)
        content = bytearray(size)
        for first, stop in needed:
            self._file.seek(self._offset + first)
            part = self._file.read(stop - first)
            content[first - here : first - here + len(part)] = part
            if len(part) < stop - first:
                return bytes(content[: first - here + len(part)])
        return bytes(content)

    def raise_if_failed(self) -> None:
        """Raise a DecodeError if the system did not give us bytes, which FFmpeg took for the end of
        the file."""
        if self.failed is not None:
            raise DecodeError(f"cannot be read: {self.failed.strerror}", reason="io") from None


def _raise_why(
    error: FFmpegError, member: Member, options: dict[str, str], only: str | None
) -> NoReturn:
    """Raise what it means that FFmpeg cannot open a file: most of it tells its log alone."""
    import av
    from av.error import FFmpegError

    member.raise_if_failed()
    if error.errno == errno.ENOMEM:
        member.seek(0)
        with av.logging.Capture() as said:
            av.logging.set_level(av.logging.ERROR)
            with suppress(FFmpegError):
                av.open(member, "r", only, options=options, metadata_errors="replace").close()
            av.logging.set_level(None)
        if any("exceeds max_streams" in message for _, _, message in said):
            message = f"more than {MAX_STREAMS} streams; copy the wanted one into a file of its own"
            raise ProbeError(message, reason="too_large") from None
    raise_unless_damage(error, ProbeError)
    raise ProbeError(NO_CONTAINER, reason="unreadable") from None


def refuse_old_ffmpeg() -> None:
    """Raise a SpacepatchError where FFmpeg is one that is known to hang.

    FFmpeg 7.1.0, in PyAV 14, waits forever inside some HEVC streams; mended in 7.1.1, in PyAV 15.
    """
    import av

    if int(av.__version__.split(".")[0]) < LEAST_PYAV or ffmpeg_version() in BAD_FFMPEGS:
        raise SpacepatchError(
            f"PyAV {av.__version__} with FFmpeg {ffmpeg_version()} hangs on some videos: "
            f"install av >= {LEAST_PYAV}"
        )


def ffmpeg_version() -> str:
    """Version of the FFmpeg inside PyAV, such as ``8.1.2``."""
    import av

    return str(av.ffmpeg_version_info)
