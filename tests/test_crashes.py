"""Killed at any moment, the same command goes on to the very same bytes."""

from __future__ import annotations

import hashlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from small_runs import copied

from spacepatch.config import load_config
from spacepatch.inspection import verify
from spacepatch.pipeline import tokenize

HERE = Path(__file__).parent
SETTINGS = {
    "fps": "4",
    "max_tokens_per_frame": 64,
    "pack_length": 1024,
    "shard_size": "2MB",
    "workers": 2,
}
DONE_WITH_LOSSES = 3


def digests(folder: Path) -> dict[str, str]:
    """sha256 of every file of the format."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
        if path.is_file()
    }


def command(clips: Path, out: Path, **changes: Any) -> list[str]:
    settings = (SETTINGS | changes).items()
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in settings]
    return ["tokenize", str(clips), "--out", str(out), *flags]


def spacepatch(*arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "spacepatch", *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
    )


@pytest.fixture(scope="module")
def untroubled(sample_clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("untroubled") / "out"
    done = spacepatch(*command(sample_clips, out))
    assert done.returncode == DONE_WITH_LOSSES, done.stderr
    assert len(list(out.glob("*.tar"))) >= 3
    assert verify(out) == []
    return out


def test_workers_folder_and_process_do_not_show_in_the_bytes(
    sample_clips: Path, untroubled: Path, tmp_path: Path
) -> None:
    out = tmp_path / "another place" / "out"
    done = spacepatch(*command(sample_clips, out, workers=1))
    assert done.returncode == DONE_WITH_LOSSES, done.stderr
    assert digests(out) == digests(untroubled)


def test_inputs_may_lie_elsewhere(sample_clips: Path, untroubled: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(sample_clips, moved)
    done = spacepatch(*command(moved, tmp_path / "out"))
    assert done.returncode == DONE_WITH_LOSSES, done.stderr
    assert digests(tmp_path / "out") == digests(untroubled)


FEW = ("square_320x320.mp4", "odd_size_321x179_vp9.webm", "broken_on_purpose.mp4")
SMALL_SHARDS = {"pack_length": 192, "shard_size": "800kB", "workers": 1}
"""Of `FEW` three shards: as many kinds of steps as of more videos, in less time a run."""
TWO_SHARDS = SMALL_SHARDS | {"shard_size": "1.2MB"}
"""A shard after which comes another, and the last one: a third has no other kinds of steps."""


def test_killed_before_any_durable_step_it_resumes_to_the_same_bytes(
    sample_clips: Path, tmp_path: Path
) -> None:
    clips, untroubled = copied(sample_clips, tmp_path / "clips", FEW), tmp_path / "untroubled"
    assert spacepatch(*command(clips, untroubled, **TWO_SHARDS)).returncode == DONE_WITH_LOSSES

    def run(step: int, out: Path) -> subprocess.CompletedProcess[str]:
        more = command(clips, out, **TWO_SHARDS)
        arguments = [str(HERE / "killed_at_step.py"), str(step), *more]
        return subprocess.run(
            [sys.executable, *arguments], capture_output=True, text=True, timeout=120
        )

    whole = run(0, tmp_path / "whole")
    match = re.search(r"steps: (\d+)", whole.stderr)
    assert match is not None, whole.stderr
    num_steps = int(match[1])
    # plan.parquet, plan.json, four files a shard, three tables, dataset.json: three steps each.
    num_shards = len(list(untroubled.glob("*.tar")))
    assert num_shards == 2
    assert num_steps >= 3 * (2 + 4 * num_shards + 4)
    out = tmp_path / "out"
    for step in range(1, num_steps + 1):
        shutil.rmtree(out, ignore_errors=True)
        assert run(step, out).returncode == -signal.SIGKILL, step
        assert_nothing_half_visible(out)
        assert_resumes(clips, out, untroubled, **TWO_SHARDS)


def assert_resumes(clips: Path, out: Path, untroubled: Path, **changes: Any) -> None:
    # In this process, which has imported all: half of the time of a small run is its start.
    summary = tokenize([str(clips)], out=out, config=load_config(SETTINGS | changes))
    assert summary.lost_sources
    assert digests(out) == digests(untroubled)
    assert not list((out / ".spacepatch").glob("*.tmp-*"))


def assert_nothing_half_visible(out: Path) -> None:
    """A shard with a receipt is whole, and a dataset.json stands only beside whole shards."""
    problems = verify(out) if (out / "plan.json").is_file() else []
    assert all("not finished" in problem.what for problem in problems), problems


def test_killed_at_random_moments_it_resumes_to_the_same_bytes(
    sample_clips: Path, untroubled: Path, tmp_path: Path
) -> None:
    start = time.monotonic()
    spacepatch(*command(sample_clips, tmp_path / "timing"))
    duration = time.monotonic() - start
    moments = random.Random(20)
    for trial in range(12):
        out = tmp_path / f"out{trial}"
        process = subprocess.Popen(
            [sys.executable, "-m", "spacepatch", *command(sample_clips, out)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            process.wait(moments.uniform(0, duration))
        except subprocess.TimeoutExpired:
            workers = psutil.Process(process.pid).children(recursive=True)
            process.kill()
            process.wait()
            _, alive = psutil.wait_procs(workers, timeout=10)
            assert not alive, "orphans"
        assert_resumes(sample_clips, out, untroubled)
        shutil.rmtree(out)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_says_so_and_resumes(
    sample_clips: Path, untroubled: Path, tmp_path: Path, number: signal.Signals
) -> None:
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-m", "spacepatch", *command(sample_clips, out)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (out / "plan.json").exists():
        time.sleep(0.01)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130, stderr
    assert "goes on from here" in stderr
    assert "Traceback" not in stderr
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert not alive
    assert_resumes(sample_clips, out, untroubled)


def busy_worker(parent: int, clip: Path) -> psutil.Process:
    """The worker that has `clip` open."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for child in psutil.Process(parent).children(recursive=True):
            try:
                if any(file.path == str(clip) for file in child.open_files()):
                    return child
            except psutil.Error:
                continue
        time.sleep(0.005)
    raise AssertionError("no worker opened the clip")


@pytest.fixture(scope="module")
def long_clip(ffmpeg: str, sample_clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one clip that takes seconds to decode, and one sample."""
    folder = tmp_path_factory.mktemp("long")
    source = "testsrc2=size=1920x1080:rate=30:duration=20"
    encode = f"{ffmpeg} -v error -f lavfi -i {source} -c:v mpeg4 -q:v 2".split()
    subprocess.run([*encode, str(folder / "long.mp4")], check=True)
    shutil.copy(sample_clips / "square_320x320.mp4", folder)
    return folder


def start(clips: Path, out: Path, *more: str) -> subprocess.Popen[str]:
    """A run in which the long clip is one clip, decoded whole."""
    settings = ["--every-frame", "--max-tokens-per-frame", "16", "--workers", "2"]
    arguments = ["tokenize", str(clips), "--out", str(out), *settings, *more]
    return subprocess.Popen(
        [sys.executable, "-m", "spacepatch", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(clips: Path, out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    process = start(clips, out, *more)
    _, stderr = process.communicate(timeout=120)
    return subprocess.CompletedProcess([], process.returncode, "", stderr)


@pytest.fixture(scope="module")
def untroubled_long(long_clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("untroubled_long") / "out"
    assert finish(long_clip, out).returncode == 0
    return out


def test_a_hanging_video_is_a_timeout_and_retry_lost_gives_the_untroubled_bytes(
    long_clip: Path, untroubled_long: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    process = start(long_clip, out, "--timeout", "2")
    while not (out / "plan.json").exists():
        time.sleep(0.01)
    worker = busy_worker(process.pid, long_clip / "long.mp4")
    worker.suspend()
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == DONE_WITH_LOSSES, stderr
    assert "long.mp4 clip 0: timeout" in stderr
    assert "square" not in stderr
    assert verify(out) == []
    assert finish(long_clip, out, "--retry-lost").returncode == 0
    assert digests(out) == digests(untroubled_long)


def test_a_video_that_kills_its_worker_twice_is_a_loss_and_the_others_are_untouched(
    long_clip: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    process = start(long_clip, out)
    while not (out / "plan.json").exists():
        time.sleep(0.01)
    first = busy_worker(process.pid, long_clip / "long.mp4")
    first.send_signal(signal.SIGSEGV)
    psutil.wait_procs([first], timeout=10)
    busy_worker(process.pid, long_clip / "long.mp4").send_signal(signal.SIGSEGV)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == DONE_WITH_LOSSES, stderr
    assert "long.mp4 clip 0: crash: killed its worker twice (SIGSEGV)" in stderr
    assert "square" not in stderr
    assert verify(out) == []


def test_a_worker_killed_once_costs_nothing(
    long_clip: Path, untroubled_long: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    process = start(long_clip, out)
    while not (out / "plan.json").exists():
        time.sleep(0.01)
    os.kill(busy_worker(process.pid, long_clip / "long.mp4").pid, signal.SIGKILL)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    assert digests(out) == digests(untroubled_long)


def test_two_runs_on_one_folder_the_second_is_refused(long_clip: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = start(long_clip, out)
    while not (out / "plan.json").exists():
        time.sleep(0.01)
    second = finish(long_clip, out)
    assert second.returncode == 1
    assert "another spacepatch run is writing" in second.stderr
    process.communicate(timeout=120)
    assert process.returncode == 0
