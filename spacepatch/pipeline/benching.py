"""Measure a run on a sample of its own sources: where the time goes, and how many workers pay."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from spacepatch.arena import Arenas
from spacepatch.config import RunConfig
from spacepatch.data import ClipSpec, Loss
from spacepatch.errors import ConfigError, SpacepatchError
from spacepatch.hints import LOOK
from spacepatch.jobs import Job
from spacepatch.latents.encoders import EncoderSettings
from spacepatch.limits import available_cores
from spacepatch.listings import Listing, SourceTable
from spacepatch.other_work import OtherWork
from spacepatch.packers import check_packer
from spacepatch.pipeline.encoders import Encoded, resolve_encoder
from spacepatch.pipeline.plan import Plan
from spacepatch.pipeline.planning import plan_run, probe_sources
from spacepatch.pipeline.planwriting import write_plan
from spacepatch.pipeline.running import Running, run_tasks
from spacepatch.pipeline.runs import clip_bytes
from spacepatch.pipeline.sampled_clips import (
    choose_clips,
    clips_by_source,
    num_jobs,
    plan_of,
    seconds_of,
    work_of,
)
from spacepatch.pipeline.stage_times import StageTimes, time_stages
from spacepatch.pipeline.timed_jobs import Start, start_worker
from spacepatch.pipeline.whole import Watch, check_workers, list_inputs, make_pool
from spacepatch.probes import Probed
from spacepatch.selection import drawn_order
from spacepatch.wording import counted
from spacepatch.workers import WorkerPool

PROBING, STAGES = 0.1, 0.4
"""Shares of the seconds for probing, and for one worker with the floor beside; the runs with more
and more workers take the rest."""
FEWEST_SECONDS = 0.05
"""Share of the seconds that a number of workers is measured for; a short run is repeated."""
MOST_REPEATS = 3
ALIKE = 0.03
"""Runs that differ by no more are equally fast."""
MOST_GAIN = 1.25
"""Of each core: more is not had of workers, but of other work that slowed the first run."""
ROOM = 1.2
"""Of a folder, to the bytes of tokens that go there."""


def bench(
    arguments: Sequence[str],
    *,
    config: RunConfig,
    seconds: float,
    out: Path | None = None,
    root: Path | str | None = None,
    watch: Watch | None = None,
    on_stage: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Time the stages and the numbers of workers on a sample of sources.

    Sources are taken in a drawn order that depends on the seed alone, of each its first clips: how
    many, depends on how fast this machine is.

    Args:
        arguments: SOURCE arguments, see `list_sources`.
        config: as of a run; the most `workers` that are tried, by default half as many again as
            there are cores.
        seconds: that all of it should take, about; a sample of all sources takes less.
        out: shards are written beside it, and removed; None: in the folder for temporary files.
        on_stage: told what is measured next.

    Returns:
        JSON-able: `sources`, `sample`, `planning`, `stages`, `whole`, `floor`, `pictures` and
        `encoder` (None: pixels), `workers` (a list), `best`, `expected`, `machine` (its cores,
        what others took of them, and whether that spoils the figures), `losses`.

    Raises:
        ConfigError: wrong arguments or settings, or too little room for the shards of the sample.
        OSError: they cannot be written.
    """
    watch = watch or Watch()
    if config.is_planned_only:
        raise ConfigError(
            "store refs decodes nothing, so that there is nothing to measure: add --checked, or "
            "take spacepatch plan"
        )
    listing = list_inputs(arguments, config, root=root)
    check_packer(config.packer)
    counts = worker_counts(config.workers)
    check_workers(counts[-1])
    others = OtherWork()
    others.look()
    with ExitStack() as stack:
        folder = stack.enter_context(_temporary(out))
        with _pool(config, min(counts[-1], available_cores())) as pool:
            encoded = resolve_encoder(config, pool)
            _start_all(pool, folder)
            on_stage("probing")
            plan, planning = _plan_some(encoded, listing, seconds * PROBING, pool, watch)
        with _pool(config, 1) as pool:
            on_stage("one worker, stage by stage, and the floor")
            sample, times = _time_sample(plan, encoded, seconds * STAGES, counts[-1], folder, pool)
        rows = []
        jobs = num_jobs(sample)
        for workers in [count for count in counts if count == 1 or count <= jobs]:
            on_stage(counted(workers, "worker"))
            others.look()
            rows.append(
                _time_workers(sample, workers, config, encoded.settings, folder, seconds)
                | {"workers": workers}
            )
    others.look()
    machine = {
        "cores": others.num_cores,
        "taken_by_others": others.cores,
        "is_busy": others.is_busy or gains_too_much(rows, others.num_cores),
    }
    document = _document(listing, plan, sample, planning, times, rows, counts)
    return document | {"machine": machine}


def worker_counts(most: int | None) -> list[int]:
    """1, 2, 4 ... up to the cores and half as many again, or up to `most`."""
    cores = available_cores()
    last = most or cores + max(1, cores // 2)
    counts = {2**power for power in range(last.bit_length()) if 2**power < last}
    return sorted(counts | {last} | ({cores} if cores < last else set()))


def best_workers(rows: Sequence[dict[str, Any]]) -> int | None:
    """The fewest workers that are as fast as any, of runs that lost nothing for want of memory."""
    sound = [row for row in rows if not row["lost_tokens"]]
    if not sound:
        return None
    fastest = max(row["tokens_per_second"] for row in sound)
    return min(
        int(row["workers"]) for row in sound if row["tokens_per_second"] >= fastest * (1 - ALIKE)
    )


def gains_too_much(rows: Sequence[dict[str, Any]], cores: int) -> bool:
    """Whether a number of workers is faster than one by more than there are cores for."""
    one = rows[0]["tokens_per_second"]
    return any(
        row["tokens_per_second"] > MOST_GAIN * min(row["workers"], cores) * one for row in rows
    )


@contextmanager
def _temporary(out: Path | None) -> Iterator[Path]:
    parent = Path(tempfile.gettempdir()) if out is None else out.absolute().parent
    if not parent.is_dir():
        raise ConfigError(f"{out}: there is no folder {parent}")
    with tempfile.TemporaryDirectory(prefix="spacepatch-bench-", dir=parent) as folder:
        yield Path(folder)


def _pool(config: RunConfig, workers: int) -> WorkerPool:
    return make_pool(config.model_copy(update={"workers": workers}))


def _start_all(pool: WorkerPool, folder: Path, job: Job | None = None) -> None:
    """Have every worker up, and a job behind it: what a process does once is not measured."""
    with tempfile.TemporaryDirectory(dir=folder) as own:
        start = Start(Path(own), pool.workers, job)
        for _ in pool.map(start_worker, ((number, start) for number in range(pool.workers))):
            pass


def _first_job(plan: Plan, encoder: EncoderSettings | None, folder: Path) -> Job:
    with closing(Arenas(folder)) as arenas:
        running = Running.of(plan.part(plan.tasks[0]), arenas, encoder)
        arenas.give_back(running.arena)
        return running.jobs[0][1]


# --- the sample --------------------------------------------------------------------------------


def _plan_some(
    encoded: Encoded, listing: Listing, seconds: float, pool: WorkerPool, watch: Watch
) -> tuple[Plan, dict[str, Any]]:
    """A plan of the sources that are probed within so many seconds, of twice as many as there are
    workers at least; and how long that took."""
    config = encoded.config
    ordered = drawn_order(listing.sources, config.seed)
    found: list[Probed] = []
    begin, size = time.perf_counter(), 2 * pool.workers
    while len(found) < len(ordered) and (not found or time.perf_counter() - begin < seconds):
        found += probe_sources(ordered[len(found) : len(found) + size], config, pool)
        size *= 2
        watch.on_probed(len(found), len(ordered))
    taken = time.perf_counter() - begin
    some = replace(listing, sources=SourceTable(ordered[: len(found)]))
    plan = plan_run(
        config,
        some,
        probe=lambda jobs: ((place, found[place]) for place, _ in enumerate(jobs)),
        on_probed=lambda done, total: None,
        facts=encoded.facts,
    ).whole()
    return plan, {
        "sources": len(found),
        "seconds": taken,
        "sources_per_second": len(found) / taken,
        "workers": pool.workers,
    }


def _time_sample(
    plan: Plan,
    encoded: Encoded,
    seconds: float,
    most_workers: int,
    folder: Path,
    pool: WorkerPool,
) -> tuple[Plan, StageTimes]:
    """Choose as many clips as take one worker so long, and time their stages."""
    config, by_source = encoded.config, clips_by_source(plan)
    num_frames: Counter[str] = Counter()
    for row, clips in by_source.items():
        num_frames[plan.sources[row].source.source_id] = sum(len(clip.frame_pts) for clip in clips)

    def timed(clips: list[ClipSpec]) -> tuple[Plan, StageTimes]:
        sample = plan_of(plan, clips, config)
        _check_room(sample, folder)
        with tempfile.TemporaryDirectory(dir=folder) as own:
            return sample, time_stages(
                sample,
                config=config,
                folder=Path(own),
                pool=pool,
                encoder=encoded.settings,
                frames_of=num_frames,
            )

    lost: set[str] = set()
    losses: list[Loss] = []
    rows = list(by_source)
    for row in rows:
        # The first clip that decodes tells how fast this machine is.
        first = by_source[row][:1]
        _start_all(pool, folder, _first_job(plan_of(plan, first, config), encoded.settings, folder))
        _, times = timed(first)
        lost, losses = lost | times.lost, losses + times.losses
        if times.wanted:
            break
    else:
        raise _nothing(plan, losses)
    speed = work_of(plan, first[0]) / (times.whole + times.floor)
    usable = [by_source[row] for row in rows if plan.sources[row].source.source_id not in lost]
    chosen = choose_clips(plan, usable, speed * seconds, most_workers)
    sample, times = timed(chosen)
    if times.lost:
        kept = [
            clip for clip in chosen if plan.sources[clip.source].source.source_id not in times.lost
        ]
        sample = plan_of(plan, kept, config)
    if not times.wanted:
        raise _nothing(plan, times.losses)
    times.lost |= lost
    times.losses += [loss for loss in losses if loss.source_id in lost]
    return sample, times


def _nothing(plan: Plan, losses: Sequence[Loss]) -> SpacepatchError:
    why = [f": {loss.source}: {loss.message}" for loss in (*plan.losses, *losses)]
    return ConfigError(
        f"none of {counted(len(plan.sources), 'source')} can be measured{''.join(why[:1])}; {LOOK}"
    )


def _check_room(plan: Plan, folder: Path) -> None:
    needed = ROOM * sum(clip_bytes(clip, plan.layout) for task in plan.tasks for clip in task.clips)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ConfigError(
            f"{folder.parent}: the shards of the sample take {needed / 1e6:,.0f} MB, "
            f"{free / 1e6:,.0f} MB are free: give --out on another disk, or fewer --seconds"
        )


# --- workers -----------------------------------------------------------------------------------


def _time_workers(
    plan: Plan,
    workers: int,
    config: RunConfig,
    encoder: EncoderSettings | None,
    folder: Path,
    seconds: float,
) -> dict[str, Any]:
    """The fastest of a few runs of the sample, once all workers are up."""
    taken: list[float] = []
    with _pool(config, workers) as pool:
        first = plan_of(plan, plan.tasks[0].clips[:1], config)
        _start_all(pool, folder, _first_job(first, encoder, folder))
        while len(taken) < MOST_REPEATS and sum(taken) < seconds * FEWEST_SECONDS:
            with tempfile.TemporaryDirectory(dir=folder) as own:
                written = write_plan(Path(own), plan)
                begin = time.perf_counter()
                reports = list(
                    run_tasks(written, written.tasks, folder=Path(own), pool=pool, encoder=encoder)
                )
                taken.append(time.perf_counter() - begin)
    tokens = sum(report.num_tokens for report in reports)
    return {
        "seconds": min(taken),
        "runs": len(taken),
        "tokens": tokens,
        "clips_per_second": plan.num_clips / min(taken),
        "tokens_per_second": tokens / min(taken),
    }


# --- what it comes to --------------------------------------------------------------------------


def _document(
    listing: Listing,
    plan: Plan,
    sample: Plan,
    planning: dict[str, Any],
    times: StageTimes,
    rows: list[dict[str, Any]],
    counts: list[int],
) -> dict[str, Any]:
    for row in rows:
        row["lost_tokens"] = times.tokens - row["tokens"]
    clips = [clip for task in sample.tasks for clip in task.clips]
    seconds_of_video = sum(seconds_of(plan, clip) for clip in clips)
    num_sources = len(listing.sources)
    best = best_workers(rows)
    planned = plan.num_tokens * num_sources / planning["sources"]
    run = None
    if best is not None:
        (taken,) = (row["seconds"] for row in rows if row["workers"] == best)
        run = taken * planned / sample.num_tokens
    probing = num_sources / planning["sources_per_second"]
    return {
        "sources": num_sources,
        "sample": {
            "sources": len({clip.source for clip in clips}),
            "clips": len(clips),
            "frames": sum(len(clip.frame_pts) for clip in clips),
            "tokens": times.tokens,
            "seconds_of_video": seconds_of_video,
            "is_all": len(clips) == plan.num_clips and planning["sources"] == num_sources,
        },
        "planning": planning,
        **times.to_json(seconds_of_video),
        "workers": rows,
        "not_measured": [count for count in counts if count not in {r["workers"] for r in rows}],
        "best": best,
        "expected": {
            "seconds": None if run is None else probing + run,
            "planning_seconds": probing,
            "tokens": round(planned),
            "is_estimate": planning["sources"] < num_sources,
        },
        "losses": [asdict(loss) for loss in (*plan.losses, *times.losses)],
        "lost_sources": sorted(
            {loss.source for loss in plan.losses if loss.clip is None}
            | {loss.source for loss in times.losses if loss.source_id in times.lost}
        ),
    }
