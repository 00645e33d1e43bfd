"""A pool of worker processes: deaths and hangs."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from pathlib import Path

import psutil
from worker_processes import workers_of

from spacepatch.workers import WorkerPool


def test_a_worker_that_dies_idle_costs_nothing() -> None:
    # Less patience than a run has: a worker of this test takes up a job in no time.
    pool = WorkerPool(workers=2, timeout=3, patience=3)
    with pool:
        assert list(pool.map(math.sqrt, iter([("a", 4.0)]))) == [("a", 2.0)]
        for _ in range(2):
            workers = workers_of(psutil.Process().pid)
            assert workers
            workers[0].kill()
            psutil.wait_procs(workers[:1], timeout=10)
            time.sleep(0.5)
            found = dict(pool.map(math.sqrt, iter([(n, float(n * n)) for n in range(20)])))
            assert found == {n: float(n) for n in range(20)}


def test_a_hang_is_noticed_while_others_end(tmp_path: Path) -> None:
    pool = WorkerPool(workers=2, timeout=1)
    start = time.monotonic()
    noticed = 0.0
    items = [("hang", 60.0), *((n, 0.02) for n in range(400))]
    with pool:
        for key, outcome in pool.map(time.sleep, iter(items)):
            if key == "hang":
                noticed = time.monotonic() - start
                assert outcome.reason == "timeout"
    # 400 naps on the worker that is left take 8 s.
    assert 1 <= noticed < 6


def test_workers_that_are_just_starting_end_without_a_word() -> None:
    script = (
        "import math; from spacepatch.workers import WorkerPool\n"
        "for _ in range(20):\n"
        "    with WorkerPool(workers=6, timeout=60) as pool:\n"
        "        next(pool.map(math.sqrt, iter([('a', 4.0)])))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
