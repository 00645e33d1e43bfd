"""Tasks by the workers of this process, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from spacepatch.config import RunConfig
from spacepatch.data import Task, TaskReport
from spacepatch.latents.encoders import EncoderSettings
from spacepatch.pipeline.planfile import Plan
from spacepatch.pipeline.running import JobReport, run_tasks
from spacepatch.workers import WorkerPool


@dataclass(frozen=True, slots=True)
class LocalExecutor:
    """All workers share a task, and begin the next one while its shard is written."""

    config: RunConfig
    encoder: EncoderSettings | None
    pool: WorkerPool

    def run(
        self,
        plan: Plan,
        tasks: Sequence[Task],
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
