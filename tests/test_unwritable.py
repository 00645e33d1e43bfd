"""A disk that fills up, or may not be written: one line, and the same command goes on."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_runs import copied
from test_crashes import (
    DONE_WITH_LOSSES,
    FEW,
    SMALL_SHARDS,
    assert_nothing_half_visible,
    assert_resumes,
    command,
    digests,
    spacepatch,
)

ROOM = 16 << 20


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system of its own."""
    if os.geteuid() != 0:
        pytest.skip("needs root to mount a small tmpfs")
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={ROOM}", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("tmpfs cannot be mounted here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def remount(disk: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(disk)], check=True)


@pytest.fixture(scope="module")
def clips(sample_clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of clips that make three shards."""
    return copied(sample_clips, tmp_path_factory.mktemp("few"), FEW)


@pytest.fixture(scope="module")
def untroubled(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("untroubled") / "out"
    assert spacepatch(*command(clips, out, **SMALL_SHARDS)).returncode == DONE_WITH_LOSSES
    return out


def pages(*paths: Path) -> int:
    """Bytes that files take on a disk of pages."""
    return sum(-(-path.stat().st_size // 4096) * 4096 for path in paths)


def assert_fails(clips: Path, out: Path, said: str, *arguments: str) -> None:
    done = spacepatch(*(arguments or command(clips, out, **SMALL_SHARDS)))
    assert done.returncode == 1, done.stderr
    # There may be a plan, and nothing left to do but to merge the tables.
    said_before = r"(plan: .*\n)?(nothing left to do: every shard has its receipt\n)?"
    error = re.sub(rf"\A{said_before}", "", done.stderr)
    assert error.startswith(f"error: {out}"), error
    assert error.endswith(f": {said}\n"), error
    assert error.count("\n") == 1, error


def test_a_disk_that_fills_up_at_any_file_is_one_line_and_the_same_command_goes_on(
    clips: Path, untroubled: Path, disk: Path
) -> None:
    plan = [untroubled / "plan.parquet", untroubled / "plan.json"]
    receipts = sorted(untroubled.glob("*-00000[0-9].json"))
    shards = [sorted(untroubled.glob(f"{receipt.stem}.*")) for receipt in receipts]
    one, two, three = (pages(*plan, *itertools.chain(*shards[:n])) for n in (1, 2, 3))
    out = disk / "out"
    full = (
        "No space left on device; make room and give the same command again: what is done is kept"
    )
    for room, num_finished in [
        (4096, 0),  # not even the plan
        (pages(*plan) - 4096, 0),  # plan.parquet, and no plan.json
        (pages(*plan) + 100_000, 0),  # a part of a shard
        (one - 4096, 0),  # a shard without its receipt
        (two - 100_000, 1),
        (three, 3),  # not the merged tables
        (three + pages(*untroubled.glob("[sl]*.parquet")), 3),  # but for dataset.json
    ]:
        remount(disk, f"size={room}")
        assert_fails(clips, out, full)
        assert_nothing_half_visible(out)
        finished = [receipt.name for receipt in receipts if (out / receipt.name).exists()]
        assert len(finished) == num_finished, (room, finished)
        assert not list((out / ".spacepatch").glob("*.tmp-*"))
    remount(disk, f"size={ROOM}")
    assert_resumes(clips, out, untroubled, **SMALL_SHARDS)


def test_a_disk_that_is_read_only_is_one_line_and_what_is_there_can_be_read(
    clips: Path, untroubled: Path, disk: Path
) -> None:
    read_only = "Read-only file system; give another --out, this one cannot be written"
    remount(disk, "ro")
    assert_fails(clips, disk / "new", read_only)
    remount(disk, "rw")
    out = disk / "out"
    planned = spacepatch("plan", *command(clips, out, **SMALL_SHARDS)[1:])
    assert planned.returncode == 0, planned.stderr
    before = digests(out)
    remount(disk, "ro")
    assert_fails(clips, out, read_only)
    assert digests(out) == before
    remount(disk, "rw")
    assert_resumes(clips, out, untroubled, **SMALL_SHARDS)
    remount(disk, "ro")
    for reading in ("verify", "inspect"):
        read = spacepatch(reading, str(out))
        assert (read.returncode, read.stderr) == (0, ""), reading


def test_a_folder_that_may_not_be_written_is_one_line(clips: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir(mode=0o555)
    plain: list[str] = []
    if os.geteuid() == 0:
        # Root may write anywhere, but for this capability.
        plain = ["setpriv", "--bounding-set=-dac_override"]
        if shutil.which("setpriv") is None:
            pytest.skip("root needs setpriv to be like anybody else")
    program = [*plain, sys.executable, "-m", "spacepatch", *command(clips, out, **SMALL_SHARDS)]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    said = "Permission denied; give another --out, or leave to write there"
    assert line == f"error: {out}/.spacepatch: {said}"
