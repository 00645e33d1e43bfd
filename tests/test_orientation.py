"""Pictures are upright, as ffmpeg makes them."""

import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from decoding import in_corpus, pictures, psnr, run

from spacepatch.data import Picture
from spacepatch.decode import decode_pictures, probe_video
from spacepatch.errors import ProbeError
from spacepatch.resize import make_frame

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
    info = replace(info, parts=info.parts[:1])  # a probe that overlooked it
    found = []
    with pytest.raises(Exception, match="pictures change to") as error:
        for picture in decode_pictures(uri, info=info, indices=np.arange(50), pts=info.frame_pts):
            found.append(picture.index)
    assert getattr(error.value, "reason", "") == "size_changed"
    assert found == list(range(25))


@pytest.mark.parametrize(("degrees", "expected"), [("90", 270), ("90.6", 270), ("45", None)])
def test_only_right_angles_are_turned_and_others_are_refused_by_name(
    tmp_path: Path, ffmpeg: str, degrees: str, expected: int | None
) -> None:
    source = ["-f", "lavfi", "-i", "testsrc2=size=64x48:rate=5:duration=1"]
    run(ffmpeg, "-v", "error", *source, tmp_path / "a.mp4")
    path = tmp_path / "turned.mp4"
    rotate = f"rotate={degrees}"
    run(
        ffmpeg, "-v", "error", "-i", tmp_path / "a.mp4", "-c", "copy", "-metadata:s:v", rotate, path
    )
    if expected is None:
        with pytest.raises(ProbeError, match=r"turned by (45|315) degrees") as error:
            probe_video(str(path))
        assert error.value.reason == "unsupported_rotation"
        return
    info = probe_video(str(path))
    (picture, *_) = pictures(path, info)
    assert picture.rotation == info.rotation
    assert info.rotation % 180 == 90
