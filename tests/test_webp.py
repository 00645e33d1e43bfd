"""Animated WebP, held against its own bytes, libwebp and Pillow."""

import io
import struct
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from image_files import (
    DURATIONS,
    H,
    W,
    by_pillow,
    check_upright,
    difference,
    exif,
    number_in,
    pictures,
    probe,
    refusal,
    rgba,
    save,
    scene,
)
from PIL import Image

from spacepatch.decode.images import probe_image
from spacepatch.errors import ProbeError


def chunk(kind: bytes, content: bytes) -> bytes:
    return kind + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)


def uint24(*values: int) -> bytes:
    return b"".join(int(value).to_bytes(3, "little") for value in values)


def anmf(
    pixels: np.ndarray | bytes,
    *,
    corner: tuple[int, int] = (0, 0),
    size: tuple[int, int] | None = None,
    milliseconds: int = 40,
    blends: bool = False,
    disposes: bool = False,
) -> bytes:
    """A frame; its picture as WebP's lossless encoder makes it, or as given."""
    if isinstance(pixels, np.ndarray):
        size = pixels.shape[:2]
        still = io.BytesIO()
        Image.fromarray(pixels).save(still, "webp", lossless=True, exact=True)
        body = still.getvalue()
        pixels = body[body.index(b"VP8L") :]
    assert size is not None
    place = uint24(corner[1] // 2, corner[0] // 2, size[1] - 1, size[0] - 1, milliseconds)
    flags = (not blends) << 1 | disposes
    return chunk(b"ANMF", place + bytes([flags]) + pixels)


def webp(*frames: bytes, size: tuple[int, int] = (H, W), alpha: bool = True) -> bytes:
    head = chunk(b"VP8X", bytes([0x02 | alpha << 4, 0, 0, 0]) + uint24(size[1] - 1, size[0] - 1))
    body = b"WEBP" + head + chunk(b"ANIM", bytes(6)) + b"".join(frames)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def durations_in(content: bytes) -> list[int]:
    """Milliseconds of the ANMF chunks, read straight from the bytes."""
    found, position = [], 12
    while position < len(content):
        kind, length = struct.unpack_from("<4sI", content, position)
        if kind == b"ANMF":
            found.append(int.from_bytes(content[position + 20 : position + 23], "little"))
        position += 8 + length + length % 2
    return found


WEBP = Path("lilliput__big_buck_bunny_720_5s.webp"), Path("lilliput__party-discord.webp")


@pytest.mark.parametrize("name", WEBP, ids=str)
def test_a_real_webp_has_its_own_times_and_the_canvases_of_pillow(corpus: Path, name: Path) -> None:
    path = corpus / name
    info = probe(path)
    ends = np.cumsum(durations_in(path.read_bytes()))
    assert [*info.frame_pts, info.stop_pts] == [0, *ends]
    assert (info.time_base, info.pts_repaired, info.still) == (Fraction(1, 1000), "", False)
    found, expected = pictures(path, info), by_pillow(path)
    assert len(found) == len(expected) == len(ends)
    assert max(map(difference, map(rgba, found), expected)) <= 1


@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("options", [{}, {"lossless": True}, {"minimize_size": True}], ids=str)
def test_a_webp_of_pillows_shows_the_numbers_at_their_times(
    tmp_path: Path, options: dict[str, bool], alpha: bool
) -> None:
    frames = [scene(k, alpha=alpha)[..., : 4 if alpha else 3] for k in range(6)]
    path = save(tmp_path / "a.webp", frames, duration=DURATIONS, **options)
    info = probe(path)
    assert [*info.frame_pts, info.stop_pts] == [0, *np.cumsum(DURATIONS)]
    found = pictures(path, info)
    assert [(p.index, p.pts, number_in(p)) for p in found] == [
        (k, pts, k) for k, pts in enumerate(info.frame_pts)
    ]
    assert {picture.frame.format.name for picture in found} == {info.pixel_format}
    assert info.alpha or not alpha
    assert max(map(difference, map(rgba, found), by_pillow(path))) <= 1


def patches(seed: int) -> list[bytes]:
    """Frames anywhere on the canvas, with any alpha, disposal and blending."""
    random = np.random.default_rng(seed)
    frames = []
    for _ in range(8):
        y, x = 2 * random.integers(0, 10), 2 * random.integers(0, 15)
        pixels = random.integers(0, 256, (random.integers(1, H - y), random.integers(1, W - x), 4))
        pixels[..., 3] = random.choice([0, 60, 128, 255], pixels.shape[:2])
        blends, disposes = random.integers(0, 2, 2).astype(bool)
        made = pixels.astype(np.uint8)
        frames.append(anmf(made, corner=(y, x), blends=bool(blends), disposes=bool(disposes)))
    return frames


@pytest.mark.parametrize("seed", range(6))
def test_frames_are_drawn_as_libwebp_draws_them(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "a.webp"
    path.write_bytes(webp(*patches(seed)))
    found = [rgba(picture) for picture in pictures(path, probe(path))]
    assert len(found) == 8
    assert max(map(difference, found, by_pillow(path))) <= 2


@pytest.mark.parametrize("seed", range(3))
def test_wanted_frames_alone_are_those_of_the_whole(tmp_path: Path, seed: int) -> None:
    frames = patches(seed)
    frames[4] = anmf(scene())
    path = tmp_path / "a.webp"
    path.write_bytes(webp(*frames))
    info = probe(path)
    every = pictures(path, info)
    made: list[int] = []
    (one, two) = pictures(path, info, [5, 7], on_picture=lambda: made.append(1))
    assert (one.index, two.index, one.pts, two.pts) == (5, 7, 200, 280)
    assert np.array_equal(rgba(one), rgba(every[5]))
    assert np.array_equal(rgba(two), rgba(every[7]))
    assert len(made) == 4  # from the one that covers the canvas


def test_a_webp_frame_of_10_ms_or_less_is_shown_for_100_as_in_browsers(tmp_path: Path) -> None:
    path = tmp_path / "a.webp"
    frames = [anmf(scene(), milliseconds=time) for time in (0, 5, 10, 11, 40, 0)]
    path.write_bytes(webp(*frames))
    info = probe(path)
    assert list(info.frame_pts) == [0, 100, 200, 300, 311, 351]
    assert (info.stop_pts, info.pts_repaired) == (451, "too_fast")


def test_one_frame_without_time_is_a_still(tmp_path: Path) -> None:
    path = tmp_path / "a.webp"
    path.write_bytes(webp(anmf(scene(), milliseconds=0)))
    info = probe(path)
    assert (info.still, list(info.frame_pts), info.pts_repaired) == (True, [0], "")


@pytest.mark.parametrize("size_in_head", [0, 100, 2**32 - 2])
def test_the_frames_are_those_that_are_there_whatever_the_head_says(
    tmp_path: Path, size_in_head: int
) -> None:
    content = webp(*(anmf(scene(k)) for k in range(3)))
    path = tmp_path / "a.webp"
    path.write_bytes(content[:4] + struct.pack("<I", size_in_head) + content[8:])
    assert [number_in(picture) for picture in pictures(path, probe(path))] == [0, 1, 2]


def test_a_webp_that_is_cut_off_anywhere_gives_its_whole_frames(tmp_path: Path) -> None:
    frames = [anmf(scene(k)) for k in range(4)]
    content = webp(*frames)
    first = len(content) - sum(map(len, frames))
    path = tmp_path / "a.webp"
    for length in range(0, len(content) - 1, 37):
        path.write_bytes(content[:length])
        starts = [first + sum(map(len, frames[:k])) for k in range(4)]
        begun = sum(length >= start + 24 for start in starts)
        whole = sum(length >= start + len(f) for start, f in zip(starts, frames, strict=True))
        if not begun:
            with pytest.raises(ProbeError) as error:
                probe_image(str(path), kind="webp")
            assert error.value.reason == "unreadable"
            continue
        info = probe(path)
        found = pictures(path, info)
        assert (len(info.frame_pts), [number_in(p) for p in found]) == (begun, [*range(whole)])
        assert info.cut_off or begun == whole
        assert not any(picture.is_corrupt for picture in found)


@pytest.mark.parametrize("damage", ["pixels", "no picture", "outside the canvas"])
def test_a_damaged_frame_is_missing_and_flags_those_drawn_over_its_place(
    tmp_path: Path, damage: str
) -> None:
    bad = {
        "pixels": anmf(chunk(b"VP8L", b"\x2f" + b"\xff" * 200), size=(H, W)),
        "no picture": anmf(b"", size=(H, W)),
        "outside the canvas": anmf(scene(), corner=(2, 0)),
    }[damage]
    over = anmf(scene(3)[:20, :20], blends=True)
    path = tmp_path / "a.webp"
    path.write_bytes(webp(anmf(scene(0)), bad, over, anmf(scene(4)), anmf(scene(5), blends=True)))
    found = pictures(path, probe(path))
    assert [(picture.index, picture.is_corrupt) for picture in found] == [
        (0, False),
        (2, True),
        (3, False),
        (4, False),
    ]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_animated_webp_is_upright_as_its_exif_says(tmp_path: Path, orientation: int) -> None:
    path = tmp_path / "a.webp"
    frames = [scene(k)[..., :3] for k in range(2)]
    save(path, frames, duration=40, lossless=True, exif=exif(orientation))
    check_upright(path)


def test_what_claims_too_much_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    path = tmp_path / "a.webp"
    path.write_bytes(webp(anmf(b"", size=(1, 1)), size=(16384, 16384)))
    assert refusal(path)[0] == "too_large"
    path.write_bytes(webp(*[anmf(b"", size=(1, 1), milliseconds=2**24 - 1)] * 40))
    assert refusal(path)[0] == "too_large"
    path.write_bytes(webp(*[anmf(b"", size=(1, 1))] * 200_001))
    assert refusal(path) == ("too_large", "more than 200000 frames; cut it into shorter ones")
