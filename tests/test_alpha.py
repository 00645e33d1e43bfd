"""Transparent pictures: on a background, or kept."""

from __future__ import annotations

import av
import numpy as np
import pytest
from pictures import corners, make_picture

from spacepatch.resize import RESAMPLERS, make_frame


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


# --- backgrounds -----------------------------------------------------------------------------


@pytest.mark.parametrize("resampler", sorted(RESAMPLERS))
@pytest.mark.parametrize("name", ["rgba", "argb", "bgra", "gbrap", "yuva444p", "yuva420p"])
def test_transparent_pixels_have_the_background(name, resampler):
    rgba = np.full((32, 32, 4), 255, np.uint8)
    rgba[:, 16:, 3] = 0
    source = av.VideoFrame.from_ndarray(rgba, format="rgba").reformat(format=name)
    picture = make_picture(source)
    frame = make_frame(picture, size=(16, 16), resampler=resampler, background=(200, 30, 90))
    # Not beside the edge, where the kernels mix and ring.
    assert (frame[:, :5] >= 253).all()
    assert (frame[:, 11:] == (200, 30, 90)).all()


def test_half_transparent_pixels_are_half_the_background():
    rgba = np.full((16, 16, 4), (200, 100, 50, 128), np.uint8)
    source = av.VideoFrame.from_ndarray(rgba, format="rgba")
    frame = make_frame(make_picture(source), size=(16, 16), background=(0, 255, 60))
    expected = (np.array([200, 100, 50]) * 128 + np.array([0, 255, 60]) * 127) / 255
    assert (frame == np.rint(expected)).all()


def test_a_background_shows_through_transparent_pixels_only():
    source = av.VideoFrame.from_ndarray(corners((32, 32)), format="rgb24")
    frame = make_frame(make_picture(source), size=(32, 32), background=(9, 9, 9))
    np.testing.assert_array_equal(frame, corners((32, 32)))


def make_grey(level, alpha, *, range_tag):
    """A picture of one grey, half or wholly seen through."""
    source = av.VideoFrame(32, 16, "ya8")
    source.color_range = range_tag
    np.frombuffer(memoryview(source.planes[0]), np.uint8).reshape(-1, 2)[:] = level, alpha
    return source


@pytest.mark.parametrize("alpha", [255, 128])
def test_limited_grey_is_expanded_before_it_is_composited(alpha):
    source = make_grey(126, alpha, range_tag=1)
    frame = make_frame(make_picture(source), size=(8, 16))
    assert np.abs(frame - (126 - 16) * 255 / 219 * alpha / 255).max() <= 1
    kept = make_frame(make_picture(source), size=(8, 16), alpha=True)
    assert np.abs(kept.astype(int) - (128, 128, 128, alpha)).max() <= 1


@pytest.mark.parametrize("resampler", sorted(RESAMPLERS))
@pytest.mark.parametrize("width", [32, 33, 34, 66, 68, 69])
def test_every_column_of_yuva420p_is_made(resampler, width):
    rgba = np.full((16, width, 4), (180, 90, 40, 255), np.uint8)
    source = av.VideoFrame.from_ndarray(rgba, format="rgba").reformat(format="yuva420p")
    # Memory that is used again: what swscale leaves out would show up as 7.
    memory = [av.VideoFrame.from_ndarray(np.full_like(rgba, 7), format="rgba") for _ in range(4)]
    del memory
    frame = make_frame(make_picture(source), size=(16, width), resampler=resampler)
    assert np.abs(frame.astype(int) - (180, 90, 40)).max() <= 3


# --- alpha kept ------------------------------------------------------------------------------

NOISE = np.random.default_rng(9).integers(0, 256, (40, 48, 4), dtype=np.uint8)


@pytest.mark.parametrize("name", ["rgba", "argb", "bgra", "abgr", "gbrap"])
def test_rgba_of_its_own_size_comes_back_and_is_black_where_it_cannot_be_seen(name):
    source = av.VideoFrame.from_ndarray(NOISE, format="rgba").reformat(format=name)
    frame = make_frame(make_picture(source), size=(40, 48), alpha=True)
    np.testing.assert_array_equal(frame, np.where(NOISE[..., 3:] > 0, NOISE, 0))


@pytest.mark.parametrize("resampler", sorted(RESAMPLERS))
@pytest.mark.parametrize("name", ["yuva420p", "yuva444p", "yuva444p10le"])
def test_yuv_keeps_its_alpha_too(name, resampler):
    rgba = np.full((32, 64, 4), (180, 90, 40, 255), np.uint8)
    rgba[:, 32:, 3] = 64
    source = av.VideoFrame.from_ndarray(rgba, format="rgba").reformat(format=name)
    frame = make_frame(make_picture(source), size=(8, 16), resampler=resampler, alpha=True)
    assert np.abs(frame.astype(int) - (180, 90, 40, 255))[:, :6].max() <= 3
    assert np.abs(frame.astype(int) - (180, 90, 40, 64))[:, 10:].max() <= 3


def test_grey_and_palettes_keep_their_alpha_too():
    grey = make_grey(200, 64, range_tag=2)
    palette = np.zeros((256, 4), np.uint8)
    palette[7] = (64, 10, 20, 30)  # A, R, G, B
    indices = np.full((16, 32), 7, np.uint8)
    pal8 = av.VideoFrame.from_ndarray((indices, palette), format="pal8")
    for source, expected in ((grey, (200, 200, 200, 64)), (pal8, (10, 20, 30, 64))):
        frame = make_frame(make_picture(source), size=(8, 8), alpha=True)
        assert (frame == expected).all()


@pytest.mark.parametrize("resampler", sorted(RESAMPLERS))
@pytest.mark.parametrize("name", ["rgb24", "yuv420p", "gray", "yuv444p10le"])
def test_a_picture_without_alpha_is_opaque(name, resampler):
    source = av.VideoFrame.from_ndarray(NOISE[..., :3].copy(), format="rgb24").reformat(format=name)
    frame = make_frame(make_picture(source), size=(16, 32), resampler=resampler, alpha=True)
    assert frame.shape == (16, 32, 4)
    assert (frame[..., 3] == 255).all()
    rgb = make_frame(make_picture(source), size=(16, 32), resampler=resampler)
    np.testing.assert_array_equal(frame[..., :3], rgb)


@pytest.mark.parametrize("resampler", sorted(RESAMPLERS))
def test_opaque_rgba_has_the_pixels_of_rgb(resampler):
    soft = np.linspace(40, 210, 48)[None, :, None] + np.linspace(-20, 20, 40)[:, None, None]
    rgba = np.full((40, 48, 4), 255, np.uint8)
    rgba[..., :3] = soft * (1.0, 0.8, 0.5)
    picture = make_picture(av.VideoFrame.from_ndarray(rgba, format="rgba"))
    frame = make_frame(picture, size=(16, 32), resampler=resampler, alpha=True)
    rgb = make_frame(picture, size=(16, 32), resampler=resampler)
    assert (frame[..., 3] == 255).all()
    assert np.abs(frame[..., :3].astype(int) - rgb).max() <= 1


@pytest.mark.parametrize("resampler", sorted(RESAMPLERS))
@pytest.mark.parametrize("size", [(16, 16), (100, 90)])
def test_what_hides_under_alpha_0_changes_no_pixel(resampler, size):
    frames = []
    for hidden in (0, 255):
        rgba = np.where(NOISE[..., 3:] > 128, NOISE, (hidden, hidden, hidden, 0)).astype(np.uint8)
        picture = make_picture(av.VideoFrame.from_ndarray(rgba, format="rgba"))
        frames.append(make_frame(picture, size=size, resampler=resampler, alpha=True))
    assert len(np.unique(frames[0][..., 3])) > 50
    np.testing.assert_array_equal(*frames)
    assert not frames[0][frames[0][..., 3] == 0].any()


# The other two kernels ring, in colour as well as in alpha.
@pytest.mark.parametrize("resampler", ["area", "torch-bilinear"])
@pytest.mark.parametrize("size", [(16, 16), (100, 90)])
def test_kept_colour_is_that_of_the_visible_pixels_up_to_the_edge(resampler, size):
    rgba = np.zeros((64, 64, 4), np.uint8)
    rgba[:, :30] = (255, 90, 10, 255)
    source = av.VideoFrame.from_ndarray(rgba, format="rgba")
    frame = make_frame(make_picture(source), size=size, resampler=resampler, alpha=True)
    seen = frame[frame[..., 3] > 0].astype(int)
    assert {*np.unique(frame[..., 3])} > {0, 255}
    assert np.abs(seen - (255, 90, 10, 0))[:, :3].max() <= 1


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("resampler", ["area", "torch-bilinear"])
def test_alpha_is_turned_with_its_colour(rotation, mirrored, resampler):
    rgba = np.concatenate([corners((32, 64)), corners((32, 64))[..., :1] | 1], axis=2)
    expected = np.rot90(np.where(rgba[..., 3:] > 0, rgba, 0), -rotation // 90)
    expected = np.fliplr(expected) if mirrored else expected
    source = av.VideoFrame.from_ndarray(rgba, format="rgba")
    picture = make_picture(source, rotation=rotation, mirrored=mirrored)
    out = np.zeros(expected.shape, np.uint8)
    make_frame(picture, size=expected.shape[:2], resampler=resampler, alpha=True, out=out)
    np.testing.assert_array_equal(out, expected)


def test_laying_the_kept_alpha_on_a_background_is_what_the_background_setting_does():
    y, x = np.mgrid[:64, :96]
    waves = [128 + 100 * np.sin(x / a + y / b) for a, b in ((9, 11), (-7, 13), (17, -5), (12, 8))]
    source = av.VideoFrame.from_ndarray(np.stack(waves, -1).astype(np.uint8), format="rgba")
    picture = make_picture(source)
    rgba = make_frame(picture, size=(32, 48), alpha=True).astype(float)
    laid = make_frame(picture, size=(32, 48), background=(250, 120, 10))
    share = rgba[..., 3:] / 255
    expected = rgba[..., :3] * share + np.array([250, 120, 10]) * (1 - share)
    assert np.abs(laid - expected).max() <= 2
