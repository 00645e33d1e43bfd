"""Files that point at other files, odd names, and files that claim too much."""

import os
import shutil
import socket
import struct
import subprocess
import sys
import tarfile
import zlib
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from decoding import pictures, reason, run

from spacepatch.decode import probe_video

# --- files that point at other files ---------------------------------------------------------

PLAYLISTS = {
    "ffconcat.mp4": "ffconcat version 1.0\nfile 'BAIT'\n",
    "hls.mp4": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nBAIT\n#EXT-X-ENDLIST\n",
    "hls.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nBAIT\n#EXT-X-ENDLIST\n",
    "hls_absolute.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nFOLDER/BAIT\n",
    "hls_subfile.m3u8": "#EXTM3U\n#EXTINF:9,\nsubfile,,start,0,end,99,,:FOLDER/BAIT\n",
    "dash.mp4": '<?xml version="1.0"?>\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
    'mediaPresentationDuration="PT9S"><Period><AdaptationSet mimeType="video/mp4"><Representation '
    'id="1" bandwidth="1"><BaseURL>BAIT</BaseURL></Representation></AdaptationSet></Period></MPD>',
    "session.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
    "m=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
    "imf.mp4": '<?xml version="1.0"?>\n<CompositionPlaylist '
    'xmlns="http://www.smpte-ra.org/schemas/2067-3/2016"><Id>BAIT</Id></CompositionPlaylist>',
}


@pytest.mark.parametrize("name", sorted(PLAYLISTS))
@pytest.mark.parametrize("inside_tar", [False, True])
def test_a_file_that_points_at_another_is_refused_and_the_other_never_opened(
    tmp_path: Path, name: str, inside_tar: bool
) -> None:
    # Whoever opens a FIFO to read waits for a writer: if the bait is touched, the process hangs.
    bait = tmp_path / "bait.mp4"
    os.mkfifo(bait)
    text = PLAYLISTS[name].replace("BAIT", bait.name).replace("FOLDER", str(tmp_path))
    (tmp_path / name).write_text(text)
    where = "{}"
    target = tmp_path / name
    if inside_tar:
        target = tmp_path / "a.tar"
        with tarfile.open(target, "w", format=tarfile.USTAR_FORMAT) as archive:
            archive.add(tmp_path / name, name)
        where = f"{{'offset': 512, 'num_bytes': {len(text)}}}"
    program = (
        "import sys\nfrom spacepatch.decode import probe_video\n"
        "from spacepatch.errors import SourceError\n"
        f"try:\n    probe_video(sys.argv[1], **{where})\n"
        "except SourceError as error:\n    print(error.reason)\n"
    )
    command = [sys.executable, "-c", program, str(target)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.stdout.strip() in ("forbidden_format", "unreadable"), done.stderr
    with pytest.raises(OSError, match="No such device or address"):
        os.open(bait, os.O_WRONLY | os.O_NONBLOCK)  # ENXIO: nobody has it open


def test_the_bait_works_ffmpeg_by_itself_would_follow(tmp_path: Path, sample_clips: Path) -> None:
    shutil.copy(sample_clips / "square_320x320.mp4", tmp_path / "victim.mp4")
    path = tmp_path / "a.mp4"
    path.write_text("ffconcat version 1.0\nfile victim.mp4\n")
    with av.open(str(path)) as container:
        assert next(container.decode(video=0)).width == 320
    assert reason(path) == "forbidden_format"


def test_a_playlist_on_the_network_calls_nobody(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        url = f"http://127.0.0.1:{server.getsockname()[1]}/a.ts"
        (tmp_path / "a.m3u8").write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{url}\n")
        assert reason(tmp_path / "a.m3u8") == "forbidden_format"
        with pytest.raises(TimeoutError):
            server.accept()


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "bmp", "tiff"])
@pytest.mark.parametrize("name", ["a", "a%03d", "a*", "a{1,2}", "a?"])
def test_a_photo_is_one_photo_whatever_its_name_and_size(
    tmp_path: Path, ffmpeg: str, kind: str, name: str
) -> None:
    # By such names FFmpeg would look for a series of pictures, and JPEGs above 2 KB are always one.
    path = tmp_path / f"{name}.{kind}"
    source = ["-f", "lavfi", "-i", "testsrc2=s=160x120:d=1", "-frames:v", "1", "-f", "image2"]
    run(ffmpeg, "-v", "error", *source, "-update", "1", tmp_path / f"plain.{kind}")
    (tmp_path / f"plain.{kind}").rename(path)
    assert path.stat().st_size > 2048
    info = probe_video(str(path))
    assert (info.still, info.display_size) == (True, (120, 160))
    assert len(pictures(path, info)) == 1


NAMES = [
    "a:b.mp4",
    "-dash.mp4",
    "100%d%03d.mp4",
    "http:x.mp4",
    "concat:victim.mp4|victim.mp4",
    "subfile,,start,0,end,10,,:victim.mp4",
    "data:,x.mp4",
    "naïve 视频 #?&.mp4",
    "caf\udce9.mp4",
    "pipe:0",
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("folder", ["", "{}/"])
def test_a_name_is_only_a_name(
    tmp_path: Path,
    sample_clips: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    folder: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(sample_clips / "portrait_270x480.mp4", tmp_path / name)
    shutil.copy(sample_clips / "square_320x320.mp4", tmp_path / "victim.mp4")
    info = probe_video(folder.format(tmp_path) + name)
    assert (info.display_size, len(info.frame_pts)) == ((480, 270), 75)
    assert len(pictures(folder.format(tmp_path) + name, info, [0, 5])) == 2


# --- files that claim too much ---------------------------------------------------------------


def png_of(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def claim_in_jpegs(content: bytes, side: int) -> bytes:
    changed = bytearray(content)
    place = -1
    while (place := changed.find(b"\xff\xc0\x00\x11\x08", place + 1)) >= 0:
        changed[place + 5 : place + 9] = struct.pack(">HH", side, side)
    assert changed != content
    return bytes(changed)


# 15,000 squared is below FFmpeg's own limit and above ours; a JPEG is held against its bytes first.
@pytest.mark.parametrize(
    ("kind", "side"), [("png", 30_000), ("png", 15_000), ("jpg", 30_000), ("avi", 30_000)]
)
def test_a_tiny_file_that_claims_huge_pictures_is_too_large_and_takes_no_memory(
    tmp_path: Path, ffmpeg: str, kind: str, side: int
) -> None:
    path = tmp_path / f"a.{kind}"
    if kind == "png":
        path.write_bytes(png_of(side, side))
    else:
        source = ["-f", "lavfi", "-i", "testsrc2=s=64x48:d=0.2"]
        one = ["-frames:v", "1"] if kind == "jpg" else []
        run(ffmpeg, "-v", "error", *source, *one, "-c:v", "mjpeg", path)
        path.write_bytes(claim_in_jpegs(path.read_bytes(), side))
    program = (
        "import resource, sys, av\nfrom spacepatch.decode import probe_video\n"
        "from spacepatch.errors import SourceError\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try:\n    probe_video(sys.argv[1])\n"
        "except SourceError as error:\n    print(error.reason)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    found, kilobytes = run(sys.executable, "-c", program, path).decode().split()
    assert found == "too_large"
    assert int(kilobytes) < 50_000


def test_pictures_larger_than_the_header_says_are_not_decoded(tmp_path: Path, ffmpeg: str) -> None:
    path = tmp_path / "a.webm"
    source = ["-f", "lavfi", "-i", "testsrc2=s=64x48:d=0.2"]
    run(ffmpeg, "-v", "error", *source, "-c:v", "libvpx", path)
    changed = path.read_bytes().replace(
        b"\x9d\x01\x2a" + struct.pack("<HH", 64, 48),
        b"\x9d\x01\x2a" + struct.pack("<HH", 16383, 16383),
    )
    assert changed != path.read_bytes()
    path.write_bytes(changed)
    assert pictures(path, probe_video(str(path))) == []


def test_a_frame_that_claims_to_stay_for_years_makes_the_file_too_large(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        stream.codec_context.max_b_frames = 0
        for number in range(3):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), number, np.uint8))
            frame.pts, frame.time_base = number * 10**11, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert path.stat().st_size < 2000
    assert reason(path) == "too_large"
