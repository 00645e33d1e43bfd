"""`spacepatch bench`: its numbers add up and are those of tokenize; it leaves nothing behind."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from glob import glob
from hashlib import sha256
from pathlib import Path
from typing import Any

import av
import fitted_codecs
import pytest
from conftest import SpacepatchCli
from json_schemas import faults_of

from spacepatch.limits import available_cores
from spacepatch.other_work import OtherWork, busy_cores
from spacepatch.pipeline.benching import best_workers, gains_too_much, worker_counts
from spacepatch.stages import OTHER, counted, looking, stage, timed

AS_PRISTINE = ("--fps", "2", "--pack-length", "2048", "--shard-size", "8MB", "--workers", "2")
LONG = ("--seconds", "1000")
"""Enough for all of a few short clips, on any machine: no more is taken than there is."""


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_the_stages_add_up_and_the_counts_are_those_of_tokenize(
    spacepatch_cli: SpacepatchCli, sample_clips: Path, spoilable: Path
) -> None:
    before, beside = contents(spoilable), sorted(spoilable.parent.iterdir())
    done = spacepatch_cli("bench", sample_clips, *AS_PRISTINE, *LONG, "--json", "--out", spoilable)
    assert done.returncode == 0, done.stderr
    assert contents(spoilable) == before
    assert sorted(spoilable.parent.iterdir()) == beside
    found: dict[str, Any] = json.loads(done.stdout)
    assert faults_of("bench", found) == []

    stages = ["probe", "decode", "resize", "tubelets", "pack", "hash", "write", "other"]
    assert sorted(found["stages"]) == sorted(stages)
    assert all(row["seconds"] > 0 for row in found["stages"].values())
    # Clocks of their own: what one stage holds and another too, or none, would be missing here.
    # Between their readings lie microseconds, unless another process has the core just then.
    parts = sum(row["seconds"] for row in found["stages"].values())
    assert parts == pytest.approx(found["whole"]["seconds"], rel=0.02)
    assert sum(row["share"] for row in found["stages"].values()) == pytest.approx(1, rel=0.02)
    assert found["floor"]["ratio"] == pytest.approx(
        found["whole"]["seconds"] / found["floor"]["seconds"]
    )

    totals = json.loads((spoilable / "dataset.json").read_text())["totals"]
    assert found["sample"]["is_all"]
    assert found["sample"]["clips"] == totals["segments"]
    assert found["sample"]["tokens"] == totals["tokens"]
    assert [row["tokens"] for row in found["workers"]] == [totals["tokens"]] * 2
    assert [row["workers"] for row in found["workers"]] == [1, 2]
    assert found["best"] in (1, 2)
    pictures = found["pictures"]
    assert 0 < pictures["wanted"] <= pictures["decoded"] <= pictures["floor"]
    assert found["lost_sources"] == ["broken_on_purpose.mp4"]
    assert found["expected"]["tokens"] == totals["tokens"]
    assert not found["expected"]["is_estimate"]


READING = """\
cpu  900 0 100 3000 0 0 0 0 0 0
cpu0 {0} 0 50 {1} 10 0 0 {2} 0 0
cpu1 500 20 50 1500 10 0 0 0 0 0
intr 1 2 3
"""


@pytest.mark.parametrize(
    ("user", "idle", "stolen", "ours", "busy"),
    [
        (0, 100, 0, {0}, 0),
        (25, 75, 0, {0}, 0.25),
        (50, 0, 50, {0}, 1),  # a virtual machine's core that another one has
        (25, 75, 0, {0, 1}, 0.25),  # of the second core no tick has passed
        (25, 75, 0, {0, 2}, None),
        (25, 75, 0, set(), None),
    ],
)
def test_cores_of_others_are_told_by_two_readings(
    user: int, idle: int, stolen: int, ours: set[int], busy: float | None
) -> None:
    before = READING.format(100, 200, 300)
    after = READING.format(100 + user, 200 + idle, 300 + stolen)
    assert busy_cores(before, after, ours) == busy


def test_a_system_that_does_not_tell_is_not_busy() -> None:
    assert busy_cores("", "", {0}) is None
    others = OtherWork()
    assert (others.cores, others.is_busy) == (None, False)


@pytest.mark.parametrize(
    ("speeds", "cores", "expected"),
    [
        ({1: 10, 2: 19, 3: 20}, 2, False),
        ({1: 10, 2: 19, 3: 150}, 2, True),
        ({1: 10, 2: 26}, 4, True),
        ({1: 10, 2: 20, 4: 45}, 4, False),
    ],
)
def test_a_gain_that_the_cores_cannot_give_is_not_believed(
    speeds: dict[int, float], cores: int, expected: bool
) -> None:
    rows = [{"workers": count, "tokens_per_second": speed} for count, speed in speeds.items()]
    assert gains_too_much(rows, cores) == expected


def test_a_busy_machine_is_told(spacepatch_cli: SpacepatchCli, sample_clips: Path) -> None:
    still = sample_clips / "still_picture_400x300.png"
    # They have what bench leaves: all, where it looks.
    spinning = [sys.executable, "-c", "import os; os.nice(19)\nwhile True: pass"]
    with ExitStack() as stack:
        for _ in range(available_cores()):
            stack.callback(stack.enter_context(subprocess.Popen(spinning)).kill)
        done = spacepatch_cli("bench", still, "--seconds", "1", "--workers", "1", "--json")
    assert done.returncode == 0, done.stderr
    machine = json.loads(done.stdout)["machine"]
    assert machine["is_busy"]
    assert machine["cores"] == available_cores()
    assert machine["taken_by_others"] > machine["cores"] / 2
    assert "warning: the machine is busy (others took " in done.stderr


def test_people_get_a_table_and_a_line_to_paste(
    spacepatch_cli: SpacepatchCli, sample_clips: Path, tmp_path: Path
) -> None:
    videos, temporary = tmp_path / "videos", tmp_path / "temporary"
    videos.mkdir()
    temporary.mkdir()
    frames = 0
    for name in ("square_320x320.mp4", "portrait_270x480.mp4"):
        shutil.copy(sample_clips / name, videos)
        with av.open(videos / name) as container:
            frames += sum(1 for _ in container.decode(video=0))
    (videos / "broken.mp4").write_bytes(b"no video at all")
    encoder = f"linear:{fitted_codecs.written(tmp_path)}"
    asked = ("--every-frame", "--max-tokens-per-frame", "64", "--encoder", encoder, *LONG)
    done = spacepatch_cli("bench", videos, *asked, "--workers", "4", env={"TMPDIR": str(temporary)})
    assert done.returncode == 0, done.stderr
    assert list(temporary.iterdir()) == []
    (best,) = re.findall(r"^best: --workers (\d+)$", done.stdout, re.MULTILINE)
    assert int(best) in (1, 2)
    assert "too few sources to show 4 workers" in done.stdout
    assert "2 of 3 sources" in done.stdout
    assert "skipped: broken.mp4: unreadable" in done.stderr
    for name in ("decode", "resize", "encode", "tubelets", "pack", "hash", "write", "floor"):
        assert re.search(rf"^{name} +\d", done.stdout, re.MULTILINE), name
    counts = f"{frames} frames wanted, {frames} decoded; the floor decodes all {frames} and"
    assert counts in done.stdout
    (busy, waits) = re.findall(r"busy for (\d+)% .* waits for frames (\d+)%", done.stdout)[0]
    assert 0 < int(busy) < 100
    assert int(busy) + int(waits) == pytest.approx(100, abs=1)


@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        (["nowhere.mp4"], "no such file or folder"),
        (["broken.mp4", "--workers", "1"], "none of 1 source can be measured: broken.mp4"),
        (["broken.mp4", "--workers", "100000"], "are too many for"),
        (["broken.mp4", "--out", "missing/shards"], "there is no folder"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    spacepatch_cli: SpacepatchCli, tmp_path: Path, asked: list[str], answer: str
) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"no video at all")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    done = spacepatch_cli("bench", *asked, cwd=tmp_path, env={"TMPDIR": str(temporary)})
    assert done.returncode == 2
    assert answer in done.stderr.splitlines()[-1]
    assert list(temporary.iterdir()) == []
    assert sorted(tmp_path.iterdir()) == [tmp_path / "broken.mp4", temporary]


def test_ctrl_c_removes_what_was_written(sample_clips: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "spacepatch", "bench", str(sample_clips), *LONG],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    # A plan of the sample: the workers are at it.
    # Not `rglob`, which fails where a folder goes away before its eyes.
    while process.poll() is None and not glob("**/plan.json", root_dir=tmp_path, recursive=True):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted: nothing was written" in errors
    assert list(tmp_path.iterdir()) == []


def test_counts_of_workers_end_where_they_were_told_to() -> None:
    assert worker_counts(1) == [1]
    assert worker_counts(2) == [1, 2]
    assert [count for count in worker_counts(6) if count in (1, 2, 4, 6)] == [1, 2, 4, 6]
    assert max(worker_counts(6)) == 6
    assert max(worker_counts(None)) > len(os.sched_getaffinity(0)) // 2


def test_the_best_are_the_fewest_that_are_as_fast_and_lose_nothing() -> None:
    def rows(*speeds: float, lost: int = 0) -> list[dict[str, Any]]:
        return [
            {"workers": 2**n, "tokens_per_second": speed, "lost_tokens": lost}
            for n, speed in enumerate(speeds)
        ]

    assert best_workers(rows(50, 98, 100)) == 2
    assert best_workers(rows(50, 96, 100)) == 4
    assert best_workers(rows(100, 90)) == 1
    swapping = {"workers": 8, "tokens_per_second": 500.0, "lost_tokens": 7}
    assert best_workers([*rows(50, 98, 100), swapping]) == 2
    assert best_workers([swapping]) is None


def test_stages_are_counted_while_somebody_looks_and_cost_nothing_else() -> None:
    with looking() as watch:
        with stage("outer"), stage("inner"):
            assert list(timed("made", iter("abc"))) == ["a", "b", "c"]
            counted("called", lambda: None)()
        with pytest.raises(ValueError, match="wrong"), stage("failed"):
            raise ValueError("wrong")
    assert set(watch.seconds) == {"outer", "inner", "made", "failed", OTHER}
    assert watch.counts == {"made": 3, "called": 1}
    items = iter("abc")
    assert timed("made", items) is items
    assert stage("outer") is stage("inner")
