"""The sample clips show what they claim to show, and the script makes them again."""

import csv
import platform
import re
import subprocess
import sys
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
BROKEN = "broken_on_purpose.mp4"

# Name: codec, pixel format, coded (h, w), number of frames.
CLIPS = {
    "anamorphic_352x288_sar_16x11.mp4": ("h264", "yuv420p", (288, 352), 75),
    "landscape_640x360.mp4": ("h264", "yuv420p", (360, 640), 120),
    "odd_size_321x179_vp9.webm": ("vp9", "yuv420p", (179, 321), 75),
    "portrait_270x480.mp4": ("h264", "yuv420p", (480, 270), 75),
    "rotated_90_phone.mp4": ("h264", "yuv420p", (270, 480), 90),
    "square_320x320.mp4": ("h264", "yuv420p", (320, 320), 72),
    "still_picture_400x300.png": ("png", "rgb24", (300, 400), 1),
    "ten_bit_432x240_hevc.mp4": ("hevc", "yuv420p10le", (240, 432), 60),
    "ultrawide_960x270.mp4": ("h264", "yuv420p", (270, 960), 72),
    "variable_frame_rate_480x270.mp4": ("h264", "yuv420p", (270, 480), 78),
}
VIDEOS = sorted(name for name in CLIPS if not name.endswith(".png"))


@pytest.fixture(scope="module")
def remade(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run the script as a person would, into a new folder."""
    folder = tmp_path_factory.mktemp("samples") / "clips"
    script = REPOSITORY / "samples" / "make_clips.py"
    subprocess.run([sys.executable, script, folder], check=True, timeout=300)
    return folder


def decode(path: Path) -> list[av.VideoFrame]:
    with av.open(path) as container:
        return list(container.decode(video=0))


def steps_seconds(path: Path) -> set[Fraction]:
    """Return the distinct distances between neighbouring frames."""
    times = [frame.pts * frame.time_base for frame in decode(path)]
    return {later - earlier for earlier, later in pairwise(times)}


def test_script_makes_the_files_that_the_repository_holds(remade: Path, sample_clips: Path) -> None:
    names = sorted(path.name for path in remade.iterdir())
    assert names == sorted(path.name for path in sample_clips.iterdir())
    assert names == sorted([*CLIPS, BROKEN])


@pytest.mark.parametrize("name", sorted([*CLIPS, BROKEN]))
def test_script_makes_the_same_bytes(name: str, remade: Path, sample_clips: Path) -> None:
    pinned = re.search(r"^av==(.+)$", (REPOSITORY / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    if av.__version__ != pinned[1]:
        pytest.skip(f"PyAV is {av.__version__}, the clips were made with {pinned[1]}")
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        pytest.skip("the clips were made on x86-64 Linux; other wheels hold other builds of x264")
    assert (remade / name).read_bytes() == (sample_clips / name).read_bytes()


def test_samples_are_few_and_small(sample_clips: Path) -> None:
    assert len(CLIPS) <= 10
    assert sum(path.stat().st_size for path in sample_clips.iterdir()) < 3_000_000


def test_one_sample_cannot_be_opened(sample_clips: Path) -> None:
    with pytest.raises(av.error.InvalidDataError):
        av.open(sample_clips / BROKEN)


def test_readme_names_every_sample(sample_clips: Path) -> None:
    text = (sample_clips.parent / "README.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^\| `([^`]+)` ", text, re.MULTILINE)) == sorted([*CLIPS, BROKEN])


@pytest.mark.parametrize("name", sorted(CLIPS))
def test_every_frame_decodes_as_claimed(name: str, sample_clips: Path) -> None:
    codec, pixel_format, size, num_frames = CLIPS[name]
    with av.open(sample_clips / name) as container:
        assert container.streams.video[0].codec_context.codec.canonical_name == codec
    frames = decode(sample_clips / name)
    assert {frame.format.name for frame in frames} == {pixel_format}
    assert {(frame.height, frame.width) for frame in frames} == {size}
    assert len(frames) == num_frames
    assert not any(frame.is_corrupt for frame in frames)


@pytest.mark.parametrize("name", VIDEOS)
def test_a_video_lasts_two_to_five_seconds(name: str, sample_clips: Path) -> None:
    with av.open(sample_clips / name) as container:
        assert container.duration is not None
        assert 2 <= container.duration / av.time_base <= 5


@pytest.mark.parametrize("name", VIDEOS)
def test_only_one_frame_rate_varies(name: str, sample_clips: Path) -> None:
    distinct = steps_seconds(sample_clips / name)
    if name == "variable_frame_rate_480x270.mp4":
        expected = {(1, 60), (1, 30), (1, 15), (3, 10), (1, 2)}
        assert distinct == {Fraction(*step) for step in expected}
    else:
        assert len(distinct) == 1


@pytest.mark.parametrize("name", sorted(CLIPS))
def test_only_the_phone_clip_is_rotated(name: str, sample_clips: Path) -> None:
    # PyAV counts anticlockwise: -90 asks for a quarter turn clockwise.
    expected = -90 if name == "rotated_90_phone.mp4" else 0
    assert {frame.rotation for frame in decode(sample_clips / name)} == {expected}


def test_the_phone_clip_turned_upright_is_the_portrait_clip(sample_clips: Path) -> None:
    # Frame 0 of both is the same scene; two lossy encodings of it differ a little.
    phone = decode(sample_clips / "rotated_90_phone.mp4")[0].to_ndarray(format="gray")
    portrait = decode(sample_clips / "portrait_270x480.mp4")[0].to_ndarray(format="gray")
    upright = np.rot90(phone, -1).astype(int)
    assert np.abs(upright - portrait).mean() < 2


@pytest.mark.parametrize("name", VIDEOS)
def test_only_the_anamorphic_clip_has_oblong_pixels(name: str, sample_clips: Path) -> None:
    expected = Fraction(16, 11) if name.startswith("anamorphic") else 1
    with av.open(sample_clips / name) as container:
        assert container.streams.video[0].sample_aspect_ratio == expected


@pytest.mark.parametrize("name", VIDEOS)
def test_every_video_says_its_colours(name: str, sample_clips: Path) -> None:
    matrix = 5 if name.startswith("anamorphic") else 1  # BT.601 (625 lines), BT.709
    frame = decode(sample_clips / name)[0]
    assert (frame.colorspace, frame.color_range) == (matrix, 1)


@pytest.mark.parametrize("name", VIDEOS)
def test_the_counter_shows_the_frame_number(name: str, sample_clips: Path) -> None:
    for number, frame in enumerate(decode(sample_clips / name)):
        luma = frame.to_ndarray(format="gray")
        if frame.rotation:
            luma = np.rot90(luma, frame.rotation // 90)
        height, width = luma.shape
        # The picture's shape on a screen, whose shorter side is 18 blocks.
        stretch = 16 / 11 if name.startswith("anamorphic") else 1
        block = min(height, int(width * stretch)) // 18
        columns = [int((bit + 1.5) * block / stretch) for bit in range(8)]
        bits = [int(luma[block + block // 2, column] > 128) for column in columns]
        assert int("".join(map(str, bits)), 2) == number


def test_script_makes_the_manifest_that_the_repository_holds(
    remade: Path, sample_clips: Path
) -> None:
    made, held = (folder.parent / "manifest.csv" for folder in (remade, sample_clips))
    assert made.read_bytes() == held.read_bytes()


def test_manifest_says_what_is_seen_in_each_second_of_each_sample(sample_clips: Path) -> None:
    with (sample_clips.parent / "manifest.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["uri"] for row in rows} == {f"clips/{name}" for name in CLIPS}
    for row in rows:
        with av.open(sample_clips.parent / row["uri"]) as container:
            if row["end"]:
                assert int(row["end"]) <= container.duration / av.time_base
            frame = next(iter(container.decode(video=0)))
        height, width, _ = (picture := frame.to_ndarray(format="rgb24")).shape
        if frame.rotation:
            height, width = width, height
        shape = "square" if height == width else "tall" if height > width else "wide"
        sky = f"a {shape} picture of a {row['label']} sky"
        assert row["caption"] == f"{sky} with the sun {row['sun']}"
        # A primary sky makes its colour the strongest of the picture, another takes one away.
        means = picture.reshape(-1, 3).mean(axis=0)
        primary = row["label"] in ("red", "green", "blue")
        skies = ("red", "green", "blue") if primary else ("cyan", "magenta", "yellow")
        assert row["label"] == skies[means.argmax() if primary else means.argmin()]
