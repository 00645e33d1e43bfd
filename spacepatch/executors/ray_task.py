"""A task on a node of a Ray cluster, which probes or makes a shard: what Ray's worker does."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from spacepatch.config import RunConfig, parse_bytes
from spacepatch.data import TaskReport
from spacepatch.errors import ResumeError, ShardError, StoreError
from spacepatch.executors.probing import probe_each
from spacepatch.latents.encoders import EncoderSettings
from spacepatch.pipeline.plan import Plan
from spacepatch.pipeline.planfile import read_plan_document
from spacepatch.pipeline.planhead import environment_of
from spacepatch.pipeline.running import JobReport, run_tasks
from spacepatch.probes import Probed, ProbeJob
from spacepatch.remote import check_credentials, configure, is_url, store_variables
from spacepatch.workers import WorkerPool


@dataclass(frozen=True, slots=True)
class ProbeOrder:
    """What a node is told to probe."""

    jobs: Sequence[ProbeJob]
    config: RunConfig
    environment: dict[str, str]
    """Of the driver."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a node says of an order's sources."""

    probed: list[Probed]
    """In the order of the jobs."""
    unseen: list[int]
    """Places of those whose files it cannot read."""
    node: str


@dataclass(frozen=True, slots=True)
class Order:
    """What a node is told to make: one task, and as much of the plan as it needs."""

    plan: Plan
    """Of this task alone."""
    folder: Path
    """Absolute: the output folder, the same one on every node."""
    config: RunConfig
    encoder: EncoderSettings | None


@dataclass(frozen=True, slots=True)
class Answer:
    """What a node says when a task is done."""

    task: TaskReport
    jobs: tuple[JobReport, ...]


def probe_here(order: ProbeOrder) -> Found:
    """Probe an order's sources, with killable workers of this process.

    Raises:
        ResumeError: this node has other libraries than the driver.
        StoreError: it has no credentials for the store of the sources.
    """
    check_libraries(order.environment, order.config)
    with _naming_node():
        check_credentials(job.source.uri for job in order.jobs)
    with _workers(order.config) as pool:
        found = dict(probe_each(order.jobs, pool=pool))
    probed = [found[place] for place in range(len(order.jobs))]
    unseen = [
        place
        for place, job in enumerate(order.jobs)
        if probed[place].reason == "io" and not is_url(job.source.uri)
        if not os.access(job.source.uri, os.R_OK)
    ]
    return Found(probed, unseen, _node_name())


def make_shard(order: Order) -> Answer:
    """Make the shard of an order's one task, with killable workers of this process.

    Raises:
        ResumeError: this node has other libraries than the plan was made with, or sees another
            folder.
        StoreError: it has no credentials for the store of the sources, or of the folder.
        Exception: as of `run_tasks`.
    """
    check_node(order)
    jobs: list[JobReport] = []
    with _workers(order.config) as pool:
        (report,) = run_tasks(
            order.plan,
            order.plan.tasks,
            folder=order.folder,
            pool=pool,
            encoder=order.encoder,
            on_job=jobs.append,
        )
    return Answer(report, tuple(jobs))


def check_libraries(planned: Mapping[str, str], config: RunConfig) -> None:
    """Raise a ResumeError, naming this node, where it would make other bytes than the driver."""
    here = environment_of(config)
    differences = [
        f"{name} is {here.get(name)}, the plan is made with {planned.get(name)}"
        for name in sorted(planned.keys() | here.keys())
        if planned.get(name) != here.get(name)
    ]
    if differences:
        raise ResumeError(
            f"node {_node_name()}: {'; '.join(differences)}; install the same on every node"
        )


def check_node(order: Order) -> None:
    """Raise a ResumeError or StoreError, naming this node, where it must not take part."""
    check_libraries(order.plan.environment, order.config)
    try:
        with _naming_node():
            check_credentials(source.source.uri for source in order.plan.sources)
            found = read_plan_document(order.folder)["plan_id"]
    except StoreError:
        raise
    except (OSError, ShardError):
        found = None
    if found != order.plan.plan_id:
        raise ResumeError(
            f"node {_node_name()}: {order.folder} is not the folder that the run was started "
            "with (its plan.json is not there); give an --out that all nodes share"
        )


@contextmanager
def _naming_node() -> Iterator[None]:
    """Of what a store says, here it is said where: each source would be a loss for it."""
    try:
        yield
    except StoreError as error:
        raise StoreError(f"node {_node_name()}: {error}") from None


def _node_name() -> str:
    """Host name, and in a cluster the address that Ray knows it by."""
    name = socket.gethostname()
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return name
    return f"{ray.util.get_node_ip_address()} ({name})"


# --- the workers, kept from task to task ---------------------------------------------------------

_kept: tuple[tuple[int, float, int, tuple[str | None, int]], WorkerPool] | None = None
"""What the pool of this process was made with, and the pool."""


@contextmanager
def _workers(config: RunConfig) -> Iterator[WorkerPool]:
    """The pool of this process; cancelled, or in error, its workers may be at work on what nobody
    waits for: then they are ended."""
    try:
        yield _pool_of(config)
    except BaseException:
        _retire_pool()
        raise


def _pool_of(config: RunConfig) -> WorkerPool:
    """The workers of this process: started once, for Ray gives it one task after the other."""
    global _kept
    asked = (
        config.cpus_per_task,
        config.timeout,
        parse_bytes(config.worker_memory),
        (config.cache_dir, config.cache_capacity),
    )
    if _kept is None or _kept[0] != asked:
        _retire_pool()
        # Each core has a worker; Ray lets each of them have threads for all cores of the task.
        os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"
        # Workers import the main module of their parent, and would import all of Ray with it.
        vars(sys.modules["__main__"]).pop("__file__", None)
        workers, timeout, memory, cache = asked
        pool = WorkerPool(
            workers=workers,
            timeout=timeout,
            worker_memory=memory,
            prepare=partial(configure, *cache, store_variables()),
        )
        pool.leave_nothing()
        _kept = asked, pool
    return _kept[1]


def _retire_pool() -> None:
    global _kept
    if _kept is not None:
        pool, _kept = _kept[1], None
        pool.retire()
