"""Sources and tasks on a Ray cluster: the driver's side, which submits and stops them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from spacepatch.config import RunConfig
from spacepatch.data import TaskReport
from spacepatch.errors import ResumeError
from spacepatch.executors.connection import connected
from spacepatch.executors.flight import WAIT_SECONDS, Flight, Needs, num_slots
from spacepatch.executors.ray_task import (
    Found,
    Order,
    ProbeOrder,
    make_shard,
    probe_here,
)
from spacepatch.latents.encoders import EncoderSettings
from spacepatch.pipeline.plan import AnyTask, PlanOfTasks
from spacepatch.pipeline.planhead import environment_of
from spacepatch.pipeline.running import JobReport, is_done
from spacepatch.probes import Batch, Probed, ProbeJob, cut_into_batches
from spacepatch.workers import WorkerPool

PATIENCE_SECONDS = 300.0
"""Without a node that a task fits on: machines of a cloud take minutes to come."""
VISIBLE_SECONDS = 60.0
"""For a file that another node wrote: NFS looks again after this long at the latest."""
MOST_PROBED, PROBED_BYTES = 256, 128_000_000
"""Sources of a task that probes, and their bytes: a second of work, beside which Ray's own is
little, and results that are small enough for its memory."""


@dataclass(slots=True)
class RayExecutor:
    """Sources are probed and shards made in tasks of Ray's, by pools of killable workers like that
    of a local run. It connects when it is first asked for something, until it is closed."""

    config: RunConfig
    encoder: EncoderSettings | None
    pool: WorkerPool
    patience: float = PATIENCE_SECONDS
    """Seconds."""
    _session: ExitStack = field(default_factory=ExitStack, init=False)
    _ray: Any = field(default=None, init=False)

    def probe(
        self, jobs: Iterable[ProbeJob], *, on_note: Callable[[str], None]
    ) -> Generator[tuple[int, Probed]]:
        """As of `Executor`.

        Raises:
            WorkerError, ResumeError: as of `run`.
            ResumeError: a node cannot read a file that can be read here.
        """
        ray = self._connect()
        slots, _ = num_slots(ray, self._needs)
        batches = cut_into_batches(
            jobs, workers=max(1, slots), most=MOST_PROBED, most_bytes=PROBED_BYTES
        )
        here = environment_of(self.config)
        flight: Flight[Batch, ProbeOrder, Found] = self._flight(
            probe_here, "batches of sources", _name_of_batch, on_note
        )
        orders = (
            (batch, ProbeOrder([job for _, job in batch], self.config, here)) for batch in batches
        )
        for batch, found in flight.land(orders):
            for number in found.unseen:
                _check_unreadable(batch[number][1].source.uri, found.node)
            for (place, _), probed in zip(batch, found.probed, strict=True):
                yield place, probed

    def run(
        self,
        plan: PlanOfTasks,
        tasks: Sequence[AnyTask],
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
        self.pool.retire()  # its workers would only wait
        encoder = _for_nodes(self.encoder)
        where = folder.absolute()
        orders = ((task, Order(plan.part(task), where, self.config, encoder)) for task in tasks)
        flight = self._flight(make_shard, "shards", lambda task: f"shard {task.number}", on_note)
        for task, answer in flight.land(orders):
            _await_receipt(where, plan, task)
            for job in answer.jobs:
                on_job(job)
            yield answer.task

    def close(self) -> None:
        """As of `Executor`: tasks that still run end with the connection."""
        self._session.close()
        self._ray = None

    def _connect(self) -> Any:
        if self._ray is None:
            self._ray = self._session.enter_context(connected(self.config))
        return self._ray

    def _flight(
        self,
        function: Callable[[Any], Any],
        things: str,
        name: Callable[[Any], str],
        on_note: Callable[[str], None],
    ) -> Flight[Any, Any, Any]:
        return Flight(self._connect(), function, self._needs, self.patience, things, name, on_note)

    @property
    def _needs(self) -> Needs:
        gpus = self.config.gpus_per_task
        if gpus is None:
            gpus = 0.0 if self.config.encoder is None or self.config.device == "cpu" else 1.0
        return Needs(self.config.cpus_per_task, gpus)


def _name_of_batch(batch: Batch) -> str:
    name = batch[0][1].source.name
    return name if len(batch) == 1 else f"{name} and the {len(batch) - 1} sources after it"


def _check_unreadable(path: str, node: str) -> None:
    """Raise a ResumeError where a file that a node cannot read can be read here."""
    if os.access(path, os.R_OK):
        raise ResumeError(
            f"node {node}: {path} cannot be read there, but can here; mount the sources on every "
            "node, under the same path"
        )


def _await_receipt(folder: Path, plan: PlanOfTasks, task: AnyTask) -> None:
    """Raise a ResumeError where what a node wrote is not in the folder that is here."""
    start = time.monotonic()
    while not is_done(folder, plan, task):
        if time.monotonic() - start > VISIBLE_SECONDS:
            raise ResumeError(
                f"{folder}: the receipt of shard {task.number}, which a node has written, is not "
                "to be seen here; give an --out that all nodes share"
            )
        time.sleep(WAIT_SECONDS)


def _for_nodes(encoder: EncoderSettings | None) -> EncoderSettings | None:
    """With an absolute path, where it is one: nodes work in other folders."""
    if encoder is None or not (path := Path(encoder.where).expanduser()).exists():
        return encoder
    return replace(encoder, spec=f"{encoder.kind}:{path.absolute()}")
