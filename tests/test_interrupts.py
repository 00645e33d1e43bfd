"""Ctrl-C and SIGTERM, in every phase of a run: it stops, keeps what is finished, and goes on."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from fuzz import session_of
from small_runs import copied
from test_crashes import (
    DONE_WITH_LOSSES,
    FEW,
    HERE,
    SMALL_SHARDS,
    assert_nothing_half_visible,
    assert_resumes,
    busy_worker,
    command,
    long_clip,
)

__all__ = ["long_clip"]

AT_ONCE = 60
"""Seconds that nobody waits for, on the slowest machine: it is stopping, not finishing."""


def begin(*program: str) -> subprocess.Popen[str]:
    """A run in a session of its own, as in a terminal of its own."""
    return subprocess.Popen(
        [sys.executable, *program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def assert_stopped(process: subprocess.Popen[str], out: Path) -> None:
    """It has ended by itself, said so in one line, and left no process and no torn file."""
    try:
        stdout, stderr = process.communicate(timeout=AT_ONCE)
        assert process.returncode == 130, stderr
        # Besides what killed_at_step.py says, and that there is a plan.
        said = re.sub(r"^(steps|plan): .*\n", "", stderr, flags=re.MULTILINE)
        assert said == (
            "interrupted: finished shards are kept; the same command goes on from here\n"
        )
        assert stdout == ""
        assert not session_of(process.pid)
    finally:
        for left in session_of(process.pid):
            left.kill()
    assert_nothing_half_visible(out)


def finished(out: Path) -> dict[str, tuple[int, int]]:
    """Which files of shards with a receipt these are: written again, they would be others."""
    stems = [path.stem for path in out.glob("*-[0-9]*.json")]
    files = [path for stem in stems for path in out.glob(f"{stem}.*")]
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in files}


@pytest.mark.parametrize("seconds", [0, 0.1, 0.2, 0.4])
def test_a_run_that_just_starts_ends_without_a_word(
    sample_clips: Path, tmp_path: Path, seconds: float
) -> None:
    process = begin("-m", "spacepatch", *command(sample_clips, tmp_path / "out"))
    while not psutil.Process(process.pid).children():
        time.sleep(0.001)
    time.sleep(seconds)  # into the imports, its own and those of what workers are forked from
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=AT_ONCE)
    assert process.returncode in (130, -signal.SIGINT)  # Python's own way to exit from an import
    assert "Traceback" not in stderr
    assert not session_of(process.pid)


# --- while sources are probed and decoded ------------------------------------------------------


def is_probing(pid: int, out: Path, clip: Path) -> None:
    busy_worker(pid, clip)
    assert not (out / "plan.json").exists()


def is_decoding(pid: int, out: Path, clip: Path) -> None:
    while not (out / "plan.json").exists():
        time.sleep(0.01)
    busy_worker(pid, clip)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("wait_until", [is_probing, is_decoding])
def test_a_run_stops_while_its_workers_are_busy(
    long_clip: Path,
    tmp_path: Path,
    number: signal.Signals,
    wait_until: Callable[[int, Path, Path], None],
) -> None:
    out = tmp_path / "out"
    more = ["--every-frame", "--max-tokens-per-frame", "16", "--workers", "2"]
    if wait_until is is_probing:
        more += ["--on-error", "skip-video"]  # seconds of decoding, before there is a plan
    process = begin("-m", "spacepatch", "tokenize", str(long_clip), "--out", str(out), *more)
    wait_until(process.pid, out, long_clip / "long.mp4")
    os.killpg(process.pid, number)
    assert_stopped(process, out)
    assert (out / "plan.json").exists() == (wait_until is is_decoding)
    assert not finished(out)


def test_a_run_that_is_killed_leaves_no_process_and_no_temporary_folder(
    long_clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        monkeypatch.setenv("TMPDIR", folder)
        out = tmp_path / "out"
        process = begin("-m", "spacepatch", "tokenize", str(long_clip), "--out", str(out))
        is_decoding(process.pid, out, long_clip / "long.mp4")
        assert list(Path(folder).iterdir())
        process.kill()
        process.communicate(timeout=AT_ONCE)
        assert not session_of(process.pid)
        assert not list(Path(folder).iterdir())


# --- while something is written ----------------------------------------------------------------


@pytest.fixture(scope="module")
def clips(sample_clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of clips that make three shards."""
    return copied(sample_clips, tmp_path_factory.mktemp("few"), FEW)


@pytest.fixture(scope="module")
def whole(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """What an untroubled run writes, and how many durable steps it takes."""
    out = tmp_path_factory.mktemp("whole") / "out"
    done = spacepatch_to_step("0", clips, out)
    _, stderr = done.communicate(timeout=120)
    assert done.returncode == DONE_WITH_LOSSES, stderr
    match = re.search(r"steps: (\d+)", stderr)
    assert match is not None
    return out, int(match[1])


def spacepatch_to_step(step: str, clips: Path, out: Path) -> subprocess.Popen[str]:
    return begin(str(HERE / "killed_at_step.py"), step, *command(clips, out, **SMALL_SHARDS))


PLAN = 3 * 2
"""Steps until there is a plan: each file is synced, renamed, and its folder synced."""
SHARD = 3 * 4
TABLES = 3 * 4


@pytest.mark.parametrize(
    ("step", "name", "num_finished"),
    [
        (2, "SIGTERM", 0),  # planning: plan.parquet
        (PLAN + 1, "SIGINT", 0),  # the first shard
        (PLAN + SHARD + 1, "SIGTERM", 1),  # the second one
        (PLAN + 2 * SHARD - 2, "SIGINT", 1),  # its receipt
        (-TABLES + 1, "SIGINT", 3),  # finishing: segments.parquet
        (-1, "SIGTERM", 3),  # dataset.json
    ],
)
def test_a_run_that_writes_stops_keeps_what_is_finished_and_goes_on_to_the_same_bytes(
    clips: Path,
    whole: tuple[Path, int],
    tmp_path: Path,
    step: int,
    name: str,
    num_finished: int,
) -> None:
    untroubled, num_steps = whole
    out = tmp_path / "out"
    process = spacepatch_to_step(f"{step % num_steps}:{name}", clips, out)
    assert_stopped(process, out)
    before = finished(out)
    assert sum(file.endswith(".tar") for file in before) >= num_finished
    assert_resumes(clips, out, untroubled, **SMALL_SHARDS)
    assert {file: status for file, status in finished(out).items() if file in before} == before
