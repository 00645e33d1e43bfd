"""The whole way in one call: list, plan or resume, run, finish."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from spacepatch.config import RunConfig
from spacepatch.data import POLICY_REASONS, Task, TaskReport
from spacepatch.errors import ConfigError, LossLimitError, ResumeError, ShardError
from spacepatch.pipeline.finishing import (
    RunSummary,
    finish_run,
    forget_retryable,
)
from spacepatch.pipeline.planfile import (
    Plan,
    check_inputs,
    check_plan,
    read_plan,
    read_plan_document,
    write_plan,
)
from spacepatch.pipeline.planning import plan_run
from spacepatch.pipeline.running import JobReport, pending_tasks, run_tasks
from spacepatch.shards import DATASET, TABLES
from spacepatch.sources import Listing, list_sources, parse_share, select_sources
from spacepatch.storage import PRIVATE, lock, remove, remove_private, sweep_temporary
from spacepatch.workers import WorkerPool, available_cores

MOST_WORKERS_PER_CORE = 8
"""Slow storage may want more workers than cores; this many are a mistake."""


@dataclass(frozen=True, slots=True)
class Watch:
    """Who is told what happens; the library prints nothing."""

    on_probed: Callable[[int, int], None] = lambda done, total: None
    """(done, total) sources."""
    on_start: Callable[[Plan, Sequence[Task]], None] = lambda plan, pending: None
    """The plan, and its tasks that are still to be done."""
    on_job: Callable[[JobReport], None] = lambda report: None
    on_task: Callable[[TaskReport], None] = lambda report: None


def list_inputs(arguments: Sequence[str], config: RunConfig, *, root: Path | None) -> Listing:
    """The sources of a run, after --sample, --limit and --split.

    Raises:
        ConfigError: nothing is left to read.
    """
    listing = list_sources(arguments, root=root)
    if not listing.sources and not listing.missing:
        ignored = f" ({listing.num_ignored} files are no media)" if listing.num_ignored else ""
        raise ConfigError(f"no videos in {', '.join(arguments)}{ignored}")
    selected = select_sources(
        listing.sources,
        seed=config.seed,
        sample=config.sample,
        limit=config.limit,
        split=config.split,
    )
    missing = () if config.sample or config.limit else listing.missing
    if config.split:
        missing = select_sources(missing, seed=config.seed, split=config.split)
    return replace(listing, sources=selected, missing=missing)


def make_pool(config: RunConfig) -> WorkerPool:
    """The killable workers of this run.

    Raises:
        ConfigError: so many that the machine would only swap.
    """
    cores = available_cores()
    workers = config.workers or cores
    if workers > MOST_WORKERS_PER_CORE * cores:
        raise ConfigError(
            f"workers: {workers} are too many for {cores} cores; a worker keeps a core busy, "
            f"so give up to {MOST_WORKERS_PER_CORE * cores}, or leave it out"
        )
    return WorkerPool(workers=workers, timeout=config.timeout)


def tokenize(
    arguments: Sequence[str],
    *,
    out: Path,
    config: RunConfig,
    root: Path | None = None,
    overwrite: bool = False,
    retry_lost: bool = False,
    watch: Watch | None = None,
) -> RunSummary:
    """Turn sources into a dataset in `out`; a second call goes on where the first one stopped.

    Args:
        arguments: SOURCE arguments, see `list_sources`.
        overwrite: begin anew; removes what a former run wrote to `out`, and nothing else.
        retry_lost: do again what was lost to timeout, crash, out_of_memory or io.

    Raises:
        ConfigError: wrong arguments or settings.
        ResumeError: `out` belongs to another run, or to no run of ours.
        LossLimitError: more sources are lost than `max_losses`; resumable.
        OSError: `out` cannot be written; resumable.
    """
    watch = watch or Watch()
    listing = list_inputs(arguments, config, root=root)
    _check_folder(out, overwrite)
    with lock(out), make_pool(config) as pool:
        sweep_temporary(out)
        if overwrite:
            _clear(out)
        plan = _plan_or_resume(out, config, listing, pool, watch)
        if retry_lost:
            _, probes = forget_retryable(out, plan)
            if probes:
                # A plan that a timeout made smaller is not the untroubled one: it is made anew.
                _clear(out)
                plan = _plan_or_resume(out, config, listing, pool, watch)
        pending = pending_tasks(out, plan)
        watch.on_start(plan, pending)
        _run(plan, pending, out, config, pool, watch)
        return finish_run(out, plan)


def make_plan(
    arguments: Sequence[str],
    *,
    config: RunConfig,
    root: Path | None = None,
    out: Path | None = None,
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
            return plan_run(config, listing, pool=pool, on_probed=watch.on_probed)
    _check_folder(out, overwrite)
    with lock(out), make_pool(config) as pool:
        sweep_temporary(out)
        if overwrite:
            _clear(out)
        return _plan_or_resume(out, config, listing, pool, watch)


def _plan_or_resume(
    out: Path, config: RunConfig, listing: Listing, pool: WorkerPool, watch: Watch
) -> Plan:
    try:
        document = read_plan_document(out)
    except ShardError:
        if (out / "plan.json").exists():
            raise
        plan = plan_run(config, listing, pool=pool, on_probed=watch.on_probed)
        return write_plan(out, plan)
    check_plan(document, config)
    sources = {source.source_id: source for source in (*listing.sources, *listing.missing)}
    plan = read_plan(out, sources)
    check_inputs(plan, listing)
    return plan


def _run(
    plan: Plan,
    pending: Sequence[Task],
    out: Path,
    config: RunConfig,
    pool: WorkerPool,
    watch: Watch,
) -> None:
    limit = None
    if config.max_losses is not None:
        limit = parse_share("max_losses", config.max_losses, len(plan.sources))
    lost = {loss.source_id for loss in plan.losses if loss.reason not in POLICY_REASONS}
    _check_limit(lost, limit)
    for report in run_tasks(plan, pending, folder=out, pool=pool, on_job=watch.on_job):
        watch.on_task(report)
        lost.update(report.lost_sources)
        _check_limit(lost, limit)


def _check_limit(lost: set[str], limit: int | None) -> None:
    if limit is not None and len(lost) > limit:
        raise LossLimitError(
            f"{len(lost)} sources are lost, max_losses allows {limit}; what is done is kept: raise "
            "--max-losses and start again, or look at the losses with spacepatch inspect"
        )


# --- the output folder -------------------------------------------------------------------------


def _check_folder(out: Path, overwrite: bool) -> None:
    """Refuse a folder that holds something else than a run of ours."""
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out}: is a file; --out takes a folder")
    if not out.is_dir() or (out / "plan.json").is_file():
        return
    foreign = sorted(path.name for path in out.iterdir() if not _is_ours(path))
    if foreign:
        raise ResumeError(
            f"{out}: is not empty and holds no spacepatch run ({', '.join(foreign[:3])}"
            f"{', ...' if len(foreign) > 3 else ''}); give a new or empty folder to --out"
        )


def _is_ours(path: Path) -> bool:
    return path.name in (PRIVATE, "plan.parquet", "plan.json", DATASET, *TABLES)


def _clear(out: Path) -> None:
    """Remove a former run: what completes it first, so that no torn dataset is ever whole."""
    try:
        name = read_plan_document(out)["name"]
    except (ShardError, KeyError):
        name = None
    remove([out / DATASET, *(out / table for table in TABLES)])
    if name is not None:
        shards = sorted(out.glob(f"{name}-*"))
        receipts = [path for path in shards if path.suffix == ".json"]
        remove(receipts + [path for path in shards if path not in receipts])
    remove([out / "plan.json", out / "plan.parquet"])
    remove_private(out)
