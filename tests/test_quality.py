"""PSNR and SSIM against FFmpeg, scipy and the formula itself."""

import math
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

from spacepatch.quality import psnr, psnr_of, squared_error, ssim


def frames(seed: int, shape: tuple[int, ...] = (3, 32, 40, 3)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def near(a: np.ndarray, sigma: float, seed: int = 9) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(scale=sigma, size=a.shape)
    return np.clip(np.rint(a + noise), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("sigma", [1, 12, 60])
def test_psnr_is_that_of_ffmpeg(ffmpeg: str, tmp_path: Path, sigma: float) -> None:
    a = frames(0)
    b = near(a, sigma)
    inputs: list[str] = []
    for name, values in (("a", a), ("b", b)):
        (tmp_path / name).write_bytes(values.tobytes())
        inputs += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "40x32", "-i", str(tmp_path / name)]
    command = [ffmpeg, "-hide_banner", *inputs, "-lavfi", "psnr", "-f", "null", "-"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    average = re.search(r"PSNR .*average:([0-9.]+)", said)
    assert average is not None
    assert psnr(a, b) == pytest.approx(float(average[1]), abs=1e-5)


def test_psnr_of_equal_frames_is_infinite_and_of_opposite_ones_zero() -> None:
    white = np.full((1, 2, 2, 3), 255, np.uint8)
    assert psnr(white, white) == math.inf
    assert psnr(white, np.zeros_like(white)) == 0


def test_errors_of_parts_add_up_to_that_of_the_whole() -> None:
    a, b = frames(1), frames(2)
    parts = squared_error(a[:1], b[:1]) + squared_error(a[1:], b[1:])
    assert psnr_of(parts, a.size) == psnr(a, b)
    assert psnr(a, b) == pytest.approx(
        10 * math.log10(255**2 / np.square(a.astype(float) - b).mean()), rel=1e-12
    )


def test_ssim_is_the_formula_of_its_authors_window_by_window() -> None:
    a = frames(3, (2, 13, 15, 3))
    b = near(a, 25)
    distance = np.arange(11) - 5
    window = np.exp(-(distance[:, None] ** 2 + distance**2) / (2 * 1.5**2))
    window /= window.sum()
    values = []
    for t, row, column, c in np.ndindex(2, 3, 5, 3):
        x, y = (
            clip[t, row : row + 11, column : column + 11, c].astype(np.float64) for clip in (a, b)
        )
        mean_x, mean_y = (window * x).sum(), (window * y).sum()
        var_x, var_y = (window * (x - mean_x) ** 2).sum(), (window * (y - mean_y) ** 2).sum()
        both = (window * (x - mean_x) * (y - mean_y)).sum()
        c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
        values.append(
            (2 * mean_x * mean_y + c1)
            * (2 * both + c2)
            / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
        )
    assert ssim(a, b) == pytest.approx(np.mean(values), rel=1e-10)


@pytest.mark.parametrize("sigma", [2, 30, 120])
def test_ssim_is_what_scipy_comes_to(sigma: float) -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    a = frames(4, (2, 48, 64, 3))
    b = near(a, sigma)

    def smooth(values: np.ndarray) -> np.ndarray:
        # 5 / 1.5 sigmas on either side: the window of 11. Its border is no whole window.
        blurred = ndimage.gaussian_filter(values, (0, 1.5, 1.5, 0), truncate=5 / 1.5)
        return blurred[:, 5:-5, 5:-5]

    x, y = a.astype(np.float64), b.astype(np.float64)
    mean_x, mean_y = smooth(x), smooth(y)
    var_x, var_y = smooth(x * x) - mean_x**2, smooth(y * y) - mean_y**2
    both = smooth(x * y) - mean_x * mean_y
    expected = (2 * mean_x * mean_y + 6.5025) * (2 * both + 58.5225)
    expected /= (mean_x**2 + mean_y**2 + 6.5025) * (var_x + var_y + 58.5225)
    assert ssim(a, b) == pytest.approx(expected.mean(), rel=1e-9)


def test_ssim_is_one_of_equal_frames_and_the_same_both_ways() -> None:
    a, b = frames(5), frames(6)
    assert ssim(a, a) == pytest.approx(1, abs=1e-12)
    assert ssim(a, b) == ssim(b, a) < 0.2


@pytest.mark.parametrize("shape", [(1, 10, 40, 3), (1, 40, 10, 3), (0, 40, 40, 3)])
def test_ssim_says_that_frames_are_too_small(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="at least one of 11 x 11"):
        ssim(np.zeros(shape, np.uint8), np.zeros(shape, np.uint8))


@pytest.mark.parametrize("measure", [psnr, ssim])
def test_only_bytes_of_one_shape_are_compared(measure) -> None:
    a = frames(7)
    for other in (a[:2], a.astype(np.float32)):
        with pytest.raises(ValueError, match="not uint8 of one shape"):
            measure(a, other)
