"""AVIF stills and sequences, held against FFmpeg, Pillow and the specification."""

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from image_files import (
    AVIF,
    DURATIONS,
    by_pillow,
    check_upright,
    difference,
    exif,
    number_in,
    pictures,
    probe,
    rgba,
    save,
    scene,
)

from spacepatch.errors import ProbeError


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
