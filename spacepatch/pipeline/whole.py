"""The whole way in one call: list, plan or resume, run, finish."""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from spacepatch.config import RunConfig, parse_bytes
from spacepatch.data import Loss, TaskReport
from spacepatch.errors import ConfigError, ResumeError, ShardError
from spacepatch.executors import EXECUTORS, Executor, check_executor
from spacepatch.hints import ignored_files, no_videos
from spacepatch.limits import available_cores
from spacepatch.listings import Listing
from spacepatch.packers import check_packer
from spacepatch.pipeline.appending import append_to
from spacepatch.pipeline.encoders import Encoded, resolve_encoder, stride_note
from spacepatch.pipeline.finishing import (
    RunSummary,
    finish_run,
    finished,
    finished_losses,
    forget_retryable,
    unfinish_for,
)
from spacepatch.pipeline.folder import check_folder, clear_folder
from spacepatch.pipeline.losscount import LossCount
from spacepatch.pipeline.plan import PlannedTask
from spacepatch.pipeline.planfile import StoredPlan, open_plan, read_plan_document
from spacepatch.pipeline.planning import Later, forget_parts, plan_run, probe_job
from spacepatch.pipeline.resuming import check_inputs, check_plan
from spacepatch.pipeline.running import JobReport, pending_tasks
from spacepatch.ranks import Rank, note_of_processes
from spacepatch.remote import configure, reachable, store_variables
from spacepatch.selection import parse_share, select_sources
from spacepatch.shards import shard_stem
from spacepatch.sources import list_sources
from spacepatch.storage import lock, lock_rank, open_folder, sweep_temporary
from spacepatch.wording import counted
from spacepatch.workers import WorkerPool

MOST_WORKERS_PER_CORE = 8
"""Slow storage may want more workers than cores; this many are a mistake."""
NAMED_SOURCES = 3
"""In an error's line."""


@dataclass(frozen=True, slots=True)
class Watch:
    """Who is told what happens; the library prints nothing."""

    on_probed: Callable[[int, int], None] = lambda done, total: None
    """(done, total) sources."""
    on_start: Callable[[StoredPlan, Sequence[PlannedTask]], None] = lambda plan, pending: None
    """The plan, and its tasks that are still to be done."""
    on_note: Callable[[str], None] = lambda note: None
    """Something that the user should know, and that stops nothing."""
    on_job: Callable[[JobReport], None] = lambda report: None
    on_task: Callable[[TaskReport], None] = lambda report: None


def list_inputs(arguments: Sequence[str], config: RunConfig, *, root: Path | str | None) -> Listing:
    """The sources of a run, after --sample, --limit and --split.

    Raises:
        ConfigError: nothing is left to read.
    """
    configure(config.cache_dir, config.cache_capacity)
    listing = list_sources(arguments, root=root, allow_network=config.allow_network)
    if not listing.sources and not listing.missing:
        raise ConfigError(no_videos(arguments, num_ignored=listing.num_ignored))
    selected = select_sources(
        listing, seed=config.seed, sample=config.sample, limit=config.limit, split=config.split
    )
    if not len(selected):
        raise ConfigError(f"sample: {config.sample} of the sources leaves none")
    return reachable(selected)


def make_pool(config: RunConfig) -> WorkerPool:
    """The killable workers of this run.

    Raises:
        ConfigError: so many that the machine would only swap.
    """
    workers = config.workers or available_cores()
    check_workers(workers)
    memory = parse_bytes(config.worker_memory)
    return WorkerPool(
        workers=workers,
        timeout=config.timeout,
        worker_memory=memory,
        prepare=partial(configure, config.cache_dir, config.cache_capacity, store_variables()),
    )


def check_workers(workers: int) -> None:
    """Raise a ConfigError for so many that the machine would only swap."""
    cores = available_cores()
    if workers > MOST_WORKERS_PER_CORE * cores:
        raise ConfigError(
            f"workers: {workers} are too many for {cores} cores; a worker keeps a core busy, "
            f"so give up to {MOST_WORKERS_PER_CORE * cores}, or leave it out"
        )


def tokenize(
    arguments: Sequence[str],
    *,
    out: str | Path,
    config: RunConfig,
    root: Path | str | None = None,
    overwrite: bool = False,
    append: bool = False,
    retry_lost: bool = False,
    watch: Watch | None = None,
) -> RunSummary:
    """Turn sources into a dataset in `out`; a second call goes on where the first one stopped.

    Args:
        arguments: SOURCE arguments, see `list_sources`.
        out: a folder on local disk, or the URL of one on an object store.
        overwrite: begin anew; removes what a former run wrote to `out`, and nothing else.
        append: add what is new among the sources to what is there, as a generation of its own.
        retry_lost: do again what was lost to timeout, crash, out_of_memory or io.

    Raises:
        ConfigError: wrong arguments or settings.
        ResumeError: `out` belongs to another run, or to no run of ours.
        LossLimitError: more sources are lost than `max_losses`; resumable.
        OSError: `out` cannot be written; resumable.
    """
    check_append(append, overwrite)
    watch = watch or Watch()
    if note := note_of_processes(os.environ):
        watch.on_note(note)
    out = open_folder(out, writes=True)
    listing = list_inputs(arguments, config, root=root)
    check_folder(out)
    with ExitStack() as stack:
        pool = stack.enter_context(make_pool(config))
        # First, so that a wrong one leaves no folder behind.
        encoded = _resolve(config, pool, watch)
        stack.enter_context(lock(out))
        sweep_temporary(out)
        if overwrite:
            clear_folder(out)
        executor = stack.enter_context(_executor(encoded, pool))
        plan = _plan_or_resume(out, encoded, listing, executor, watch, append)
        if retry_lost:
            if append or len(plan.generations) > 1:
                _note_unplanned(plan, watch, "of a dataset that is appended to they stay lost")
            elif _is_probed_now(plan, config, executor, watch):
                # A plan that a timeout made smaller is not the untroubled one: it is made anew.
                clear_folder(out)
                plan = _plan_or_resume(out, encoded, listing, executor, watch, append)
            forget_retryable(out, plan)
        pending = pending_tasks(out, plan)
        watch.on_start(plan, pending)
        if append and not pending and (summary := finished(out, plan)) is not None:
            return summary
        _run(plan, pending, out, encoded, executor, watch, num_sources=plan.num_sources)
        return finish_run(out, plan)


@dataclass(frozen=True, slots=True)
class RankSummary:
    """What one rank did. Which sources are lost whole, only all ranks together can tell."""

    rank: Rank
    num_own: int
    """Shards that are its own."""
    made: tuple[TaskReport, ...]
    """Now; what a former start made is not among them."""
    losses: tuple[Loss, ...]
    """Of all of its shards."""


def tokenize_rank(
    arguments: Sequence[str],
    *,
    out: str | Path,
    config: RunConfig,
    rank: Rank,
    root: Path | str | None = None,
    retry_lost: bool = False,
    watch: Watch | None = None,
) -> RankSummary:
    """Do one rank's tasks of the plan in `out`, beside the other ranks; `join_ranks` ends the run.

    Of the inputs it opens those of its own tasks; `retry_lost` and `max_losses` are about these.

    Args:
        arguments: those that the plan was made of; see `tokenize` for the others.

    Raises:
        ResumeError: there is no plan, or that of another run, or who must not is at work there.
        As of `tokenize`.
    """
    watch = watch or Watch()
    out = open_folder(out, writes=True)
    if not (out / "plan.json").is_file():
        sources = shlex.join(arguments) if len(arguments) <= NAMED_SOURCES else "SOURCE..."
        raise ResumeError(
            f"{out}: ranks share a plan, and there is none; make it once, with the same settings: "
            f"spacepatch plan {sources} --out {shlex.quote(str(out))}"
        )
    listing = list_inputs(arguments, config, root=root)
    check_folder(out)
    with ExitStack() as stack:
        pool = stack.enter_context(make_pool(config))
        encoded = _resolve(config, pool, watch)
        stack.enter_context(lock_rank(out, rank.number, rank.world_size))
        check_plan(read_plan_document(out), encoded.config, encoded.facts)
        plan = open_plan(out, listing.find)
        part = replace(plan, tasks=tuple(task for task in plan.tasks if rank.owns(task.number)))
        check_inputs(part, listing)
        sweep_temporary(out, {shard_stem(plan.name, t.split, t.number) for t in part.tasks})
        if retry_lost:
            _note_unplanned(plan, watch, "--retry-lost without --rank tries these again")
            forget_retryable(out, part)
        pending = pending_tasks(out, part)
        unfinish_for(out, plan, pending)
        watch.on_start(part, pending)
        made: list[TaskReport] = []

        def on_task(report: TaskReport) -> None:
            made.append(report)
            watch.on_task(report)

        noted = replace(watch, on_task=on_task)
        executor = stack.enter_context(_executor(encoded, pool))
        # What was lost before there were tasks is no rank's.
        num_jobs = sum(task.num_jobs for task in part.tasks)
        _run(part, pending, out, encoded, executor, noted, num_sources=num_jobs)
        losses = [loss for _, own in finished_losses(out, part, part.tasks) for loss in own]
        return RankSummary(rank, len(part.tasks), tuple(made), tuple(losses))


def make_plan(
    arguments: Sequence[str],
    *,
    config: RunConfig,
    root: Path | str | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    append: bool = False,
    watch: Watch | None = None,
) -> StoredPlan:
    """Everything up to the first decode; with `out`, durable for `tokenize` to follow.

    Returns:
        The plan, on disk; without `out`, for as long as it is held.

    Raises:
        As of `tokenize`.
    """
    check_append(append, overwrite)
    if append and out is None:
        raise ConfigError("append: adds to a dataset; say with --out to which")
    watch = watch or Watch()
    listing = list_inputs(arguments, config, root=root)
    if note := ignored_files(listing):
        watch.on_note(note)
    out = None if out is None else open_folder(out, writes=True)
    if out is not None:
        check_folder(out)
    with ExitStack() as stack:
        pool = stack.enter_context(make_pool(config))
        encoded = _resolve(config, pool, watch)
        executor = stack.enter_context(_executor(encoded, pool))
        if out is None:
            return _plan(None, encoded, listing, executor, watch)
        stack.enter_context(lock(out))
        sweep_temporary(out)
        if overwrite:
            clear_folder(out)
        return _plan_or_resume(out, encoded, listing, executor, watch, append)


def check_append(append: bool, overwrite: bool) -> None:
    """Raise a ConfigError for what contradicts --append."""
    if append and overwrite:
        raise ConfigError("append: keeps what is there, --overwrite removes it; give one of them")


def _resolve(config: RunConfig, pool: WorkerPool, watch: Watch) -> Encoded:
    check_packer(config.packer)
    check_executor(config.executor)
    encoded = resolve_encoder(config, pool)
    if note := stride_note(config, encoded.facts):
        watch.on_note(note)
    return encoded


def _executor(encoded: Encoded, pool: WorkerPool) -> closing[Executor]:
    make = EXECUTORS[encoded.config.executor]
    return closing(make(config=encoded.config, encoder=encoded.settings, pool=pool))


def _plan(
    out: Path | None,
    encoded: Encoded,
    listing: Listing,
    executor: Executor,
    watch: Watch,
    later: Later | None = None,
) -> StoredPlan:
    return plan_run(
        encoded.config,
        listing,
        probe=partial(executor.probe, on_note=watch.on_note),
        on_probed=watch.on_probed,
        facts=encoded.facts,
        out=out,
        on_note=watch.on_note,
        later=later,
    )


def _plan_or_resume(
    out: Path,
    encoded: Encoded,
    listing: Listing,
    executor: Executor,
    watch: Watch,
    append: bool,
) -> StoredPlan:
    try:
        document = read_plan_document(out)
    except ShardError:
        if (out / "plan.json").exists():
            raise
        return _plan(out, encoded, listing, executor, watch)
    check_plan(document, encoded.config, encoded.facts)
    plan = open_plan(out, listing.find)
    if append:
        make = partial(_plan, out, encoded, executor=executor, watch=watch)
        return append_to(plan, out, listing, make, watch.on_note)
    forget_parts(out)
    check_inputs(plan, listing)
    return plan


def _run(
    plan: StoredPlan,
    pending: Sequence[PlannedTask],
    out: Path,
    encoded: Encoded,
    executor: Executor,
    watch: Watch,
    *,
    num_sources: int,
) -> None:
    config, limit = encoded.config, None
    if config.max_losses is not None:
        limit = parse_share("max_losses", config.max_losses, num_sources, math.floor)
    losses = LossCount(plan, limit)
    left = {task.number: task for task in pending}
    done = [task for task in plan.tasks if task.number not in left]
    for task, lost in finished_losses(out, plan, done) if limit is not None else ():
        losses.add(task, lost)
    reports = executor.run(plan, pending, folder=out, on_job=watch.on_job, on_note=watch.on_note)
    with closing(reports):
        for report in reports:
            watch.on_task(report)
            losses.add(left[report.number], report.losses)


def _note_unplanned(plan: StoredPlan, watch: Watch, remedy: str) -> None:
    if again := sum(loss.retryable for loss in plan.losses()):
        watch.on_note(f"lost as the plan was made: {counted(again, 'source')}: {remedy}")


def _is_probed_now(plan: StoredPlan, config: RunConfig, executor: Executor, watch: Watch) -> bool:
    """Whether a source whose probe was lost to its environment can be probed after all."""
    again = (plan.find(loss.source_id) for loss in plan.losses() if loss.retryable)
    jobs = (probe_job(source, config) for source in again if source is not None)
    found = list(executor.probe(jobs, on_note=watch.on_note))  # none is left under way
    return any(probed.info is not None for _, probed in found)
