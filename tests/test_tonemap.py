"""Tone mapping against the published formulas and, a step at a time, against zscale."""

from __future__ import annotations

import subprocess

import numpy as np
import pytest
from tone_formulas import TRANSFERS, ZSCALE_TRANSFERS, hlg_of, pq_of, tone_map_by_the_book

from spacepatch.resize.tonemap import hlg_to_scene, matrix_to_bt709, pq_to_light, tone_map


@pytest.mark.parametrize("primaries", [1, 9, 12])
@pytest.mark.parametrize("transfer", sorted(TRANSFERS))
def test_tone_mapping_is_within_1_of_the_published_formulas(transfer, primaries):
    rng = np.random.default_rng(10)
    # Half of them dull, as pictures are, and half of any saturation.
    dull = rng.integers(0, 65536, (40, 64, 1)) + rng.integers(-4000, 4001, (40, 64, 3))
    numbers = np.concatenate([dull.clip(0, 65535), rng.integers(0, 65536, (40, 64, 3))])
    rgb = np.ascontiguousarray(numbers.astype(np.uint16).transpose(2, 0, 1))
    frame = tone_map(rgb, transfer=transfer, primaries=primaries)
    expected = tone_map_by_the_book(numbers / 65535, transfer=transfer, primaries=primaries)
    assert np.abs(frame - expected).max() <= 1


@pytest.mark.parametrize("transfer", sorted(TRANSFERS))
def test_a_grey_ramp_stays_grey_and_rises(transfer):
    ramp = np.broadcast_to(np.arange(65536, dtype=np.uint16).reshape(1, 256, 256), (3, 256, 256))
    frame = tone_map(ramp, transfer=transfer).reshape(-1, 3).astype(int)
    assert (frame.max(axis=1) == frame.min(axis=1)).all()
    assert set(np.diff(frame[:, 0])) == {0, 1}
    assert (frame[0, 0], frame[-1, 0]) == (0, 255)


# The table of docs and docstring: SDR of light ** (1 / 2.4) below the knee, 230 at white.
@pytest.mark.parametrize(
    ("light", "expected"),
    [(0, 0), (1, 28), (10, 73), (50, 142), (87, 179), (203, 230), (400, 250), (1000, 255)],
)
def test_light_becomes_these_numbers(light, expected):
    pq = np.full((3, 1, 1), np.rint(pq_of(light) * 65535), np.uint16)
    # On grey the OOTF is a power of 1.2.
    hlg = np.full((3, 1, 1), np.rint(hlg_of((light / 1000) ** (1 / 1.2)) * 65535), np.uint16)
    for transfer, rgb in (("pq", pq), ("hlg", hlg)):
        assert tone_map(rgb, transfer=transfer).tolist() == [[[expected] * 3]], transfer


def test_light_beyond_the_peak_is_white():
    for light in (1500, 4000, 10000):
        rgb = np.full((3, 1, 1), np.rint(pq_of(light) * 65535), np.uint16)
        assert (tone_map(rgb, transfer="pq") == 255).all()


def test_unspecified_primaries_are_those_of_bt2020():
    rgb = np.random.default_rng(11).integers(0, 65536, (3, 8, 8), dtype=np.uint16)
    expected = tone_map(rgb, transfer="pq", primaries=9)
    assert (tone_map(rgb, transfer="pq", primaries=2) == expected).all()
    assert (tone_map(rgb, transfer="pq", primaries=1) != expected).any()


# --- zscale ----------------------------------------------------------------------------------


@pytest.fixture
def zscale(ffmpeg):
    """Return a function that runs a chain of zscale over ``(h, w, 3)`` uint16: float32 of it."""

    def run(numbers, chain, *, transfer="linear", primaries="bt2020"):
        size = f"{numbers.shape[1]}x{numbers.shape[0]}"
        tags = f"color_trc={transfer}:color_primaries={primaries}:colorspace=gbr:range=pc"
        raw = ["-f", "rawvideo", "-pix_fmt", "gbrp16le", "-s", size, "-i", "-"]
        filters = f"setparams={tags},{chain},format=gbrpf32le"
        command = [ffmpeg, "-v", "error", *raw, "-vf", filters, "-f", "rawvideo", "-"]
        planes = numbers[..., [1, 2, 0]].transpose(2, 0, 1).astype("<u2").tobytes()
        done = subprocess.run(command, input=planes, check=True, capture_output=True)
        made = np.frombuffer(done.stdout, "<f4").reshape(3, *numbers.shape[:2])
        return made[[2, 0, 1]].transpose(1, 2, 0)

    return run


RANDOM = np.random.default_rng(12).integers(0, 65536, (16, 256, 3))
RAMP = np.broadcast_to((np.arange(256) * 257)[None, :, None], (16, 256, 3))


@pytest.mark.parametrize("numbers", [RAMP, RANDOM], ids=["ramp", "colours"])
def test_pq_light_is_that_of_zscale(zscale, numbers):
    light = zscale(numbers, "zscale=t=linear:npl=100", transfer="smpte2084") * 100.0
    np.testing.assert_allclose(pq_to_light(numbers / 65535), light, rtol=5e-4, atol=1e-4)


@pytest.mark.parametrize("numbers", [RAMP, RANDOM], ids=["ramp", "colours"])
def test_hlg_light_is_that_of_zscale(zscale, numbers):
    light = zscale(numbers, "zscale=t=linear:npl=1000", transfer="arib-std-b67")
    # Debian's zscale has the OOTF of grey on each channel. It is the inverse OETF that is compared.
    np.testing.assert_allclose(hlg_to_scene(numbers / 65535) ** 1.2, light, rtol=5e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("primaries", "name"),
    [(1, "bt709"), (6, "smpte170m"), (9, "bt2020"), (11, "smpte431"), (12, "smpte432")],
)
def test_primaries_are_converted_as_zscale_does(zscale, primaries, name):
    converted = zscale(RANDOM, "zscale=t=linear:p=bt709", primaries=name)
    made = (RANDOM / 65535) @ matrix_to_bt709(primaries).T
    np.testing.assert_allclose(made, converted, atol=2e-4)


@pytest.mark.parametrize(
    ("transfer", "numbers"),
    [("pq", RAMP), ("pq", RANDOM), ("hlg", RAMP)],
    ids=["pq-ramp", "pq-colours", "hlg-ramp"],
)
def test_below_the_knee_the_chain_is_that_of_zscale(zscale, transfer, numbers):
    code = {"pq": pq_of(87), "hlg": hlg_of(0.087 ** (1 / 1.2))}[transfer]
    numbers = np.rint(numbers * float(code)).astype(np.uint16)
    chain = "zscale=t=linear:npl=203,format=gbrpf32le,zscale=p=bt709,zscale=t=bt709"
    expected = 255.0 * zscale(numbers, chain, transfer=ZSCALE_TRANSFERS[transfer]).clip(0, 1)
    rgb = np.ascontiguousarray(numbers.transpose(2, 0, 1))
    assert np.abs(tone_map(rgb, transfer=transfer) - expected).max() <= 2
