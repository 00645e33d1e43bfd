"""The whole way in one call: list, plan or resume, run, finish."""

from __future__ import annotations

import math
import os
import shlex
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from spacepatch.config import RunConfig, parse_bytes
from spacepatch.data import POLICY_REASONS, Loss, Task, TaskReport
from spacepatch.errors import ConfigError, LossLimitError, ResumeError, ShardError
from spacepatch.executors import EXECUTORS, check_executor
from spacepatch.limits import available_cores
from spacepatch.packers import check_packer
from spacepatch.pipeline.encoders import Encoded, resolve_encoder, stride_note
from spacepatch.pipeline.finishing import (
    RunSummary,
    finish_run,
    finished_losses,
    forget_retryable,
    unfinish,
)
from spacepatch.pipeline.folder import check_folder, clear_folder
from spacepatch.pipeline.planfile import Plan, read_plan, read_plan_document, write_plan
from spacepatch.pipeline.planning import plan_run, probe_sources
from spacepatch.pipeline.resuming import check_inputs, check_plan
from spacepatch.pipeline.running import JobReport, pending_tasks
from spacepatch.ranks import Rank, note_of_processes
from spacepatch.remote import configure, reachable, shown, store_variables
from spacepatch.selection import parse_share, select_sources
from spacepatch.shards import shard_stem
from spacepatch.sources import Listing, list_sources
from spacepatch.storage import lock, lock_rank, open_folder, sweep_temporary
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
    on_start: Callable[[Plan, Sequence[Task]], None] = lambda plan, pending: None
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
        ignored = f" ({listing.num_ignored} files are no media)" if listing.num_ignored else ""
        raise ConfigError(f"no videos in {', '.join(map(shown, arguments))}{ignored}")
    # Files that are not there are chosen like the others: --limit and --sample hide no loss.
    missing = {source.source_id for source in listing.missing}
    selected = select_sources(
        (*listing.sources, *listing.missing),
        seed=config.seed,
        sample=config.sample,
        limit=config.limit,
        split=config.split,
    )
    if not selected:
        raise ConfigError(f"sample: {config.sample} of the sources leaves none")
    return replace(
        listing,
        sources=reachable(source for source in selected if source.source_id not in missing),
        missing=tuple(source for source in selected if source.source_id in missing),
    )


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
    retry_lost: bool = False,
    watch: Watch | None = None,
) -> RunSummary:
    """Turn sources into a dataset in `out`; a second call goes on where the first one stopped.

    Args:
        arguments: SOURCE arguments, see `list_sources`.
        out: a folder on local disk, or the URL of one on an object store.
        overwrite: begin anew; removes what a former run wrote to `out`, and nothing else.
        retry_lost: do again what was lost to timeout, crash, out_of_memory or io.

    Raises:
        ConfigError: wrong arguments or settings.
        ResumeError: `out` belongs to another run, or to no run of ours.
        LossLimitError: more sources are lost than `max_losses`; resumable.
        OSError: `out` cannot be written; resumable.
    """
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
        plan = _plan_or_resume(out, encoded, listing, pool, watch)
        if retry_lost:
            if _is_probed_now(plan, config, pool):
                # A plan that a timeout made smaller is not the untroubled one: it is made anew.
                clear_folder(out)
                plan = _plan_or_resume(out, encoded, listing, pool, watch)
            forget_retryable(out, plan)
        pending = pending_tasks(out, plan)
        watch.on_start(plan, pending)
        _run(plan, pending, out, encoded, pool, watch, num_sources=len(plan.sources))
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
        listed = {source.source_id: source for source in (*listing.sources, *listing.missing)}
        plan = read_plan(out, listed, wanted=rank.owns)
        check_inputs(plan, listing, read_whole=lambda: read_plan(out, listed))
        # What was lost before there were tasks is no rank's.
        part = replace(plan, losses=())
        sweep_temporary(out, {shard_stem(plan.name, t.split, t.number) for t in part.tasks})
        if retry_lost:
            if again := sum(loss.retryable for loss in plan.losses):
                watch.on_note(
                    f"{again} sources were lost as the plan was made: --retry-lost without --rank "
                    "tries these again"
                )
            forget_retryable(out, part)
        pending = pending_tasks(out, part)
        if pending:
            unfinish(out)
        watch.on_start(part, pending)
        made: list[TaskReport] = []

        def on_task(report: TaskReport) -> None:
            made.append(report)
            watch.on_task(report)

        noted = replace(watch, on_task=on_task)
        _run(part, pending, out, encoded, pool, noted, num_sources=len(part.sources))
        losses = finished_losses(out, part, list(part.tasks))
        return RankSummary(rank, len(part.tasks), tuple(made), tuple(losses))


def make_plan(
    arguments: Sequence[str],
    *,
    config: RunConfig,
    root: Path | str | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    watch: Watch | None = None,
) -> Plan:
    """Everything up to the first decode; with `out`, durable for `tokenize` to follow.

    Raises:
        As of `tokenize`.
    """
    watch = watch or Watch()
    listing = list_inputs(arguments, config, root=root)
    if out is None:
        with make_pool(config) as pool:
            return _plan(_resolve(config, pool, watch), listing, pool, watch)
    out = open_folder(out, writes=True)
    check_folder(out)
    with ExitStack() as stack:
        pool = stack.enter_context(make_pool(config))
        encoded = _resolve(config, pool, watch)
        stack.enter_context(lock(out))
        sweep_temporary(out)
        if overwrite:
            clear_folder(out)
        return _plan_or_resume(out, encoded, listing, pool, watch)


def _resolve(config: RunConfig, pool: WorkerPool, watch: Watch) -> Encoded:
    check_packer(config.packer)
    check_executor(config.executor)
    encoded = resolve_encoder(config, pool)
    if note := stride_note(config, encoded.facts):
        watch.on_note(note)
    return encoded


def _plan(encoded: Encoded, listing: Listing, pool: WorkerPool, watch: Watch) -> Plan:
    plan = plan_run(
        encoded.config, listing, pool=pool, on_probed=watch.on_probed, facts=encoded.facts
    )
    if plan.num_scanned:
        watch.on_note(
            f"the headers of {plan.num_scanned} of {len(listing.sources)} sources do not tell "
            "enough: their packets were read"
        )
    return plan


def _plan_or_resume(
    out: Path, encoded: Encoded, listing: Listing, pool: WorkerPool, watch: Watch
) -> Plan:
    try:
        document = read_plan_document(out)
    except ShardError:
        if (out / "plan.json").exists():
            raise
        return write_plan(out, _plan(encoded, listing, pool, watch))
    check_plan(document, encoded.config, encoded.facts)
    sources = {source.source_id: source for source in (*listing.sources, *listing.missing)}
    plan = read_plan(out, sources)
    check_inputs(plan, listing)
    return plan


def _run(
    plan: Plan,
    pending: Sequence[Task],
    out: Path,
    encoded: Encoded,
    pool: WorkerPool,
    watch: Watch,
    *,
    num_sources: int,
) -> None:
    config, limit = encoded.config, None
    if config.max_losses is not None:
        limit = parse_share("max_losses", config.max_losses, num_sources, math.floor)
    losses = LossCount(plan, limit)
    left = {task.number for task in pending}
    losses.add(finished_losses(out, plan, [task for task in plan.tasks if task.number not in left]))
    executor = EXECUTORS[config.executor](config=config, encoder=encoded.settings, pool=pool)
    reports = executor.run(plan, pending, folder=out, on_job=watch.on_job, on_note=watch.on_note)
    with closing(reports):
        for report in reports:
            watch.on_task(report)
            losses.add(report.losses)


class LossCount:
    """Counts the sources that are lost whole, over all starts of a run, against `max_losses`."""

    def __init__(self, plan: Plan, limit: int | None) -> None:
        self._limit = limit
        self._left: Counter[str] = Counter()
        for task in plan.tasks:
            for clip in task.clips:
                identity = plan.sources[clip.source].source.source_id
                self._left[identity] += len(clip.frame_pts)
        self._lost: set[str] = set()
        self.add(plan.losses)

    def add(self, losses: Sequence[Loss]) -> None:
        """Take losses into account.

        Raises:
            LossLimitError: they are more than `max_losses` allows.
        """
        for loss in losses:
            is_of_clip = loss.stage in ("decode", "encode")
            self._left[loss.source_id] -= loss.num_frames if is_of_clip else 0
            if self._left[loss.source_id] <= 0 and loss.reason not in POLICY_REASONS:
                self._lost.add(loss.source_id)
        if self._limit is not None and len(self._lost) > self._limit:
            raise LossLimitError(
                f"{len(self._lost)} sources are lost, max_losses allows {self._limit}; what is "
                "done is kept: raise --max-losses and start again, or see spacepatch inspect"
            )


def _is_probed_now(plan: Plan, config: RunConfig, pool: WorkerPool) -> bool:
    """Whether a source whose probe was lost to its environment can be probed after all."""
    lost = {loss.source_id for loss in plan.losses if loss.retryable}
    again = [entry.source for entry in plan.sources if entry.source.source_id in lost]
    return any(found.info is not None for found in probe_sources(again, config, pool))
