"""A short run of the soak, and that it would see what it looks for; `make soak` is long."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import soak

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")


def test_three_hundred_short_clips_leave_no_memory_behind(tmp_path: Path) -> None:
    figures = list(soak.soak_clips(tmp_path, 300))
    assert len(figures) == 4
    assert [str(figure) for figure in figures if not figure.is_within] == []


def test_ten_minutes_take_the_memory_of_one(ffmpeg: str, tmp_path: Path) -> None:
    figures = list(soak.soak_long(tmp_path, 600, "mkv"))
    assert [figure.name for figure in figures][:2] == [
        "mkv, 600 s to 60 s: worker",
        "mkv, 600 s to 60 s: parent",
    ]
    assert [str(figure) for figure in figures if not figure.is_within] == []


def test_a_worker_that_holds_large_pictures_is_seen(ffmpeg: str, tmp_path: Path) -> None:
    peaks = []
    for size in ("160x96", "2560x1440"):
        path = tmp_path / f"{size}.mkv"
        source = f"testsrc2=s={size}:r=10:d=1"
        command = [ffmpeg, "-v", "error", "-f", "lavfi", "-i", source, "-pix_fmt", "yuv420p"]
        subprocess.run([*command, "-c:v", "mpeg4", str(path)], check=True)
        usage = soak.run_watched(path, tmp_path / f"out-{size}", "--workers 1")
        assert len(usage.workers) == 1
        peaks.append(usage.worker_peak)
    # The decoder alone holds two pictures of 5.5 MB to refer to, and one that it makes.
    assert peaks[1] - peaks[0] > 10 * soak.MB


def test_growth_is_seen_and_single_pictures_are_not() -> None:
    steady = [60 * soak.MB + (20 * soak.MB if k % 7 == 0 else 0) for k in range(1000)]
    assert soak.growth(steady) == 0
    leaking = [size + k * 8_000 for k, size in enumerate(steady)]
    assert soak.growth(leaking) > soak.MOST_GROWTH
    assert not soak.Figure("a", 4.1, 4.0, "MB").is_within


def test_the_same_files_stand_before_each_quarter(tmp_path: Path) -> None:
    soak.make_short_clips(tmp_path / "clips", 200)
    names = sorted(path.name for path in (tmp_path / "clips").iterdir())
    assert len(names) == 200
    contents = [(tmp_path / "clips" / name).read_bytes() for name in names]
    assert contents[:50] == contents[150:]
    assert len(set(contents)) == len(soak.KINDS) * soak.VARIANTS
