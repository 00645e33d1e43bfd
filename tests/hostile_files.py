"""Files made to do harm, written by hand: playlists in disguise, bombs, and boxes that lie."""

from __future__ import annotations

import struct
import zlib


def playlists(target: str, folder: str, url: str) -> dict[str, bytes]:
    """Files by name that point at `target` (a name), at `folder`/`target` or at `url`.

    All have names of videos, so that a folder's walk takes them.
    """
    path = f"{folder}/{target}"
    hls = f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{path}\n#EXT-X-ENDLIST\n"
    mpd = '<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" mediaPresentationDuration='
    representation = f'<Representation id="1" bandwidth="1"><BaseURL>{path}</BaseURL>'
    texts = {
        "ffconcat.mp4": f"ffconcat version 1.0\nfile '{path}'\n",
        "ffconcat_relative.mkv": f"ffconcat version 1.0\nfile {target}\n",
        "hls.mp4": hls,
        "hls.avi": hls,
        "hls_relative.ts": f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{target}\n",
        "hls_child.mp4": f"#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\nhls.mp4\n{path}\n",
        "hls_itself.mp4": "#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\nhls_itself.mp4\n",
        "hls_key.mp4": f'#EXTM3U\n#EXT-X-KEY:METHOD=AES-128,URI="{path}"\n#EXTINF:9,\n{path}\n',
        "hls_subfile.mp4": f"#EXTM3U\n#EXTINF:9,\nsubfile,,start,0,end,99,,:{path}\n",
        "hls_concat.mp4": f"#EXTM3U\n#EXTINF:9,\nconcat:{path}|{path}\n",
        "hls_data.mp4": "#EXTM3U\n#EXTINF:9,\ndata:video/mp2t;base64,R0AREAA=\n",
        "hls_http.mp4": f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{url}\n",
        "dash.mp4": f'<?xml version="1.0"?>\n{mpd}"PT9S"><Period><AdaptationSet '
        f'mimeType="video/mp4">{representation}</Representation></AdaptationSet></Period></MPD>',
        "dash_bare.webm": f'{mpd}"PT9S"><Period><AdaptationSet>{representation}',
        "imf.mxf": '<?xml version="1.0"?>\n<CompositionPlaylist xmlns="http://www.smpte-ra.org/'
        f'schemas/2067-3/2016"><Id>{path}</Id></CompositionPlaylist>',
        "session.mp4": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
        "m=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
        "strm.mp4": f"{url}\n",
        "strm_path.mp4": f"{path}\n",
        "pls.mp4": f"[playlist]\nFile1={path}\nNumberOfEntries=1\n",
        "asx.wmv": f'<asx version="3.0"><entry><ref href="{path}"/></entry></asx>',
        "subfile.mp4": f"subfile,,start,0,end,99,,:{path}\n",
        "concat.mp4": f"concat:{path}|{path}\n",
        "pattern.png": f"{folder}/img%03d.png\n",
        "glob.jpg": f"{folder}/*.jpg\n",
    }
    files = {name: text.encode() for name, text in texts.items()}
    files["hls_utf16.mp4"] = hls.encode("utf-16")
    files["hls_bom.mp4"] = b"\xef\xbb\xbf" + hls.encode()
    files["hls_id3.mp3"] = b"ID3\x04\0\0\0\0\0\0" + hls.encode()
    return files


# --- AVI and MP4 -------------------------------------------------------------------------------


def chunk(kind: bytes, *parts: bytes) -> bytes:
    """A RIFF chunk."""
    data = b"".join(parts)
    return kind + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)


def avi_with_subtitles(jpeg: bytes, subtitles: bytes, *, width: int, height: int) -> bytes:
    """An AVI of one JPEG, and a text stream whose one GAB2 chunk holds `subtitles`.

    FFmpeg opens what is in such a chunk as a file of its own.
    """
    main = struct.pack("<14I", 40_000, 0, 0, 0x10, 1, 0, 2, 0, width, height, 0, 0, 0, 0)
    rate = struct.pack("<8I", 1, 25, 0, 1, 0, 0, 0, 0)
    video = b"vids" + b"MJPG" + struct.pack("<IHHI", 0, 0, 0, 0) + rate
    bitmap = struct.pack("<IiiHH4sIiiII", 40, width, height, 1, 24, b"MJPG", 0, 0, 0, 0, 0)
    text = b"txts" + b"\0\0\0\0" + struct.pack("<IHHI", 0, 0, 0, 0) + rate
    header = chunk(
        b"LIST",
        b"hdrl",
        chunk(b"avih", main),
        chunk(b"LIST", b"strl", chunk(b"strh", video), chunk(b"strf", bitmap)),
        chunk(b"LIST", b"strl", chunk(b"strh", text), chunk(b"strf", b"")),
    )
    name = "a.srt\0".encode("utf-16-le")
    gab2 = b"GAB2\0" + struct.pack("<HI", 2, len(name)) + name
    gab2 += struct.pack("<HI", 4, len(subtitles)) + subtitles
    movie = chunk(b"LIST", b"movi", chunk(b"01tx", gab2), chunk(b"00dc", jpeg))
    return chunk(b"RIFF", b"AVI ", header, movie)


def box(kind: bytes, *parts: bytes) -> bytes:
    """An MP4 box."""
    data = b"".join(parts)
    return struct.pack(">I", len(data) + 8) + kind + data


def full_box(kind: bytes, *parts: bytes, flags: int = 0) -> bytes:
    return box(kind, struct.pack(">I", flags), *parts)


def mp4(*tracks: bytes) -> bytes:
    header = full_box(b"mvhd", struct.pack(">IIII", 0, 0, 1000, 100), bytes(80))
    return (
        box(b"ftyp", b"isom\0\0\2\0isomiso2mp41")
        + box(b"mdat", bytes(1000))
        + box(b"moov", header, *tracks)
    )


def track(
    number: int, *, samples: int = 1, sample_size: int = 1, kind: bytes = b"vide", data: bytes = b""
) -> bytes:
    """A track that claims `samples` samples in one chunk, in the file or in the file `data`."""
    matrix = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30)
    track_header = struct.pack(">IIIII", 0, 0, number, 0, 100) + bytes(16) + matrix
    picture = struct.pack(">HHII", 64, 48, 72 << 16, 72 << 16)
    entry = bytes(6) + struct.pack(">H", 1) + bytes(16) + picture + bytes(4)
    entry += struct.pack(">H", 1) + bytes(32) + struct.pack(">Hh", 24, -1)
    reference = full_box(b"url ", flags=1)
    if data:
        reference = box(b"alis", bytes(4), alias(data))
    table = box(
        b"stbl",
        full_box(b"stsd", struct.pack(">I", 1), box(b"mp4v", entry)),
        full_box(b"stts", struct.pack(">III", 1, samples, 1)),
        full_box(b"stsc", struct.pack(">IIII", 1, 1, samples, 1)),
        full_box(b"stsz", struct.pack(">II", sample_size, samples)),
        full_box(b"stco", struct.pack(">II", 1, 40)),
    )
    return box(
        b"trak",
        full_box(b"tkhd", track_header, struct.pack(">II", 64 << 16, 48 << 16), flags=7),
        box(
            b"mdia",
            full_box(b"mdhd", struct.pack(">IIIIHH", 0, 0, 1000, 100, 0x55C4, 0)),
            full_box(b"hdlr", bytes(4), kind, bytes(12), b"v\0"),
            box(
                b"minf",
                full_box(b"vmhd", bytes(8), flags=1),
                box(b"dinf", full_box(b"dref", struct.pack(">I", 1), reference)),
                table,
            ),
        ),
    )


def alias(path: bytes) -> bytes:
    """A Macintosh alias record of a file, as FFmpeg's mov demuxer reads it: its name, one level up
    and one down, and its path."""
    name = path.rpartition(b"/")[2]
    record = bytes(10 + 1 + 27 + 12) + bytes([len(name)]) + name.ljust(63, b"\0") + bytes(16)
    record += struct.pack(">HH", 1, 1) + bytes(16)
    return record + struct.pack(">HH", 2, len(path)) + path + struct.pack(">HH", 0xFFFF, 0)


def fragments(*, samples: int) -> bytes:
    """An MP4 without samples, and a fragment that claims some without a byte for each."""
    extends = box(b"mvex", full_box(b"trex", struct.pack(">IIIII", 1, 1, 1, 1, 0)))
    run = full_box(b"trun", struct.pack(">I", samples))
    fragment = box(
        b"moof",
        full_box(b"mfhd", struct.pack(">I", 1)),
        box(b"traf", full_box(b"tfhd", struct.pack(">I", 1), flags=0x20000), run),
    )
    header = full_box(b"mvhd", struct.pack(">IIII", 0, 0, 1000, 100), bytes(80))
    moov = box(b"moov", header, track(1, samples=0), extends)
    return box(b"ftyp", b"iso5\0\0\2\0iso5") + moov + fragment + box(b"mdat", bytes(100))


# --- pictures ----------------------------------------------------------------------------------


def png(width: int, height: int) -> bytes:
    """A PNG that claims a canvas, and holds a kilobyte of it."""

    def part(kind: bytes, data: bytes) -> bytes:
        code = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + code

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = part(b"IHDR", header) + part(b"IDAT", zlib.compress(bytes(1000))) + part(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def gif(width: int, height: int) -> bytes:
    """A GIF with a canvas of any size and two pictures of one pixel."""
    pixel = b"\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\x00"
    control = b"\x21\xf9\x04\x00\x0a\x00\x00\x00"
    screen = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    return screen + (control + pixel) * 2 + b"\x3b"


def animated_webp(width: int, height: int, frame: bytes) -> bytes:
    """An animation with a canvas of any size and two frames, each the WebP picture `frame`."""

    def three(value: int) -> bytes:
        return value.to_bytes(3, "little")

    picture = frame[12:]
    canvas = chunk(b"VP8X", b"\x02\0\0\0", three(width - 1), three(height - 1))
    shown = bytes(6) + three(0) + three(0) + three(100) + b"\0"
    return chunk(
        b"RIFF", b"WEBP", canvas, chunk(b"ANIM", bytes(6)), *(chunk(b"ANMF", shown, picture),) * 2
    )
