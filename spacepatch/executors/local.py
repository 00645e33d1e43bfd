"""Sources and tasks by the workers of this process."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from spacepatch.config import RunConfig
from spacepatch.data import TaskReport
from spacepatch.executors.probing import probe_each
from spacepatch.latents.encoders import EncoderSettings
from spacepatch.pipeline.plan import AnyTask, PlanOfTasks
from spacepatch.pipeline.running import JobReport, run_tasks
from spacepatch.probes import Probed, ProbeJob
from spacepatch.workers import WorkerPool


@dataclass(frozen=True, slots=True)
class LocalExecutor:
    """All workers share a task, and begin the next one while its shard is written."""

    config: RunConfig
    encoder: EncoderSettings | None
    pool: WorkerPool

    def probe(
        self, jobs: Iterable[ProbeJob], *, on_note: Callable[[str], None]
    ) -> Generator[tuple[int, Probed]]:
        """As of `Executor`."""
        return probe_each(jobs, pool=self.pool)

    def run(
        self,
        plan: PlanOfTasks,
        tasks: Sequence[AnyTask],
        *,
        folder: Path,
        on_job: Callable[[JobReport], None],
        on_note: Callable[[str], None],
    ) -> Generator[TaskReport]:
        """As of `Executor`; errors as of `run_tasks`."""
        reports = run_tasks(
            plan,
            tasks,
            folder=folder,
            pool=self.pool,
            encoder=self.encoder,
            on_job=on_job,
            on_decoded=self.pool.retire,
        )
        with closing(reports):
            yield from reports

    def close(self) -> None:
        """The pool is its owner's to end."""
