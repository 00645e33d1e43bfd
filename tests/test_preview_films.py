"""`spacepatch preview` of whole packs and segments, as MP4 and GIF."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image
from s3_server import S3Server
from small_runs import copied, rows, run
from unpacked_files import unpacked

from spacepatch.config import load_config
from spacepatch.errors import ConfigError, ShardError
from spacepatch.inspection.decoded import Decoded
from spacepatch.preview import preview
from spacepatch.storage import open_folder

CLIPS = ("square_320x320.mp4", "variable_frame_rate_480x270.mp4", "still_picture_400x300.png")


@pytest.fixture(scope="module")
def clips(sample_clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copied(sample_clips, tmp_path_factory.mktemp("clips"), CLIPS)


@pytest.fixture(scope="module")
def dataset(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dataset") / "out"
    run([clips], out, fps="10", clip_seconds="1", patch="2x16x16", pack_length=512)
    return out


def film(folder: Path, out: Path, **more: Any) -> Decoded:
    roots = {} if (root := more.pop("root", None)) is None else {0: str(root)}
    return preview(folder, out=out, config=load_config({"workers": 1}), roots=roots, **more)


def shown_times(path: Path) -> tuple[list[Fraction], Fraction, list[np.ndarray]]:
    """When each frame of a film begins, when the last one ends, and what they show."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.pix_fmt == "yuv420p"
        end = stream.duration * stream.time_base
        frames = list(container.decode(stream))
        times = [frame.pts * frame.time_base for frame in frames]
        return times, end, [frame.to_ndarray(format="rgb24") for frame in frames]


def expected_times(own: list[dict]) -> tuple[list[Fraction], Fraction]:
    """Of rows of segments.parquet, one after the other; none of them repeats frames."""
    times, start = [], Fraction(0)
    for row in own:
        base, pts = Fraction(row["time_base"]), row["frame_pts"]
        times += [start + (entry - pts[0]) * base for entry in pts]
        steps = sorted(np.diff(pts).tolist())
        last = steps[(len(steps) - 1) // 2] * base if steps else 1
        start = times[-1] + last
    return times, start


def of_pack(dataset: Path, number: int) -> list[dict]:
    stored = rows(dataset, "segments.parquet")
    places = sorted({(row["shard"], row["pack"]) for row in stored})
    return [row for row in stored if (row["shard"], row["pack"]) == places[number]]


def test_a_film_of_a_segment_runs_at_its_true_times(clips: Path, tmp_path: Path) -> None:
    dataset = tmp_path / "out"
    clip = clips / CLIPS[1]
    run([clip], dataset, every_frame=True, fps=None, clip_seconds="2", pack_length=4096)
    (row, *_) = (
        row
        for row in rows(dataset, "segments.parquet")
        if len(set(np.diff(row["frame_pts"]).tolist())) > 1
    )
    film(dataset, tmp_path / "a.mp4", segment=row["segment_id"], root=clips, grid=False)
    times, end, frames = shown_times(tmp_path / "a.mp4")
    assert (times, end) == expected_times([row])
    # Source and stored are equal, side by side, but for what the codec makes of them.
    height, width = row["size"]
    last = frames[-1].astype(int)
    below, left = last.shape[0] - 12 - height, 12
    source = last[below : below + height, left : left + width]
    stored_frame = last[below : below + height, left + width + 4 : left + 2 * width + 4]
    assert np.abs(source - stored_frame).mean() < 3
    assert source.std() > 10


def test_a_pack_is_shown_segment_after_segment(dataset: Path, tmp_path: Path) -> None:
    own = of_pack(dataset, 0)
    assert len(own) > 1
    assert not any(row["repeated_frames"] for row in own)
    found = film(dataset, tmp_path / "a.mp4", pack="0")
    assert [segment.segment_id for segment in found.segments] == [row["segment_id"] for row in own]
    times, end, _ = shown_times(tmp_path / "a.mp4")
    assert (times, end) == expected_times(own)


def test_a_gif_rounds_each_time_and_no_error_adds_up(dataset: Path, tmp_path: Path) -> None:
    own = of_pack(dataset, 0)
    film(dataset, tmp_path / "a.gif", pack="0")
    times, end = expected_times(own)
    ticks = [round(time * 100) for time in (*times, end)]
    with Image.open(tmp_path / "a.gif") as image:
        delays = []
        for number in range(image.n_frames):
            image.seek(number)
            delays.append(image.info["duration"] // 10)
    begun = set(np.cumsum([0, *delays]).tolist())
    assert begun <= set(ticks), "equal frames are one"
    assert sum(delays) == ticks[-1]
    assert len(delays) > len(ticks) // 2


def test_a_gif_leaves_out_what_is_too_short_for_it(tmp_path: Path) -> None:
    fast = tmp_path / "fast.mp4"
    with av.open(str(fast), "w") as container:
        stream = container.add_stream("libx264", rate=100)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for number in range(20):
            frame = av.VideoFrame.from_ndarray(
                np.full((64, 64, 3), 10 * number, np.uint8), format="rgb24"
            )
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    run([fast], tmp_path / "quick", every_frame=True, fps=None)
    found = film(tmp_path / "quick", tmp_path / "a.gif")
    assert "10 frames are left out: a gif shows none for less than 0.02 s" in found.notes
    with Image.open(tmp_path / "a.gif") as image:
        assert image.n_frames == 10
        assert image.info["duration"] == 20


def test_the_same_dataset_gives_the_same_films(dataset: Path, clips: Path, tmp_path: Path) -> None:
    for suffix in ("mp4", "gif", "png"):
        for name in ("a", "b"):
            film(dataset, tmp_path / f"{name}.{suffix}", pack="1", root=clips)
        one, other = (tmp_path / f"{name}.{suffix}" for name in ("a", "b"))
        assert one.read_bytes() == other.read_bytes()
    assert {path.suffix for path in tmp_path.iterdir()} == {".mp4", ".gif", ".png"}


WRITE = """
import hashlib, io
from fractions import Fraction
import numpy as np
from spacepatch.videos import write_mp4

base = np.random.default_rng(0).integers(0, 256, (20, 40, 3), np.uint8).repeat(16, 0).repeat(16, 1)
frames = [np.roll(base, 3 * k, 1)[:301, :600] for k in range(40)]
times = [Fraction(k, 10) for k in range(41)]
for lossless in (False, True):
    file = io.BytesIO()
    write_mp4(file, frames[: 8 if lossless else 40], times=times, lossless=lossless)
    print(hashlib.sha256(file.getvalue()).hexdigest())
"""


def test_a_film_is_the_same_whatever_memory_held_before() -> None:
    made = {
        subprocess.run(
            [sys.executable, "-c", WRITE],
            env=os.environ | {"MALLOC_PERTURB_": str(fill)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for fill in (1, 255)
    }
    assert len(made) == 1


def test_of_a_pack_of_many_the_first_are_shown_and_that_is_said(
    dataset: Path, tmp_path: Path
) -> None:
    own = of_pack(dataset, 0)
    found = film(dataset, tmp_path / "a.png", pack="0", num_segments=1)
    assert [segment.segment_id for segment in found.segments] == [own[0]["segment_id"]]
    assert f"the first 1 of {len(own)} segments are shown" in found.notes[-1]


def test_a_wrong_folder_or_file_is_said(dataset: Path, tmp_path: Path) -> None:
    unfinished = shutil.copytree(dataset, tmp_path / "unfinished")
    (unfinished / "dataset.json").unlink()
    for more in ({}, {"pack": "0"}, {"segment": "0"}):
        with pytest.raises(ShardError, match="is no finished dataset"):
            film(unfinished, tmp_path / "a.mp4", **more)
        with pytest.raises(ShardError, match="is no output folder of spacepatch"):
            film(tmp_path, tmp_path / "a.mp4", **more)
    (tmp_path / "a.gif").mkdir()
    with pytest.raises(ConfigError, match="is a folder; --out takes a file here"):
        film(dataset, tmp_path / "a.gif")
    assert not (tmp_path / "a.mp4").exists()


def test_a_dataset_at_a_url_is_shown_and_unpacked(
    bucket: str, s3: S3Server, dataset: Path, tmp_path: Path
) -> None:
    for path in dataset.iterdir():
        if path.is_file():
            s3.client().upload_file(str(path), bucket, f"shards/{path.name}")
    key = json.loads((dataset / "dataset.json").read_text())["name"] + "-000000-000001"
    there = open_folder(f"s3://{bucket}/shards")
    for folder, name in ((dataset, "here.png"), (there, "there.png")):
        film(folder, tmp_path / name, pack=key)
    assert (tmp_path / "here.png").read_bytes() == (tmp_path / "there.png").read_bytes()
    done = unpacked(there, tmp_path / "frames", pack=key)
    assert done.num_exact == done.num_segments == len(of_pack(dataset, 1))
