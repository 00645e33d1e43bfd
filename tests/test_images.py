"""WebP and AVIF alike: where they lie, and what is refused."""

import re
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from image_files import H, W, exif, pictures, probe, refusal, rgba, save, scene
from PIL import Image

from spacepatch.decode.images import image_kind
from spacepatch.errors import ProbeError


@pytest.mark.parametrize("suffix", ["webp", "avif"])
def test_an_image_inside_a_tar_and_under_another_name_is_the_same(
    tmp_path: Path, suffix: str
) -> None:
    path = save(tmp_path / f"a.{suffix}", [scene(k, alpha=True) for k in range(3)], duration=40)
    packed = tmp_path / "a.tar"
    with tarfile.open(packed, "w") as tar:
        tar.add(path, "b.png")
        tar.add(path, "c.jpg")
    with tarfile.open(packed) as tar:
        member = tar.getmember("c.jpg")
    where = {"offset": member.offset_data, "num_bytes": member.size}
    alone, inside = probe(path), probe(packed, **where)
    assert list(alone.frame_pts) == list(inside.frame_pts)
    every = zip(pictures(path, alone), pictures(packed, inside, **where), strict=True)
    assert all(np.array_equal(rgba(one), rgba(two)) for one, two in every)


@pytest.mark.parametrize("suffix", ["webp", "avif"])
def test_max_pixels_is_our_limit_and_that_of_pillow_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    path = save(tmp_path / f"a.{suffix}", [scene(k, alpha=True) for k in range(2)], duration=40)
    assert refusal(path, max_pixels=H * W - 1)[0] == "too_large"
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 7)
    assert len(pictures(path, probe(path))) == 2
    assert Image.MAX_IMAGE_PIXELS == 7


def test_no_other_format_of_pillows_is_set_up(tmp_path: Path) -> None:
    frames = [scene(k, alpha=True) for k in range(2)]
    paths = [save(tmp_path / "a.webp", frames, duration=40, exif=exif(6))]
    paths.append(save(tmp_path / "a.avif", frames[:1], exif=exif(6)))
    program = """
import sys
import numpy as np
from spacepatch.decode import decode_pictures
from spacepatch.decode.images import probe_image
for path in sys.argv[1:]:
    info = probe_image(path, kind=path[-4:])
    assert info.rotation == 90
    where = {"info": info, "indices": np.arange(1), "pts": info.frame_pts}
    assert len(list(decode_pictures(path, **where))) == 1
from PIL import Image
print(sorted(Image.OPEN))
"""
    command = [sys.executable, "-c", program, *map(str, paths)]
    said = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    # EXIF is a TIFF's directory, which Pillow reads with the module of that name.
    assert set(re.findall(r"\w+", said)) <= {"WEBP", "AVIF", "TIFF"}


@pytest.mark.parametrize("suffix", ["webp", "avif"])
def test_damage_anywhere_costs_frames_or_has_a_type(tmp_path: Path, suffix: str) -> None:
    frames = [scene(k, alpha=True) for k in range(3)]
    good = save(tmp_path / f"a.{suffix}", frames, duration=40, exif=exif(1)).read_bytes()
    path, random, read = tmp_path / "b", np.random.default_rng(0), 0
    for _ in range(150):
        content = bytearray(good)
        for place in random.integers(0, len(good), random.integers(1, 9)):
            content[place] = random.integers(0, 256)
        path.write_bytes(content)
        try:
            info = probe(path)
        except ProbeError:
            continue
        read += len(pictures(path, info))
    assert read > 50


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"RIFF\0\0\0\0WEBPVP8X\x0a\0\0\0\x02", "webp"),
        (b"RIFF\0\0\0\0WEBPVP8X\x0a\0\0\0\x10", ""),
        (b"RIFF\0\0\0\0WEBPVP8X\x0a\0\0\0", ""),
        (b"RIFF\0\0\0\0WEBPVP8L\x0a\0\0\0\x02", ""),
        (b"RIFF\0\0\0\0AVI VP8X\x0a\0\0\0\x02", ""),
        (b"\0\0\0\x1cftypavif\0\0\0\0mif1", "avif"),
        (b"\0\0\0\x1cftypmif1\0\0\0\0miafavis", "avif"),
        (b"\0\0\0\x14ftypmp42\0\0\0\0isomavif", ""),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", ""),
        (b"", ""),
    ],
)
def test_the_first_bytes_say_what_an_image_is(head: bytes, kind: str) -> None:
    assert image_kind(head) == kind
