"""Join what ranks made: their receipts become a dataset, or what is missing gets named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from spacepatch.environment import environment
from spacepatch.errors import ResumeError, ShardError, UnfinishedError
from spacepatch.pipeline.finishing import RunSummary, finish_run
from spacepatch.pipeline.folder import our_plan
from spacepatch.pipeline.plan import PlannedTask
from spacepatch.pipeline.planfile import StoredPlan, open_plan
from spacepatch.pipeline.running import pending_tasks
from spacepatch.shards import shard_stem
from spacepatch.storage import lock, open_folder, sweep_temporary

NAMES_SHOWN = 20


def join_ranks(folder: str | Path, *, world_size: int | None = None) -> RunSummary:
    """Finish a run whose tasks ranks have done; it needs no source, and may be done again.

    Args:
        world_size: of the ranks, to name those that have something left to do.

    Raises:
        UnfinishedError: tasks are missing.
        ResumeError: a rank or a run is at work there, or it was made with other versions.
        ShardError: it is no output folder, or a table of a shard is damaged.
    """
    folder = open_folder(folder, writes=True)
    if our_plan(folder) is None:
        raise ShardError(f"{folder}: has no plan.json of spacepatch: give the --out of its ranks")
    with lock(folder):
        sweep_temporary(folder)
        plan = open_plan(folder)
        _check_versions(folder, plan)
        if missing := pending_tasks(folder, plan):
            raise _unfinished(folder, plan, missing, world_size)
        return finish_run(folder, plan)


def _check_versions(folder: Path, plan: StoredPlan) -> None:
    """Of what writes the merged tables: with others they would have other bytes."""
    now = environment()
    differences = [
        f"{name} was {plan.environment[name]}, is {now[name]}"
        for name in ("spacepatch", "pyarrow")
        if plan.environment[name] != now[name]
    ]
    if differences:
        raise ResumeError(
            f"{folder}: was begun differently: {', '.join(differences)}; finish it with the same"
        )


def _unfinished(
    folder: Path, plan: StoredPlan, missing: list[PlannedTask], world_size: int | None
) -> UnfinishedError:
    documents: list[dict[str, Any]] = []
    for task in missing:
        stem = shard_stem(plan.name, task.split, task.number)
        rank = None if world_size is None else task.number % world_size
        documents.append({"shard": stem, "task": task.number, "rank": rank})
    whose = "the ranks that have not ended"
    if world_size is not None:
        ranks = sorted({document["rank"] for document in documents})
        whose = f"rank{'s' * (len(ranks) > 1)} {_some(ranks)} of {world_size}"
    return UnfinishedError(
        f"{folder}: {len(missing)} of {len(plan.tasks)} shards are missing: "
        f"{_some([document['shard'] for document in documents])}; start {whose} again, then finish",
        missing=documents,
    )


def _some(names: list[Any]) -> str:
    shown = ", ".join(map(str, names[:NAMES_SHOWN]))
    return shown + (f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else "")
