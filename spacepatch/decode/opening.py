"""Open a source safely: allow-lists of containers and codecs, limits, and members of tars."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from spacepatch.errors import DecodeError, ProbeError, SourceError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.error import FFmpegError

FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,m4v,flv,live_flv,asf,ogg,gif,"
    "apng,mp3,aac,wav,flac,h264,hevc,obu,av1,ivf,mjpeg,dv,mxf,yuv4mpegpipe,"
    "png_pipe,jpeg_pipe,webp_pipe,bmp_pipe,tiff_pipe"
)
"""Demuxers that FFmpeg may choose from. None of them opens a second file: no concat, hls, dash,
imf, image2, sdp."""

FORBIDDEN = "not one of the allowed containers: playlists and other indirect files are refused"

CODECS = frozenset(
    "h264 hevc av1 vp8 vp9 mpeg4 mpeg2video mpeg1video prores mjpeg theora gif png apng webp bmp"
    " tiff flv1 h263 msmpeg4v1 msmpeg4v2 msmpeg4v3 wmv1 wmv2 wmv3 vc1 dvvideo dnxhd ffv1 huffyuv"
    " rawvideo".split()
)
"""Codecs (FFmpeg's canonical names) whose decoders may be opened."""
DECODERS_BY_OTHER_NAMES = frozenset({"libdav1d", "msmpeg4", "flv"})
"""Decoders of those codecs that FFmpeg does not name like the codec: av1, msmpeg4v3, flv1."""

MAX_PIXELS = 16384 * 8192
"""Pixels in a picture above which a file is a bomb, not a video; checked before it is allocated."""
MAX_PACKETS = 100_000_000
"""Packets after which a file is taken for an endless one."""
MAX_SECONDS = 7 * 24 * 3600
"""Time from the first frame to the end of the last one above which a file is a bomb too: a frame
that claims to stay for years would be sampled for years."""

READ_ERRORS = frozenset(
    {errno.EIO, errno.ESTALE, errno.EACCES, errno.ENODEV, errno.ENXIO, errno.ETIMEDOUT, errno.EBADF,
     errno.EREMOTEIO, errno.ENOLINK, errno.ENOTCONN, errno.ESHUTDOWN, errno.ECONNRESET,
     errno.ECONNABORTED, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH}
)  # fmt: skip
"""What FFmpeg says when the system does not give it the bytes of a file. EINVAL and EPERM (-1) are
not among them: its own parts say so of damaged content."""


def raise_unless_damage(
    error: FFmpegError, kind: type[SourceError], *, reading: bool = True
) -> None:
    """Raise if an error tells of the machine, not of the content: no memory, or a failed read.

    What comes back is the end of the file, or damage in it.

    Args:
        reading: False for an error of a decoder: it reads no file, whatever it says.
    """
    if error.errno == errno.ENOMEM:
        raise kind("no memory left for FFmpeg", reason="out_of_memory") from None
    if reading and error.errno in READ_ERRORS:
        raise kind(f"cannot be read: {os.strerror(error.errno)}", reason="io") from None


@contextmanager
def open_container(
    uri: str,
    *,
    offset: int | None = None,
    num_bytes: int | None = None,
    log_level: int | None = None,
) -> Iterator[InputContainer]:
    """A container opened with our allow-lists, closed at the end of the block.

    Args:
        offset, num_bytes: where the video lies in `uri`, when that is a tar.
        log_level: what FFmpeg may say, one of `av.logging`; by default nothing.

    Raises:
        ProbeError: it is empty, not readable, or of a forbidden kind.
        OSError: the file cannot be read.
    """
    import av
    from av.error import ArgumentError, FFmpegError

    av.logging.set_level(log_level)
    if num_bytes is None:
        num_bytes = Path(uri).stat().st_size
    if num_bytes == 0:
        raise ProbeError("the file is empty", reason="unreadable")
    options = {
        "format_whitelist": FORMATS,
        "protocol_whitelist": "file",
        # FFmpeg opens decoders by itself, to learn what the headers do not say.
        "codec_whitelist": ",".join(sorted(CODECS | DECODERS_BY_OTHER_NAMES)),
        "max_pixels": str(MAX_PIXELS),
    }
    with Path(uri).open("rb") as file:
        # With the protocol in front, a colon or a dash in a name has no meaning to FFmpeg.
        url = f"file:{uri}" if offset is None else _Member(file, offset, num_bytes)
        try:
            container = av.open(url, "r", options=options, metadata_errors="replace")
        except ArgumentError:
            # What FFmpeg says of a demuxer that is not on the list. From the name of a photo it
            # concludes on a pattern of names (image2): the bytes alone say what it is.
            try:
                nameless = _Member(file, offset or 0, num_bytes)
                container = av.open(nameless, "r", options=options, metadata_errors="replace")
            except FFmpegError as error:
                raise_unless_damage(error, ProbeError)
                raise ProbeError(FORBIDDEN, reason="forbidden_format") from None
        except FFmpegError as error:
            raise_unless_damage(error, ProbeError)
            raise ProbeError(_what_it_is(uri, offset), reason="unreadable") from None
        try:
            yield container
        except FFmpegError as error:
            raise_unless_damage(error, DecodeError)
            raise DecodeError(f"FFmpeg: {type(error).__name__}", reason="unreadable") from None
        finally:
            container.close()


class _Member(io.RawIOBase):
    """Bytes [offset, offset + size) of a file (a tar member) as a file of its own, nameless."""

    def __init__(self, file: io.BufferedReader, offset: int, size: int) -> None:
        self._file, self._offset, self._size, self._position = file, offset, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, position: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, base + position)
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        left = max(0, self._size - self._position)
        size = left if size is None or size < 0 else min(size, left)
        self._file.seek(self._offset + self._position)
        content = self._file.read(size)
        self._position += len(content)
        return content


def _what_it_is(uri: str, offset: int | None) -> str:
    """Why FFmpeg finds no media in it, from its first bytes."""
    with Path(uri).open("rb") as file:
        file.seek(offset or 0)
        head = file.read(512).lstrip().lower()
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the file itself; run git lfs pull"
    if head.startswith((b"<!doctype html", b"<html")):
        return "an HTML page, not a video: the download went wrong"
    return "no container that FFmpeg can read: damaged, cut off, or no media file"


def ffmpeg_version() -> str:
    """Version of the FFmpeg inside PyAV, such as ``8.1.2``."""
    import av

    return str(av.ffmpeg_version_info)
