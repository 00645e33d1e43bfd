"""Sizes against the peers' tables and their invariants; frames against formulas and ffmpeg."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spacepatch.data import Picture
from spacepatch.errors import DecodeError, SourceError
from spacepatch.resize import (
    RESAMPLERS,
    SIZE_POLICIES,
    aspect_error,
    colour_of,
    fit_size,
    make_frame,
    smart_resize_video,
)

TABLES = Path(__file__).resolve().parents[2] / "shared" / "parity" / "tables.json"
needs_tables = pytest.mark.skipif(not TABLES.exists(), reason="../shared/parity is not here")
needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="no ffmpeg command here")


# --- sizes -----------------------------------------------------------------------------------


def fit(size, policy, value=None, *, patch=16, upscale=False):
    return fit_size(size, patch=(patch, patch), policy=policy, value=value, upscale=upscale)


@needs_tables
def test_token_budget_matches_timm_on_every_golden_vector():
    rows = json.loads(TABLES.read_text())["naflex_size"]
    for row in rows:
        patch, size = row["patch_size"], (row["height"], row["width"])
        got = fit(size, "max-tokens-per-frame", row["max_num_patches"], patch=patch, upscale=True)
        assert [*got] == row["out"], row


@needs_tables
def test_without_upscaling_only_golden_vectors_that_enlarge_differ():
    for row in json.loads(TABLES.read_text())["naflex_size"]:
        patch, size = row["patch_size"], (row["height"], row["width"])
        got = fit(size, "max-tokens-per-frame", row["max_num_patches"], patch=patch)
        whole = tuple(-(-n // patch) * patch for n in size)
        enlarges = any(out > n for out, n in zip(row["out"], whole, strict=True))
        assert got == (whole if enlarges else tuple(row["out"])), row


@needs_tables
def test_pixel_budget_matches_qwen2_on_every_golden_vector():
    for row in json.loads(TABLES.read_text())["qwen2_vl_smart_resize"]:
        size, value = (row["height"], row["width"]), (row["min_pixels"], row["max_pixels"])
        assert [*fit(size, "pixels", value, patch=row["factor"], upscale=True)] == row["out"], row


@needs_tables
def test_video_sizes_match_qwen3_on_every_golden_vector():
    for row in json.loads(TABLES.read_text())["qwen3_vl_smart_resize"]:
        got = smart_resize_video(
            (row["height"], row["width"]),
            num_frames=row["num_frames"],
            tubelet_size=row["temporal_factor"],
            patch=row["factor"],
            min_pixels=row["min_pixels"],
            max_pixels=row["max_pixels"],
        )
        assert [*got] == row["out"], row


@pytest.mark.parametrize(
    ("size", "patch", "tokens", "expected"),
    [
        ((48, 48), 3, 121, (33, 33)),
        ((112, 109), 7, 225, (105, 105)),
        ((176, 176), 11, 64, (88, 88)),
        ((256, 64), 16, 12, (96, 32)),
        ((256, 64), 8, 15, (56, 16)),
        ((63, 241), 16, 16, (32, 128)),
        ((16, 512), 16, 16, (16, 256)),
        ((1080, 1920), 16, 1024, (384, 672)),
        ((1080, 1920), 16, 256, (192, 336)),
        ((720, 1280), 16, 784, (336, 592)),
    ],
)
@pytest.mark.parametrize("upscale", [False, True])
def test_token_budget_matches_the_vectors_of_big_vision(size, patch, tokens, expected, upscale):
    assert fit(size, "max-tokens-per-frame", tokens, patch=patch, upscale=upscale) == expected


@pytest.mark.parametrize(
    ("size", "patch", "value", "expected"),
    [
        ((1080, 1920), 28, (56 * 56, 14 * 14 * 4 * 1280), (728, 1316)),
        ((480, 854), 28, (56 * 56, 14 * 14 * 4 * 1280), (476, 840)),
        ((100, 30), 28, (56 * 56, 14 * 14 * 4 * 1280), (112, 28)),
        ((14, 42), 28, (1, 10**9), (28, 28)),
    ],
)
def test_pixel_budget_matches_the_vectors_of_qwen2(size, patch, value, expected):
    assert fit(size, "pixels", value, patch=patch, upscale=True) == expected


@pytest.mark.parametrize(
    ("size", "num_frames", "expected"),
    [
        ((1080, 1920), 2, (448, 832)),
        ((1080, 1920), 16, (160, 288)),
        ((1080, 1920), 64, (64, 128)),
        ((100, 30), 2, (480, 160)),
    ],
)
def test_video_sizes_match_the_vectors_of_qwen3(size, num_frames, expected):
    got = smart_resize_video(
        size,
        num_frames=num_frames,
        tubelet_size=2,
        patch=32,
        min_pixels=128 * 1024,
        max_pixels=1024 * 768,
    )
    assert got == expected


@pytest.mark.parametrize(
    ("size", "policy", "value", "expected"),
    [
        ((20, 20), "max-tokens-per-frame", 256, (32, 32)),
        ((1, 1), "max-tokens-per-frame", 256, (16, 16)),
        ((24, 1024), "max-tokens-per-frame", 256, (32, 1024)),
        ((1024, 24), "max-tokens-per-frame", 64, (688, 16)),
        ((1080, 1920), "max-tokens-per-frame", 1, (16, 16)),
        ((20, 20), "pixels", (65536, 65536), (32, 32)),
        ((1, 1), "pixels", (0, 65536), (16, 16)),
        ((31, 639), "pixels", (0, 2560), (16, 160)),
        ((1, 1), "native", None, (16, 16)),
        ((24, 39), "native", None, (32, 32)),
        ((23, 40), "native", None, (16, 48)),
        ((1080, 1920), "short-side", 224, (224, 400)),
        ((1920, 1080), "short-side", 224, (400, 224)),
        ((1080, 1920), "short-side", 232, (240, 432)),
        ((1080, 1920), "long-side", 448, (256, 448)),
        ((1024, 24), "long-side", 128, (128, 16)),
        ((232, 1000), "short-side", 232, (240, 1008)),
        ((180, 320), "short-side", 224, (176, 320)),
        ((180, 320), "long-side", 640, (176, 320)),
    ],
)
def test_small_thin_and_odd_pictures_get_these_sizes(size, policy, value, expected):
    assert fit(size, policy, value) == expected


@pytest.mark.parametrize(
    ("policy", "value", "expected"),
    [
        ("max-tokens-per-frame", 256, (192, 336)),
        ("pixels", (60000, 10**6), (192, 336)),
        ("short-side", 224, (224, 400)),
        ("long-side", 640, (368, 640)),
        ("native", None, (96, 160)),
    ],
)
def test_upscaling_enlarges_where_it_is_asked_for(policy, value, expected):
    assert fit((90, 160), policy, value, upscale=True) == expected


@pytest.mark.parametrize("policy", ["max-tokens-per-frame", "pixels", "short-side", "native"])
def test_a_patch_may_have_two_sides(policy):
    value = {"max-tokens-per-frame": 100, "pixels": (0, 20000), "short-side": 96}.get(policy)
    h, w = fit_size((200, 320), patch=(8, 20), policy=policy, value=value)
    assert (h % 8, w % 20) == (0, 0)


SIDES = st.integers(1, 8192)


@st.composite
def pictures_up_to_200_to_1(draw):
    long = draw(SIDES)
    short = draw(st.integers(-(-long // 200), long))
    return draw(st.permutations((long, short)).map(tuple))


@settings(max_examples=400, deadline=None)
@given(
    size=pictures_up_to_200_to_1(),
    patch=st.tuples(st.integers(1, 64), st.integers(1, 64)),
    policy=st.sampled_from(sorted(SIZE_POLICIES)),
    number=st.integers(1, 5000),
    upscale=st.booleans(),
)
def test_every_size_keeps_the_promises(size, patch, policy, number, upscale):
    area = patch[0] * patch[1]
    pixels = (number * area // 4, number * area)
    value = {"native": None, "pixels": pixels}.get(policy, number)
    fitted = fit_size(size, patch=patch, policy=policy, value=value, upscale=upscale)
    assert all(n >= p and n % p == 0 for n, p in zip(fitted, patch, strict=True))
    if policy == "max-tokens-per-frame":
        assert fitted[0] * fitted[1] <= number * area
    if policy == "pixels":
        assert fitted[0] * fitted[1] <= pixels[1]
    if not upscale or policy == "native":
        whole = [-(-n // p) * p for n, p in zip(size, patch, strict=True)]
        assert all(n <= limit for n, limit in zip(fitted, whole, strict=True))


@settings(max_examples=200, deadline=None)
@given(size=st.tuples(st.integers(64, 8192), st.integers(64, 8192)), tokens=st.integers(64, 4096))
def test_a_larger_ratio_would_break_the_token_budget(size, tokens):
    h, w = fit(size, "max-tokens-per-frame", tokens, upscale=True)
    assert (h // 16 + 1) * (w // 16 + 1) > tokens


@pytest.mark.parametrize(
    ("size", "policy", "value"),
    [
        ((100, 100), "max-tokens-per-frame", 0),
        ((1, 3_000_000), "max-tokens-per-frame", 1),
        ((10, 2001), "pixels", (0, 10**6)),
        ((100, 100), "pixels", (0, 255)),
    ],
)
def test_an_impossible_size_is_a_loss_with_a_reason(size, policy, value):
    with pytest.raises(SourceError, match=f"{size[0]}x{size[1]}") as caught:
        fit(size, policy, value)
    assert caught.value.reason == "resize_impossible"


def test_too_few_frames_for_a_video_size_is_a_loss_with_a_reason():
    with pytest.raises(SourceError, match="1 frames in tubelets of 2") as caught:
        smart_resize_video(
            (64, 64), num_frames=1, tubelet_size=2, patch=32, min_pixels=1, max_pixels=10**6
        )
    assert caught.value.reason == "resize_impossible"


def test_aspect_error_is_zero_for_a_true_scaling():
    assert aspect_error((1080, 1920), (540, 960)) == 0


def test_aspect_error_is_the_stretch_of_one_axis():
    assert aspect_error((100, 200), (100, 220)) == pytest.approx(0.1)


@given(size=st.tuples(SIDES, SIDES), other=st.tuples(SIDES, SIDES))
def test_aspect_error_is_the_same_for_the_transpose(size, other):
    assert aspect_error(size, other) == pytest.approx(aspect_error(size[::-1], other[::-1]))


# --- frames ----------------------------------------------------------------------------------


def make_picture(frame, *, rotation=0, mirrored=False):
    return Picture(
        frame=frame, pts=0, index=0, rotation=rotation, mirrored=mirrored, is_corrupt=False
    )


def make_planes(name, planes, *, size, matrix=2, range_tag=0):
    """An av.VideoFrame of integer planes, each broadcast to its plane's own size."""
    frame = av.VideoFrame(size[1], size[0], name)
    frame.colorspace, frame.color_range = matrix, range_tag
    for plane, values in zip(frame.planes, planes, strict=True):
        dtype = np.dtype("uint16" if "16" in name or "10" in name else "uint8")
        rows = np.frombuffer(memoryview(plane), dtype).reshape(plane.height, -1)
        rows[:, : plane.width] = values
    return frame


def corners(size):
    """RGB with one colour a quarter: red, green / blue, white."""
    h, w = size
    array = np.zeros((h, w, 3), np.uint8)
    array[: h // 2, : w // 2, 0] = 255
    array[: h // 2, w // 2 :, 1] = 255
    array[h // 2 :, : w // 2, 2] = 255
    array[h // 2 :, w // 2 :] = 255
    return array


@pytest.mark.parametrize("resampler", sorted(RESAMPLERS))
@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
@pytest.mark.parametrize("mirrored", [False, True])
def test_a_frame_is_turned_clockwise_and_then_mirrored(resampler, rotation, mirrored):
    array = corners((32, 64))
    expected = np.rot90(array, -rotation // 90)
    expected = np.fliplr(expected) if mirrored else expected
    picture = make_picture(
        av.VideoFrame.from_ndarray(array, format="rgb24"), rotation=rotation, mirrored=mirrored
    )
    frame = make_frame(picture, size=expected.shape[:2], resampler=resampler)
    np.testing.assert_array_equal(frame, expected)


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_a_resized_frame_is_turned_too(rotation):
    yuv = av.VideoFrame.from_ndarray(corners((64, 128)), format="rgb24").reformat(format="yuv444p")
    expected = np.rot90(corners((32, 64)), -rotation // 90)
    frame = make_frame(make_picture(yuv, rotation=rotation), size=expected.shape[:2])
    # One pixel inside each corner: the edges between the quarters ring.
    ends = np.ix_([1, -2], [1, -2])
    assert np.abs(frame[ends].astype(int) - expected[ends]).max() <= 2


@pytest.mark.parametrize("rotation", [0, 90])
def test_out_receives_what_would_be_returned(rotation):
    array = np.random.default_rng(1).integers(0, 256, (40, 48, 3), dtype=np.uint8)
    picture = make_picture(av.VideoFrame.from_ndarray(array, format="rgb24"), rotation=rotation)
    clip = np.zeros((2, 16, 32, 3), np.uint8)
    returned = make_frame(picture, size=(16, 32), out=clip[1])
    assert np.shares_memory(returned, clip)
    np.testing.assert_array_equal(clip[1], make_frame(picture, size=(16, 32)))
    assert not clip[0].any()


def test_out_of_another_shape_is_misuse():
    picture = make_picture(av.VideoFrame.from_ndarray(corners((32, 32)), format="rgb24"))
    with pytest.raises(ValueError, match=r"\(2, 16, 16, 3\)"):
        make_frame(picture, size=(16, 16), out=np.zeros((2, 16, 16, 3), np.uint8))


def test_a_frame_outlives_its_picture():
    array = np.random.default_rng(2).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    frames = [
        make_frame(
            make_picture(make_planes("yuv444p", [n, 128, 128], size=(64, 64), range_tag=2)),
            size=(32, 32),
        )
        for n in array[..., 0].ravel()[:64]
    ]
    assert [frame[5, 5, 0] for frame in frames] == array[..., 0].ravel()[:64].tolist()


def test_a_full_size_frame_is_a_copy_of_an_rgb_picture():
    source = av.VideoFrame.from_ndarray(corners((32, 32)), format="rgb24")
    make_frame(make_picture(source), size=(32, 32))[:] = 7
    np.testing.assert_array_equal(source.to_ndarray(), corners((32, 32)))


@pytest.mark.parametrize("name", ["rgb24", "rgba", "yuv420p", "gray"])
def test_a_picture_that_is_stored_bottom_up_comes_out_upright(name):
    source = av.VideoFrame.from_ndarray(corners((32, 32)), format="rgb24").reformat(format=name)
    graph = av.filter.Graph()
    feed = graph.add_buffer(width=32, height=32, format=source.format, time_base=Fraction(1, 25))
    # FFmpeg turns a picture over by a negative line size.
    graph.link_nodes(feed, graph.add("vflip"), graph.add("buffersink")).configure()
    graph.push(source)
    turned = graph.pull()
    assert turned.planes[0].line_size < 0
    upright = make_frame(make_picture(source), size=(32, 32))
    frame = make_frame(make_picture(turned), size=(32, 32)).astype(int)
    assert np.abs(frame - upright[::-1]).max() <= 1


@pytest.mark.parametrize("name", ["gray32le", "xv30be"])
def test_a_pixel_format_that_swscale_does_not_read_is_a_loss_with_a_reason(name):
    with pytest.raises(DecodeError, match=name) as caught:
        make_frame(make_picture(av.VideoFrame(32, 32, name)), size=(16, 16))
    assert caught.value.reason == "unsupported_colour"


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


@pytest.mark.parametrize("range_tag", [1, 2])
@pytest.mark.parametrize("matrix", sorted(LUMA_WEIGHTS))
@pytest.mark.parametrize(("name", "bits"), [("yuv444p", 8), ("yuv444p10le", 10)])
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


@pytest.mark.parametrize("name", ["gray", "gray10le", "gray16le"])
def test_grey_is_full_range_unless_tagged_as_limited(name):
    unit = {"gray": 1, "gray10le": 4, "gray16le": 256}[name]
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


@pytest.mark.parametrize("name", ["rgba", "bgra", "gbrap", "yuva444p"])
def test_transparent_pixels_are_black_whatever_hides_under_them(name):
    rgba = np.full((32, 32, 4), 255, np.uint8)
    rgba[:, 16:, 3] = 0
    source = av.VideoFrame.from_ndarray(rgba, format="rgba").reformat(format=name)
    frame = make_frame(make_picture(source), size=(32, 32)).astype(int)
    assert (frame[:, :16] >= 253).all()
    assert not frame[:, 16:].any()


def test_half_transparent_pixels_are_half_as_bright():
    rgba = np.full((16, 16, 4), (200, 100, 50, 128), np.uint8)
    source = av.VideoFrame.from_ndarray(rgba, format="rgba")
    expected = np.rint(np.array([200, 100, 50]) * 128 / 255)
    assert (make_frame(make_picture(source), size=(16, 16)) == expected).all()


@pytest.mark.parametrize("resampler", sorted(RESAMPLERS))
def test_hidden_colour_does_not_bleed_over_an_edge(resampler):
    rgba = np.zeros((64, 64, 4), np.uint8)
    rgba[:, :30] = (255, 0, 0, 255)
    rgba[:, 30:] = (0, 255, 0, 0)
    source = av.VideoFrame.from_ndarray(rgba, format="rgba")
    frame = make_frame(make_picture(source), size=(16, 16), resampler=resampler)
    assert not frame[..., 1].any()


def test_a_palette_is_looked_up():
    indices = np.arange(256, dtype=np.uint8).reshape(16, 16)
    palette = np.zeros((256, 4), np.uint8)
    palette[:, 0], palette[:, 1] = 255, np.arange(256)
    source = av.VideoFrame.from_ndarray((indices, palette), format="pal8")
    frame = make_frame(make_picture(source), size=(16, 16))
    np.testing.assert_array_equal(frame[..., 0], indices)


@pytest.mark.parametrize("name", ["rgb24", "yuv420p", "yuv444p", "gray"])
@pytest.mark.parametrize(
    ("size", "target"),
    [
        ((1, 1), (16, 16)),
        ((1, 1), (1, 1)),
        ((179, 321), (7, 14)),
        ((8, 8192), (16, 32)),
        ((2048, 24), (16, 16)),
        ((16, 16), (2048, 16)),
    ],
)
@pytest.mark.parametrize("resampler", sorted(RESAMPLERS))
def test_a_plain_picture_stays_plain_at_any_size(name, size, target, resampler):
    planes = [100] if name in ("rgb24", "gray") else [100, 128, 128]
    source = av.VideoFrame(size[1], size[0], name)
    source.color_range = 2
    for plane, value in zip(source.planes, planes, strict=True):
        np.frombuffer(memoryview(plane), np.uint8)[:] = value
    frame = make_frame(make_picture(source), size=target, resampler=resampler)
    assert frame.shape == (*target, 3)
    assert frame.dtype == np.uint8
    assert np.abs(frame.astype(int) - 100).max() <= 1


# The share of the zone plate's contrast that may be left where the small picture can show none.
@pytest.mark.parametrize(
    ("resampler", "limit"),
    [("bicubic", 0.02), ("area", 0.06), ("torch-bicubic", 0.02), ("torch-bilinear", 0.02)],
)
@pytest.mark.parametrize("name", ["gray", "yuv420p", "rgb24"])
def test_a_zone_plate_shrunk_8_times_does_not_alias(name, resampler, limit):
    y, x = np.mgrid[-256:256, -256:256] + 0.5
    rings = np.rint(127.5 + 100 * np.cos(np.pi * (y * y + x * x) / 512)).astype(np.uint8)
    source = av.VideoFrame.from_ndarray(np.repeat(rings[..., None], 3, 2), format="rgb24")
    small = make_frame(
        make_picture(source.reformat(format=name)), size=(64, 64), resampler=resampler
    )
    # A ring r pixels from the centre has r / 512 cycles a pixel; 1/16 is the small one's limit.
    beyond = (y * y + x * x > 100**2)[::8, ::8] & (np.maximum(abs(y), abs(x)) < 240)[::8, ::8]
    assert small[beyond].std() / 100 < limit


def test_a_reused_context_makes_the_pixels_of_a_fresh_one():
    rng = np.random.default_rng(4)
    sources = [
        make_planes("yuv420p", [rng.integers(0, 256, (64, 64)), 90, 140], size=(64, 64), matrix=m)
        for m in (1, 5)
    ]
    sizes = [(16, 16), (48, 32), (64, 64)]
    first = [make_frame(make_picture(s), size=n) for n in sizes for s in sources]
    again = [make_frame(make_picture(s), size=n) for n in sizes for s in sources]
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert (first[0] != first[1]).any()


def test_threads_make_the_pixels_of_one_thread():
    rng = np.random.default_rng(5)
    pictures = [
        make_picture(
            make_planes("yuv420p", [rng.integers(0, 256, (240, 320)), 90, 140], size=(240, 320))
        )
        for _ in range(24)
    ]
    alone = [make_frame(picture, size=(112, 144)) for picture in pictures]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda picture: make_frame(picture, size=(112, 144)), pictures))
    assert all((a == b).all() for a, b in zip(alone, together, strict=True))


@pytest.mark.parametrize("resampler", ["torch-bicubic", "torch-bilinear"])
def test_torch_resamplers_are_torch_on_the_rgb_that_pyav_makes(resampler):
    import torch

    rng = np.random.default_rng(6)
    source = make_planes("yuv420p", [rng.integers(0, 256, (60, 90)), 90, 140], size=(60, 90))
    full = torch.from_numpy(np.rot90(source.to_ndarray(format="rgb24"), -1).copy())
    expected = torch.nn.functional.interpolate(
        full.permute(2, 0, 1)[None], size=(32, 48), mode=resampler[6:], antialias=True
    )[0].permute(1, 2, 0)
    frame = make_frame(make_picture(source, rotation=90), size=(32, 48), resampler=resampler)
    np.testing.assert_array_equal(frame, expected.numpy())


def test_importing_resize_loads_neither_av_nor_torch():
    code = "import sys, spacepatch.resize; sys.exit(bool({'av', 'torch'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def write_clip(path, name, *, size, range_tag=0, codec="ffv1"):
    """One lossless frame of soft shapes with a little noise, and its picture as PyAV decodes it."""
    h, w = size
    y, x = np.mgrid[:h, :w]
    rng = np.random.default_rng(7)
    waves = [128 + 70 * np.sin(x / a + y / b) for a, b in ((19, 31), (-23, 17), (37, -13))]
    array = (np.stack(waves, -1) + rng.normal(0, 4, (h, w, 3))).clip(40, 215).astype(np.uint8)
    with av.open(str(path), "w") as output:
        stream = output.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = w, h, name
        if range_tag:
            stream.codec_context.color_range = range_tag
        frame = av.VideoFrame.from_ndarray(array, format="rgb24").reformat(format=name)
        output.mux([*stream.encode(frame), *stream.encode(None)])
    with av.open(str(path)) as container:
        return make_picture(next(container.decode(video=0)))


def run_ffmpeg(path, size, *, kernel, full):
    flags = f"{kernel}+accurate_rnd+bitexact+full_chroma_int+full_chroma_inp"
    colour = f"in_color_matrix=bt601:in_range={'full' if full else 'limited'}"
    scale = f"scale={size[1]}:{size[0]}:{colour}:flags={flags},format=rgb24"
    command = ["ffmpeg", "-v", "error", "-i", path, "-vf", scale, "-f", "rawvideo", "-"]
    raw = subprocess.run(command, check=True, capture_output=True).stdout
    return np.frombuffer(raw, np.uint8).reshape(*size, 3).astype(int)


FORMATS = ["yuv420p", "yuv422p", "yuv444p", "yuv420p10le", "yuv444p12le", "gray", "bgr0"]


# Limited grey is ours alone: swscale takes it for full range.
@needs_ffmpeg
@pytest.mark.parametrize(
    ("name", "range_tag"),
    [(name, tag) for name in FORMATS for tag in (1, 2) if (name, tag) != ("gray", 1)],
)
def test_a_full_size_frame_is_within_2_of_the_ffmpeg_command(tmp_path, name, range_tag):
    path = tmp_path / "clip.mkv"
    picture = write_clip(path, name, size=(180, 242), range_tag=range_tag)
    frame = make_frame(picture, size=(180, 242))
    expected = run_ffmpeg(path, (180, 242), kernel="bicubic", full=range_tag == 2)
    assert np.abs(frame - expected).max() <= 2


@needs_ffmpeg
@pytest.mark.parametrize("kernel", ["bicubic", "area"])
@pytest.mark.parametrize("name", FORMATS)
def test_a_resized_frame_is_within_2_of_the_ffmpeg_command(tmp_path, name, kernel):
    path = tmp_path / "clip.mkv"
    picture = write_clip(path, name, size=(180, 242), range_tag=2)
    frame = make_frame(picture, size=(80, 112), resampler=kernel)
    expected = run_ffmpeg(path, (80, 112), kernel=kernel, full=True)
    assert np.abs(frame - expected).max() <= 2
