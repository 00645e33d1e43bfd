"""A pool of killable worker processes: a crash or a hang costs one job, never the run."""

from __future__ import annotations

import gc
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, CancelledError
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import get_all_start_methods, get_context
from multiprocessing.context import BaseContext
from multiprocessing.util import get_temp_dir
from types import TracebackType
from typing import Any

from spacepatch.errors import WorkerError
from spacepatch.limits import WORKER_MEMORY, give_back_large_blocks, limit_itself
from spacepatch.orphans import clean_up_after_parent, die_with_parent

MAX_JOBS_PER_WORKER = 2000
"""Jobs after which a worker is replaced: whatever a decoder leaks ends there."""

IN_FLIGHT_PER_WORKER = 3
"""Jobs handed to the pool a worker: one running, and the next ones at hand."""

POLL_SECONDS = 0.1
PEBBLE_SLEEPS_SECONDS = 0.02
"""How long the pool takes at most to see that a worker died, or that no job will come."""
LEAST_PATIENCE_SECONDS = 30.0
"""How long a free worker may leave a job lying before the pool is taken for broken."""
MOST_REVIVALS = 3
"""Pools that may break in one run before it is the machine's fault."""


@dataclass(frozen=True, slots=True)
class Fault:
    """How a job ended that gave no result; a reason of the closed list of losses."""

    reason: str
    message: str
    stage: str = "decode"


@dataclass(slots=True)
class _Running:
    key: Any
    function: Callable[..., Any]
    argument: Any
    slot: int
    attempts: int
    pool: int = 0
    """Which of the pools it was given to."""
    future: Any = None
    queued: float = 0.0
    beat: int = 0
    since: float = 0.0
    timed_out: bool = False


def start_importing() -> None:
    """Have what workers are forked from import what they need, while the caller imports its own.

    Workers are not forked from the caller, whose threads and locks they would inherit.
    """
    _context()


def _context() -> BaseContext:
    """How workers start: forked from a server, which imports once for all, where there can be one;
    it begins to import now."""
    if "forkserver" in get_all_start_methods():
        from multiprocessing import forkserver, resource_tracker

        context = get_context("forkserver")
        context.set_forkserver_preload(["spacepatch.preloaded"])
        # Or the server starts it, which lets Ctrl-C through again, to a server that yet imports.
        resource_tracker.ensure_running()
        # It listens on a socket in the folder for temporary files, whose path may be too long.
        with suppress(OSError), _without_interrupts():
            forkserver.ensure_running()
            return context
    return get_context("spawn")


class _KeepingContext:
    """A context that keeps the locks it makes: pebble removes those of a pool before it ends its
    workers, and one that just starts would not find them, and say so."""

    def __init__(self, context: BaseContext) -> None:
        self._context = context
        self.locks: list[Any] = []

    def RLock(self) -> Any:  # noqa: N802  # a context's own name
        self.locks.append(self._context.RLock())
        return self.locks[-1]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Processes inherit the mask: before they can ignore Ctrl-C, it must not reach them."""
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


class WorkerPool:
    """Runs `function(argument)` in worker processes; results come as they are ready.

    A job that gives no sign of life (`beat`) for `timeout` seconds is killed and ends as a `Fault`
    (timeout). A job whose worker dies is tried once more, then ends as a `Fault` (crash, or
    out_of_memory where the system killed it).

    Args:
        workers: processes.
        timeout: seconds.
        patience: seconds that a free worker may leave a job lying, before the pool is taken for
            broken; `timeout` at least.
        worker_memory: bytes that a worker may have, without those it shares with the parent.
        prepare: called in each worker before its first job; can be pickled.
    """

    def __init__(
        self,
        *,
        workers: int,
        timeout: float,
        worker_memory: int = WORKER_MEMORY,
        patience: float = LEAST_PATIENCE_SECONDS,
        prepare: Callable[[], None] | None = None,
    ) -> None:
        self._context = _KeepingContext(_context())
        self.capacity = workers * IN_FLIGHT_PER_WORKER
        self.workers = workers
        self._timeout = timeout
        self._worker_memory = worker_memory
        self._prepare = prepare
        self._patience = max(timeout, patience)
        self._beats = self._context.RawArray("Q", self.capacity)
        self._slots = list(range(self.capacity))
        self._running: dict[int, _Running] = {}
        self._finished: queue.SimpleQueue[tuple[_Running, Any] | None] = queue.SimpleQueue()
        self._looked = time.monotonic()
        self._pools = 0
        self._pool = self._make_pool()

    def _make_pool(self) -> Any:
        from pebble import CONSTS, ProcessPool

        CONSTS.sleep_unit = PEBBLE_SLEEPS_SECONDS
        return ProcessPool(
            max_workers=self.workers,
            max_tasks=MAX_JOBS_PER_WORKER,
            initializer=_start_worker,
            initargs=(self._beats, self._worker_memory, get_temp_dir(), self._prepare),
            context=self._context,
        )

    def _revive(self, broken: int) -> None:
        """Replace pool number `broken`, and start its jobs again in the new one."""
        if broken != self._pools:
            return
        if self._pools == MOST_REVIVALS:
            raise WorkerError(
                "worker processes die as they start: from Python, call spacepatch in a file, under "
                "if __name__ == '__main__'; else see whether memory or processes are limited here"
            )
        self._pools += 1
        old, self._pool = self._pool, self._make_pool()
        jobs = [job for job in self._running.values() if not job.timed_out]
        for job in jobs:
            job.future = None  # whatever the old pool still says of it
        old.stop()
        old.join()
        for job in jobs:
            self._start(job)

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.retire()

    def retire(self) -> None:
        """End the workers now: no job will come any more."""
        self._pool.stop()
        self._pool.join()
        self._context.locks.clear()

    def leave_nothing(self) -> None:
        """See that temporary files and semaphores go with this process, even where it is killed
        together with all of its workers."""
        if self._pool.active:  # asked so, it starts, and makes its locks
            names = [lock._semlock.name for lock in self._context.locks]
            arguments = (get_temp_dir(), names)
            self._context.Process(target=clean_up_after_parent, args=arguments, daemon=True).start()

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

    def wake(self) -> None:
        """Let `next_finished` return now; may be called from any thread."""
        self._finished.put(None)

    def next_finished(self) -> tuple[Any, Any] | None:
        """Wait for any job: its key, and its result or `Fault`; None where it was woken.

        Raises:
            WorkerError: workers die as they start.
            Exception: what the function raised; our own bugs are not hidden as losses.
        """
        while True:
            self._stop_stalled()
            try:
                finished = self._finished.get(timeout=POLL_SECONDS)
            except queue.Empty:
                continue
            if finished is None:
                return None
            job, future = finished
            outcome = self._outcome(job) if future is job.future else None
            if outcome is None:
                continue
            del self._running[job.slot]
            # The slot used longest ago comes next: a killed worker may still beat in its own.
            self._slots.insert(0, job.slot)
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
            finished = self.next_finished()
            if finished is not None:
                yield finished

    def _start(self, job: _Running) -> None:
        self._beats[job.slot] = 0
        job.beat, job.since = 0, time.monotonic()
        job.queued = job.since
        self._running[job.slot] = job
        while True:
            job.pool = self._pools
            try:
                with _without_interrupts():
                    future = self._pool.schedule(_run, args=(job.slot, job.function, job.argument))
            except RuntimeError:
                self._revive(job.pool)  # a worker died while it had nothing to do
                if job.future is not None:
                    return
            else:
                break
        job.future = future
        future.add_done_callback(lambda done: self._finished.put((job, done)))

    def _stop_stalled(self) -> None:
        now = time.monotonic()
        asleep = now - self._looked
        if asleep < POLL_SECONDS:
            return
        self._looked = now
        started = 0
        for job in self._running.values():
            if asleep > 10 * POLL_SECONDS:
                # We were stopped (Ctrl-Z) or busy: nobody can say what the workers did meanwhile.
                job.since += asleep
                job.queued += asleep
            beat = self._beats[job.slot]
            started += beat > 0
            # 0: still waiting for a worker, which is no fault of the job.
            if beat != job.beat or beat == 0:
                job.beat, job.since = beat, now
            elif now - job.since > self._timeout and not job.timed_out:
                job.timed_out = True
                job.future.cancel()
        if self._running and not self._pool.active:
            self._revive(self._pools)
        elif started < self.workers and any(
            self._beats[job.slot] == 0 and now - job.queued > self._patience
            for job in self._running.values()
        ):
            # A job that no worker took though one is free: it was lost with its worker.
            self._revive(self._pools)

    def _outcome(self, job: _Running) -> tuple[Any] | None:
        """The result or `Fault` in a tuple; None where the job was started once more."""
        from pebble import ProcessExpired

        try:
            return (job.future.result(),)
        except (CancelledError, BrokenExecutor):
            if job.timed_out:
                message = f"no new frame for {self._timeout:g} s; raise --timeout if it is slow"
                return (Fault("timeout", message),)
            self._revive(job.pool)
            return None
        except MemoryError:
            message = f"it needs more than {self._worker_memory / 1e9:g} GB; raise --worker-memory"
            return (Fault("out_of_memory", message),)
        except ProcessExpired as expired:
            if job.attempts < 2:
                job.attempts += 1
                self._start(job)
                return None
            if expired.exitcode == -signal.SIGKILL:
                # Nobody of ours sends it but for a timeout.
                message = "the system killed its worker twice (SIGKILL): give fewer --workers"
                return (Fault("out_of_memory", message),)
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


def _start_worker(beats: Any, memory: int, folder: str, prepare: Callable[[], None] | None) -> None:
    global _beats
    _beats = beats
    # Ctrl-C reaches the whole process group; only the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=die_with_parent, args=(folder,), daemon=True).start()
    import spacepatch.preloaded  # noqa: F401  # where no server has

    if prepare is not None:
        prepare()
    limit_itself(memory)
    give_back_large_blocks()
    # What is loaded now stays: the collections after each job need not look at it.
    gc.freeze()


def _run(slot: int, function: Callable[[Any], Any], argument: Any) -> Any:
    global _slot
    _slot = slot
    beat()
    try:
        return function(argument)
    finally:
        # PyAV's containers, streams and decoders refer to each other in circles.
        gc.collect()
