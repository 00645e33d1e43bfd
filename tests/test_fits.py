"""How pictures meet frames of another aspect ratio: literal cases, and what always holds."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spacepatch.data import Fit
from spacepatch.errors import SourceError
from spacepatch.resize import FITS, SIZE_POLICIES, fit_frame, fit_size, place_frame

WIDE = ((9, 16), (3, 4), (1, 1), (4, 3), (16, 9))
"""Buckets 16:9 to 9:16 as (h, w)."""


def fit(size, policy, value=None, *, patch=16, **more):
    return fit_frame(size, patch=(patch, patch), policy=policy, value=value, **more)


@pytest.mark.parametrize(
    ("size", "policy", "value", "rule", "expected"),
    [
        ((1080, 1920), "max-tokens-per-frame", 1024, "stretch", Fit((384, 672), (384, 672))),
        ((1080, 1920), "max-tokens-per-frame", 1024, "crop", Fit((384, 683), (384, 672), (0, 5))),
        ((1080, 1920), "max-tokens-per-frame", 1024, "pad", Fit((378, 672), (384, 672))),
        ((1920, 1080), "short-side", 224, "crop", Fit((400, 225), (400, 224), (0, 0))),
        ((1920, 1080), "short-side", 224, "pad", Fit((398, 224), (400, 224))),
        ((1080, 1920), "native", None, "stretch", Fit((1088, 1920), (1088, 1920))),
        ((1080, 1921), "native", None, "crop", Fit((1080, 1921), (1072, 1920), (4, 0))),
        ((1080, 1921), "native", None, "pad", Fit((1080, 1921), (1088, 1936))),
        ((9, 40), "native", None, "crop", Fit((9, 40), (16, 32), (0, 4))),
        ((20, 20), "max-tokens-per-frame", 256, "crop", Fit((20, 20), (16, 16), (2, 2))),
        ((20, 20), "max-tokens-per-frame", 256, "pad", Fit((20, 20), (32, 32))),
        ((1, 1), "pixels", (0, 65536), "pad", Fit((1, 1), (16, 16))),
    ],
)
def test_a_frame_is_stretched_cropped_or_padded_to_its_size(size, policy, value, rule, expected):
    assert fit(size, policy, value, fit=rule) == expected


@pytest.mark.parametrize(
    ("size", "more", "expected"),
    [
        ((720, 1280), {}, Fit((176, 304), (176, 304))),
        ((1280, 720), {}, Fit((304, 176), (304, 176))),
        ((640, 1280), {}, Fit((176, 304), (176, 304))),
        ((640, 1280), {"fit": "crop"}, Fit((176, 352), (176, 304), (0, 24))),
        ((640, 1280), {"fit": "pad"}, Fit((152, 304), (176, 304))),
        ((100, 110), {}, Fit((96, 96), (96, 96))),
        ((100, 110), {"fit": "crop"}, Fit((96, 106), (96, 96), (0, 5))),
        ((100, 110), {"fit": "pad"}, Fit((100, 110), (112, 112))),
        ((100, 110), {"fit": "pad", "upscale": True}, Fit((204, 224), (224, 224))),
        ((100, 110), {"fit": "crop", "upscale": True}, Fit((224, 246), (224, 224), (0, 11))),
    ],
)
def test_a_bucket_has_as_many_pixels_as_the_resolution_or_what_the_picture_has(
    size, more, expected
):
    assert fit(size, "resolution", 224, buckets=WIDE, **more) == expected


@given(size=st.tuples(st.integers(1, 8192), st.integers(1, 8192)))
def test_the_bucket_is_the_nearest_by_the_logarithm(size):
    def distance(ratio):
        return abs(math.log(size[0] / size[1]) - math.log(ratio[0] / ratio[1]))

    got = fit(size, "resolution", 2880, buckets=WIDE, patch=1, upscale=True)
    nearest = min(distance(ratio) for ratio in WIDE)
    h, w = next(ratio for ratio in WIDE if abs(Fraction(*got.size) - Fraction(*ratio)) < 0.01)
    assert distance((h, w)) == pytest.approx(nearest, abs=1e-9)


def peers_crop(size, short_edge, crop):
    """transformers 5.23: `get_resize_output_image_size`, then `center_crop` of its torch backend,
    restated."""
    height, width = size
    short, long = min(size), max(size)
    long = int(short_edge * long / short)
    scaled = (long, short_edge) if width <= height else (short_edge, long)
    return Fit(scaled, crop, tuple(int((n - c) / 2.0) for n, c in zip(scaled, crop, strict=True)))


@settings(max_examples=400)
@given(
    size=st.tuples(st.integers(1, 8192), st.integers(1, 8192)).filter(
        lambda size: max(size) <= 200 * min(size)
    ),
    crop=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    margin=st.integers(0, 100),
)
def test_a_crop_of_a_short_side_is_that_of_the_peers(size, crop, margin):
    crop = crop[0] * 16, crop[1] * 16
    value = max(crop) + margin
    assert fit(size, "short-side", value, crop=crop, upscale=True) == peers_crop(size, value, crop)


@pytest.mark.parametrize(
    ("size", "value", "crop", "expected"),
    [
        ((1080, 1920), 224, (224, 224), Fit((224, 398), (224, 224), (0, 87))),
        ((720, 1280), 256, (224, 224), Fit((256, 455), (224, 224), (16, 115))),
        ((1280, 720), 292, (256, 256), Fit((519, 292), (256, 256), (131, 18))),
        ((200, 320), 256, (224, 224), Fit((200, 320), (192, 224), (4, 48))),
        ((9, 320), 256, (224, 224), Fit((9, 320), (16, 224), (0, 48))),
    ],
)
def test_a_crop_without_upscaling_cuts_small_pictures_to_whole_patches(size, value, crop, expected):
    assert fit(size, "short-side", value, crop=crop) == expected


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"policy": "short-side", "value": 224, "crop": (200, 224)}, "crop 200x224"),
        ({"policy": "short-side", "value": 64, "crop": (96, 96)}, "short side of 64"),
        ({"policy": "native", "value": None, "crop": (96, 96)}, "not native"),
        ({"policy": "native", "value": None, "buckets": WIDE}, "not native"),
        ({"policy": "native", "value": None, "fit": "letterbox"}, "'letterbox'"),
    ],
)
def test_what_does_not_go_together_is_refused(more, message):
    with pytest.raises(ValueError, match=message):
        fit_frame((720, 1280), patch=(16, 16), **more)


@pytest.mark.parametrize(
    "more",
    [
        {"policy": "short-side", "value": 224, "crop": (224, 224)},
        {"policy": "resolution", "value": 224, "buckets": WIDE, "fit": "crop"},
        {"policy": "pixels", "value": (0, 65536)},
    ],
)
def test_a_line_of_pixels_is_not_enlarged_to_fill_a_frame(more):
    with pytest.raises(SourceError, match="10x2010") as caught:
        fit_frame((10, 2010), patch=(16, 16), upscale=True, **more)
    assert caught.value.reason == "resize_impossible"


@pytest.mark.parametrize(
    ("place", "offset"),
    [((0.0, 0.0), (0, 0)), ((0.5, 0.5), (128, 224)), ((1 - 2**-53, 0.999), (256, 448))],
)
def test_a_window_is_fitted_as_if_it_were_the_picture(place, offset):
    got = fit((1024, 1792), "short-side", 256, share=Fraction(1, 4), place=place)
    assert got == Fit((512, 896), (256, 448), offset)


def test_a_window_may_lie_anywhere_equally_often():
    places = [(n + 0.5) / 1000 for n in range(1000)]
    tops = [
        fit((40, 40), "native", share=Fraction(9, 25), patch=8, place=(place, 0)).offset[0]
        for place in places
    ]
    assert sorted(set(tops)) == list(range(17))
    assert np.bincount(tops).min() >= 58


def test_where_a_window_is_padded_the_frame_shows_what_lies_beside_it():
    got = fit((100, 100), "native", fit="pad", share=Fraction(1, 4), place=(0.0, 0.999))
    assert got == Fit((100, 100), (64, 64), (0, 36))


SIZED_BY = ("patch", "policy", "value", "upscale")


def window_of(length, share):
    return max(math.floor(length * math.sqrt(share) + 0.5), 1)


@st.composite
def requests(draw):
    long = draw(st.integers(1, 8192))
    short = draw(st.integers(-(-long // 200), long))
    size = draw(st.permutations((long, short)).map(tuple))
    patch = draw(st.integers(1, 64))
    policy = draw(st.sampled_from(sorted(SIZE_POLICIES)))
    number = draw(st.integers(1, 2048))
    pixels = (number * patch**2 // 4, number * patch**2)
    more = {}
    if policy == "resolution" and draw(st.booleans()):
        more["buckets"] = tuple(draw(st.lists(st.sampled_from(WIDE), min_size=1, unique=True)))
    if policy == "short-side" and draw(st.booleans()):
        more["crop"] = tuple(patch * draw(st.integers(1, 9)) for _ in range(2))
        number = max(number, *more["crop"])
    value = {"native": None, "pixels": pixels, "video-pixels": pixels}.get(policy, number)
    return size, {
        "patch": (patch, patch),
        "policy": policy,
        "value": value,
        "upscale": draw(st.booleans()),
        "fit": draw(st.sampled_from(FITS)),
        "share": draw(
            st.sampled_from([Fraction(1), Fraction(1), Fraction("0.08"), Fraction(2, 3)])
        ),
        "place": (draw(st.floats(0, 1, exclude_max=True)), draw(st.floats(0, 1, exclude_max=True))),
        **more,
    }


def made_of(request):
    """The fit of a request, None where it rightly has none: its window is too thin a line."""
    size, settings_ = request
    try:
        return fit_frame(size, **settings_)
    except SourceError as error:
        assert error.reason == "resize_impossible"
        assert max(size) > 100 * min(size) or settings_["share"] < 1
        return None


@settings(max_examples=1000, deadline=None)
@given(request=requests())
def test_every_frame_is_of_whole_patches_and_lies_in_its_picture_or_is_padded(request):
    got = made_of(request)
    if got is None:
        return
    patch, place = request[1]["patch"], got.offset
    assert all(n >= p and n % p == 0 for n, p in zip(got.size, patch, strict=True))
    for start, side, whole in zip(place, got.size, got.scaled, strict=True):
        assert 0 <= start <= whole - side or start == 0
    cut = got.crop or (0, 0, *got.scaled)
    assert (cut[2] + got.pad[0], cut[3] + got.pad[1]) == got.size
    if request[1]["fit"] != "pad":  # a crop pads only a picture of less than one patch
        assert all(p == 0 or n < q for p, n, q in zip(got.pad, got.scaled, patch, strict=True))


@settings(max_examples=1000, deadline=None)
@given(request=requests().filter(lambda request: request[1]["fit"] != "stretch"))
def test_cropping_and_padding_keep_the_aspect_ratio_to_a_pixel(request):
    got = made_of(request)
    if got is None:
        return
    scales = []
    for n, whole in zip(request[0], got.scaled, strict=True):
        # The sides of a window's scaling are off by one, then those of the whole picture by a half.
        window = window_of(n, request[1]["share"])
        wrong = 1 if window == n else n / window + 0.5
        scales.append(((whole - wrong) / n, (whole + wrong) / n))
    assert max(low for low, _ in scales) <= min(high for _, high in scales) * (1 + 1e-9)


@settings(max_examples=500, deadline=None)
@given(request=requests().filter(lambda request: not request[1]["upscale"]))
def test_nothing_grows_without_upscaling(request):
    got = made_of(request)
    if got is None:
        return
    size, asked = request
    for n, side, whole in zip(size, got.size, got.scaled, strict=True):
        if asked["fit"] == "stretch" and "crop" not in asked:
            assert side < window_of(n, asked["share"]) + asked["patch"][0]
        else:
            assert whole <= n


@settings(max_examples=200, deadline=None)
@given(request=requests().filter(lambda request: request[1]["share"] == 1))
def test_a_stretched_picture_has_the_size_of_its_policy(request):
    size, asked = request
    if "crop" in asked or "buckets" in asked:
        return
    got = made_of((size, {**asked, "fit": "stretch"}))
    if got is not None:
        wanted = fit_size(size, **{name: asked[name] for name in SIZED_BY})
        assert got == Fit(wanted, wanted)


def test_a_cropped_frame_is_a_view_of_the_scaled_picture():
    frame = np.arange(6 * 9 * 3, dtype=np.uint8).reshape(6, 9, 3)
    placed = place_frame(frame, Fit((6, 9), (4, 4), (1, 5)))
    assert np.shares_memory(placed, frame)
    assert np.array_equal(placed, frame[1:5, 5:9])


def test_a_padded_frame_has_zeros_at_the_bottom_and_right():
    frame = np.full((3, 5, 4), 7, np.uint8)
    placed = place_frame(frame, Fit((3, 5), (4, 8)))
    assert np.array_equal(placed[:3, :5], frame)
    assert placed.shape == (4, 8, 4)
    assert placed.sum() == frame.sum()


def test_a_frame_may_be_cropped_on_one_axis_and_padded_on_the_other():
    frame = np.arange(1, 1 + 3 * 9, dtype=np.uint8).reshape(3, 9, 1)
    placed = place_frame(frame, Fit((3, 9), (4, 4), (0, 2)))
    assert np.array_equal(placed, np.concatenate([frame[:, 2:6], np.zeros((1, 4, 1), np.uint8)]))
