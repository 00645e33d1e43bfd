"""One task on a node of a Ray cluster: what the worker process of Ray does."""

from __future__ import annotations

import os
import socket
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from spacepatch.config import RunConfig, parse_bytes
from spacepatch.data import Task, TaskReport
from spacepatch.errors import ResumeError, ShardError
from spacepatch.latents.encoders import EncoderSettings
from spacepatch.pipeline.planfile import Plan, read_plan_document
from spacepatch.pipeline.planning import environment_of
from spacepatch.pipeline.running import JobReport, run_tasks
from spacepatch.remote import configure, store_variables
from spacepatch.workers import WorkerPool


@dataclass(frozen=True, slots=True)
class Order:
    """What a node is told: one task, and as much of the plan as it needs."""

    plan: Plan
    """As `part_of` makes it."""
    folder: Path
    """Absolute: the output folder, the same one on every node."""
    config: RunConfig
    encoder: EncoderSettings | None


@dataclass(frozen=True, slots=True)
class Answer:
    """What a node says when a task is done."""

    task: TaskReport
    jobs: tuple[JobReport, ...]
    """Their sources are rows of the `Order`'s plan."""


def part_of(plan: Plan, task: Task) -> tuple[Plan, list[int]]:
    """The plan of one task alone, with the same ids, and the rows that its sources had.

    A plan of a million clips is not for every node: no task needs more of it than its own.
    """
    rows = sorted({clip.source for clip in task.clips})
    number = {row: place for place, row in enumerate(rows)}
    clips = tuple(replace(clip, source=number[clip.source]) for clip in task.clips)
    sources = tuple(plan.sources[row] for row in rows)
    own = replace(plan, sources=sources, tasks=(replace(task, clips=clips),), losses=())
    return own, rows


def make_shard(order: Order) -> Answer:
    """Make the shard of an order's one task, with killable workers of this process.

    Raises:
        ResumeError: this node has other libraries than the plan was made with, or sees another
            folder.
        Exception: as of `run_tasks`.
    """
    check_node(order)
    jobs: list[JobReport] = []
    try:
        (report,) = run_tasks(
            order.plan,
            order.plan.tasks,
            folder=order.folder,
            pool=_pool_of(order.config),
            encoder=order.encoder,
            on_job=jobs.append,
        )
    except BaseException:
        # Cancelled, or in error: its workers may be at work on what nobody waits for.
        _retire_pool()
        raise
    return Answer(report, tuple(jobs))


def check_node(order: Order) -> None:
    """Raise a ResumeError, naming this node, where it must not take part in the run."""
    planned, here = order.plan.environment, environment_of(order.config)
    differences = [
        f"{name} is {here.get(name)}, the plan was made with {planned.get(name)}"
        for name in sorted(planned.keys() | here.keys())
        if planned.get(name) != here.get(name)
    ]
    if differences:
        raise ResumeError(
            f"node {_node_name()}: {'; '.join(differences)}; install the same on every node"
        )
    try:
        found = read_plan_document(order.folder)["plan_id"]
    except (OSError, ShardError):
        found = None
    if found != order.plan.plan_id:
        raise ResumeError(
            f"node {_node_name()}: {order.folder} is not the folder that the run was started "
            "with (its plan.json is not there); give an --out that all nodes share"
        )


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
        _kept = (
            asked,
            WorkerPool(
                workers=workers,
                timeout=timeout,
                worker_memory=memory,
                prepare=partial(configure, *cache, store_variables()),
            ),
        )
    return _kept[1]


def _retire_pool() -> None:
    global _kept
    if _kept is not None:
        pool, _kept = _kept[1], None
        pool.retire()
