"""decord and torchcodec give what PyAV gives, or decline; PyAV gives what Debian's ffmpeg does."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from conformance_clips import CLIPS, EXACT, NATURAL, UNTIMED, make_clips, turn
from conformance_table import (
    NOT_AS_FFMPEG,
    compared,
    decode,
    difference,
    full_size,
    make_table,
    read_table,
)

from spacepatch.data import VideoInfo
from spacepatch.decode import BACKENDS, decode_pictures, probe_video
from spacepatch.decode import full_size as shared_rules
from spacepatch.errors import Declined, DecodeError
from spacepatch.resize import make_frame

GOLDEN = Path(__file__).with_name("golden") / "decoding.tsv"
LOWEST_PSNR = 42.0
"""dB between resized frames of a backend and PyAV's, of camera and cartoon content scaled to a half
or less: the floor that docs/decoders.md states (measured: 42.7)."""
LOWEST_PSNR_OF_PATTERNS = 30.0
"""The same of test patterns: edges between saturated colours, where all of it is chroma that PyAV
interpolates and full-size RGB repeats (measured: 31.8)."""


def imports(name: str) -> bool:
    try:
        importlib.import_module(name)
    except (ImportError, RuntimeError, OSError):
        return False
    return True


HERE = {name: imports(name) for name in sorted(BACKENDS)}
each_backend = pytest.mark.parametrize(
    "backend",
    [
        pytest.param(
            name,
            marks=pytest.mark.skipif(
                not here, reason=f"{name} does not import: not installed, or no shared FFmpeg"
            ),
        )
        for name, here in HERE.items()
    ],
)


def run(*command: str | Path) -> bytes:
    return subprocess.run(list(map(str, command)), capture_output=True, check=True).stdout


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    error = np.mean((one.astype(np.float64) - other) ** 2)
    return float("inf") if error == 0 else 10 * float(np.log10(255**2 / error))


def declines(backend: str, path: Path, info: VideoInfo, **settings: object) -> str:
    """Why a backend leaves a source to PyAV."""
    with pytest.raises(Declined) as declined:
        next(decode(backend, path, info, np.arange(len(info.frame_pts)), **settings))
    return str(declined.value)


# --- the corpus ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def table(corpus: Path, ffmpeg: str) -> list[dict[str, str]]:
    return make_table(corpus)


@pytest.fixture(scope="module")
def golden() -> list[dict[str, str]]:
    return read_table(GOLDEN.read_text(encoding="utf-8"))


def test_the_table_of_the_corpus_is_the_golden_one(
    table: list[dict[str, str]], golden: list[dict[str, str]]
) -> None:
    differences = [f"{name}_difference" for name in sorted(BACKENDS)]
    skipped = {name for name in BACKENDS if not HERE[name]}
    exact = set(golden[0]) - {"ffmpeg", *differences} - skipped
    exact -= {"pts_equal"} if skipped else set()
    assert [row["file"] for row in table] == [row["file"] for row in golden]
    for row, expected in zip(table, golden, strict=True):
        assert {key: row[key] for key in exact} == {key: expected[key] for key in exact}
        # How many frames behind damage are alike is chance.
        assert (row["ffmpeg"] == "exact") == (expected["ffmpeg"] == "exact"), row["file"]
        for key in differences:
            assert int(row[key] or 0) <= min(int(expected[key] or 0), 2), row["file"]


def test_what_a_backend_reads_it_reads_whole_and_at_the_times_of_pyav(
    golden: list[dict[str, str]],
) -> None:
    # A property of the committed table; the test above holds it against the files.
    whole = dict.fromkeys(sorted(BACKENDS), 0)
    for row in golden:
        for name in sorted(BACKENDS):
            if row[name] and not row[name].startswith("declined") and not row["loss"]:
                assert (row[name], row["pts_equal"]) == (row["pyav"], "yes"), row["file"]
                assert row[f"{name}_difference"] == "0", row["file"]
                whole[name] += 1
    assert whole["decord"] >= 40
    assert whole["torchcodec"] >= 55


def test_pyav_has_the_times_and_bytes_of_debians_ffmpeg(golden: list[dict[str, str]]) -> None:
    read = [row for row in golden if row["planned"]]
    assert len(read) >= 98
    other = {row["file"] for row in read if row["ffmpeg"] != "exact"}
    assert other <= set(NOT_AS_FFMPEG)


@each_backend
@pytest.mark.parametrize("name", NATURAL)
def test_resized_frames_are_near_pyavs(corpus: Path, backend: str, name: str) -> None:
    path = corpus / name
    info = probe_video(str(path))
    wanted = compared(len(info.frame_pts), 4)
    found = list(decode(backend, path, info, wanted))
    for one, other in zip(found, decode("pyav", path, info, wanted), strict=True):
        height, width = full_size(one).shape[:2]
        for divisor in (2, 3, 6):
            size = height // divisor, width // divisor
            assert psnr(make_frame(one, size=size), make_frame(other, size=size)) >= LOWEST_PSNR


# --- generated clips -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory, ffmpeg: str) -> Path:
    """A folder of short clips of moving coloured shapes with sharp edges."""
    folder = tmp_path_factory.mktemp("clips")
    make_clips(ffmpeg, folder)
    return folder


@each_backend
@pytest.mark.parametrize("name", sorted(set(CLIPS) - set(UNTIMED)))
def test_a_backend_gives_pyavs_pictures_or_declines(clips: Path, name: str, backend: str) -> None:
    path, why = clips / name, CLIPS[name][1][backend]
    info = probe_video(str(path))
    if why:
        assert why in declines(backend, path, info)
    else:
        hold_against_pyav(path, info, backend)


def hold_against_pyav(path: Path, info: VideoInfo, backend: str, **settings: object) -> None:
    """Compare every picture, at full size and resized."""
    wanted = np.arange(len(info.frame_pts))
    found = list(decode(backend, path, info, wanted, **settings))
    expected = list(decode("pyav", path, info, wanted, **settings))
    assert [picture.index for picture in found] == wanted.tolist()
    assert [picture.pts for picture in found] == info.frame_pts.tolist()
    assert [picture.pts for picture in found] == [picture.pts for picture in expected]
    lowest = float("inf")
    for one, other in zip(found, expected, strict=True):
        assert difference(full_size(one), full_size(other)) == 0
        assert (one.rotation, one.mirrored, one.is_corrupt) == (0, False, False)
        height, width = full_size(one).shape[:2]
        size = max(16, height // 3), max(16, width // 3)
        lowest = min(lowest, psnr(make_frame(one, size=size), make_frame(other, size=size)))
    assert lowest >= LOWEST_PSNR_OF_PATTERNS


@each_backend
def test_h264_in_avi_is_declined_for_its_times(clips: Path, backend: str) -> None:
    info = probe_video(str(clips / "h264.avi"))
    why = declines(backend, clips / "h264.avi", info)
    assert "its times are repaired" in why or "AVI does not tell the times" in why


@each_backend
def test_wanted_frames_come_whatever_lies_between(clips: Path, backend: str) -> None:
    path = clips / "open_gop.mkv"
    info = probe_video(str(path))
    wanted = np.array([1, 2, 7, 8, 9, 15, 16, 24])
    found = list(decode(backend, path, info, wanted))
    assert [picture.index for picture in found] == wanted.tolist()
    for one, other in zip(found, decode("pyav", path, info, wanted), strict=True):
        assert difference(full_size(one), full_size(other)) == 0


@each_backend
def test_the_table_of_frames_need_not_come_along(clips: Path, backend: str) -> None:
    # A worker gets the probe's result without it.
    path = clips / "open_gop.mkv"
    info = probe_video(str(path))
    slim = replace(info, frame_pts=np.empty(0, np.int64))
    wanted = {"indices": np.array([9]), "pts": info.frame_pts[[9]]}
    found = decode_pictures(str(path), info=slim, **wanted, decoder=backend)
    assert [picture.index for picture in found] == [9]


@each_backend
def test_an_edit_list_is_declined(clips: Path, backend: str) -> None:
    info = probe_video(str(clips / "edit_list.mp4"))
    assert "packets are not shown" in declines(backend, clips / "edit_list.mp4", info)


@each_backend
def test_kept_interlaced_pictures_are_pyavs(clips: Path, backend: str) -> None:
    path = clips / "interlaced.mp4"
    hold_against_pyav(path, probe_video(str(path)), backend, interlaced="keep")


@each_backend
def test_the_matrix_of_untagged_files_is_bt601_or_pyavs_matter(clips: Path, backend: str) -> None:
    info = probe_video(str(clips / "untagged.mp4"))
    assert "names no matrix" in declines(backend, clips / "untagged.mp4", info, untagged="bt709")
    tagged = probe_video(str(clips / "bt709_tv.mp4"))
    hold_against_pyav(clips / "bt709_tv.mp4", tagged, backend, untagged="bt709")


# --- orientation -----------------------------------------------------------------------------


@each_backend
@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
@pytest.mark.parametrize("mirrored", [False, True])
def test_pictures_are_turned_once_and_mirrored_ones_declined(
    clips: Path, tmp_path: Path, backend: str, rotation: int, mirrored: bool
) -> None:
    path = tmp_path / "turned.mp4"
    turn(clips / "bt709_tv.mp4", path, rotation, mirrored)
    info = probe_video(str(path))
    picture = next(decode("pyav", path, info, np.array([0])))
    assert (picture.rotation, picture.mirrored) == (rotation, mirrored)
    if mirrored:
        assert "mirrors" in declines(backend, path, info)
    else:
        hold_against_pyav(path, info, backend)


# --- PyAV against ffmpeg ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", [name for name, (_, why) in CLIPS.items() if why == EXACT and name not in UNTIMED]
)
def test_pyavs_full_size_rgb_is_that_of_debians_ffmpeg(clips: Path, ffmpeg: str, name: str) -> None:
    path = clips / name
    info = probe_video(str(path))
    shape = ["-vsync", "passthrough", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    pixels = run(ffmpeg, "-v", "error", "-i", path, *shape)
    frames = np.frombuffer(pixels, np.uint8).reshape(len(info.frame_pts), *info.coded_size, 3)
    for picture in decode("pyav", path, info, np.arange(len(frames))):
        assert difference(full_size(picture), frames[picture.index]) <= 2
        # The default conversion of PyAV is the one that presets with a peer's pixels are made of.
        if picture.index == 0:
            plain = make_frame(picture, size=info.coded_size, resampler="torch-bicubic")
            assert difference(plain, full_size(picture)) == 0


# --- what a backend must not get -------------------------------------------------------------


@each_backend
def test_a_tar_member_is_declined(clips: Path, backend: str) -> None:
    path = clips / "untagged.mp4"
    assert "tar" in declines(backend, path, probe_video(str(path)), offset=512, num_bytes=9)


@each_backend
def test_trust_lets_a_backend_open_what_begins_otherwise(clips: Path, backend: str) -> None:
    path = clips / "flash.flv"
    info = probe_video(str(path))
    hold_against_pyav(path, info, backend, trust_input=True)


@each_backend
def test_a_pattern_of_names_is_declined(clips: Path, tmp_path: Path, backend: str) -> None:
    path = tmp_path / "a%03d.mp4"
    path.write_bytes((clips / "untagged.mp4").read_bytes())
    info = probe_video(str(path))
    assert "%" in declines(backend, path, info)
    hold_against_pyav(path, info, backend, trust_input=True)


@each_backend
@pytest.mark.parametrize(
    "content",
    [
        "ffconcat version 1.0\nfile 'BAIT'\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nBAIT\n#EXT-X-ENDLIST\n",
        # It begins like Matroska, yet has a manifest in the text that FFmpeg looks through.
        "\x1a\x45\xdf\xa3<MPD profiles='urn:mpeg:dash:profile:isoff-on-demand:2011'>"
        + "<Period><BaseURL>BAIT</BaseURL></Period></MPD>" * 9,
    ],
)
def test_a_playlist_in_place_of_the_planned_video_opens_no_other_file(
    clips: Path, tmp_path: Path, backend: str, content: str
) -> None:
    info = probe_video(str(clips / "untagged.mp4"))
    os.mkfifo(tmp_path / "bait.mp4")
    path = tmp_path / "planned.mp4"
    path.write_bytes(content.replace("BAIT", "bait.mp4").encode("latin-1"))
    assert declines(backend, path, info) == (
        "its first bytes are not those of ISO-BMFF, Matroska or AVI"
    )
    with pytest.raises(OSError, match="No such device or address"):
        os.open(tmp_path / "bait.mp4", os.O_WRONLY | os.O_NONBLOCK)  # nobody has it open


# --- damage ----------------------------------------------------------------------------------


def test_decord_declines_damage_anywhere_and_torchcodec_stops_at_it(corpus: Path) -> None:
    path = corpus / "decord__corrupted.mp4"
    info = probe_video(str(path))
    if HERE["decord"]:
        # Its thread reports damage at an uncertain time: not even the first frame comes before.
        assert "damage" in declines("decord", path, info)
    if HERE["torchcodec"]:
        found = []
        pictures = decode("torchcodec", path, info, np.arange(50))
        with pytest.raises(DecodeError, match="fails at frame 28") as error:
            found.extend(picture.index for picture in pictures)
        assert error.value.reason == "corrupt_frames"
        assert found == list(range(28))


@each_backend
def test_a_file_that_is_cut_off_is_declined(clips: Path, tmp_path: Path, backend: str) -> None:
    content = (clips / "open_gop.mkv").read_bytes()
    path = tmp_path / "cut.mkv"
    path.write_bytes(content[: len(content) // 2])
    assert "cut off" in declines(backend, path, probe_video(str(path)))


# --- weight ----------------------------------------------------------------------------------


def test_nothing_of_a_backend_is_imported_before_it_runs() -> None:
    program = (
        "import sys, spacepatch.decode\n"
        "print(sorted({'decord', 'torchcodec', 'torch', 'av'} & set(sys.modules)))"
    )
    assert run(sys.executable, "-c", program).decode().strip() == "[]"


def test_decord_declines_videos_that_it_might_hold_in_memory(clips: Path) -> None:
    info = replace(probe_video(str(clips / "untagged.mp4")), num_packets=4000)
    assert "MB of pictures" in declines("decord", clips / "untagged.mp4", info)


@pytest.mark.skipif(not HERE["torchcodec"], reason="torchcodec does not import")
def test_torchcodec_holds_a_few_pictures_however_many_there_are(
    tmp_path: Path, ffmpeg: str
) -> None:
    path = tmp_path / "long.mp4"
    source = ["-f", "lavfi", "-i", "testsrc2=s=640x360:r=25:d=16"]
    run(ffmpeg, "-v", "error", *source, "-c:v", "libx264", "-preset", "ultrafast",
        "-pix_fmt", "yuv420p", path)  # fmt: skip
    info = probe_video(str(path))
    sizes = [
        psutil.Process().memory_info().rss for _ in decode("torchcodec", path, info, np.arange(400))
    ]
    # 350 pictures are 240 MB.
    assert sizes[-1] - sizes[50] < 24e6


def test_compared_frames_are_spread_from_the_first_to_the_last() -> None:
    assert compared(5).tolist() == [0, 1, 2, 3, 4]
    assert compared(1000, 4).tolist() == [0, 333, 666, 999]


def test_the_pixel_formats_of_the_rules_are_those_of_the_clips(clips: Path) -> None:
    read = {
        probe_video(str(clips / name)).pixel_format
        for name, (_, why) in CLIPS.items()
        if why == EXACT
    }
    allowed = shared_rules.HALF_CHROMA | shared_rules.FULL_CHROMA
    allowed |= shared_rules.GREY | shared_rules.RGB
    assert allowed - read <= {"rgb24", "gray10le"}  # no encoder here writes these two
