"""Probing and decoding, held against ffprobe and ffmpeg, on real and on hostile files."""

import csv
import io
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Iterable
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest

from spacepatch.data import Picture, VideoInfo
from spacepatch.decode import decode_pictures, display_size, probe_video
from spacepatch.decode.opening import open_container
from spacepatch.errors import ProbeError
from spacepatch.resize import make_frame

CORPUS = Path(__file__).resolve().parent.parent.parent / "shared" / "corpus"


def corpus_index() -> dict[str, dict[str, str]]:
    path = CORPUS / "INDEX.tsv"
    if not path.exists():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        return {row["file"]: row for row in csv.DictReader(file, delimiter="\t")}


INDEX = corpus_index()
needs_corpus = pytest.mark.skipif(not INDEX, reason="../shared is not beside this checkout")


def in_corpus(name: str) -> str:
    if not INDEX:
        pytest.skip("../shared is not beside this checkout")
    return str(CORPUS / name)


def run(*command: str | Path) -> bytes:
    return subprocess.run(list(map(str, command)), capture_output=True, check=True).stdout


def pictures(
    uri: str | Path, info: VideoInfo, indices: Iterable[int] | None = None
) -> list[Picture]:
    wanted = (
        np.arange(len(info.frame_pts)) if indices is None else np.array(list(indices), np.int64)
    )
    return list(decode_pictures(str(uri), info=info, indices=wanted, pts=info.frame_pts[wanted]))


def small(picture: Picture) -> np.ndarray:
    return make_frame(picture, size=(48, 64))


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    error = np.mean((one.astype(np.float64) - other) ** 2)
    return float("inf") if error == 0 else 10 * float(np.log10(255**2 / error))


def reason(uri: str | Path) -> str:
    with pytest.raises(ProbeError) as error:
        probe_video(str(uri))
    assert str(uri) not in str(error.value)  # messages go to files that name no absolute path
    return error.value.reason


# --- the table of frames ---------------------------------------------------------------------

NOT_CLEAN = {
    "decord__corrupted.mp4": "a broken packet gives no frame",
    "derived__truncated_faststart_half.mp4": "the last packet is cut off",
    "derived__resolution_change_midstream.ts": "times start again in the middle: repaired",
    "lilliput__colors-animated-8bpc-alpha-exif-xmp.avif": "ffmpeg 5.1 finds no stream in it",
}
UNDECODABLE = {name for name, row in INDEX.items() if row["nb_frames_decoded"] in ("", "0")} | {
    "exo__bear-id3.mp3"
}


def ffprobe_times(uri: str, stream: int) -> list[int]:
    show = ["-select_streams", str(stream), "-show_entries", "frame=best_effort_timestamp"]
    text = run("ffprobe", "-v", "quiet", *show, "-of", "json", f"file:{uri}")
    return [frame["best_effort_timestamp"] for frame in json.loads(text)["frames"]]


@needs_corpus
@pytest.mark.parametrize("name", sorted(set(INDEX) - set(NOT_CLEAN) - UNDECODABLE))
def test_the_times_of_frames_are_those_that_ffprobe_decodes(name: str, ffmpeg: str) -> None:
    info = probe_video(in_corpus(name))
    assert info.frame_pts.tolist() == ffprobe_times(in_corpus(name), info.stream_index)
    assert info.pts_repaired == ""


@needs_corpus
@pytest.mark.parametrize("name", sorted(set(INDEX) - UNDECODABLE))
def test_times_go_strictly_up_and_the_end_is_after_the_last(name: str) -> None:
    info = probe_video(in_corpus(name))
    assert all(a < b for a, b in pairwise([*info.frame_pts.tolist(), info.stop_pts]))


@needs_corpus
@pytest.mark.parametrize(
    "name",
    # INDEX.tsv tells of the first of several streams, and of mirrored pictures another angle.
    sorted(
        name
        for name, row in INDEX.items()
        if name not in UNDECODABLE | set(NOT_CLEAN) and row["WxH"]
        if row["n_video_streams"] == "1" and "mirrored" not in name
    ),
)
def test_display_size_is_width_times_pixel_aspect_then_rotated(name: str) -> None:
    row = INDEX[name]
    width, height = map(int, row["WxH"].split("x"))
    aspect = Fraction(row["SAR"].replace(":", "/")) if row["SAR"] else Fraction(1)
    shown = (height, max(1, round(width * aspect)))
    if row["rotation"] in ("90", "-90"):
        shown = shown[::-1]
    info = probe_video(in_corpus(name))
    assert (info.coded_size, info.display_size) == ((height, width), shown)
    # ffprobe counts counter-clockwise.
    assert info.rotation == -int(row["rotation"] or 0) % 360


@pytest.mark.parametrize(
    ("rotation", "aspect", "expected"),
    [
        (0, Fraction(1), (576, 720)),
        (0, Fraction(64, 45), (576, 1024)),
        (90, Fraction(64, 45), (1024, 576)),
        (180, Fraction(1, 2), (576, 360)),
        (270, Fraction(1), (720, 576)),
        (0, Fraction(0), (576, 720)),
        (0, Fraction(1, 10_000), (576, 1)),
    ],
)
def test_pixel_aspect_stretches_the_width_before_the_rotation(
    rotation: int, aspect: Fraction, expected: tuple[int, int]
) -> None:
    assert display_size((576, 720), rotation=rotation, pixel_aspect_ratio=aspect) == expected


@pytest.mark.parametrize(
    ("name", "stream", "coded"),
    [
        ("derived__two_video_default_is_second.mp4", 1, (136, 320)),
        ("torchcodec__nasa_13013.mp4", 3, (270, 480)),
        ("qt__audio_video_with_jpg_thumbnail.mp4", 0, (384, 684)),
        ("qt__multitrack.mkv", 0, (1080, 1920)),
    ],
)
def test_of_several_streams_the_one_that_ffmpeg_prefers_is_taken(
    name: str, stream: int, coded: tuple[int, int]
) -> None:
    info = probe_video(in_corpus(name))
    assert (info.stream_index, info.coded_size) == (stream, coded)


def test_cover_art_never_hides_a_video(tmp_path: Path, ffmpeg: str) -> None:
    # FFmpeg ranks a track for the deaf below a picture without any flag.
    source = ["-f", "lavfi", "-i", "testsrc2=s=64x48:r=25:d=1"]
    run(ffmpeg, "-v", "error", *source, "-frames:v", "1", tmp_path / "cover.png")
    cover = ["-attach", tmp_path / "cover.png", "-metadata:s:t", "mimetype=image/png"]
    flags = ["-c:v", "libx264", "-disposition:v:0", "hearing_impaired"]
    run(ffmpeg, "-v", "error", *source, *flags, *cover, tmp_path / "a.mkv")
    info = probe_video(str(tmp_path / "a.mkv"))
    assert (info.codec, len(info.frame_pts)) == ("h264", 25)


# --- typed reasons ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("exo__bear-id3.mp3", "no_video_stream"),
        ("mediabunny__ac3.mkv", "no_video_stream"),
        ("mediabunny__multiple-aac-tracks.mp4", "no_video_stream"),
        ("qt__corrupt_end.ogg", "no_video_stream"),
        ("qt__nokia-tune.mkv", "no_video_stream"),
        ("moviepy__result.webm", "unreadable"),
        ("derived__html_error_page.mp4", "unreadable"),
        ("derived__git_lfs_pointer.mp4", "unreadable"),
        ("derived__truncated_no_moov.mp4", "unreadable"),
        ("lilliput__big_buck_bunny_480p_10s_big_atom.mp4", "unreadable"),
        ("lilliput__big_buck_bunny_720_5s.webp", "no_decoder"),
        ("lilliput__party-discord.webp", "no_decoder"),
    ],
)
def test_what_cannot_be_used_has_a_typed_reason(name: str, expected: str) -> None:
    assert reason(in_corpus(name)) == expected


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html><body>403</body></html>", "HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "Git LFS pointer"),
        (b"hello", "no container"),
        (bytes(5000), "no container"),
    ],
)
def test_what_is_no_video_is_called_by_its_name(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(content)
    with pytest.raises(ProbeError, match=words) as error:
        probe_video(str(path))
    assert error.value.reason == "unreadable"


def test_a_file_that_is_not_there_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        probe_video(str(tmp_path / "gone.mp4"))


@pytest.mark.parametrize(
    ("codec", "container"),
    [("jpeg2000", "mp4"), ("jpeg2000", "mkv"), ("jpeg2000", "avi"), ("magicyuv", "mkv")],
)
def test_a_codec_off_the_list_is_refused_and_its_decoder_never_opened(
    tmp_path: Path, ffmpeg: str, codec: str, container: str
) -> None:
    path = tmp_path / f"a.{container}"
    source = ["-f", "lavfi", "-i", "testsrc2=s=64x48:d=0.2"]
    run(ffmpeg, "-v", "error", *source, "-c:v", codec, path)
    assert reason(path) == "forbidden_codec"
    # The pixel format is known to the decoder alone: FFmpeg opens one to learn it, if it may.
    with av.open(str(path)) as container_with_decoders:
        assert container_with_decoders.streams.video[0].codec_context.pix_fmt is not None
    with open_container(str(path)) as ours:
        assert ours.streams.video[0].codec_context.pix_fmt is None


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


# --- frames by number: the number is in the picture ------------------------------------------

BITS = 10
BARS = f"geq=lum='if(mod(floor(N/pow(2,floor(X/8))),2),235,16)':cb=128:cr=128,scale={BITS * 8}:32"


def number_in(picture: Picture) -> int:
    frame = make_frame(picture, size=(32, BITS * 8)).mean(axis=(0, 2))
    return sum(int(frame[8 * bit + 2 : 8 * bit + 6].mean() > 128) << bit for bit in range(BITS))


MAKERS = {
    "open_gop.mp4": "-c:v libx264 -preset veryfast -bf 3 -x264-params open-gop=1:keyint=60",
    "open_gop.mkv": "-c:v libx264 -preset veryfast -bf 3 -x264-params open-gop=1:keyint=60",
    "open_gop.ts": "-c:v libx264 -preset veryfast -bf 3 -x264-params open-gop=1:keyint=60",
    "one_keyframe.mp4": "-c:v libx264 -preset veryfast -bf 3 -x264-params keyint=9999",
    "hevc.mp4": "-c:v libx265 -preset ultrafast"
    " -x265-params open-gop=1:bframes=4:keyint=60:log-level=none",
    "vp8.webm": "-c:v libvpx -b:v 300k -deadline realtime -cpu-used 8 -auto-alt-ref 1"
    " -lag-in-frames 10",
    "vp9.webm": "-c:v libvpx-vp9 -b:v 300k -deadline realtime -cpu-used 8",
    "b_frames.avi": "-c:v mpeg4 -bf 2 -g 30 -q:v 3",
    "mpeg2.mpg": "-c:v mpeg2video -bf 2 -g 30 -q:v 3",
    "mpeg2.mxf": "-c:v mpeg2video -bf 2 -g 30 -q:v 3",
    "wmv2.wmv": "-c:v wmv2 -g 30 -q:v 3",
    "flv1.flv": "-c:v flv -g 30 -q:v 3",
    "no_index.mkv": "-c:v libx264 -preset veryfast -bf 3 -x264-params keyint=60 -live 1",
    "fragments.mp4": "-c:v libx264 -preset veryfast -x264-params keyint=60"
    " -movflags frag_keyframe+empty_moov",
    "raw.h264": "-c:v libx264 -preset veryfast -bf 3",
    "frames.gif": "-c:v gif",
}


@pytest.fixture(scope="session")
def numbered(tmp_path_factory: pytest.TempPathFactory, ffmpeg: str) -> Path:
    """A folder of videos of 560 frames, each with its number in it as ten bars."""
    folder = tmp_path_factory.mktemp("numbered")
    plain = folder / "plain.nut"
    source = ["-f", "lavfi", "-i", f"color=s={BITS * 8}x32:r=25:d=22.4,{BARS}"]
    run(ffmpeg, "-v", "error", *source, "-c:v", "ffv1", plain)
    for name, options in MAKERS.items():
        run(ffmpeg, "-v", "error", "-i", plain, *options.split(), "-an", folder / name)
    return folder


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_every_frame_that_comes_is_the_one_its_index_says(numbered: Path, name: str) -> None:
    info = probe_video(str(numbered / name))
    assert len(info.frame_pts) == 560
    found = pictures(numbered / name, info)
    assert [picture.index for picture in found] == list(range(560))
    assert [number_in(picture) for picture in found] == list(range(560))
    assert [picture.pts for picture in found] == info.frame_pts.tolist()


@pytest.mark.parametrize("name", sorted(MAKERS))
@pytest.mark.parametrize("first", [500, 537, 540, 541, 559])
def test_a_frame_late_in_a_video_is_the_one_its_index_says(
    numbered: Path, name: str, first: int
) -> None:
    info = probe_video(str(numbered / name))
    wanted = list(range(first, 560, 3))
    found = pictures(numbered / name, info, wanted)
    assert [(picture.index, number_in(picture)) for picture in found] == [(i, i) for i in wanted]


@pytest.mark.parametrize("name", ["open_gop.mp4", "vp9.webm", "b_frames.avi"])
def test_only_wanted_frames_come_in_order_of_presentation(numbered: Path, name: str) -> None:
    info = probe_video(str(numbered / name))
    wanted = [3, 4, 59, 60, 61, 200, 333]
    assert [number_in(picture) for picture in pictures(numbered / name, info, wanted)] == wanted


def test_nothing_wanted_is_nothing_decoded(numbered: Path) -> None:
    info = probe_video(str(numbered / "open_gop.mp4"))
    assert pictures(numbered / "gone.mp4", info, []) == []


def test_decoding_ends_after_the_last_wanted_frame(numbered: Path) -> None:
    info = probe_video(str(numbered / "open_gop.mp4"))
    beats: list[int] = []
    decoded = decode_pictures(
        str(numbered / "open_gop.mp4"),
        info=info,
        indices=np.array([9]),
        pts=info.frame_pts[[9]],
        on_picture=lambda: beats.append(1),
    )
    assert [number_in(picture) for picture in decoded] == [9]
    assert len(beats) == 10


@pytest.mark.parametrize(
    "name",
    [
        "mediabunny__annex-b-avc.mkv",
        "moviepy__big_buck_bunny_0_30.webm",
        "mediabunny__missing-keyframe-labels.ts",
        "mediabunny__transparency.webm",
    ],
)
def test_frames_after_a_seek_are_bit_equal_to_those_without(name: str) -> None:
    uri = in_corpus(name)
    info = probe_video(uri)
    late = range(len(info.frame_pts) - 40, len(info.frame_pts), 8)
    assert late[0] >= 500
    jumped = pictures(uri, info, late)
    sequential = [picture for picture in pictures(uri, info) if picture.index in late]
    assert [picture.index for picture in jumped] == list(late)
    for one, other in zip(jumped, sequential, strict=True):
        np.testing.assert_array_equal(small(one), small(other))


# --- edit lists, order, times ----------------------------------------------------------------


def test_frames_outside_the_edit_list_are_no_frames(numbered: Path, tmp_path: Path) -> None:
    # Cut without re-encoding: packets before the cut stay in the file, for the decoder alone.
    path = tmp_path / "cut.mp4"
    cut = ["-ss", "3.4", "-i", numbered / "open_gop.mp4", "-t", "0.4", "-c", "copy", path]
    run("ffmpeg", "-v", "error", *cut)
    info = probe_video(str(path))
    with av.open(str(path)) as container:
        assert len(info.frame_pts) < container.streams.video[0].frames
        assert info.frame_pts.tolist() == [frame.pts for frame in container.decode(video=0)]
    numbers = [number_in(picture) for picture in pictures(path, info)]
    assert numbers == list(range(85, 85 + len(numbers)))


@pytest.mark.parametrize(
    ("name", "cut"),
    [("open_gop.ts", "cut.ts"), ("open_gop.mkv", "cut.mkv"), ("hevc.mp4", "cut.ts")],
)
def test_pictures_that_refer_to_what_was_cut_off_before_them_are_no_frames(
    numbered: Path, tmp_path: Path, name: str, cut: str
) -> None:
    # After the keyframe that the cut begins with come pictures to show before it.
    path = tmp_path / cut
    run("ffmpeg", "-v", "error", "-ss", "5.1", "-i", numbered / name, "-c", "copy", path)
    info = probe_video(str(path))
    assert info.frame_pts.tolist() == ffprobe_times(str(path), 0)
    numbers = [number_in(picture) for picture in pictures(path, info)]
    assert numbers == list(range(560 - len(info.frame_pts), 560))


@pytest.mark.parametrize(
    ("name", "hidden"), [("derived__editlist_skip_preroll.mp4", 5), ("mediabunny__edts.mp4", 0)]
)
def test_hidden_packets_are_counted_and_not_shown(name: str, hidden: int) -> None:
    info = probe_video(in_corpus(name))
    assert info.num_packets - len(info.frame_pts) == hidden


def test_pictures_come_in_order_of_presentation_not_of_decoding() -> None:
    uri = in_corpus("decord__unordered.mov")
    with av.open(uri) as container:
        packets = [packet.pts for packet in container.demux(video=0) if packet.size]
    assert packets != sorted(packets)
    info = probe_video(uri)
    assert [picture.pts for picture in pictures(uri, info)] == sorted(packets)


def test_a_stream_without_times_counts_frames_and_says_so(numbered: Path) -> None:
    info = probe_video(str(numbered / "raw.h264"))
    assert info.pts_repaired == "missing"
    assert len(set(np.diff(info.frame_pts).tolist())) == 1


@pytest.mark.parametrize("kind", ["h264", "hevc", "m2v", "mjpeg", "mp4", "ts", "gif", "tiff"])
def test_a_single_frame_is_read_from_every_kind_of_file(
    tmp_path: Path, ffmpeg: str, kind: str
) -> None:
    path = tmp_path / f"a.{kind}"
    source = ["-f", "lavfi", "-i", "testsrc2=s=64x48:d=1", "-frames:v", "1"]
    run(ffmpeg, "-v", "error", *source, *(["-c:v", "mjpeg"] if kind == "mjpeg" else []), path)
    info = probe_video(str(path))
    (picture,) = pictures(path, info)
    assert (picture.index, small(picture).shape) == (0, (48, 64, 3))


def test_start_times_far_from_zero_are_kept() -> None:
    info = probe_video(in_corpus("derived__start_3600s.mkv"))
    assert info.frame_pts[0] * info.time_base == 3600
    assert (info.stop_pts - info.frame_pts[0]) * info.time_base == 2


def test_damaged_frames_are_missing_or_flagged_and_the_others_come() -> None:
    uri = in_corpus("decord__corrupted.mp4")
    info = probe_video(uri)
    found = pictures(uri, info)
    assert len(info.frame_pts) == 50
    assert len(found) == int(INDEX["decord__corrupted.mp4"]["nb_frames_decoded"])
    assert [picture.pts for picture in found] == [
        int(info.frame_pts[picture.index]) for picture in found
    ]


def test_a_video_that_is_cut_off_gives_the_frames_that_it_has(ffmpeg: str) -> None:
    name = "derived__truncated_faststart_half.mp4"
    info = probe_video(in_corpus(name))
    found = pictures(in_corpus(name), info)
    assert (len(info.frame_pts), len(found)) == (112, 111)
    assert [picture.pts for picture in found] == ffprobe_times(in_corpus(name), 0)


@pytest.mark.parametrize(
    ("name", "still"),
    [
        ("derived__png_renamed.mp4", True),
        ("qt__one_red_frame.mp4", False),
        ("derived__single_frame_real.mp4", False),
        ("lilliput__no-loop.gif", False),
    ],
)
def test_a_still_is_a_picture_file_and_not_a_short_video(name: str, still: bool) -> None:
    assert probe_video(in_corpus(name)).still is still


# --- inside a tar ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["landscape_640x360.mp4", "odd_size_321x179_vp9.webm", "still_picture_400x300.png"],
)
def test_a_video_inside_a_tar_decodes_like_the_file_itself(
    tmp_path: Path, sample_clips: Path, name: str
) -> None:
    content = (sample_clips / name).read_bytes()
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        for member, data in [("0.txt", b"x" * 700), (name, content), ("1.bin", content[::-1])]:
            header = tarfile.TarInfo(member)
            header.size = len(data)
            archive.addfile(header, io.BytesIO(data))
    with tarfile.open(path) as archive:
        place = {"offset": archive.getmember(name).offset_data, "num_bytes": len(content)}
    plain, member = probe_video(str(sample_clips / name)), probe_video(str(path), **place)
    assert member.frame_pts.tolist() == plain.frame_pts.tolist()
    assert replace(member, frame_pts=None) == replace(plain, frame_pts=None)
    wanted = np.unique(np.linspace(0, len(plain.frame_pts) - 1, 4).astype(int))
    inside = decode_pictures(
        str(path), info=member, indices=wanted, pts=plain.frame_pts[wanted], **place
    )
    for one, other in zip(inside, pictures(sample_clips / name, plain, wanted), strict=True):
        np.testing.assert_array_equal(small(one), small(other))


# --- orientation -----------------------------------------------------------------------------


def upright_by_ffmpeg(uri: str, frame: int, size: tuple[int, int], turn: str = "") -> np.ndarray:
    flags = "flags=bicubic+accurate_rnd+full_chroma_int"
    chosen = f"select='eq(n\\,{frame})',{turn}scale={size[1]}:{size[0]}:{flags}"
    shape = ["-frames:v", "1", "-f", "rawvideo", "-pix_fmt", "rgb24"]
    pixels = run("ffmpeg", "-v", "error", "-i", f"file:{uri}", "-vf", chosen, *shape, "-")
    return np.frombuffer(pixels, np.uint8).reshape(*size, 3)


def turned(picture: Picture) -> list[Picture]:
    """The seven other ways to turn it."""
    ways = [(rotation, mirrored) for rotation in (0, 90, 180, 270) for mirrored in (False, True)]
    ways.remove((picture.rotation, picture.mirrored))
    return [replace(picture, rotation=way[0], mirrored=way[1]) for way in ways]


ROTATED = [
    ("decord__video_0.mov", 0, False),
    ("decord__video_90.mov", 90, False),
    ("decord__video_180.mov", 180, False),
    ("decord__video_270.mov", 270, False),
    ("mediabunny__rotate-buck-bunny.mp4", 90, False),
    ("moviepy__fire2.mp4", 180, False),
    ("qt__color_matrix.mp4", 0, False),
    ("qt__color_matrix_90_deg_clockwise.mp4", 90, False),
    ("qt__color_matrix_180_deg_clockwise.mp4", 180, False),
    ("qt__color_matrix_270_deg_clockwise.mp4", 270, False),
    ("qt__color_matrix_90_deg_clockwise_mirrored.mp4", 270, True),
    ("qt__color_matrix_270_deg_clockwise_mirrored.mp4", 90, True),
]


@pytest.mark.parametrize(("name", "rotation", "mirrored"), ROTATED)
def test_a_frame_is_upright_as_ffmpeg_makes_it(
    name: str, rotation: int, mirrored: bool, ffmpeg: str
) -> None:
    uri = in_corpus(name)
    info = probe_video(uri)
    index = min(40, len(info.frame_pts) - 1)
    (picture,) = pictures(uri, info, [index])
    assert (picture.rotation, picture.mirrored) == (rotation, mirrored)
    assert info.rotation == rotation
    size = (160, 96) if info.display_size[0] > info.display_size[1] else (96, 160)
    expected = upright_by_ffmpeg(uri, index, size)
    assert psnr(make_frame(picture, size=size), expected) > 40
    assert all(psnr(make_frame(other, size=size), expected) < 25 for other in turned(picture))


def jpeg_with_exif(content: bytes, orientation: int) -> bytes:
    tiff = b"II*\0" + struct.pack("<IHHHIHHI", 8, 1, 0x112, 3, 1, orientation, 0, 0)
    exif = b"Exif\0\0" + tiff
    return content[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + content[2:]


# What EXIF's numbers say, in FFmpeg's filters (transpose: 1 clockwise, 2 counter-clockwise, 0 and
# 3 over the two diagonals).
EXIF = {
    1: "",
    2: "hflip,",
    3: "hflip,vflip,",
    4: "vflip,",
    5: "transpose=0,",
    6: "transpose=1,",
    7: "transpose=3,",
    8: "transpose=2,",
}


@pytest.mark.parametrize("orientation", sorted(EXIF))
def test_a_photo_is_upright_as_its_exif_says(tmp_path: Path, ffmpeg: str, orientation: int) -> None:
    plain, photo = tmp_path / "plain.jpg", tmp_path / "photo.jpg"
    source = ["-f", "lavfi", "-i", "testsrc2=s=160x96:d=1", "-frames:v", "1", "-q:v", "2"]
    run(ffmpeg, "-v", "error", *source, plain)
    photo.write_bytes(jpeg_with_exif(plain.read_bytes(), orientation))
    info = probe_video(str(photo))
    size = (96, 160) if orientation < 5 else (160, 96)
    assert (info.display_size, info.still) == (size, True)
    (picture,) = pictures(photo, info)
    expected = upright_by_ffmpeg(str(plain), 0, size, EXIF[orientation])
    assert psnr(make_frame(picture, size=size), expected) > 40
    assert all(psnr(make_frame(other, size=size), expected) < 25 for other in turned(picture))


def test_a_size_that_changes_in_the_middle_ends_the_pictures_with_a_reason() -> None:
    uri = in_corpus("derived__resolution_change_midstream.ts")
    info = probe_video(uri)
    found = []
    with pytest.raises(Exception, match="pictures change to") as error:
        for picture in decode_pictures(uri, info=info, indices=np.arange(50), pts=info.frame_pts):
            found.append(picture.index)
    assert getattr(error.value, "reason", "") == "size_changed"
    assert found == list(range(25))


# --- reads that fail, packets that are broken, times that repeat -----------------------------

FAILING_READ = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>
ssize_t read(int file, void *to, size_t size) {
    static ssize_t (*real)(int, void *, size_t);
    if (!real) real = (ssize_t (*)(int, void *, size_t))dlsym(RTLD_NEXT, "read");
    struct stat info;
    off_t left = atoll(getenv("EIO_FROM")) - lseek(file, 0, SEEK_CUR);
    if (!fstat(file, &info) && info.st_ino == strtoull(getenv("EIO_INODE"), 0, 10)) {
        if (left <= 0) { errno = EIO; return -1; }
        if ((off_t)size > left) size = left;
    }
    return real(file, to, size);
}
"""


@pytest.fixture(scope="module")
def failing_read(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library to preload, under which a disk fails from the middle of one file on."""
    compiler = shutil.which("cc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("needs Linux and a C compiler")
    folder = tmp_path_factory.mktemp("failing_read")
    (folder / "a.c").write_text(FAILING_READ)
    run(compiler, "-shared", "-fPIC", "-o", folder / "a.so", folder / "a.c", "-ldl")
    return folder / "a.so"


@pytest.mark.parametrize("name", ["no_index.mkv", "open_gop.ts", "flv1.flv", "b_frames.avi"])
@pytest.mark.parametrize("what", ["probe", "decode"])
def test_a_failed_read_is_not_the_end_of_the_video(
    numbered: Path, failing_read: Path, name: str, what: str
) -> None:
    program = """
import os, sys
import numpy as np
from spacepatch.decode import decode_pictures, probe_video
from spacepatch.errors import SourceError
uri, size = sys.argv[1], os.path.getsize(sys.argv[1])
os.environ.update(EIO_INODE=str(os.stat(uri).st_ino), EIO_FROM=str(size * 6 // 10))
if sys.argv[2] == "decode":
    os.environ["EIO_FROM"] = str(size * 2)
try:
    info = probe_video(uri)
    os.environ["EIO_FROM"] = str(size * 6 // 10)
    for _ in decode_pictures(uri, info=info, indices=np.arange(560), pts=info.frame_pts):
        pass
except SourceError as error:
    print(type(error).__name__, error.reason, error, sep=":")
"""
    environment = {
        **os.environ,
        "LD_PRELOAD": str(failing_read),
        "EIO_INODE": "0",
        "EIO_FROM": "0",
    }
    command = [sys.executable, "-c", program, str(numbered / name), what]
    program_done = subprocess.run(command, capture_output=True, text=True, env=environment)
    kind = "ProbeError" if what == "probe" else "DecodeError"
    assert program_done.stdout == f"{kind}:io:cannot be read: Input/output error\n", (
        program_done.stderr
    )


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_frames_by_number_are_those_that_they_are_by_time(numbered: Path, name: str) -> None:
    info = replace(probe_video(str(numbered / name)), pts_repaired="missing")
    assert [number_in(picture) for picture in pictures(numbered / name, info)] == list(range(560))


def break_packet(source: Path, target: Path, number: int) -> None:
    """Copy a file with the bytes of one packet overwritten."""
    with av.open(str(source)) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][number]
        data = bytes(packet)
    content = source.read_bytes()
    assert packet.pos is not None
    place = content.index(data, packet.pos)
    target.write_bytes(content[:place] + b"\xff" * len(data) + content[place + len(data) :])


def test_a_broken_packet_does_not_shift_the_numbers_of_the_next(
    numbered: Path, tmp_path: Path
) -> None:
    break_packet(numbered / "vp8.webm", tmp_path / "a.webm", 20)
    info = replace(probe_video(str(tmp_path / "a.webm")), pts_repaired="discontinuous")
    indices = [picture.index for picture in pictures(tmp_path / "a.webm", info)]
    assert indices == [index for index in range(560) if index != 20]


def test_where_pictures_are_reordered_a_broken_packet_ends_the_numbers(
    numbered: Path, tmp_path: Path
) -> None:
    break_packet(numbered / "open_gop.mkv", tmp_path / "a.mkv", 20)
    info = replace(probe_video(str(tmp_path / "a.mkv")), pts_repaired="discontinuous")
    found = pictures(tmp_path / "a.mkv", info)
    assert 10 < len(found) <= 20
    assert [number_in(picture) for picture in found] == [picture.index for picture in found]


def copy_with_times(source: Path, target: Path, times: list[int]) -> None:
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        packets = (packet for packet in old.demux(video=0) if packet.size)
        for packet, time in zip(packets, times, strict=False):
            packet.stream = stream
            packet.time_base = Fraction(1, 1000)
            packet.pts = packet.dts = time
            new.mux(packet)


def test_a_repeated_time_moves_its_own_frame_and_no_other(numbered: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    times = [int(40 * i + 3 * i**1.5) for i in range(60)]
    shown = [*times]
    times[31], shown[31] = times[30], times[30] + 1
    copy_with_times(numbered / "vp8.webm", path, times)
    info = probe_video(str(path))
    assert (info.pts_repaired, info.frame_pts.tolist()) == ("repeated", shown)
    found = pictures(path, info)
    assert [(picture.index, number_in(picture)) for picture in found] == [(i, i) for i in range(60)]


def test_repeated_times_without_a_free_tick_are_counted(numbered: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    copy_with_times(numbered / "vp8.webm", path, [0, 40, 40, 41, *range(80, 900, 40)])
    info = probe_video(str(path))
    assert info.pts_repaired == "crowded"
    found = pictures(path, info)
    assert [number_in(picture) for picture in found] == list(range(len(info.frame_pts)))
