"""Small files that claim to be large: typed refusals, in little memory, and the run goes on."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hostile_files import animated_webp, box, fragments, gif, mp4, png, track
from test_hostile import LOST_SOURCES, SETTINGS, make_video, reasons, rows, run, written

MEGABYTE = 2**20


@pytest.fixture(scope="module")
def bombs(tmp_path_factory: pytest.TempPathFactory, ffmpeg: str) -> tuple[Path, Path, int]:
    """The folder of the bombs, the dataset made of it, and the largest peak of any process."""
    folder = tmp_path_factory.mktemp("bombs")
    fast = ("-c:v", "libx264", "-preset", "ultrafast")
    make_video(ffmpeg, folder / "huge.mp4", "color=gray:s=16000x8000:r=10:d=0.3", *fast)
    assert (folder / "huge.mp4").stat().st_size < 500_000
    make_video(ffmpeg, folder / "small.ts", "testsrc2=s=320x240:r=5:d=2", *fast)
    make_video(ffmpeg, folder / "large.ts", "color=gray:s=16000x8000:r=5:d=1", *fast)
    parts = [(folder / name).read_bytes() for name in ("small.ts", "large.ts")]
    (folder / "grows.ts").write_bytes(b"".join(parts))
    (folder / "large.ts").unlink()
    make_video(ffmpeg, folder / "ten_hours.mp4", "color=gray:s=64x48:r=1:d=36000", "-c:v", "mpeg4")
    make_video(ffmpeg, folder / "one.webp", "testsrc2=s=64x48", "-frames:v", "1")
    frame = (folder / "one.webp").read_bytes()
    for name, content in {
        "canvas.webp": animated_webp(16384, 16384, frame),
        "canvas.gif": gif(65535, 65535),
        "canvas.png": png(60_000, 60_000),
        "streams.mp4": mp4(*(track(number + 1) for number in range(10_000))),
        "samples.mp4": mp4(track(1, samples=10_000_000)),
        "samples_of_many.mp4": mp4(*(track(n + 1, samples=100_000) for n in range(200))),
        "samples_of_sound.mp4": mp4(track(1), track(2, samples=10**8, kind=b"soun")),
        "samples_without_bytes.mp4": mp4(track(1, samples=2**32 - 1, sample_size=0)),
        "fragment.mp4": fragments(samples=2**32 - 1),
        "boxes.mp4": box(b"ftyp", b"isom\0\0\2\0isomiso2") + box(b"free") * 200_000,
        "nested.mp4": box(b"ftyp", b"isom\0\0\2\0isomiso2") + nested(b"moov", 5000),
        "text.mp4": b"a" * 5_000_000,
        "zeros.mp4": bytes(5_000_000),
    }.items():
        (folder / name).write_bytes(content)
    with (folder / "sparse.mp4").open("wb") as file:
        file.truncate(2**40 + 1)
    out = tmp_path_factory.mktemp("bombs_out") / "out"
    # A process of its own: what pytest itself takes would count for a child that it forks.
    program = (
        "import resource, subprocess, sys\n"
        "done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL)\n"
        "print(done.returncode, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)\n"
    )
    command = [sys.executable, "-m", "spacepatch", "tokenize", folder, "--out", out, *SETTINGS]
    done = run(sys.executable, "-c", program, *command)
    code, kilobytes = map(int, done.stdout.split())
    assert code == LOST_SOURCES, done.stderr
    return folder, out, kilobytes * 1024


def nested(kind: bytes, depth: int) -> bytes:
    content = b""
    for _ in range(depth):
        content = box(kind, content)
    return content


def test_bombs_take_little_memory(bombs: tuple[Path, Path, int]) -> None:
    print(f"peak {bombs[2] / MEGABYTE:.0f} MB")
    assert bombs[2] < 512 * MEGABYTE


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("huge.mp4", "too_large"),
        ("canvas.png", "too_large"),
        ("canvas.gif", "too_large"),
        ("canvas.webp", "too_large"),
        ("streams.mp4", "too_large"),
        ("samples.mp4", "too_large"),
        ("samples_of_many.mp4", "too_large"),
        ("samples_of_sound.mp4", "too_large"),
        ("samples_without_bytes.mp4", "too_large"),
        ("fragment.mp4", "too_large"),
        ("sparse.mp4", "too_large"),
        ("boxes.mp4", "unreadable"),
        ("nested.mp4", "unreadable"),
        ("text.mp4", "unreadable"),
        ("zeros.mp4", "unreadable"),
    ],
)
def test_a_bomb_is_refused_by_reason(
    bombs: tuple[Path, Path, int], name: str, expected: str
) -> None:
    _, out, _ = bombs
    assert reasons(out)[name] == {expected}
    assert name not in written(out)


def test_ten_hours_at_a_frame_a_second_are_no_bomb(bombs: tuple[Path, Path, int]) -> None:
    _, out, _ = bombs
    assert "ten_hours.mp4" not in reasons(out)
    (source,) = (row for row in rows(out / "sources.parquet") if row["source"] == "ten_hours.mp4")
    assert (source["num_frames"], source["duration_seconds"]) == (36_000, 36_000.0)


def test_pictures_that_grow_in_the_middle_are_decoded_up_to_there(
    bombs: tuple[Path, Path, int],
) -> None:
    _, out, _ = bombs
    assert {"small.ts", "grows.ts"} <= written(out)
    assert reasons(out)["grows.ts"] <= {"too_large", "size_changed", "truncated",
                                        "fewer_frames_than_planned"}  # fmt: skip
    for row in rows(out / "segments.parquet"):
        if row["source"] == "grows.ts":
            assert row["size"][0] <= 240


def test_the_run_with_the_bombs_verifies_clean(bombs: tuple[Path, Path, int]) -> None:
    done = run(sys.executable, "-m", "spacepatch", "verify", bombs[1])
    assert done.returncode == 0, done.stdout + done.stderr
