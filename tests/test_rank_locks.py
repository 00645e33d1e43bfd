"""Who may write to a folder beside whom."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from ranked_runs import (
    FEW,
    SETTINGS,
)

from spacepatch.config import load_config
from spacepatch.errors import ResumeError, UnfinishedError
from spacepatch.pipeline import join_ranks, make_plan, tokenize
from spacepatch.storage import lock, lock_rank


def owner(folder: Path, rank: tuple[int, int] | None) -> subprocess.Popen[str]:
    """A process that owns a folder, or a rank's part of it, until it is killed."""
    code = (
        "import sys, pathlib, contextlib\n"
        "from spacepatch.storage import lock, lock_rank\n"
        "folder, *rank = sys.argv[1:]\n"
        "folder, rank = pathlib.Path(folder), [int(number) for number in rank]\n"
        "with lock_rank(folder, *rank) if rank else lock(folder):\n"
        "    print('owned', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(folder), *map(str, rank or ())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        encoding="utf-8",
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "owned\n"
    return process


def take(folder: Path, rank: tuple[int, int] | None) -> str:
    """What is said to who wants to own it; empty: welcome."""
    try:
        with lock_rank(folder, *rank) if rank else lock(folder):
            return ""
    except ResumeError as error:
        return str(error).partition(": ")[2].partition(";")[0]


def test_ranks_of_one_world_size_share_a_folder_and_nobody_else_does(tmp_path: Path) -> None:
    process = owner(tmp_path, (1, 4))
    try:
        assert take(tmp_path, (0, 4)) == ""
        assert take(tmp_path, (1, 4)) == "rank 1 of 4 is writing to this folder already"
        assert take(tmp_path, (1, 8)) == "rank 1 of 4 is writing to this folder, and not of 8"
        assert take(tmp_path, None) == "rank 1 of 4 is writing to this folder"
    finally:
        process.kill()
        process.communicate()
    for rank in (None, (0, 4), (1, 4), (1, 8)):
        assert take(tmp_path, rank) == ""


def test_a_whole_run_shares_a_folder_with_no_rank(tmp_path: Path) -> None:
    process = owner(tmp_path, None)
    try:
        for rank in (None, (0, 4)):
            assert take(tmp_path, rank) == "another spacepatch run is writing to this folder"
    finally:
        process.kill()
        process.communicate()
    assert take(tmp_path, (0, 4)) == ""


def test_no_run_begins_or_finishes_beside_a_rank(sample_clips: Path, tmp_path: Path) -> None:
    sources, planned = [str(sample_clips / FEW[0])], tmp_path / "out"
    config = load_config(SETTINGS)
    make_plan(sources, out=planned, config=config)
    with lock_rank(planned, 0, 4):
        for attempt in (
            lambda: join_ranks(planned),
            lambda: tokenize(sources, out=planned, config=config, overwrite=True),
            lambda: make_plan(sources, out=planned, config=config),
        ):
            with pytest.raises(ResumeError, match="rank 0 of 4 is writing to this folder; wait"):
                attempt()
    with pytest.raises(UnfinishedError):
        join_ranks(planned)
