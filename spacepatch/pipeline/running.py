"""Run tasks: jobs side by side into an arena, then packs, shard, receipt."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from spacepatch.arena import Arena, Arenas
from spacepatch.balancing import Spread
from spacepatch.clipwriter import ClipLoss
from spacepatch.data import Loss, Task, TaskReport
from spacepatch.errors import ShardError
from spacepatch.jobs import Job, JobResult, arena_bytes, planned_tokens, run_job
from spacepatch.latents.encoders import EncoderSettings
from spacepatch.pipeline.encoded import with_pixels
from spacepatch.pipeline.job_settings import token_settings
from spacepatch.pipeline.placement import Lengths, Placed
from spacepatch.pipeline.plan import AnyTask, Plan, PlannedTask, PlanOfTasks
from spacepatch.pipeline.planfile import StoredPlan
from spacepatch.pipeline.publishing import publish_task
from spacepatch.pipeline.segments import Made, clip_id, segment_of
from spacepatch.shards import SegmentContent, read_receipt, receipt_path, shard_stem
from spacepatch.shards.receipts import missing_files
from spacepatch.stages import stage
from spacepatch.storage import scratch_folder, sizes_in
from spacepatch.workers import Fault, WorkerPool

TASKS_IN_MEMORY = 2
"""One being written while the next is being decoded: no core waits at a shard's border."""


Placing = Callable[[Plan, Sequence[Made]], Placed]
"""Packs of what was made of a task's clips (a plan of this task alone)."""

ALIGNMENT = 8
"""Bytes that clips begin at multiples of, so that no number lies across two words."""


def pending_tasks(folder: Path, plan: StoredPlan) -> list[PlannedTask]:
    """Tasks without a valid receipt: all that is left to do."""
    sizes = sizes_in(folder)
    return [task for task in plan.tasks if not is_done(folder, plan, task, sizes)]


def is_done(
    folder: Path, plan: PlanOfTasks, task: AnyTask, sizes: Mapping[str, int] | None = None
) -> bool:
    """A task is done exactly when its receipt is valid.

    Args:
        sizes: of the files of the folder, as of `sizes_in`; None: ask for each.
    """
    stem = shard_stem(plan.name, task.split, task.number)
    if sizes is not None and f"{stem}.json" not in sizes:
        return False
    try:
        receipt = read_receipt(receipt_path(folder, stem))
    except ShardError:
        return False
    return receipt.task_id == task.task_id and not missing_files(folder, receipt, sizes)


def run_task(
    plan: PlanOfTasks,
    task: AnyTask,
    *,
    folder: Path,
    pool: WorkerPool,
    encoder: EncoderSettings | None = None,
) -> TaskReport:
    """Make one shard; `run_tasks` for a single task."""
    return next(run_tasks(plan, [task], folder=folder, pool=pool, encoder=encoder))


def run_tasks(
    plan: PlanOfTasks,
    tasks: Sequence[AnyTask],
    *,
    folder: Path,
    pool: WorkerPool,
    encoder: EncoderSettings | None = None,
    placing: Placing | None = None,
    on_job: Callable[[JobReport], None] = lambda report: None,
    on_decoded: Callable[[], None] = lambda: None,
) -> Generator[TaskReport]:
    """Make the shards of `tasks`, the jobs of the next one starting while one is written.

    What is written depends on the plan and on what could be decoded, never on workers, on the order
    of arrival, or on where a run was interrupted.

    Args:
        encoder: where the plan's encoder is; None: it has none.
        placing: instead of the packs that the plan's settings make.
        on_decoded: called when the last job is done, while its shard is being written.

    Raises:
        EncodeError: the encoder is not the one of the plan.
        OSError: the output cannot be written; what is finished stays, and the run resumes.
    """
    waiting = deque(tasks)
    opened: dict[int, Running] = {}
    jobs: deque[tuple[tuple[int, int], Job]] = deque()
    writing: deque[Future[TaskReport]] = deque()
    arenas = Arenas(scratch_folder(folder))
    with (
        closing(arenas),
        ThreadPoolExecutor(1, thread_name_prefix="spacepatch-writer") as writer,
    ):
        try:
            while waiting or opened or writing:
                # The next arena is begun only when a worker would be idle without it.
                while (
                    waiting
                    and not jobs
                    and pool.num_running < pool.workers
                    and len(opened) + len(writing) < TASKS_IN_MEMORY
                ):
                    task = waiting.popleft()
                    running = Running.of(plan.part(task), arenas, encoder)
                    if running.is_planned_only:
                        for place in range(len(running.clips_of_job)):
                            on_job(_report(running, place))
                        writing.append(
                            writer.submit(write_task, running, folder, placing, pool.workers)
                        )
                        continue
                    opened[running.task.number] = running
                    jobs.extend(running.jobs)
                while jobs and pool.has_room:
                    key, job = jobs.popleft()
                    pool.submit(key, run_job, job)
                if writing and (writing[0].done() or not pool.num_running):
                    yield writing.popleft().result()
                    continue
                finished = pool.next_finished()
                if finished is None:
                    continue
                (number, place), outcome = finished
                running = opened[number]
                running.outcomes[place] = outcome
                on_job(_report(running, place))
                if len(running.outcomes) == len(running.jobs):
                    del opened[number]
                    writing.append(
                        writer.submit(write_task, running, folder, placing, pool.workers)
                    )
                    writing[-1].add_done_callback(lambda _: pool.wake())
                    if not waiting and not opened:
                        on_decoded()
        finally:
            for running in opened.values():
                running.arena.close()


@dataclass(frozen=True, slots=True)
class JobReport:
    """What a finished job says to the progress display."""

    planned_tokens: int
    tokens: int
    seconds_of_video: float
    is_lost: bool
    """Nothing of its clips could be had."""


def _report(running: Running, place: int) -> JobReport:
    clips = [running.task.clips[clip] for clip in running.clips_of_job[place]]
    outcome = running.outcomes[place]
    tokens = 0
    if isinstance(outcome, JobResult):
        tokens = sum(made.num_kept for made in outcome.clips)
    info = running.plan.sources[clips[0].source].info
    ticks = 0 if info is None or info.still else sum(c.stop_pts - c.start_pts for c in clips)
    return JobReport(
        planned_tokens=sum(clip.num_kept for clip in clips),
        tokens=tokens,
        seconds_of_video=float(ticks * info.time_base) if info is not None else 0.0,
        is_lost=tokens == 0,
    )


@dataclass(slots=True)
class Running:
    """A task whose jobs are under way; or which needs none, as nothing of it is decoded."""

    plan: Plan
    """Of this task alone."""
    task: Task
    arenas: Arenas
    """Where its arena is from."""
    arena: Arena
    offsets: list[int]
    """Of each clip of the task: its first byte in the arena."""
    jobs: list[tuple[tuple[int, int], Job]]
    clips_of_job: list[list[int]]
    outcomes: dict[int, JobResult | Fault] = field(default_factory=dict)

    @classmethod
    def of(cls, plan: Plan, arenas: Arenas, encoder: EncoderSettings | None) -> Running:
        """Of a plan of one task."""
        (task,) = plan.tasks
        layout = plan.layout
        settings = token_settings(
            plan.settings,
            token_dtype=layout.token_dtype,
            encoder=encoder,
            facts=plan.encoder,
            pixel_tubelet=layout.pixel_tubelet,
        )
        is_decoded = layout.store != "refs" or plan.settings["checked"]
        sizes = [
            -(-arena_bytes(settings, clip) // ALIGNMENT) * ALIGNMENT if is_decoded else 0
            for clip in task.clips
        ]
        offsets = [0, *np.cumsum(sizes, dtype=np.int64).tolist()]
        arena = arenas.take(offsets[-1])
        by_source: dict[int, list[int]] = {}
        for place, clip in enumerate(task.clips):
            by_source.setdefault(clip.source, []).append(place)
        clips_of_job = list(by_source.values())
        jobs = []
        outcomes: dict[int, JobResult | Fault] = {}
        for number, places in enumerate(clips_of_job):
            clips = tuple(task.clips[place] for place in places)
            planned = plan.sources[clips[0].source]
            assert planned.info is not None, "a clip has a probed source"
            ids = tuple(clip_id(plan, clip) for clip in clips)
            if not is_decoded:
                outcomes[number] = planned_tokens(clips, ids, settings)
                continue
            job = Job(
                source=planned.source,
                content_id=planned.content_id,
                info=planned.info,
                clips=clips,
                clip_ids=ids,
                offsets=tuple(offsets[place] for place in places),
                arena=arena.path,
                settings=settings,
            )
            jobs.append(((task.number, number), job))
        # Longest first, so that no worker is left alone with a long video at the end.
        jobs.sort(key=lambda item: (-_cost(item[1]), item[0]))
        return cls(plan, task, arenas, arena, offsets, jobs, clips_of_job, outcomes)

    @property
    def is_planned_only(self) -> bool:
        """Whether what it will write is known without decoding."""
        return not self.jobs


def _cost(job: Job) -> int:
    """Pixels to decode, near enough to order jobs by."""
    frames = max(int(clip.frame_indices[-1]) for clip in job.clips) - min(
        int(clip.frame_indices[0]) for clip in job.clips
    )
    return (frames + 1) * job.info.coded_size[0] * job.info.coded_size[1]


def write_task(
    running: Running, folder: Path, placing: Placing | None = None, threads: int = 1
) -> TaskReport:
    """Pack what was decoded, publish the shard and then its receipt."""
    plan, task = running.plan, running.task
    with stage("pack"):
        made, losses, observed = _collect(plan, running)
        contents, unbalanced = _contents(
            plan, made, running.arena, placing, is_decoded=not running.is_planned_only
        )
    receipt = publish_task(
        folder,
        plan,
        task,
        contents,
        losses=[asdict(loss) for loss in losses],
        observed=observed,
        unbalanced=unbalanced,
        threads=threads,
    )
    del contents
    running.arenas.give_back(running.arena)
    return TaskReport(
        number=task.number,
        num_packs=receipt.packs,
        num_tokens=receipt.tokens,
        num_segments=receipt.segments,
        losses=tuple(losses),
    )


def _collect(
    plan: Plan, running: Running
) -> tuple[list[Made], list[Loss], dict[str, dict[str, Any]]]:
    """What the jobs made and lost, in plan order whatever the order they ended in."""
    made: dict[int, Made] = {}
    lost: dict[int, list[Loss]] = {}
    observed: dict[str, dict[str, Any]] = {}
    for number, places in enumerate(running.clips_of_job):
        outcome = running.outcomes[number]
        source = plan.sources[running.task.clips[places[0]].source].source
        if isinstance(outcome, JobResult) and outcome.observed:
            observed[source.source_id] = outcome.observed
        for position, place in enumerate(places):
            spec = running.task.clips[place]
            if isinstance(outcome, Fault):
                reports = [
                    ClipLoss(
                        outcome.reason,
                        len(spec.frame_pts),
                        spec.num_kept,
                        outcome.message,
                        outcome.stage,
                    )
                ]
            else:
                tokens = outcome.clips[position]
                reports = list(tokens.losses)
                if tokens.num_kept:
                    made[place] = Made(spec, tokens, running.offsets[place])
            lost[place] = [
                Loss(
                    source=source.name,
                    source_id=source.source_id,
                    clip=spec.clip,
                    stage=loss.stage,
                    reason=loss.reason,
                    num_frames=loss.num_frames,
                    num_tokens=loss.num_tokens,
                    message=loss.message,
                    split=source.split,
                    source_root=source.source_root,
                )
                for loss in reports
            ]
    return (
        [made[place] for place in sorted(made)],
        [loss for place in sorted(lost) for loss in lost[place]],
        dict(sorted(observed.items())),
    )


def _contents(
    plan: Plan, made: list[Made], arena: Arena, placing: Placing | None, *, is_decoded: bool
) -> tuple[list[list[SegmentContent]], Spread | None]:
    """Segments in their packs, a segment that is cut to fit as several; and how the packs were
    before they were balanced. Without tokens where nothing was decoded."""
    if not made:
        return [], None
    layout = plan.layout

    def can_cut(item: int, row: int) -> bool:
        # Both parts need a time of their own: a coarse time base may not have one between them.
        clip = made[item]
        rows = clip.tokens.rows
        before, tick = clip.spec.row_pts[rows[row - 1]], clip.spec.row_pts[rows[row]]
        return bool(clip.spec.start_pts <= before < tick < clip.spec.stop_pts)

    widths = [layout.width_of(clip.spec) for clip in made]
    lengths = Lengths(
        np.array([clip.num_kept for clip in made]),
        np.array([clip.spec.cells for clip in made]),
        np.array(widths),
    )
    packs = []
    placed = placing(plan, made) if placing else plan.placement.place(lengths, can_cut)
    for pieces in placed.packs:
        pack = []
        for item, first, last in pieces:
            clip = made[item]
            count = clip.num_kept if is_decoded else 0
            tokens = arena.tokens(
                clip.offset, count=count, dtype=layout.storage, width=widths[item]
            )
            content = segment_of(plan, clip, first, last, tokens)
            if layout.pixel_tubelet is not None:
                content = with_pixels(content, clip, arena, layout)
            pack.append(content)
        packs.append(pack)
    return packs, placed.unbalanced
