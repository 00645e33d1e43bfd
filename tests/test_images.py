"""Pictures and animations, held against their own bytes, Pillow, FFmpeg and the specifications."""

import io
import re
import struct
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Iterable
from fractions import Fraction
from itertools import product
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image, ImageOps

from spacepatch.data import Picture, VideoInfo
from spacepatch.decode import decode_pictures, probe_video
from spacepatch.decode.images import IMAGE_CONTAINERS, decode_image, image_kind, probe_image
from spacepatch.errors import ProbeError

H, W = 48, 80
DURATIONS = [40, 100, 30, 500, 70, 55]


def probe(path: str | Path, **where: int) -> VideoInfo:
    with Path(path).open("rb") as file:
        file.seek(where.get("offset", 0))
        kind = image_kind(file.read(64))
    return probe_image(str(path), kind=kind, **where) if kind else probe_video(str(path))


def pictures(
    path: str | Path, info: VideoInfo, indices: Iterable[int] | None = None, **more: object
) -> list[Picture]:
    wanted = np.arange(len(info.frame_pts)) if indices is None else np.array(list(indices))
    decode = decode_image if info.container in IMAGE_CONTAINERS else decode_pictures
    where = {"info": info, "indices": wanted, "pts": info.frame_pts[wanted]}
    return list(decode(str(path), **where, **more))


def rgba(picture: Picture) -> np.ndarray:
    return picture.frame.reformat(format="rgba").to_ndarray()


def by_pillow(path: str | Path | io.BytesIO) -> list[np.ndarray]:
    with Image.open(path) as image:
        frames = []
        for index in range(getattr(image, "n_frames", 1)):
            image.seek(index)
            frames.append(np.asarray(image.convert("RGBA")))
        return frames


def difference(one: np.ndarray, other: np.ndarray) -> int:
    """The largest, in alpha and in what shows on black: what alpha 0 hides is no difference."""

    def shown(pixels: np.ndarray) -> np.ndarray:
        pixels = pixels.astype(np.float64)
        return np.dstack([pixels[..., :3] * pixels[..., 3:] / 255, pixels[..., 3]])

    return int(np.ceil(np.abs(shown(one) - shown(other)).max() - 0.5))


def scene(number: int = 0, *, alpha: bool = False) -> np.ndarray:
    """``(H, W, 4)`` with the number in six blocks, bright or dark, along the upper edge."""
    y, x = np.mgrid[:H, :W]
    pixels = np.stack([x * 3, y * 5, (x + y + number * 9) % 256, np.full((H, W), 255)], -1)
    if alpha:
        pixels[16:, :, 3] = np.clip(x * 4 - 20, 0, 255)[16:]
    for bit in range(6):
        pixels[:16, bit * 12 : bit * 12 + 12, :3] = 255 * (number >> bit & 1)
    return pixels.astype(np.uint8)


def number_in(picture: Picture) -> int:
    return sum(int(rgba(picture)[8, bit * 12 + 6, 1] > 128) << bit for bit in range(6))


def save(path: Path, frames: list[np.ndarray], **options: object) -> Path:
    images = [Image.fromarray(frame) for frame in frames]
    several = {"save_all": True, "append_images": images[1:]} if len(images) > 1 else {}
    images[0].save(path, **several, **options)
    return path


def exif(orientation: int) -> bytes:
    return b"Exif\0\0MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 0x112, 3, 1, orientation, 0, 0)


# --- animated WebP, written by hand ------------------------------------------------------------


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


def check_upright(path: Path) -> None:
    info = probe(path)
    picture = pictures(path, info)[0]
    turned = np.rot90(rgba(picture), -picture.rotation // 90)
    turned = turned[:, ::-1] if picture.mirrored else turned
    with Image.open(path) as image:
        upright = np.asarray(ImageOps.exif_transpose(image).convert("RGBA"))
    assert turned.shape == upright.shape == (*info.display_size, 4)
    assert info.rotation == picture.rotation
    assert difference(turned, upright) <= 1


# --- AVIF --------------------------------------------------------------------------------------


AVIF = {"subsampling": "4:4:4", "quality": 95}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_avif_with_alpha_is_upright(tmp_path: Path, orientation: int) -> None:
    path = save(tmp_path / "a.avif", [scene(alpha=True)], exif=exif(orientation), **AVIF)
    assert probe(path).container == "avif"
    check_upright(path)


def test_the_alpha_of_an_avif_is_its_second_stream_and_its_colour_the_first(tmp_path: Path) -> None:
    path = save(tmp_path / "a.avif", [scene(alpha=True)], **AVIF)
    info = probe(path)
    assert (info.still, info.alpha, info.pixel_format) == (True, True, "rgba")
    (picture,) = pictures(path, info)
    with av.open(str(path)) as container:
        colour = next(container.decode(video=0)).to_ndarray(format="rgb24")
    with av.open(str(path)) as container:
        alpha = next(container.decode(video=1)).to_ndarray()
    assert np.abs(rgba(picture)[..., :3].astype(int) - colour).max() <= 2
    assert np.array_equal(rgba(picture)[..., 3], alpha)


@pytest.mark.parametrize("alpha", [False, True])
def test_an_avif_sequence_shows_the_numbers_at_its_own_times(tmp_path: Path, alpha: bool) -> None:
    frames = [scene(k, alpha=alpha)[..., : 4 if alpha else 3] for k in range(6)]
    path = save(tmp_path / "a.avif", frames, duration=DURATIONS, **AVIF)
    info = probe(path)
    # Opaque ones stay with FFmpeg; the still that stands for the sequence is not taken for it.
    assert (info.container, info.still) == ("avif" if alpha else "mov", False)
    times = [0, *np.cumsum(DURATIONS)]
    assert [pts * info.time_base * 1000 for pts in (*info.frame_pts, info.stop_pts)] == times
    found = pictures(path, info)
    assert [(p.index, p.pts, number_in(p)) for p in found] == [
        (k, pts, k) for k, pts in enumerate(info.frame_pts)
    ]
    assert max(map(difference, map(rgba, found), by_pillow(path))) <= 2
    (late,) = pictures(path, info, [4])
    assert np.array_equal(rgba(late), rgba(found[4]))


def test_a_real_avif_with_alpha_keeps_times_and_pixels(corpus: Path) -> None:
    path = corpus / "lilliput__colors-animated-8bpc-alpha-exif-xmp.avif"
    info = probe(path)
    assert list(info.frame_pts * info.time_base) == [Fraction(k, 6) for k in range(5)]
    assert info.stop_pts * info.time_base == Fraction(5, 6)
    expected = by_pillow(path)
    assert [difference(rgba(p), expected[p.index]) for p in pictures(path, info)] == [0] * 5


@pytest.mark.parametrize("share", [0.4, 0.7, 0.95])
def test_an_avif_with_alpha_that_is_cut_off_is_refused_not_shown_without_it(
    tmp_path: Path, share: float
) -> None:
    path = save(tmp_path / "a.avif", [scene(k, alpha=True) for k in range(4)], duration=40, **AVIF)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ProbeError) as error:
        probe(path)
    assert error.value.reason in ("unreadable", "no_decoder")


def box(kind: bytes, *content: bytes, full: int | None = None) -> bytes:
    body = (b"" if full is None else struct.pack(">I", full << 24)) + b"".join(content)
    return struct.pack(">I", 8 + len(body)) + kind + body


def avif_of_tiles(left: bytes, right: bytes, side: int) -> bytes:
    """Two square AVIFs as one picture: a derived item `grid` (ISO/IEC 23008-12)."""
    tiles = [content[content.rindex(b"mdat") + 4 :] for content in (left, right)]
    start = left.index(b"av1C") - 4
    configuration = left[start : start + int.from_bytes(left[start : start + 4], "big")]
    grid = struct.pack(">BBBBHH", 0, 0, 0, 1, 2 * side, side)
    items = [grid, *tiles]
    properties = box(
        b"ipco",
        box(b"ispe", struct.pack(">II", 2 * side, side), full=0),
        box(b"ispe", struct.pack(">II", side, side), full=0),
        configuration,
        box(b"pixi", b"\3\x08\x08\x08", full=0),
        box(b"colr", b"nclx", struct.pack(">HHHB", 1, 13, 6, 0x80)),
    )
    used = [(1, b"\1\4\5"), (2, b"\2\x83\4\5"), (3, b"\2\x83\4\5")]
    associations = b"".join(struct.pack(">HB", item, len(p)) + p for item, p in used)
    kinds = ((1, b"grid"), (2, b"av01"), (3, b"av01"))
    entries = [box(b"infe", struct.pack(">HH", n, 0), kind, b"\0", full=2) for n, kind in kinds]

    def meta(first: int) -> bytes:
        starts = [first + sum(map(len, items[:k])) for k in range(3)]
        places = (struct.pack(">HHHII", k + 1, 0, 1, starts[k], len(items[k])) for k in range(3))
        return box(
            b"meta",
            box(b"hdlr", bytes(4), b"pict", bytes(13), full=0),
            box(b"pitm", struct.pack(">H", 1), full=0),
            box(b"iloc", b"\x44\0", struct.pack(">H", 3), *places, full=0),
            box(b"iinf", struct.pack(">H", 3), *entries, full=0),
            box(b"iref", box(b"dimg", struct.pack(">HHHH", 1, 2, 2, 3)), full=0),
            box(b"iprp", properties, box(b"ipma", struct.pack(">I", 3), associations, full=0)),
            full=0,
        )

    head = box(b"ftyp", b"avif\0\0\0\0avifmif1miaf")
    return head + meta(len(head) + len(meta(0)) + 8) + box(b"mdat", *items)


def test_an_avif_of_tiles_is_one_picture(tmp_path: Path) -> None:
    y, x = np.mgrid[:64, :128]
    whole = np.stack([x * 2, y * 4, x + y], -1).astype(np.uint8)
    halves = []
    for name, half in (("left", whole[:, :64]), ("right", whole[:, 64:])):
        halves.append(save(tmp_path / f"{name}.avif", [half], **AVIF).read_bytes())
    path = tmp_path / "tiles.avif"
    path.write_bytes(avif_of_tiles(*halves, side=64))
    info = probe(path)
    assert (info.container, info.display_size, info.still) == ("avif", (64, 128), True)
    (picture,) = pictures(path, info)
    assert np.abs(rgba(picture)[..., :3].astype(int) - whole).max() <= 8


# --- both: where they lie, and what is refused ------------------------------------------------


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


def refusal(path: Path, **options: int) -> tuple[str, str]:
    with pytest.raises(ProbeError) as error, path.open("rb") as file:
        probe_image(str(path), kind=image_kind(file.read(64)), **options)
    return error.value.reason, str(error.value)


def test_what_claims_too_much_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    path = tmp_path / "a.webp"
    path.write_bytes(webp(anmf(b"", size=(1, 1)), size=(16384, 16384)))
    assert refusal(path)[0] == "too_large"
    path.write_bytes(webp(*[anmf(b"", size=(1, 1), milliseconds=2**24 - 1)] * 40))
    assert refusal(path)[0] == "too_large"
    path.write_bytes(webp(*[anmf(b"", size=(1, 1))] * 200_001))
    assert refusal(path) == ("too_large", "more than 200000 frames")


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
from spacepatch.decode.images import decode_image, probe_image
for path in sys.argv[1:]:
    info = probe_image(path, kind=path[-4:])
    assert info.rotation == 90
    where = {"info": info, "indices": np.arange(1), "pts": info.frame_pts}
    assert len(list(decode_image(path, **where))) == 1
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


# --- what FFmpeg reads -------------------------------------------------------------------------


GIFS = {
    "httpx__rich-progress.gif": 0,
    "lilliput__no-loop.gif": 0,
    "lilliput__no_gce_first_frame.gif": 1,
    "lilliput__party-discord.gif": 0,
    "lilliput__restore_previous.gif": 0,
    "moviepy__pigs_in_a_polka.gif": 0,
    "qt__flipable.gif": 0,
}
"""And how many of their frames claim no time at all."""


@pytest.mark.parametrize("name", GIFS)
def test_a_real_gif_has_the_canvases_and_times_of_pillow(corpus: Path, name: str) -> None:
    path = corpus / name
    info = probe(path)
    claimed = []
    with Image.open(path) as image:
        for index in range(image.n_frames):
            image.seek(index)
            claimed.append(image.info.get("duration", 0))
    assert claimed.count(0) == GIFS[name]
    shown = [time or 100 for time in claimed]
    times = [pts * info.time_base * 1000 for pts in (*info.frame_pts, info.stop_pts)]
    assert times == [0, *np.cumsum(shown)]
    found = pictures(path, info)
    assert max(map(difference, map(rgba, found), by_pillow(path)), default=1) == 0
    assert len(found) == len(shown)


def test_a_gif_frame_without_time_is_shown_for_100_ms(tmp_path: Path) -> None:
    path = save(
        tmp_path / "a.gif", [scene(k)[..., :3] for k in range(4)], duration=[20, 70, 30, 40]
    )
    content = path.read_bytes()
    control = b"\x21\xf9\x04"
    place = content.index(control, content.index(control) + 1) + 4
    assert content[place : place + 2] == b"\7\0"
    path.write_bytes(content[:place] + b"\0\0" + content[place + 2 :])
    info = probe(path)
    times = [pts * info.time_base * 1000 for pts in (*info.frame_pts, info.stop_pts)]
    assert times == [0, 20, 120, 150, 190]


def apng(frames: list[tuple[np.ndarray, tuple[int, int], int, int]], time: int = 40) -> bytes:
    """An APNG of (pixels, (y, x), dispose_op, blend_op), the first of the size of the canvas."""

    def part(kind: bytes, *content: bytes) -> bytes:
        body = b"".join(content)
        check = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + check

    height, width = frames[0][0].shape[:2]
    content = b"\x89PNG\r\n\x1a\n"
    content += part(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0))
    content += part(b"acTL", struct.pack(">II", len(frames), 0))
    number = 0
    for pixels, (y, x), dispose, blend in frames:
        h, w = pixels.shape[:2]
        control = struct.pack(">IIIIIHHBB", number, w, h, x, y, time, 1000, dispose, blend)
        data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in pixels))
        following = struct.pack(">I", number + 1)
        content += part(b"fcTL", control)
        content += part(b"fdAT", following, data) if number else part(b"IDAT", data)
        number += 2 if number else 1
    return content + part(b"IEND")


def drawn(frames: list[tuple[np.ndarray, tuple[int, int], int, int]]) -> list[np.ndarray]:
    """The canvases, as the PNG specification (third edition, 11.3.6.2) says, in floating point."""
    canvas = np.zeros(frames[0][0].shape)
    made = []
    for pixels, (y, x), dispose, blend in frames:
        before = canvas.copy()
        place = canvas[y : y + pixels.shape[0], x : x + pixels.shape[1]]
        above, below = pixels[..., 3:] / 255, place[..., 3:] / 255 * (1 - pixels[..., 3:] / 255)
        whole = above + below
        mixed = (pixels[..., :3] * above + place[..., :3] * below) / np.maximum(whole, 1e-9)
        place[:] = np.dstack([mixed, whole * 255]) if blend else pixels
        made.append(canvas.copy())
        if dispose == 1:
            place[:] = 0
        elif dispose == 2:
            canvas = before
    return made


@pytest.mark.parametrize(("dispose", "blend"), list(product(range(3), range(2))))
def test_an_apng_is_drawn_as_its_specification_says(
    tmp_path: Path, dispose: int, blend: int
) -> None:
    random = np.random.default_rng(dispose * 2 + blend)
    frames = []
    for k in range(5):
        pixels = random.integers(0, 256, (20, 30, 4) if k else (H, W, 4)).astype(np.uint8)
        pixels[..., 3] = random.choice([0, 60, 128, 255], pixels.shape[:2])
        frames.append((pixels, (3 * k, 7 * k), dispose if k else 0, blend if k else 0))
    path = tmp_path / "a.png"
    path.write_bytes(apng(frames))
    info = probe(path)
    assert [pts * info.time_base * 1000 for pts in info.frame_pts] == [0, 40, 80, 120, 160]
    found = [rgba(picture) for picture in pictures(path, info)]
    assert max(map(difference, found, drawn(frames))) <= 2  # FFmpeg rounds after each frame
    if not blend:  # where it blends, Pillow 13 mixes the alphas as well
        assert max(map(difference, found, by_pillow(path))) == 0


def test_the_default_image_of_an_apng_is_no_frame_and_no_delay_is_a_fifteenth(
    tmp_path: Path,
) -> None:
    frames = [scene(k)[..., :3] for k in range(4)]
    times = {"duration": [40, 0, 100], "default_image": True}
    path = save(tmp_path / "a.png", frames, **times)
    info = probe(path)
    assert [number_in(picture) for picture in pictures(path, info)] == [1, 2, 3]
    assert [round(pts * info.time_base * 1000) for pts in info.frame_pts] == [0, 40, 107]


def stills(folder: Path) -> dict[str, tuple[Path, int]]:
    """Files, and the largest difference: 2 for JPEG at 4:4:4, 6 for what enlarges its chroma."""
    alpha = Image.fromarray(scene(alpha=True))
    colour, gray = alpha.convert("RGB"), alpha.convert("L")
    deep = Image.fromarray(np.asarray(gray).astype(np.uint16) * 257)
    palette, line = colour.quantize(64), gray.point(lambda value: 255 * (value > 99)).convert("1")
    made = {
        "rgb.png": (colour, {}, 0), "rgba.png": (alpha, {}, 0), "gray.png": (gray, {}, 0),
        "gray-alpha.png": (alpha.convert("LA"), {}, 0), "palette.png": (palette, {}, 0),
        "palette-alpha.png": (alpha.quantize(64), {}, 0), "16-bit.png": (deep, {}, 1),
        "1-bit.png": (line, {}, 0), "transparent.png": (palette, {"transparency": 3}, 0),
        "444.jpg": (colour, {"quality": 95, "subsampling": 0}, 2),
        "progressive.jpg": (colour, {"quality": 95, "subsampling": 0, "progressive": True}, 2),
        "420.jpg": (Image.fromarray(smooth()), {"quality": 95}, 6),
        "gray.jpg": (gray, {}, 1), "cmyk.jpg": (colour.convert("CMYK"), {"subsampling": 0}, 2),
        "lossless.webp": (alpha, {"lossless": True, "exact": True}, 0),
        "lossy.webp": (Image.fromarray(smooth()), {"quality": 95}, 6),
        "rgb.bmp": (colour, {}, 0), "palette.bmp": (palette, {}, 0), "1-bit.bmp": (line, {}, 0),
        "rgb.tif": (colour, {}, 0), "rgba.tif": (alpha, {}, 0),
        "cmyk.tif": (colour.convert("CMYK"), {}, 1),
        "lzw.tif": (colour, {"compression": "tiff_lzw"}, 0), "16-bit.tif": (deep, {}, 1),
        "444.avif": (colour, AVIF, 2), "gray.avif": (gray, AVIF, 1),
        "limited.avif": (colour, {**AVIF, "range": "limited"}, 2),
    }  # fmt: skip
    for name, (image, options, _) in made.items():
        image.save(folder / name, **options)
    return {name: (folder / name, most) for name, (_, _, most) in made.items()}


def smooth() -> np.ndarray:
    y, x = np.mgrid[:H, :W]
    return np.stack([x * 3, y * 5, (x + y) * 2], -1).astype(np.uint8)


def test_still_pictures_are_as_pillow_reads_them(tmp_path: Path) -> None:
    too_far = {}
    for name, (path, most) in stills(tmp_path).items():
        info = probe(path)
        assert (info.still, len(info.frame_pts)) == (True, 1), name
        (picture,) = pictures(path, info)
        (expected,) = by_pillow(path)
        if "16-bit" in name:  # Pillow's own conversion clips
            with Image.open(path) as image:
                gray = (np.asarray(image) >> 8).astype(np.uint8)
            expected = np.dstack([gray, gray, gray, np.full_like(gray, 255)])
        found = difference(rgba(picture), expected)
        if found > most:
            too_far[name] = found
    assert not too_far
