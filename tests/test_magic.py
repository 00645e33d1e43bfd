"""What a file is by its bytes, before it is opened: demuxers, encryption, disguise."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hostile_files import gif
from test_hostile import LOST_SOURCES, SETTINGS, make_video, reasons, run, written

from spacepatch.decode.magic import HEAD_BYTES, demuxers_for
from spacepatch.decode.opening import open_container
from spacepatch.errors import ProbeError, SpacepatchError

# --- what a file is, by its first bytes --------------------------------------------------------


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (b"\0\0\0\x20ftypisom", "mov"),
        (b"\0\0\0\x08wide\0\0\0\0mdat", "mov"),
        (b"\x1aE\xdf\xa3\x9fB\x86", "matroska"),
        (b"RIFF\0\0\0\0AVI LIST", "avi"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "webp_pipe"),
        (b"LIST\0\0\0\0AVI LIST", "any"),
        (b"OggS\0\2", "ogg"),
        (b"FLV\1\5", "flv"),
        (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11\xa6", "asf"),
        (b"DKIF\0\0\x20\0VP80", "ivf"),
        (b"GIF89a", "gif"),
        (b"\xff\xd8\xff\xe0", "jpeg_pipe,mjpeg"),
        (b"BM\x36", "bmp_pipe"),
        (b"YUV4MPEG2 W64 H48\n", "yuv4mpegpipe"),
        (b"\0\0\1\xba\x21\0\1", "mpeg"),
        (b"\0\0\1\xb3\x04", "mpeg,mpegvideo,m4v,h264,hevc"),
        (b"\0\0\0\1\x67\x64", "mpeg,mpegvideo,m4v,h264,hevc"),
        (b"\0\0\0\0\0\0\1\x67", "mpeg,mpegvideo,m4v,h264,hevc"),
        (b"ID3\4\0\0\0\0\0\4junkfLaC\0", "flac"),
        (b"ID3\4\0\0\0\0\0\4junk\xff\xfb\x90", "mp3,aac,flac,wav"),
        (b"ID3\4\0\0\x7f\x7f\x7f\x7f", "mp3,aac,flac,wav"),
        (b"ID3\4\0\0\0\0\0\0" * 6000 + b"\0\0\0\x20ftypisom", "mov"),
        ((b"G" + bytes(187)) * 9, "mpegts"),
        ((b"G" + bytes(187)) * 2, "mpegts"),
        ((b"\0\0\0\0G" + bytes(187)) * 9, "mpegts"),
        ((b"G" + bytes(203)) * 9, "mpegts"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + (b"G" + bytes(187)) * 12, "mpegts"),
        (bytes(100) + (b"G" + bytes(187)) * 12, "mpegts"),
        (bytes(range(256)), "any"),
        (bytes(5000), "any"),
    ],
)
def test_the_first_bytes_say_which_demuxers_may_read_a_file(head: bytes, expected: str) -> None:
    assert demuxers_for(head, fallback="any") == expected


@pytest.mark.parametrize(
    "text",
    [b"\n" * HEAD_BYTES, b" \t" * (HEAD_BYTES // 2), b"<a" * (HEAD_BYTES // 2), b"/" * HEAD_BYTES,
     b"file1" * (HEAD_BYTES // 5), b"\n file = " * 8000, b"<" + b"a" * (HEAD_BYTES - 1)],
)  # fmt: skip
def test_no_text_keeps_the_rules_for_text_busy(text: bytes) -> None:
    start = time.process_time()
    with pytest.raises(ProbeError):
        demuxers_for(text, fallback="any")
    assert time.process_time() - start < 0.5


KINDS = {
    "a.h264": "-c:v libx264 -x264-params annexb=1",
    "a.hevc": "-c:v libx265 -x265-params log-level=none",
    "a.m2v": "-c:v mpeg2video",
    "a.mjpeg": "-c:v mjpeg",
    "a.vob": "-c:v mpeg2video -f vob",
    "a.m2ts": "-c:v libx264 -g 3 -mpegts_m2ts_mode 1 -f mpegts",
    "a.wmv": "-c:v wmv2",
    "a.mxf": "-c:v mpeg2video",
    "a.y4m": "-pix_fmt yuv420p",
    "a.ivf": "-c:v libvpx",
    "a.dv": "-s 720x576 -pix_fmt yuv420p -r 25",
    "a.apng": "-f apng -plays 0",
    "a.3gp": "-c:v h263 -s 176x144",
    "a.ogv": "-c:v libtheora",
    "fragments.mp4": "-c:v libx264 -movflags frag_keyframe+empty_moov+default_base_moof",
}


def test_every_kind_of_file_is_read_whatever_its_name(tmp_path: Path, ffmpeg: str) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for name, how in KINDS.items():
        source = "-f lavfi -i testsrc2=s=176x144:r=25:d=0.4 -threads 1"
        done = run(ffmpeg, "-v", "error", *source.split(), *how.split(), tmp_path / name)
        assert done.returncode == 0, done.stderr
        (tmp_path / name).rename(folder / f"{name}.mp4")
    head = (folder / "a.h264.mp4").read_bytes()
    (folder / "three_byte_start_code.mp4").write_bytes(head[1:])
    later = b"\0\0\0\x08wide" + (folder / "fragments.mp4.mp4").read_bytes()
    (folder / "wide_before_ftyp.mp4").write_bytes(later)
    packets = (folder / "a.m2ts.mp4").read_bytes()
    (folder / "packets_cut_in_the_middle.mp4").write_bytes(packets[1000:])
    tag = b"ID3\4\0\0\0\0\0\x0a0123456789"
    (folder / "tag_before.mp4").write_bytes(tag + packets)
    done = run(sys.executable, "-m", "spacepatch", "tokenize", folder, "--out", out, *SETTINGS)
    assert done.returncode == 0, done.stderr
    assert written(out) == {path.name for path in folder.iterdir()}


def test_what_is_a_video_and_a_playlist_is_refused(tmp_path: Path, ffmpeg: str) -> None:
    # FFmpeg without an allow-list, as other decoders use it, takes them for manifests.
    manifest = b'<MPD profiles="urn:mpeg:dash:profile:isoff-live:2011">'
    make_video(ffmpeg, tmp_path / "a.ts", "testsrc2=s=64x48:d=1", "-c:v", "mpeg2video")
    make_video(ffmpeg, tmp_path / "a.y4m", "testsrc2=s=64x48:d=0.2", "-pix_fmt", "yuv420p")
    packets = (tmp_path / "a.ts").read_bytes()
    frames = (tmp_path / "a.y4m").read_bytes()
    colours = (manifest * 20)[:384]
    comment = b"\x21\xfe" + (b"\xff" + b"." * 255) * 300 + b"\xff" + manifest.ljust(255) + b"\0"
    still = gif(257, 257)
    for name, content in {
        "hls.ts": b"#EXTM3U\n#EXTINF:9,\n/etc/passwd\n" + packets,
        "concat.ts": b"ffconcat version 1.0\nfile /etc/passwd\n" + packets,
        "sdp.ts": b"x\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n" + packets,
        "dash.y4m": frames.replace(b"\n", b" X" + manifest + b"\n", 1),
        "dash_colours.gif": still[:10] + b"\xf6\1\1" + colours + still[19:],
        "dash_far_comment.gif": still[:6] + b"AAAA\x80AA" + b"BBBBBB" + comment + still[19:],
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ProbeError) as error, open_container(str(tmp_path / name)):
            pass
        assert error.value.reason == "forbidden_format", name
    with open_container(str(tmp_path / "a.ts")) as container:
        assert container.streams.video


# --- encryption, failing disks, old versions ---------------------------------------------------


def test_an_encrypted_video_is_called_that(tmp_path: Path, ffmpeg: str) -> None:
    folder, source = tmp_path / "in", "testsrc2=s=64x48:d=1"
    folder.mkdir()
    key = "-encryption_scheme cenc-aes-ctr -encryption_key 76a6c65c5ea762046bd749a2e632ccbb"
    key += " -encryption_kid a7e61c373e219033c21091fa607bf3b8 -c:v libx264"
    make_video(ffmpeg, folder / "a.mp4", source, *key.split())
    make_video(ffmpeg, folder / "fragments.mp4", source, *key.split(), "-movflags", "empty_moov")
    make_video(ffmpeg, folder / "clear.webm", source, "-c:v", "libvpx")
    make_video(ffmpeg, folder / "clear.ts", source, "-c:v", "libx264")
    (folder / "a.webm").write_bytes(declare_encrypted((folder / "clear.webm").read_bytes()))
    (folder / "a.ts").write_bytes(scramble((folder / "clear.ts").read_bytes()))
    done = run(sys.executable, "-m", "spacepatch", "tokenize", folder,
               "--out", tmp_path / "out", *SETTINGS)  # fmt: skip
    assert done.returncode == LOST_SOURCES, done.stderr
    names = ("a.mp4", "fragments.mp4", "a.webm", "a.ts")
    assert reasons(tmp_path / "out") == {name: {"encrypted"} for name in names}


def declare_encrypted(webm: bytes) -> bytes:
    """A WebM whose one track has ContentEncodings too; sizes are written anew, or as unknown."""

    def element(identity: str, *parts: bytes) -> bytes:
        content = b"".join(parts)
        return bytes.fromhex(identity) + b"\x01" + len(content).to_bytes(7, "big") + content

    def split(identity: str, data: bytes, start: int) -> tuple[int, bytes, int]:
        """Where an element begins, what it holds, and where it ends; its size has one byte."""
        place = data.index(bytes.fromhex(identity), start)
        begin = place + len(identity) // 2 + 1
        end = begin + (data[begin - 1] & 0x7F)
        return place, data[begin:end], end

    encryption = element("5035", element("47e1", b"\5"), element("47e2", bytes(range(16))))
    encodings = element("6d80", element("6240", element("5033", b"\1"), encryption))
    # The first mention of the tracks is in the table of contents.
    begin, tracks, end = split("1654ae6b", webm, webm.index(bytes.fromhex("1654ae6b")) + 1)
    _, track_entry, _ = split("ae", tracks, 0)
    webm = webm[:begin] + element("1654ae6b", element("ae", track_entry, encodings)) + webm[end:]
    segment = webm.index(bytes.fromhex("18538067")) + 4
    return webm[:segment] + b"\x01" + b"\xff" * 7 + webm[segment + 8 :]


def scramble(stream: bytes) -> bytes:
    """A transport stream with the even key's flag, and noise, on the packets of its video."""
    changed = bytearray(stream)
    for start in range(0, len(stream), 188):
        if (stream[start + 1] & 0x1F) << 8 | stream[start + 2] == 0x100:
            changed[start + 3] |= 0x80
            changed[start + 20 : start + 188] = np.random.default_rng(start).bytes(168)
    return bytes(changed)


def test_a_version_that_is_known_to_hang_is_refused(
    tmp_path: Path, sample_clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import av

    uri = str(sample_clips / "square_320x320.mp4")
    for name, value in (("__version__", "14.0.1"), ("ffmpeg_version_info", "7.1")):
        with monkeypatch.context() as patch:
            patch.setattr(av, name, value)
            with (
                pytest.raises(SpacepatchError, match=r"hangs on some videos: install av >= 15"),
                open_container(uri),
            ):
                pass
    with open_container(uri) as container:
        assert container.streams.video
