"""Write a finished dataset anew, shard by shard, resumable: what `convert` and `repack` share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from spacepatch.config import RunConfig, fingerprint
from spacepatch.data import Task
from spacepatch.errors import ConfigError, ResumeError, ShardError
from spacepatch.limits import available_cores
from spacepatch.pipeline.encoded import channel_sums
from spacepatch.pipeline.finishing import (
    RunSummary,
    finish_run,
    forget_retryable,
    listed_plans,
    unfinish,
)
from spacepatch.pipeline.folder import check_folder, clear_folder
from spacepatch.pipeline.placement import Placement
from spacepatch.pipeline.plan import Plan
from spacepatch.pipeline.planfile import (
    StoredPlan,
    open_plan,
    read_plan,
    read_plan_document,
)
from spacepatch.pipeline.planhead import content_fingerprints, largest_side, layout_of
from spacepatch.pipeline.planwriting import write_plan
from spacepatch.pipeline.running import pending_tasks
from spacepatch.shards import (
    DATASET,
    SegmentContent,
    ShardReceipt,
    read_receipt,
    receipt_path,
    shard_stem,
    write_shard,
)
from spacepatch.shards.receipts import write_receipt
from spacepatch.storage import lock, sweep_temporary

Progress = Callable[[int, int], None]
"""Told (done, total) after each shard."""
WriteTasks = Callable[[StoredPlan, Plan, Sequence[Task]], Iterable[object]]
"""Makes the shards of some tasks of a plan that is written, with their receipts; whatever it yields
comes after each."""


def read_finished(folder: Path) -> Plan:
    """The plan of a finished dataset.

    Raises:
        ShardError: it is none.
    """
    if not (folder / DATASET).is_file():
        raise ShardError(
            f"{folder}: no {DATASET}: not a dataset, or an unfinished one; "
            "run spacepatch tokenize to the end"
        )
    return read_plan(folder, generations=len(listed_plans(folder)))


def changed_plan(
    before: Plan, config: RunConfig, tasks: Sequence[Task], versions: dict[str, str]
) -> Plan:
    """A plan that is not written yet: the sources and losses of another with other settings.

    Args:
        versions: of the libraries that the new dataset depends on.
    """
    clips = [clip for task in tasks for clip in task.clips]
    prints = content_fingerprints(config.part("token"), config.part("layout"), before.encoder)
    return replace(
        before,
        plan_id="",
        name="",
        settings=config.part("token", "layout", "selection", "seed"),
        fingerprints=prints | {"environment": fingerprint(versions)},
        environment=versions,
        layout=layout_of(config, largest_side(clips), before.encoder),
        placement=Placement.of(config),
        tasks=tuple(tasks),
    )


def rewrite(
    folder: Path,
    out: Path,
    wanted: Plan,
    *,
    overwrite: bool,
    is_outdated: Callable[[Plan, Task], bool],
    write_tasks: WriteTasks,
    on_shard: Progress,
    retry_lost: bool = False,
) -> RunSummary:
    """Write the shards of a plan that are not there yet, and finish the dataset.

    Args:
        folder: the dataset that is read.
        wanted: the plan of the new one, not written yet.
        is_outdated: whether a shard that is there was made of what has been mended since.
        retry_lost: do shards again that lost something for an environmental reason.

    Raises:
        ConfigError: `out` is `folder`.
        ResumeError: `out` holds something else.
    """
    if folder.resolve() == out.resolve():
        raise ConfigError(f"{out}: is the dataset itself; give another folder to --out")
    check_folder(out)
    with lock(out):
        sweep_temporary(out)
        if overwrite:
            clear_folder(out)
        stored = _write_plan(out, wanted)
        plan = stored.whole()
        if retry_lost:
            forget_retryable(out, stored)
        again = {task.number for task in pending_tasks(out, stored)}
        again |= {
            task.number
            for task in plan.tasks
            if task.number not in again and is_outdated(plan, task)
        }
        if again:
            unfinish(out)
        total = len(plan.tasks)
        on_shard(total - len(again), total)
        left = [task for task in plan.tasks if task.number in again]
        for done, _ in enumerate(write_tasks(stored, plan, left), total - len(left) + 1):
            on_shard(done, total)
        return finish_run(out, stored)


def receipt_of(folder: Path, plan: Plan, task: Task) -> ShardReceipt:
    """Of the shard of a task."""
    return read_receipt(receipt_path(folder, shard_stem(plan.name, task.split, task.number)))


def account_of(receipt: ShardReceipt) -> tuple[object, ...]:
    """What a conversion does not change."""
    losses = [{**loss, "num_tokens": 0} for loss in receipt.losses]
    return receipt.packs, receipt.segments, receipt.observed, losses


def write_again(
    out: Path,
    plan: Plan,
    task: Task,
    receipt: ShardReceipt,
    packs: Sequence[Sequence[SegmentContent]],
    *,
    threads: int | None = None,
    **changed: Any,
) -> None:
    """Write a shard in another form, and its receipt: the same packs in the same order.

    Args:
        receipt: of the shard that the packs are of.
        threads: that compress tokens; None: as many as there are cores.
        changed: of its fields, besides those that hang on the form.
    """
    stem = shard_stem(plan.name, task.split, task.number)
    files: dict[str, dict[str, Any]] = {}
    checksums: list[int] = []
    if packs:
        files, checksums = write_shard(
            out,
            stem=stem,
            number=task.number,
            packs=packs,
            layout=plan.layout,
            threads=threads or available_cores(),
        )
    made = replace(
        receipt,
        task_id=task.task_id,
        plan_id=plan.plan_id,
        tokens=sum(content.row["num_kept"] for pack in packs for content in pack),
        members=plan.layout.members,
        token_width=plan.layout.token_width,
        pack_token_widths=[pack[0].tokens.shape[1] for pack in packs],
        pack_length=plan.layout.pack_length,
        files=files,
        pack_crc32c=checksums,
        # Of the same values in another order: their sums differ in the last bits.
        channel_sums=channel_sums(plan, packs),
    )
    write_receipt(out, stem, replace(made, **changed))


def _write_plan(out: Path, plan: Plan) -> StoredPlan:
    """Make it durable; an interrupted run goes on only with the very same one."""
    try:
        document = read_plan_document(out)
    except ShardError:
        if (out / "plan.json").exists():
            raise
        return write_plan(out, plan)
    sources = {entry.source.source_id: entry.source for entry in plan.sources}
    found = open_plan(out, sources.get)
    same = document["fingerprints"] == plan.fingerprints and document["inputs"] == plan.inputs
    if not same or _clips_of(found.whole()) != _clips_of(plan):
        raise ResumeError(
            f"{out}: holds another dataset; give a new or empty folder, or --overwrite"
        )
    return found


def _clips_of(plan: Plan) -> list[list[tuple[str, int]]]:
    """What is in each task."""
    return [
        [(plan.sources[clip.source].source.source_id, clip.clip) for clip in task.clips]
        for task in plan.tasks
    ]
