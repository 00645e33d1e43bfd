"""HDR pictures of every kind become SDR frames, unless their numbers are asked for."""

from __future__ import annotations

import subprocess

import av
import numpy as np
import pytest
from pictures import make_picture, make_planes
from tone_formulas import (
    TRANSFERS,
    ZSCALE_TRANSFERS,
    eetf,
    hlg_of,
    pq_of,
    tone_map_by_the_book,
)

from spacepatch.resize import RESAMPLERS, hdr_of, make_frame


def code_yuv(signal, *, bits, full=False):
    """``(..., 3)`` signals to the ``(3, ...)`` numbers of BT.2020 non-constant luminance."""
    signal = np.asarray(signal, float)
    y = signal @ [0.2627, 0.6780, 0.0593]
    cb, cr = (signal[..., 2] - y) / 1.8814, (signal[..., 0] - y) / 1.4746
    unit, top = 2 ** (bits - 8), 2**bits - 1
    if full:
        numbers = [y * top, cb * top + 128 * unit, cr * top + 128 * unit]
    else:
        numbers = [(219 * y + 16) * unit, (224 * cb + 128) * unit, (224 * cr + 128) * unit]
    return np.rint(numbers).clip(0, top).astype(int)


COLOUR = (0.62, 0.55, 0.41)
"""A bright skin tone, as a signal."""


@pytest.mark.parametrize("resampler", sorted(RESAMPLERS))
@pytest.mark.parametrize("transfer", sorted(TRANSFERS))
@pytest.mark.parametrize("matrix", [9, 2])
@pytest.mark.parametrize(
    ("name", "bits", "full"),
    [
        ("yuv420p10le", 10, False),
        ("yuv420p10le", 10, True),
        ("yuv444p12le", 12, False),
        ("yuv422p10le", 10, False),
        ("yuv420p", 8, False),
        ("yuv420p", 8, True),
    ],
)
@pytest.mark.parametrize("size", [(16, 16), (32, 32), (40, 48)])
def test_an_hdr_picture_is_tone_mapped(resampler, transfer, matrix, name, bits, full, size):
    planes = code_yuv(COLOUR, bits=bits, full=full)
    source = make_planes(
        name,
        planes,
        size=(32, 32),
        matrix=matrix,
        range_tag=1 + full,
        transfer=TRANSFERS[transfer],
    )
    assert hdr_of(source) == transfer
    frame = make_frame(make_picture(source), size=size, resampler=resampler)
    expected = tone_map_by_the_book(np.array(COLOUR), transfer=transfer, primaries=9)
    # 8 bits of PQ are coarse: half a step of chroma is 2 levels here.
    assert np.abs(frame - expected).max() <= (4 if bits == 8 else 1.5)


@pytest.mark.parametrize("size", [(32, 220), (16, 220)])
@pytest.mark.parametrize("range_tag", [1, 2])
@pytest.mark.parametrize(
    ("name", "bits"), [("yuv444p", 8), ("yuv444p10le", 10), ("yuv444p12le", 12)]
)
def test_a_ramp_of_yuv_is_tone_mapped_to_the_level(size, range_tag, name, bits):
    unit = 2 ** (bits - 8)
    ramp = np.arange(16, 236) * unit
    black, white = (16 * unit, 235 * unit) if range_tag == 1 else (0, 2**bits - 1)
    options = {"matrix": 9, "range_tag": range_tag, "transfer": 16}
    source = make_planes(name, [ramp, 128 * unit, 128 * unit], size=(32, 220), **options)
    frame = make_frame(make_picture(source), size=size)
    signal = np.repeat((ramp - black)[:, None] / (white - black), 3, axis=1)
    expected = tone_map_by_the_book(signal, transfer="pq", primaries=9)
    assert np.abs(frame - expected[None]).max() <= 0.75


def test_tagged_primaries_are_used():
    options = {"size": (32, 32), "matrix": 9, "range_tag": 1, "transfer": 16}
    for primaries, other in ((12, 9), (1, 9)):
        source = make_planes(
            "yuv444p10le", code_yuv(COLOUR, bits=10), primaries=primaries, **options
        )
        frame = make_frame(make_picture(source), size=(16, 16))
        expected, wrong = (
            tone_map_by_the_book(np.array(COLOUR), transfer="pq", primaries=n)
            for n in (primaries, other)
        )
        assert np.abs(frame - expected).max() <= 1.5
        assert np.abs(frame - wrong).max() > 3


@pytest.mark.parametrize("resampler", sorted(RESAMPLERS))
@pytest.mark.parametrize("transfer", sorted(TRANSFERS))
@pytest.mark.parametrize("name", ["gbrp10le", "gbrp", "rgb48le", "gray10le", "gray16le"])
def test_hdr_in_rgb_and_grey_is_tone_mapped_too(resampler, transfer, name):
    colour = np.array((0.55, 0.55, 0.55) if "gray" in name else COLOUR)
    source = av.VideoFrame(32, 32, name)
    bits = source.format.components[0].bits
    numbers = np.rint(colour * (2**bits - 1)).astype(int)
    planes = {
        "gbrp10le": numbers[[1, 2, 0]],
        "gbrp": numbers[[1, 2, 0]],
        "rgb48le": [np.tile(numbers, 32)],
    }.get(name, numbers[:1])
    source.color_trc = TRANSFERS[transfer]
    for plane, values in zip(source.planes, planes, strict=True):
        rows = np.frombuffer(memoryview(plane), "u2" if bits > 8 else "u1").reshape(32, -1)
        rows[:] = np.resize(values, rows.shape[1])
    frame = make_frame(make_picture(source), size=(16, 16), resampler=resampler)
    expected = tone_map_by_the_book(numbers / (2**bits - 1), transfer=transfer, primaries=9)
    assert np.abs(frame - expected).max() <= 1


def test_limited_grey_hdr_is_that_of_its_signal():
    source = make_planes("gray10le", [64 + 876 // 2], size=(32, 32), range_tag=1, transfer=16)
    frame = make_frame(make_picture(source), size=(16, 16))
    expected = tone_map_by_the_book(np.array([0.5] * 3), transfer="pq", primaries=9)
    assert np.abs(frame - expected).max() <= 1


@pytest.mark.parametrize("resampler", sorted(RESAMPLERS))
@pytest.mark.parametrize("alpha", [255, 128, 0])
@pytest.mark.parametrize("name", ["yuva444p10le", "gbrap12le", "rgba"])
def test_hdr_is_tone_mapped_before_it_is_laid_on_a_background(resampler, alpha, name):
    signal = np.array(COLOUR)
    planes = {
        "yuva444p10le": [*code_yuv(signal, bits=10), round(alpha * 1023 / 255)],
        "gbrap12le": np.rint([*signal[[1, 2, 0]] * 4095, alpha * 4095 / 255]),
        "rgba": [np.tile([*np.rint(signal * 255), alpha], 32)],
    }[name]
    source = av.VideoFrame(32, 32, name)
    source.color_trc, source.colorspace = 16, 9
    for plane, values in zip(source.planes, planes, strict=True):
        rows = np.frombuffer(memoryview(plane), "u1" if name == "rgba" else "u2").reshape(32, -1)
        rows[:] = np.resize(values, rows.shape[1])
    picture = make_picture(source)
    colour = tone_map_by_the_book(signal, transfer="pq", primaries=9)
    laid = make_frame(picture, size=(16, 16), resampler=resampler, background=(10, 200, 60))
    expected = (colour * alpha + np.array([10, 200, 60]) * (255 - alpha)) / 255
    assert np.abs(laid - expected).max() <= 2
    kept = make_frame(picture, size=(16, 16), resampler=resampler, alpha=True)
    assert (kept[..., 3] == alpha).all()
    assert np.abs(kept[..., :3] - (colour if alpha else 0)).max() <= 2


@pytest.mark.parametrize("resampler", sorted(RESAMPLERS))
@pytest.mark.parametrize("name", ["yuv420p", "yuv444p10le", "gbrp10le", "yuva420p", "gray10le"])
def test_raw_leaves_hdr_as_numbers_and_sdr_is_not_touched(resampler, name):
    rng = np.random.default_rng(13)
    array = rng.integers(0, 256, (32, 48, 3), dtype=np.uint8)
    source = av.VideoFrame.from_ndarray(array, format="rgb24").reformat(format=name)
    source.colorspace = 9
    picture, options = make_picture(source), {"size": (16, 32), "resampler": resampler}
    source.color_trc = 1
    plain = make_frame(picture, **options)
    np.testing.assert_array_equal(make_frame(picture, **options, hdr="raw"), plain)
    for transfer in TRANSFERS.values():
        source.color_trc = transfer
        np.testing.assert_array_equal(make_frame(picture, **options, hdr="raw"), plain)
        assert (make_frame(picture, **options) != plain).any()


def test_another_word_for_hdr_is_misuse():
    with pytest.raises(ValueError, match="skip"):
        make_frame(make_picture(make_planes("gray", [9], size=(16, 16))), size=(16, 16), hdr="skip")


# --- clips and real files --------------------------------------------------------------------


@pytest.mark.parametrize("transfer", sorted(TRANSFERS))
@pytest.mark.parametrize(
    ("codec", "name"), [("libx265", "yuv420p10le"), ("ffv1", "yuv422p10le"), ("libx264", "yuv420p")]
)
def test_a_clip_tagged_as_hdr_shows_the_light_that_was_coded(
    ffmpeg, tmp_path, transfer, codec, name
):
    path = tmp_path / "ramp.mkv"
    light = np.linspace(0, 1000, 16)
    signal = pq_of(light) if transfer == "pq" else hlg_of((light / 1000) ** (1 / 1.2))
    numbers = np.rint(np.repeat(signal, 16)[None, :].repeat(64, 0) * 65535).astype("<u2")
    raw = ["-f", "rawvideo", "-pix_fmt", "gbrp16le", "-s", "256x64", "-i", "-"]
    tags = f"color_trc={ZSCALE_TRANSFERS[transfer]}:color_primaries=bt2020:colorspace=bt2020nc"
    filters = (
        f"zscale=min=gbr:rin=full:m=2020_ncl:r=limited,format={name},setparams={tags}:range=tv"
    )
    quality = ["-qp", "0"] if codec == "libx264" else []
    quality = ["-x265-params", "lossless=1:log-level=none"] if codec == "libx265" else quality
    encode = ["-vf", filters, "-c:v", codec, *quality, path]
    command = [ffmpeg, "-v", "error", *raw, *encode]
    subprocess.run(command, input=numbers.tobytes() * 3, check=True)
    with av.open(str(path)) as container:
        picture = make_picture(next(container.decode(video=0)))
    assert hdr_of(picture.frame) == transfer
    frame = make_frame(picture, size=(64, 256))[:, 8::16].astype(int)
    expected = [255 * (eetf(n) / 203) ** (1 / 2.4) for n in light]
    # A step of 10 bits is up to 1.3 levels of the frame, one of 8 bits four times as much.
    assert np.abs(frame - np.array(expected)[None, :, None]).max() <= (4 if "10" in name else 6)


@pytest.mark.parametrize(
    ("file", "transfer"),
    [
        ("exo__sample_with_colr_mdcv_and_clli.mp4", "pq"),
        ("mediabunny__0.ts", "hlg"),
        ("qt__h264_avc1_yuv420p10le_tv_bt2020.mov", "hlg"),
    ],
)
def test_a_real_hdr_file_is_not_washed_out(corpus, file, transfer):
    with av.open(str(corpus / file)) as container:
        picture = make_picture(next(container.decode(video=0)))
    assert hdr_of(picture.frame) == transfer
    raw, mapped = (make_frame(picture, size=(176, 320), hdr=word) for word in ("raw", "tonemap"))
    spread = [np.subtract(*np.percentile(frame, [99, 1])) for frame in (raw, mapped)]
    colour = [np.ptp(frame, axis=2).mean() for frame in (raw, mapped)]
    assert spread[1] > spread[0]
    assert colour[1] > colour[0]
