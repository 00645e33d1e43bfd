"""Sizes against the peers' tables and their invariants."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spacepatch.errors import SourceError
from spacepatch.resize import SIZE_POLICIES, aspect_error, fit_size

TABLES = Path(__file__).resolve().parents[2] / "shared" / "parity" / "tables.json"
needs_tables = pytest.mark.skipif(not TABLES.exists(), reason="../shared/parity is not here")


def fit(size, policy, value=None, *, patch=16, **more):
    return fit_size(size, patch=(patch, patch), policy=policy, value=value, **more)


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
        got = fit(
            (row["height"], row["width"]),
            "video-pixels",
            (row["min_pixels"], row["max_pixels"]),
            patch=row["factor"],
            upscale=True,
            num_frames=row["num_frames"],
            tubelet_size=row["temporal_factor"],
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
    clip = {"num_frames": num_frames, "tubelet_size": 2}
    budget = (128 * 1024, 1024 * 768)
    got = fit(size, "video-pixels", budget, patch=32, upscale=True, **clip)
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
        ((1080, 1920), "resolution", 224, (176, 304)),
        ((1080, 1920), "resolution", Fraction(1, 3), (16, 16)),
        ((400, 400), "resolution", Fraction(471, 2), (240, 240)),
        ((400, 400), "resolution", 232, (240, 240)),
        ((400, 400), "resolution", Fraction(2319, 10), (224, 224)),
        ((8192, 41), "resolution", 256, (3616, 16)),
        ((180, 320), "resolution", 256, (176, 320)),
        ((180, 320), "video-pixels", (0, 10**6), (176, 320)),
        ((10, 300), "video-pixels", (10**6, 10**7), (16, 304)),
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
        ("resolution", 256, (192, 336)),
        ("video-pixels", (60000, 10**6), (192, 336)),
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
    values = {"native": None, "pixels": pixels, "video-pixels": pixels}
    value = values.get(policy, number)
    fitted = fit_size(size, patch=patch, policy=policy, value=value, upscale=upscale)
    assert all(n >= p and n % p == 0 for n, p in zip(fitted, patch, strict=True))
    if policy == "max-tokens-per-frame":
        assert fitted[0] * fitted[1] <= number * area
    if policy == "pixels":
        assert fitted[0] * fitted[1] <= pixels[1]
    if not upscale or policy == "native":
        whole = [-(-n // p) * p for n, p in zip(size, patch, strict=True)]
        assert all(n <= limit for n, limit in zip(fitted, whole, strict=True))


@settings(max_examples=400, deadline=None)
@given(size=pictures_up_to_200_to_1(), patch=st.integers(1, 64), resolution=st.integers(1, 4096))
def test_a_resolution_is_so_many_pixels_to_half_a_patch_a_side(size, patch, resolution):
    fitted = fit(size, "resolution", resolution, patch=patch, upscale=True)
    for side, n, other in zip(fitted, size, size[::-1], strict=True):
        wanted = resolution * math.sqrt(n / other)
        assert abs(side - wanted) <= patch / 2 + 1e-6 or side == patch >= 2 * wanted


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
        ((10, 2001), "video-pixels", (0, 10**6)),
    ],
)
def test_an_impossible_size_is_a_loss_with_a_reason(size, policy, value):
    with pytest.raises(SourceError, match=f"{size[0]}x{size[1]}") as caught:
        fit(size, policy, value)
    assert caught.value.reason == "resize_impossible"


def test_too_few_frames_for_a_video_size_is_a_loss_with_a_reason():
    with pytest.raises(SourceError, match="1 frames in tubelets of 2") as caught:
        fit((64, 64), "video-pixels", (1, 10**6), patch=32, num_frames=1, tubelet_size=2)
    assert caught.value.reason == "resize_impossible"


def test_aspect_error_is_zero_for_a_true_scaling():
    assert aspect_error((1080, 1920), (540, 960)) == 0


def test_aspect_error_is_the_stretch_of_one_axis():
    assert aspect_error((100, 200), (100, 220)) == pytest.approx(0.1)


@given(size=st.tuples(SIDES, SIDES), other=st.tuples(SIDES, SIDES))
def test_aspect_error_is_the_same_for_the_transpose(size, other):
    assert aspect_error(size, other) == pytest.approx(aspect_error(size[::-1], other[::-1]))
