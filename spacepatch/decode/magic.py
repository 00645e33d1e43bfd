"""What a file is by its first bytes, before FFmpeg sees any: the demuxers that may read it."""

from __future__ import annotations

import re

from spacepatch.errors import ProbeError

HEAD_BYTES = 64 * 1024
"""Bytes that `demuxers_for` wants to see: enough to find a transport stream behind some junk."""

SIGNATURES = (
    (0, b"\x1a\x45\xdf\xa3", "matroska"),  # EBML
    (0, b"OggS", "ogg"),
    (0, b"FLV", "flv"),
    (0, bytes.fromhex("3026b2758e66cf11"), "asf"),  # first half of its GUID
    (0, b"DKIF", "ivf"),
    (0, b"GIF8", "gif"),
    (0, b"\x89PNG\r\n\x1a\n", "png_pipe,apng"),
    (0, b"\xff\xd8\xff", "jpeg_pipe,mjpeg"),
    (0, b"BM", "bmp_pipe"),
    (0, b"II*\0", "tiff_pipe"),
    (0, b"MM\0*", "tiff_pipe"),
    (0, b"YUV4MPEG2 ", "yuv4mpegpipe"),
    (0, bytes.fromhex("060e2b3402050101"), "mxf"),  # key of a partition pack
    (0, b"\x1f\x07\x00", "dv"),
    (0, b"\x12\x00\x0a", "obu"),  # AV1: an empty temporal delimiter, then a sequence header
    (0, b"\0\0\1\xba", "mpeg"),  # a pack of a program stream
    (0, b"fLaC", "flac"),
    (8, b"AVI", "avi"),
    (8, b"AMV ", "avi"),
    (8, b"WEBP", "webp_pipe"),
    (8, b"CDXA", "mpeg"),
    (8, b"WAVE", "wav"),
    *(
        (4, kind, "mov")
        for kind in b"ftyp styp moov mdat moof free skip wide pnot junk uuid sidx pict udta".split()
    ),
)
"""(place, bytes there, demuxers): the bytes that a format must begin with."""
RIFF = (b"RIFF", b"RIFX", b"RF64", b"BW64")
"""What a signature at place 8 stands behind."""

START_CODES = "mpeg,mpegvideo,m4v,h264,hevc"
"""Streams of start codes begin with any unit, so that FFmpeg has to tell them apart."""
AUDIO = "mp3,aac,flac,wav"
"""Sound is opened only to say that there is no video in it; MP3 and ADTS begin with a sync word."""

TS_PACKETS = (188, 192, 204)
"""Bytes of a packet: plain, with a time stamp in front (Blu-ray), with a checksum behind."""
TEXT_BYTES = 4096
"""Of a text, this much is looked at."""
TS_RUN = 8
"""Packets in a row that begin alike; fewer may be chance."""

LISTS = re.compile(
    rb"""
    \A (?: \#extm3u | ffconcat | v=0\s | \[(?:playlist|reference|default)\]
         | <(?:asx|smil|\?wpl|\?zpl) )
    | <(?:\w+:)?(?:mpd|compositionplaylist|assetmap|packinglist|playlist|smoothstreamingmedia)\b
    | ^ [ \t]* (?:file\d*\s*=\s*)? ['"]? (?:https?|rtmpt?s?|rtsp|rtp|udp|tcp|tls|ftp|sftp|mmsh?|file
                 | smb|nfs|s3|gs|concatf?|subfile|data|crypto|cache|pipe|fd|hls|async|srt) [:,+]
    | \A [^\s/%*]* [/%*] \S* \Z
    """,
    re.IGNORECASE | re.MULTILINE | re.VERBOSE,
)
"""Text that names other files: playlists, manifests, session descriptions, patterns of names, and
the files of one line with an address that media centres leave behind (.strm)."""

PROBED_BYTES = 2**20
"""Of a file, this much FFmpeg looks at to find its demuxer."""
DISGUISED = re.compile(
    rb"\A(\xef\xbb\xbf)?(\#extm3u|ffconcat)|<mpd|<compositionplaylist|^c=in[ ]ip",
    re.IGNORECASE | re.MULTILINE,
)
"""What makes an FFmpeg without an allow-list take a file for a playlist or a manifest: some of it
counts anywhere before the first NUL, behind the signature of a GIF or in front of MPEG packets."""

ENCRYPTED_TRACK = re.compile(rb"\x6d\x80.{1,8}\x62\x40.{1,64}\x50\x35", re.DOTALL)
"""Matroska's ContentEncodings, a ContentEncoding in it, and a ContentEncryption in that."""
SCRAMBLED = 0.9
"""Share of scrambled packets from which a stream in a transport stream is encrypted."""

FORBIDDEN = (
    "not one of the allowed containers (playlists and other indirect files are refused); "
    "name the video itself, as MP4 or Matroska"
)
ENCRYPTED = "encrypted: its pictures cannot be had without a key; decrypt it first"
NO_CONTAINER = "no container that FFmpeg can read: damaged, cut off, or no media file"


def demuxers_for(head: bytes, *, fallback: str) -> str:
    """The demuxers that may read a file with this beginning, as FFmpeg lists them.

    Args:
        head: its first `HEAD_BYTES` bytes, or all of them.
        fallback: what may read a binary file that begins like nothing we know, such as a stream
            that was cut in its middle.

    Raises:
        ProbeError: text, which no video is: `forbidden_format` where it names other files, else
            `unreadable`.
    """
    while head.startswith(b"ID3") and len(head) >= 10:
        # A tag may stand before anything; its size is in four bytes of seven bits.
        size = sum(
            (byte & 127) << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True)
        )
        head, fallback = head[10 + size :], AUDIO
        if not head:
            return AUDIO
    for place, signature, demuxers in SIGNATURES:
        if head.startswith(signature, place) and (place != 8 or head.startswith(RIFF)):
            return demuxers
    if _packets(head):
        return "mpegts"
    if head.lstrip(b"\0").startswith(b"\1") and head.startswith(b"\0\0"):
        return START_CODES
    if head[:1] == b"\xff" and b"\xe0" <= head[1:2] != b"\xfe":  # a byte order mark is FF FE
        return AUDIO
    if _is_text(head):
        raise _refuse_text(head)
    return fallback


def check_disguise(start: bytes) -> None:
    """Raise a ProbeError where a video is a playlist too.

    PyAV opens it as what its signature says. Other decoders leave the choice to FFmpeg.

    Args:
        start: its first `PROBED_BYTES` bytes, or those up to a NUL at least.
    """
    if DISGUISED.search(start.partition(b"\0")[0]) is not None:
        raise ProbeError(FORBIDDEN, reason="forbidden_format")


def check_encryption(head: bytes, demuxers: str) -> None:
    """Raise a ProbeError where Matroska or a transport stream says that it is encrypted.

    FFmpeg says nothing of it: no picture comes, or noise.
    """
    if demuxers == "matroska" and ENCRYPTED_TRACK.search(head) is not None:
        raise ProbeError(ENCRYPTED, reason="encrypted")
    if demuxers == "mpegts":
        # Of the fourth byte, 0x10 is for a payload and 0x80 for a scrambled one.
        scrambled: dict[int, list[bool]] = {}
        for packet in _packets(head):
            if packet[3] & 0x10:
                identity = (packet[1] & 0x1F) << 8 | packet[2]
                scrambled.setdefault(identity, []).append(packet[3] >= 0x80)
        # What fills most packets is the video; tables are never scrambled.
        most = max(scrambled.values(), key=len, default=[False])
        if sum(most) >= SCRAMBLED * len(most):
            raise ProbeError(ENCRYPTED, reason="encrypted")


def _packets(head: bytes) -> list[bytes]:
    """The first 4 bytes of the packets of a transport stream; none where it is something else."""
    for size in TS_PACKETS:
        usual = 4 if size == 192 else 0
        run = min(TS_RUN, len(head) // size)
        starts = [usual] if run >= 2 and head[usual::size].startswith(b"G" * run) else []
        # It may be cut anywhere, or follow junk.
        starts += [start for start in range(size) if b"G" * TS_RUN in head[start::size]]
        for start in starts:
            places = range(start, len(head) - 3, size)
            return [head[place : place + 4] for place in places if head[place] == 0x47]
    return []


def _is_text(head: bytes) -> bool:
    """Whether there is nothing but text, also of two bytes a letter, in its beginning."""
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        head = head.replace(b"\0", b"")
    return re.search(rb"[\0-\x08\x0e-\x1a\x1c-\x1f\x7f]", head[:1024]) is None


def _refuse_text(head: bytes) -> ProbeError:
    text = re.sub(rb"\A(\xef\xbb\xbf|\xff\xfe|\xfe\xff)", b"", head).replace(b"\0", b"")
    text = text.strip()[:TEXT_BYTES]
    start = text.lower()
    if start.startswith(b"version https://git-lfs"):
        what = "a Git LFS pointer, not the file itself; run git lfs pull"
    elif start.startswith((b"<!doctype html", b"<html")):
        what = "an HTML page, not a video: the download went wrong"
    elif LISTS.search(text) is not None:
        return ProbeError(FORBIDDEN, reason="forbidden_format")
    else:
        what = NO_CONTAINER
    return ProbeError(what, reason="unreadable")
