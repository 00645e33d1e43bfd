"""Which video stream is read: the one that ffmpeg itself takes, or the one that was asked for."""

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as parquet
import pytest

from spacepatch.decode import probe_video
from spacepatch.errors import ProbeError

SIZES = {"small": "96x64", "large": "160x96", "wide": "192x64"}


def make(ffmpeg: str, path: Path, streams: list[str], *default: int) -> Path:
    """A file of several video streams of one second; only those in `default` are default ones."""
    command = [ffmpeg, "-v", "error", "-y"]
    for name in streams:
        command += ["-f", "lavfi", "-i", f"testsrc2=size={SIZES[name]}:rate=10:duration=1"]
    for number in range(len(streams)):
        command += ["-map", str(number)]
        command += [f"-disposition:v:{number}", "default" if number in default else "0"]
    subprocess.run([*command, "-c:v", "mpeg4", str(path)], check=True)
    return path


def chosen_by_ffmpeg(ffmpeg: str, path: Path) -> tuple[int, int]:
    """(h, w) of what ffmpeg decodes when nobody names a stream."""
    command = [ffmpeg, "-v", "quiet", "-i", str(path), "-an", "-f", "framemd5", "-"]
    listing = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    size = re.search(r"#dimensions 0: (\d+)x(\d+)", listing)
    assert size is not None
    return int(size[2]), int(size[1])


@pytest.mark.parametrize("ending", ["mkv", "mp4"])
@pytest.mark.parametrize(
    ("streams", "default"),
    [
        (["small", "large"], []),
        (["large", "small"], []),
        (["small", "large"], [0]),
        (["large", "small"], [1]),
        (["small", "large"], [0, 1]),
        (["wide", "small", "large"], [1, 2]),
        (["small", "small", "large"], [1]),
    ],
)
def test_it_is_the_stream_that_ffmpeg_takes(
    tmp_path: Path, ffmpeg: str, ending: str, streams: list[str], default: list[int]
) -> None:
    path = make(ffmpeg, tmp_path / f"a.{ending}", streams, *default)
    assert probe_video(str(path)).coded_size == chosen_by_ffmpeg(ffmpeg, path)


def test_a_stream_can_be_asked_for_by_either_number(tmp_path: Path, ffmpeg: str) -> None:
    # Sound first: its index is 0, and the first video stream is 1.
    path = tmp_path / "a.mkv"
    command = [ffmpeg, "-v", "error", "-f", "lavfi", "-i", "sine=duration=1"]
    for name in ("small", "large"):
        command += ["-f", "lavfi", "-i", f"testsrc2=size={SIZES[name]}:rate=10:duration=1"]
    command += ["-map", "0", "-map", "1", "-map", "2", "-c:v", "mpeg4", str(path)]
    subprocess.run(command, check=True)
    for word, index, size in (("1", 1, (64, 96)), ("2", 2, (96, 160)), ("v:0", 1, (64, 96))):
        info = probe_video(str(path), stream=word)
        assert (info.stream_index, info.coded_size) == (index, size)
    for word in ("0", "3", "v:2"):
        with pytest.raises(ProbeError, match=f"no video stream {word}; its video streams: 1, 2"):
            probe_video(str(path), stream=word)


def test_the_stream_that_was_asked_for_is_the_one_in_the_shards(
    tmp_path: Path, ffmpeg: str, spacepatch_cli: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    make(ffmpeg, tmp_path / "two.mkv", ["small", "large"])
    make(ffmpeg, tmp_path / "one.mkv", ["small"])
    out = tmp_path / "out"
    done = spacepatch_cli(
        "tokenize", tmp_path / "two.mkv", tmp_path / "one.mkv", "--out", out, "--stream", "1"
    )
    assert done.returncode == 3
    assert "one.mkv: no_video_stream: no video stream 1; its video streams: 0" in done.stderr
    rows = {row["source"]: row for row in parquet.read_table(out / "sources.parquet").to_pylist()}
    assert (rows["two.mkv"]["stream_index"], rows["two.mkv"]["coded_size"]) == (1, [96, 160])
    assert rows["one.mkv"]["num_segments"] == 0
