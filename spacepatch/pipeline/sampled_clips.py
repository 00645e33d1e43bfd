"""Some clips of a plan: few enough to be measured, and the plan of them alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from spacepatch.config import RunConfig
from spacepatch.data import ClipSpec, VideoInfo
from spacepatch.pipeline.placement import Lengths
from spacepatch.pipeline.plan import Plan
from spacepatch.pipeline.runs import cut_runs, make_tasks


def clips_by_source(plan: Plan) -> dict[int, list[ClipSpec]]:
    """The clips of each source, in their order; the sources in theirs, which is drawn."""
    clips: dict[int, list[ClipSpec]] = defaultdict(list)
    for task in plan.tasks:
        for clip in task.clips:
            clips[clip.source].append(clip)
    return {row: sorted(clips[row], key=lambda clip: clip.clip) for row in sorted(clips)}


def work_of(plan: Plan, clip: ClipSpec) -> int:
    """Pixels to decode, which the time of a clip is about proportional to."""
    info = _info(plan, clip)
    frames = int(clip.frame_indices[-1]) - int(clip.frame_indices[0]) + 1
    return frames * info.coded_size[0] * info.coded_size[1]


def choose_clips(
    plan: Plan, clips_of: Sequence[list[ClipSpec]], work: float, most_workers: int
) -> list[ClipSpec]:
    """First clips of one source after the other, until they are that much work: of each no more
    than leaves every worker two sources, where there are so many."""
    each = work / (2 * most_workers)
    while True:
        chosen: list[ClipSpec] = []
        total = 0
        for clips in clips_of:
            own = 0
            for clip in clips:
                if own and own + work_of(plan, clip) > each:
                    break
                chosen.append(clip)
                own += work_of(plan, clip)
            total += own
            if total >= work:
                return chosen
        if len(chosen) == sum(map(len, clips_of)):
            return chosen
        each *= 2


def plan_of(plan: Plan, clips: Sequence[ClipSpec], config: RunConfig) -> Plan:
    """A plan of some of the clips, its tasks made as of any plan."""
    tasks = make_tasks(
        cut_runs(clips, config, plan.layout, decodes=True),
        config,
        plan.sources,
        plan.layout,
        plan.placement,
        lengths_of=lambda run: Lengths.of(run, plan.layout),
    )
    return replace(plan, tasks=tuple(tasks), losses=())


def num_jobs(plan: Plan) -> int:
    """How many workers a plan can keep busy at most."""
    return sum(len({clip.source for clip in task.clips}) for task in plan.tasks)


def seconds_of(plan: Plan, clip: ClipSpec) -> float:
    """Of video; 0 of a still."""
    info = _info(plan, clip)
    return 0.0 if info.still else float((clip.stop_pts - clip.start_pts) * info.time_base)


def _info(plan: Plan, clip: ClipSpec) -> VideoInfo:
    info = plan.sources[clip.source].info
    assert info is not None, "a clip has a probed source"
    return info
