"""Headers and packets, held against ffprobe: times, sizes, streams, and typed reasons."""

from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from decoding import INDEX, ffprobe_times, in_corpus, needs_corpus, pictures, reason, run, small
from PIL import Image

from spacepatch.decode import display_size, probe_video
from spacepatch.decode.opening import open_container
from spacepatch.decode.orientation import sane_ratio
from spacepatch.errors import ProbeError
from spacepatch.resize import make_frame

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


def test_a_gif_that_is_too_fast_is_shown_as_browsers_and_ffmpeg_5_show_it(
    tmp_path: Path, ffmpeg: str
) -> None:
    version = run(ffmpeg, "-version").split()[2]
    if not version.startswith(b"5."):
        pytest.skip("FFmpeg 5 is the reference here; later ones keep a delay of 10 ms")
    images = [Image.new("L", (16, 16), 40 * number) for number in range(6)]
    durations = [50, 10, 10, 0, 200, 10]
    path = tmp_path / "a.gif"
    images[0].save(path, save_all=True, append_images=images[1:], duration=durations)
    info = probe_video(str(path))
    assert info.frame_pts.tolist() == ffprobe_times(str(path), 0) == [0, 5, 15, 25, 35, 55]
    assert (info.stop_pts, info.pts_repaired) == (65, "too_fast")
    grey = [int(small(picture).mean() / 40 + 0.5) for picture in pictures(path, info)]
    assert grey == list(range(6))


def test_a_stream_whose_decoder_cannot_start_has_no_decoder(tmp_path: Path, ffmpeg: str) -> None:
    # Without the sequence parameters nothing of an H.264 stream can be decoded.
    path = tmp_path / "a.ts"
    source = ["-f", "lavfi", "-i", "testsrc2=size=64x48:rate=10:duration=1"]
    without = ["-c:v", "libx264", "-bsf:v", "filter_units=remove_types=7|8"]
    run(ffmpeg, "-v", "error", *source, *without, path)
    assert reason(path) == "no_decoder"


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "packbits", "jpeg"])
def test_a_tiff_is_its_picture_or_refused_and_never_black(tmp_path: Path, compression: str) -> None:
    path = tmp_path / "a.tiff"
    Image.linear_gradient("L").resize((64, 48)).convert("RGB").save(path, compression=compression)
    if compression == "jpeg":
        assert reason(path) == "no_decoder"
        return
    info = probe_video(str(path))
    (picture,) = pictures(path, info)
    expected = np.asarray(Image.open(path))
    assert np.abs(make_frame(picture, size=(48, 64)).astype(int) - expected).max() <= 1


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [(None, 1), (Fraction(0), 1), (Fraction(-4, 3), 1), (Fraction(64, 45), Fraction(64, 45)),
     (Fraction(200), 200), (Fraction(1, 200), Fraction(1, 200)), (Fraction(2**31, 1), 1),
     (Fraction(1, 2**31), 1)],
)  # fmt: skip
def test_a_pixel_aspect_that_cannot_be_meant_is_none(
    ratio: Fraction | None, expected: Fraction
) -> None:
    assert sane_ratio(ratio) == expected
