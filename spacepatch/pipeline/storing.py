"""Convert a dataset to another store: tokens, references to their sources, or compressed tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from spacepatch.config import RunConfig, load_config
from spacepatch.config.stores import floor_of
from spacepatch.data import Task
from spacepatch.errors import ConfigError
from spacepatch.limits import available_cores
from spacepatch.pipeline.finishing import RunSummary
from spacepatch.pipeline.plan import Plan
from spacepatch.pipeline.planfile import StoredPlan
from spacepatch.pipeline.restoring import Restoring, restore
from spacepatch.pipeline.rewriting import (
    Progress,
    account_of,
    changed_plan,
    receipt_of,
    rewrite,
    write_again,
)
from spacepatch.pipeline.stored import read_packs, read_references
from spacepatch.shards import SegmentContent, ShardReceipt, shard_stem


def change_store(
    folder: Path,
    out: Path,
    before: Plan,
    store: str,
    *,
    restoring: Restoring,
    overwrite: bool,
    on_shard: Progress,
) -> RunSummary:
    """Write a dataset anew with another `store`: the same segments in the same packs and shards.

    What is at hand is not made again: references are had by leaving the tokens out, and exact
    tokens are stored otherwise. Else they are made of the sources, see `restore`.

    Raises:
        ConfigError: it is of that store, or can have no other one; or the sources are not said.
        As of `restore`.
    """
    config = _settings(folder, before, store)
    has_tokens = before.layout.store != "refs" and floor_of(_store_of(before)) is None
    if not has_tokens and (config.store != "refs" or before.layout.store == "refs"):
        return restore(folder, out, before, config, restoring, overwrite=overwrite)
    if restoring.roots:
        raise ConfigError(
            f"--source-root: nothing is decoded on the way from store {_store_of(before)} to "
            f"{config.store}: leave it out"
        )
    threads = restoring.config.workers or available_cores()

    def write_tasks(_: StoredPlan, plan: Plan, tasks: Sequence[Task]) -> Iterable[object]:
        for task in tasks:
            stem = shard_stem(before.name, task.split, task.number)
            receipt = receipt_of(folder, before, task)
            packs = _packs(folder, stem, receipt, config)
            write_again(out, plan, task, receipt, packs, threads=threads)
            yield task

    def is_outdated(plan: Plan, task: Task) -> bool:
        return account_of(receipt_of(folder, before, task)) != account_of(
            receipt_of(out, plan, task)
        )

    return rewrite(
        folder,
        out,
        changed_plan(before, config, before.tasks, before.environment),
        overwrite=overwrite,
        is_outdated=is_outdated,
        write_tasks=write_tasks,
        on_shard=on_shard,
    )


def _store_of(plan: Plan) -> str:
    """As the settings have it; a plan of before there were stores has tokens."""
    return str(plan.settings.get("store", "tokens"))


def _settings(folder: Path, plan: Plan, store: str) -> RunConfig:
    changed: dict[str, Any] = {"store": store, "checked": store == "refs"}
    settings = {key: value for key, value in (plan.settings | changed).items() if value is not None}
    config = load_config(settings)
    is_same = config.store == _store_of(plan)
    if is_same and config.checked == plan.settings.get("checked", False):
        kind = "of store refs, checked," if config.checked else f"of store {config.store}"
        raise ConfigError(f"{folder}: is {kind} already: nothing to convert")
    return config


def _packs(
    folder: Path, stem: str, receipt: ShardReceipt, config: RunConfig
) -> list[list[SegmentContent]]:
    """Of a shard, as they are written now."""
    if config.store == "refs":
        return list(read_references(folder, stem, receipt))
    return list(read_packs(folder, stem, receipt))
