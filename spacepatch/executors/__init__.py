"""Where sources are probed and tasks are run: by workers of this process, or by a cluster."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Generator, Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from spacepatch.extras import needed

if TYPE_CHECKING:
    from spacepatch.data import TaskReport
    from spacepatch.pipeline import JobReport
    from spacepatch.pipeline.plan import AnyTask, PlanOfTasks
    from spacepatch.probes import Probed, ProbeJob


class Executor(Protocol):
    """Made with `config`, the `encoder` (as settings) and the `pool` of a run, by their names."""

    def probe(
        self, jobs: Iterable[ProbeJob], *, on_note: Callable[[str], None]
    ) -> Generator[tuple[int, Probed]]:
        """(place in `jobs`, what was found) of each, in any order.

        `jobs` are read as there is room for them: never all of them at once.
        """

    def run(
        self,
        plan: PlanOfTasks,
        tasks: Sequence[AnyTask],
        *,
        folder: Path,
        on_job: Callable[[JobReport], None],
        on_note: Callable[[str], None],
    ) -> Generator[TaskReport]:
        """Make the shards of `tasks`; a report of each as it ends.

        Closed before its end, it stops what still runs; what is finished stays.
        """

    def close(self) -> None:
        """Let go of what it holds: it is asked nothing more."""


def _executor(module: str, name: str) -> Callable[..., Executor]:
    """A class of a module that is imported when it is called: executors stand on the pipeline,
    which chooses among them."""

    def make(**asked: Any) -> Executor:
        found = importlib.import_module(f"spacepatch.executors.{module}")
        executor: Executor = getattr(found, name)(**asked)
        return executor

    return make


def check_executor(word: str) -> None:
    """Raise a MissingDependencyError, before there is a plan, where the executor cannot run."""
    if word == "ray" and find_spec("ray") is None:
        needed("ray", "ray", by="--executor ray", extra="ray")


EXECUTORS: dict[str, Callable[..., Executor]] = {
    "local": _executor("local", "LocalExecutor"),
    "ray": _executor("on_ray", "RayExecutor"),
}
