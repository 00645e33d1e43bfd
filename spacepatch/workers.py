"""A pool of killable worker processes: a crash or a hang costs one job, never the run."""

from __future__ import annotations

import gc
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, CancelledError
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from types import TracebackType
from typing import Any

from spacepatch.errors import WorkerError

MAX_JOBS_PER_WORKER = 2000
"""Jobs after which a worker is replaced: whatever a decoder leaks ends there."""

IN_FLIGHT_PER_WORKER = 3
"""Jobs handed to the pool a worker: one running, and the next ones at hand."""


@dataclass(frozen=True, slots=True)
class Fault:
    """How a job ended that gave no result; a reason of the closed list of losses."""

    reason: str
    message: str


@dataclass(slots=True)
class _Running:
    key: Any
    function: Callable[..., Any]
    argument: Any
    slot: int
    attempts: int
    future: Any = None
    beat: int = 0
    since: float = 0.0
    timed_out: bool = False


class WorkerPool:
    """Runs `function(argument)` in worker processes; results come as they are ready.

    A job that gives no sign of life (`beat`) for `timeout` seconds is killed and ends as a `Fault`
    (timeout). A job whose worker dies is tried once more, then ends as a `Fault` (crash).
    """

    def __init__(self, *, workers: int, timeout: float) -> None:
        from pebble import ProcessPool

        context = get_context("spawn")
        self.capacity = workers * IN_FLIGHT_PER_WORKER
        self.workers = workers
        self._timeout = timeout
        self._beats = context.RawArray("Q", self.capacity)
        self._slots = list(range(self.capacity))
        self._running: dict[int, _Running] = {}
        self._finished: queue.SimpleQueue[_Running] = queue.SimpleQueue()
        self._pool = ProcessPool(
            max_workers=workers,
            max_tasks=MAX_JOBS_PER_WORKER,
            initializer=_start_worker,
            initargs=(self._beats, os.getpid()),
            context=context,
        )

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.stop()  # type: ignore[no-untyped-call]
        self._pool.join()

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def has_room(self) -> bool:
        """Whether `submit` may be called now: queues are bounded."""
        return bool(self._slots)

    def submit(self, key: Any, function: Callable[[Any], Any], argument: Any) -> None:
        """Start a job; `key` comes back with its result."""
        self._start(_Running(key, function, argument, self._slots.pop(), attempts=1))

    def next_finished(self) -> tuple[Any, Any]:
        """Wait for any job: its key, and its result or `Fault`.

        Raises:
            Exception: what the function raised; our own bugs are not hidden as losses.
        """
        while True:
            try:
                job = self._finished.get(timeout=0.1)
            except queue.Empty:
                self._stop_stalled()
                continue
            outcome = self._outcome(job)
            if outcome is None:
                continue
            del self._running[job.slot]
            self._slots.append(job.slot)
            return job.key, outcome[0]

    def map(
        self, function: Callable[[Any], Any], items: Iterator[tuple[Any, Any]]
    ) -> Iterator[tuple[Any, Any]]:
        """(key, result or `Fault`) for each (key, argument), in order of arrival."""
        waiting = True
        while True:
            while waiting and self.has_room:
                try:
                    key, argument = next(items)
                except StopIteration:
                    waiting = False
                else:
                    self.submit(key, function, argument)
            if not self._running:
                return
            yield self.next_finished()

    def _start(self, job: _Running) -> None:
        self._beats[job.slot] = 0
        job.beat, job.since = 0, time.monotonic()
        self._running[job.slot] = job
        job.future = self._pool.schedule(_run, args=(job.slot, job.function, job.argument))
        job.future.add_done_callback(lambda _: self._finished.put(job))

    def _stop_stalled(self) -> None:
        now = time.monotonic()
        for job in self._running.values():
            beat = self._beats[job.slot]
            # 0: still waiting for a worker, which is no fault of the job.
            if beat != job.beat or beat == 0:
                job.beat, job.since = beat, now
            elif now - job.since > self._timeout and not job.timed_out:
                job.timed_out = True
                job.future.cancel()

    def _outcome(self, job: _Running) -> tuple[Any] | None:
        """The result or `Fault` in a tuple; None where the job was started once more."""
        from pebble import ProcessExpired

        try:
            return (job.future.result(),)
        except CancelledError:
            message = f"no new frame for {self._timeout:g} s; raise --timeout if it is just slow"
            return (Fault("timeout", message),)
        except BrokenExecutor:
            raise WorkerError(
                "worker processes do not start: from Python, call spacepatch in a file, under "
                "if __name__ == '__main__'"
            ) from None
        except MemoryError:
            return (Fault("out_of_memory", "the worker ran out of memory"),)
        except ProcessExpired as expired:
            if job.attempts < 2:
                job.attempts += 1
                self._start(job)
                return None
            return (Fault("crash", f"killed its worker twice ({_cause_of_death(expired)})"),)


def _cause_of_death(expired: Any) -> str:
    code = expired.exitcode
    if code is not None and code < 0:
        try:
            return signal.Signals(-code).name
        except ValueError:
            return f"signal {-code}"
    return f"exit code {code}"


# --- inside a worker ---------------------------------------------------------------------------

_beats: Any = None
_slot = 0


def beat() -> None:
    """A sign of life of the running job: call it for every frame decoded."""
    if _beats is not None:
        _beats[_slot] += 1


def _start_worker(beats: Any, parent: int) -> None:
    global _beats
    _beats = beats
    # Ctrl-C reaches the whole process group; only the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with, args=(parent,), daemon=True).start()
    # Imported while the parent is still listing sources.
    import av  # noqa: F401

    import spacepatch.jobs  # noqa: F401

    # What is loaded now stays: the collections after each job need not look at it.
    gc.freeze()


def _die_with(parent: int) -> None:
    """A worker whose parent was killed must not decode on, or hang on, for nobody."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _run(slot: int, function: Callable[[Any], Any], argument: Any) -> Any:
    global _slot
    _slot = slot
    beat()
    try:
        return function(argument)
    finally:
        # PyAV's containers, streams and decoders refer to each other in circles.
        gc.collect()


def available_cores() -> int:
    """Cores that this process may use: affinity and cgroup limits respected, at least one."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    for quota in _cgroup_quotas():
        cores = min(cores, max(1, int(quota)))
    return cores


def _cgroup_quotas() -> Iterator[float]:
    try:
        limit, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if limit != "max":
            yield int(limit) / int(period)
    except (OSError, ValueError):
        pass
    try:
        folder = Path("/sys/fs/cgroup/cpu")
        limit = (folder / "cpu.cfs_quota_us").read_text()
        if int(limit) > 0:
            yield int(limit) / int((folder / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError):
        pass
