"""Tasks on a Ray cluster: the driver's side, which submits them, watches them and stops them."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from spacepatch.config import RunConfig
from spacepatch.data import Task, TaskReport
from spacepatch.errors import MissingDependencyError, ResumeError, WorkerError
from spacepatch.executors.ray_task import Answer, Order, make_shard, part_of
from spacepatch.extras import needed
from spacepatch.latents.encoders import EncoderSettings
from spacepatch.limits import available_cores
from spacepatch.pipeline.planfile import Plan
from spacepatch.pipeline.running import JobReport, is_done
from spacepatch.workers import WorkerPool

WAIT_SECONDS = 1.0
"""How often the driver looks which nodes there are."""
LEAST_AHEAD, AHEAD = 4, 0.5
"""Tasks submitted beyond those that can run, so that no node waits for the driver, and a cluster
that grows by demand sees some: this many, or this part of them."""
MOST_STARTS = 5
"""Of a task whose node or worker is lost, until it is taken to be what kills them."""
PATIENCE_SECONDS = 300.0
"""Without a node that a task fits on: machines of a cloud take minutes to come."""
CONNECT_SECONDS = 10.0
VISIBLE_SECONDS = 60.0
"""For a file that another node wrote: NFS looks again after this long at the latest."""
STORE_BYTES = 100_000_000
"""Of Ray's object store on a cluster of our own: nothing but plans and reports passes it."""


@dataclass(slots=True)
class RayExecutor:
    """Each task is one of Ray's, made by a pool of killable workers like those of a local run."""

    config: RunConfig
    encoder: EncoderSettings | None
    pool: WorkerPool
    patience: float = PATIENCE_SECONDS
    """Seconds."""

    def run(
        self,
        plan: Plan,
        tasks: Sequence[Task],
        *,
        folder: Path,
        on_job: Callable[[JobReport], None],
        on_note: Callable[[str], None],
    ) -> Generator[TaskReport]:
        """As of `Executor`.

        Raises:
            WorkerError: no cluster can be reached, none of its nodes has what a task needs, or a
                task lost its node or worker too often.
            ResumeError: a node has other libraries, or another folder.
            Exception: what a task raised; errors of ours are never tried again.
        """
        if not tasks:
            return
        self.pool.retire()  # the plan is made: its workers would only wait
        with _connected(self.config) as ray:
            encoder = _for_nodes(self.encoder)
            flight = _Flight(ray, self, plan, folder.absolute(), encoder, deque(tasks), on_note)
            for answer in flight.land():
                for job in answer.jobs:
                    on_job(job)
                yield answer.task

    @property
    def gpus(self) -> float:
        """Of a task."""
        asked = self.config.gpus_per_task
        if asked is None:
            return 0.0 if self.config.encoder is None or self.config.device == "cpu" else 1.0
        return asked

    @property
    def needs(self) -> str:
        """What a task takes, in words."""
        gpus = f" and {self.gpus:g} GPU" if self.gpus else ""
        return f"{self.config.cpus_per_task} CPU{gpus}"

    def fits(self, resources: dict[str, float]) -> int:
        """Tasks that a node of these resources can run at once."""
        number = int(resources.get("CPU", 0.0) // self.config.cpus_per_task)
        if self.gpus:
            number = min(number, int(resources.get("GPU", 0.0) / self.gpus + 1e-6))
        return number


@dataclass(slots=True)
class _Flight:
    """Tasks under way on a cluster."""

    ray: Any
    asked: RayExecutor
    plan: Plan
    folder: Path
    encoder: EncoderSettings | None
    waiting: deque[Task]
    on_note: Callable[[str], None]
    running: dict[Any, tuple[Task, list[int]]] = field(default_factory=dict)
    """By Ray's reference: a task, and the rows of its sources in the whole plan."""
    starts: Counter[int] = field(default_factory=Counter)
    """Of each task, by its number."""
    roomless_since: float | None = None

    def land(self) -> Iterator[Answer]:
        """Submit what the cluster has room for; what each task answers, as it ends."""
        remote = self.ray.remote(
            num_cpus=self.asked.config.cpus_per_task, num_gpus=self.asked.gpus, max_retries=0
        )(make_shard)
        while self.waiting or self.running:
            room = self._room()
            while self.waiting and len(self.running) < room:
                self._submit(remote, self.waiting.popleft())
            ready, _ = self.ray.wait(list(self.running), timeout=WAIT_SECONDS)
            if ready:  # and whatever else is
                ready, _ = self.ray.wait(
                    list(self.running), num_returns=len(self.running), timeout=0
                )
            lost = 0
            for reference in ready:
                task, rows = self.running.pop(reference)
                answer = self._answer(reference, task)
                if answer is None:
                    self.waiting.appendleft(task)
                    lost += 1
                    continue
                jobs = tuple(replace(job, source=rows[job.source]) for job in answer.jobs)
                yield replace(answer, jobs=jobs)
            if lost:
                self.on_note(f"{lost} shards lost their node or its worker; they are made again")

    def _room(self) -> int:
        """How many tasks may be submitted: those that the nodes of now can run, and some ahead.

        Raises:
            WorkerError: for so long no node has had room for one.
        """
        nodes = [node for node in self.ray.nodes() if node["Alive"]]
        slots = sum(self.asked.fits(node["Resources"]) for node in nodes)
        if slots:
            self.roomless_since = None
        elif self.roomless_since is None:
            self.roomless_since = time.monotonic()
            self.on_note(
                f"none of the {len(nodes)} nodes of the cluster has {self.asked.needs}: waiting "
                f"{self.asked.patience:g} s for one that has"
            )
        elif time.monotonic() - self.roomless_since > self.asked.patience:
            raise WorkerError(
                f"none of the {len(nodes)} nodes of the Ray cluster has {self.asked.needs}, which "
                "a task takes: add such a node, or give another --cpus-per-task or "
                "--gpus-per-task; what is done is kept"
            )
        return slots + max(LEAST_AHEAD, int(slots * AHEAD))

    def _submit(self, remote: Any, task: Task) -> None:
        self.starts[task.number] += 1
        own, rows = part_of(self.plan, task)
        order = Order(own, self.folder, self.asked.config, self.encoder)
        self.running[remote.remote(order)] = task, rows

    def _answer(self, reference: Any, task: Task) -> Answer | None:
        """What a task that ended says; None where it was lost with its node or worker."""
        errors = self.ray.exceptions
        try:
            answer: Answer = self.ray.get(reference)
        except errors.RayTaskError as error:
            raise _ours(error) from None
        except (
            errors.WorkerCrashedError,
            errors.NodeDiedError,
            errors.ObjectLostError,
            errors.OutOfMemoryError,
        ) as error:
            if self.starts[task.number] < MOST_STARTS:
                return None
            raise WorkerError(
                f"shard {task.number}: its node or worker was lost {MOST_STARTS} times "
                f"({type(error).__name__}): see Ray's logs; where memory is short, give more "
                "--cpus-per-task or a smaller --shard-size"
            ) from None
        except errors.RayError as error:
            raise WorkerError(f"Ray: {type(error).__name__}: {_first_line(error)}") from None
        self._await_receipt(task)
        return answer

    def _await_receipt(self, task: Task) -> None:
        """Raise a ResumeError where what a node wrote is not in the folder that is here."""
        start = time.monotonic()
        while not is_done(self.folder, self.plan, task):
            if time.monotonic() - start > VISIBLE_SECONDS:
                raise ResumeError(
                    f"{self.folder}: the receipt of shard {task.number}, which a node has written, "
                    "is not to be seen here; give an --out that all nodes share"
                )
            time.sleep(WAIT_SECONDS)


def _for_nodes(encoder: EncoderSettings | None) -> EncoderSettings | None:
    """With an absolute path, where it is one: nodes work in other folders."""
    if encoder is None or not (path := Path(encoder.where).expanduser()).exists():
        return encoder
    return replace(encoder, spec=f"{encoder.kind}:{path.absolute()}")


def _ours(error: Any) -> BaseException:
    """What a task raised, as it raised it."""
    cause = error.cause
    if isinstance(cause, ModuleNotFoundError) or "No module named 'spacepatch" in str(error):
        return MissingDependencyError(
            f"a node of the cluster: {_first_line(cause)}: install the same spacepatch, with the "
            "same extras, on every node"
        )
    if isinstance(cause, Exception):
        return cause
    return WorkerError(f"Ray: a task was stopped by others: {_first_line(cause)}")


def _first_line(error: object) -> str:
    return next(iter(str(error).strip().splitlines()), "no reason is given")


@contextmanager
def _connected(config: RunConfig) -> Iterator[Any]:
    """Ray, connected to a cluster until the block ends, or as the caller had connected it.

    With its driver gone Ray ends all tasks, within a second or so. To cancel them before that can
    crash it (2.60: "Tried to complete task that was not pending"); so those of a caller who stays
    connected end when their shards are done.
    """
    # Ray prints what nodes and workers die of to stdout; what matters of it we say.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".*")
    ray = needed("ray", "ray", by="--executor ray", extra="ray")
    if ray.is_initialized():
        yield ray
        return
    is_main = threading.current_thread() is threading.main_thread()
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        _connect(ray, config)
    finally:
        if is_main:
            signal.signal(signal.SIGTERM, on_sigterm)  # Ray has set its own
    try:
        yield ray
    finally:
        ray.shutdown()


def _connect(ray: Any, config: RunConfig) -> None:
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    address = config.address or os.environ.get("RAY_ADDRESS") or None
    try:
        if address not in (None, "local"):
            _reach(address)
            ray.init(address=address, **quiet)
            return
        # Nobody asked whether a cluster of our own may tell Ray's makers of it.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        own = {"num_cpus": config.workers or available_cores(), "object_store_memory": STORE_BYTES}
        try:
            ray.init(address=address, include_dashboard=False, **own, **quiet)
        except ValueError:
            ray.init(**quiet)  # one runs here, and has its own CPUs
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        where = (
            f"--address {address}" if config.address else address or "the cluster of this machine"
        )
        raise WorkerError(
            f"Ray: {where}: cannot connect ({_first_line(error)}); see ray status, or give another "
            "--address, local for a cluster of its own"
        ) from None


def _reach(address: str) -> None:
    """Raise an OSError where nothing listens at HOST:PORT: Ray would try for two minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdecimal() and "//" not in host:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
