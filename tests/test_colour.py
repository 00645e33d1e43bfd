"""Colour against the formulas of the standards and against zscale."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from pictures import make_picture, make_planes

from spacepatch.errors import DecodeError
from spacepatch.resize import UNTAGGED, colour_of, make_frame

HERE = Path(__file__).resolve().parent

# Kr and Kb of ITU-R BT.601, BT.709, BT.2020, SMPTE 240M and FCC, by AVColorSpace.
LUMA_WEIGHTS = {
    1: (0.2126, 0.0722),
    2: (0.299, 0.114),  # unspecified: BT.601 by our rule
    4: (0.30, 0.11),
    5: (0.299, 0.114),
    6: (0.299, 0.114),
    7: (0.212, 0.087),
    9: (0.2627, 0.0593),
}


def convert_by_the_book(yuv, *, matrix, full, bits=8):
    """(3, ...) YUV numbers to (..., 3) float64 RGB in [0, 255], as BT.601 to BT.2020 print it."""
    kr, kb = LUMA_WEIGHTS[matrix]
    unit = 2 ** (bits - 8)
    offset, luma, chroma = (
        (0, 2**bits - 1, 2**bits - 1) if full else (16 * unit, 219 * unit, 224 * unit)
    )
    y = (yuv[0] - offset) / luma
    cb, cr = ((plane - 128.0 * unit) / chroma for plane in yuv[1:])
    r, b = y + 2 * (1 - kr) * cr, y + 2 * (1 - kb) * cb
    g = (y - kr * r - kb * b) / (1 - kr - kb)
    return (np.stack([r, g, b], -1) * 255).clip(0, 255)


@pytest.mark.parametrize("name", ["gray32le", "xv30be"])
def test_a_pixel_format_that_swscale_does_not_read_is_a_loss_with_a_reason(name):
    with pytest.raises(DecodeError, match=name) as caught:
        make_frame(make_picture(av.VideoFrame(32, 32, name)), size=(16, 16))
    assert caught.value.reason == "unsupported_colour"


@pytest.mark.parametrize("range_tag", [1, 2])
@pytest.mark.parametrize("matrix", sorted(LUMA_WEIGHTS))
@pytest.mark.parametrize(
    ("name", "bits"), [("yuv444p", 8), ("yuv444p10le", 10), ("yuv444p12le", 12)]
)
def test_full_size_colour_is_within_2_of_the_formula(name, bits, matrix, range_tag):
    # The legal numbers of limited range: swscale overflows on some that no camera makes.
    rng = np.random.default_rng(3)
    low, high = (16, 235) if range_tag == 1 else (0, 255)
    yuv = rng.integers(low * 2 ** (bits - 8), high * 2 ** (bits - 8) + 1, (3, 48, 64))
    source = make_planes(name, yuv, size=(48, 64), matrix=matrix, range_tag=range_tag)
    frame = make_frame(make_picture(source), size=(48, 64))
    expected = convert_by_the_book(yuv, matrix=matrix, full=range_tag == 2, bits=bits)
    assert np.abs(frame - expected).max() <= 2


@pytest.mark.parametrize("range_tag", [0, 1, 2])
@pytest.mark.parametrize("matrix", [1, 2, 5, 9])
@pytest.mark.parametrize("resampler", ["bicubic", "area"])
@pytest.mark.parametrize(("name", "bits"), [("yuv420p", 8), ("yuv422p10le", 10), ("nv12", 8)])
def test_resized_colour_is_within_2_of_the_formula(name, bits, resampler, matrix, range_tag):
    yuv = np.array([130, 90, 170]) * 2 ** (bits - 8)
    planes = yuv if name != "nv12" else [130, np.tile([90, 170], 32)]
    source = av.VideoFrame(64, 48, name)
    source.colorspace, source.color_range = matrix, range_tag
    for plane, values in zip(source.planes, planes, strict=True):
        dtype = np.uint16 if bits > 8 else np.uint8
        rows = np.frombuffer(memoryview(plane), dtype).reshape(plane.height, -1)
        rows[:] = np.resize(values, rows.shape[1])
    frame = make_frame(make_picture(source), size=(16, 32), resampler=resampler)
    expected = convert_by_the_book(yuv, matrix=matrix, full=range_tag == 2, bits=bits)
    assert np.abs(frame - expected).max() <= 2


def test_a_yuvj_format_is_full_range_whatever_its_tag():
    source = make_planes("yuvj420p", [16, 128, 128], size=(16, 16), range_tag=1)
    assert make_frame(make_picture(source), size=(16, 16)).tolist() == [[[16] * 3] * 16] * 16


@pytest.mark.parametrize("name", ["gray", "gray10le", "gray12le", "gray16le"])
def test_grey_is_full_range_unless_tagged_as_limited(name):
    unit = {"gray": 1, "gray10le": 4, "gray12le": 16, "gray16le": 256}[name]
    rows = []
    for range_tag in (0, 1, 2):
        source = make_planes(name, [np.arange(256) * unit], size=(2, 256), range_tag=range_tag)
        rows.append(make_frame(make_picture(source), size=(2, 256))[0, :, 1].astype(int))
    full, limited = np.arange(256), ((np.arange(256) - 16) * 255 / 219).clip(0, 255)
    for row, expected in zip(rows, (full, limited, full), strict=True):
        assert np.abs(row - expected).max() <= 2


@pytest.mark.parametrize(
    ("name", "matrix", "range_tag", "expected"),
    [
        ("yuv420p", 1, 1, ("bt709", "tv", "tagged")),
        ("yuv420p", 1, 0, ("bt709", "tv", "tagged")),
        ("yuv420p", 2, 0, ("smpte170m", "tv", "assumed")),
        ("yuv420p", 0, 2, ("smpte170m", "pc", "assumed")),
        ("yuvj444p", 5, 0, ("bt470bg", "pc", "tagged")),
        ("yuv420p10le", 9, 1, ("bt2020nc", "tv", "tagged")),
        ("yuva420p", 6, 0, ("smpte170m", "tv", "tagged")),
        ("rgb24", 2, 0, ("gbr", "pc", "tagged")),
        ("pal8", 2, 0, ("gbr", "pc", "tagged")),
        ("gray", 1, 0, ("smpte170m", "pc", "assumed")),
        ("gray", 1, 1, ("smpte170m", "tv", "assumed")),
    ],
)
def test_colour_is_what_is_tagged_or_else_assumed(name, matrix, range_tag, expected):
    frame = av.VideoFrame(16, 16, name)
    frame.colorspace, frame.color_range = matrix, range_tag
    assert colour_of(frame)[:3] == expected


def test_a_matrix_that_swscale_does_not_know_is_a_loss_with_a_reason():
    source = make_planes("yuv420p", [16, 128, 128], size=(16, 16), matrix=8)
    with pytest.raises(DecodeError, match="8") as caught:
        make_frame(make_picture(source), size=(16, 16))
    assert caught.value.reason == "unsupported_colour"


@pytest.mark.parametrize(
    ("untagged", "size", "expected"),
    [
        ("bt601", (720, 1280), "smpte170m"),
        ("bt709", (16, 16), "bt709"),
        ("auto", (720, 1280), "bt709"),
        ("auto", (1280, 720), "bt709"),
        ("auto", (718, 1280), "smpte170m"),
        ("auto", (480, 720), "smpte170m"),
    ],
)
def test_an_untagged_matrix_is_what_the_rule_says(untagged, size, expected):
    frame = av.VideoFrame(size[1], size[0], "yuv420p")
    assert colour_of(frame, untagged=untagged)[:3] == (expected, "tv", "assumed")


@pytest.mark.parametrize("untagged", sorted(UNTAGGED))
def test_the_rule_does_not_touch_tagged_grey_and_rgb_pictures(untagged):
    for name, matrix in (("yuv420p", 9), ("yuv420p", 6), ("gray", 2), ("rgb24", 2)):
        frame = av.VideoFrame(1280, 720, name)
        frame.colorspace = matrix
        assert colour_of(frame, untagged=untagged) == colour_of(frame)


@pytest.mark.parametrize("transfer", [16, 18])
@pytest.mark.parametrize("untagged", sorted(UNTAGGED))
def test_an_untagged_matrix_of_hdr_is_that_of_bt2020(untagged, transfer):
    frame = av.VideoFrame(64, 64, "yuv420p10le")
    frame.color_trc = transfer
    assert colour_of(frame, untagged=untagged)[:3] == ("bt2020nc", "tv", "assumed")


@pytest.mark.parametrize(("name", "bits"), [("gbrp", 8), ("gbrp10le", 10), ("gbrp12le", 12)])
def test_rgb_codecs_need_no_matrix(name, bits):
    gbr = np.random.default_rng(8).integers(0, 2**bits, (3, 32, 48))
    source = make_planes(name, gbr, size=(32, 48), matrix=0, range_tag=2)
    expected = gbr[[2, 0, 1]].transpose(1, 2, 0) * 255 / (2**bits - 1)
    assert np.abs(make_frame(make_picture(source), size=(32, 48)) - expected).max() <= 2


def test_no_pixel_format_ends_the_process():
    code = """
import av
from pictures import make_picture
from spacepatch.errors import DecodeError
from spacepatch.resize import make_frame

made, refused = 0, 0
for name in sorted(av.video.format.names):
    for size in ((48, 32), (1, 1), (5, 3)):
        try:
            frame = av.VideoFrame(size[1], size[0], name)
        except av.ArgumentError:
            continue  # surfaces of a GPU
        for transfer, alpha in ((2, False), (2, True), (16, False), (18, True)):
            frame.color_trc = transfer
            try:
                make_frame(make_picture(frame), size=(16, 16), alpha=alpha)
                made += 1
            except DecodeError as error:
                assert error.reason == "unsupported_colour" and name in str(error), name
                refused += 1
assert made > 2000 and refused < 400, (made, refused)
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


# --- colour bars, against zscale -------------------------------------------------------------

ZSCALE = {"bt470bg": "470bg", "bt709": "709", "bt2020nc": "2020_ncl"}
BARS = ["yuv420p", "yuv422p", "yuv420p10le", "yuv422p10le", "yuv444p12le"]


def draw_bars():
    """``(48, 256, 3)`` uint8: the corners of the RGB cube in columns; full, dull and pale rows."""
    corners = np.array([[n >> 2 & 1, n >> 1 & 1, n & 1] for n in range(8)])
    rows = [low + corners * (high - low) for low, high in ((0, 255), (21, 212), (85, 170))]
    return np.stack(rows).repeat(16, axis=0).repeat(32, axis=1).astype(np.uint8)


INSIDE = np.ix_(
    np.flatnonzero(np.arange(48) % 16 // 4 % 3), np.flatnonzero(np.arange(256) % 32 // 8 % 3)
)
"""Where no neighbour's chroma reaches: the middle of each bar."""


@pytest.fixture
def bars_clip(ffmpeg, tmp_path):
    """Return a function that writes colour bars, and the picture that PyAV decodes of them."""

    def write(name, *, matrix, range_, tag):
        path = tmp_path / "bars.mkv"
        colour = f"zscale=min=gbr:rin=full:m={ZSCALE[matrix]}:r={range_},format={name}"
        tags = f"setparams=colorspace={tag}:range={range_}"
        raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "256x48", "-i", "-"]
        command = [ffmpeg, "-v", "error", *raw, "-vf", f"{colour},{tags}", "-c:v", "ffv1", path]
        subprocess.run(command, input=draw_bars().tobytes(), check=True)
        with av.open(str(path)) as container:
            return path, make_picture(next(container.decode(video=0)))

    return write


def run_zscale(ffmpeg, path, *, matrix, range_):
    """``(48, 256, 3)``: the RGB that zscale makes of the clip when told its colour."""
    colour = f"zscale=min={ZSCALE[matrix]}:rin={range_}:m=gbr:r=full,format=gbrp"
    command = [ffmpeg, "-v", "error", "-i", path, "-vf", colour, "-f", "rawvideo", "-"]
    raw = subprocess.run(command, check=True, capture_output=True).stdout
    return (
        np.frombuffer(raw, np.uint8).reshape(3, 48, 256)[[2, 0, 1]].transpose(1, 2, 0).astype(int)
    )


@pytest.mark.parametrize("name", BARS)
@pytest.mark.parametrize("range_", ["limited", "full"])
@pytest.mark.parametrize("matrix", sorted(ZSCALE))
def test_tagged_colour_bars_are_within_2_of_zscale(ffmpeg, bars_clip, name, matrix, range_):
    path, picture = bars_clip(name, matrix=matrix, range_=range_, tag=matrix)
    expected = run_zscale(ffmpeg, path, matrix=matrix, range_=range_)
    frame = make_frame(picture, size=(48, 256))
    assert colour_of(picture.frame).matrix_from == "tagged"
    assert np.abs(frame - expected)[INSIDE].max() <= 2
    assert np.abs(frame - draw_bars().astype(int))[INSIDE].max() <= 2


@pytest.mark.parametrize("name", BARS)
@pytest.mark.parametrize("range_", ["limited", "full"])
@pytest.mark.parametrize("untagged", ["bt601", "bt709", "auto"])
def test_untagged_colour_bars_are_within_2_of_zscale(ffmpeg, bars_clip, name, range_, untagged):
    path, picture = bars_clip(name, matrix="bt709", range_=range_, tag="unknown")
    # What the rule says, right or wrong: 48 lines are no HD.
    matrix = "bt709" if untagged == "bt709" else "bt470bg"
    expected = run_zscale(ffmpeg, path, matrix=matrix, range_=range_)
    frame = make_frame(picture, size=(48, 256), untagged=untagged)
    assert colour_of(picture.frame, untagged=untagged).matrix_from == "assumed"
    assert np.abs(frame - expected)[INSIDE].max() <= 2


def test_a_large_untagged_picture_is_read_by_the_rule_auto_as_one_tagged_bt709():
    planes = [np.tile(np.arange(16, 236), 4)[:720], 90, 170]
    frames = [
        make_frame(
            make_picture(make_planes("yuv420p", planes, size=(720, 720), matrix=matrix)),
            size=(90, 90),
            untagged="auto",
        )
        for matrix in (2, 1, 6)
    ]
    np.testing.assert_array_equal(frames[0], frames[1])
    assert (frames[0] != frames[2]).any()
