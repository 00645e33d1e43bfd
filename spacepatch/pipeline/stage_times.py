"""The stages of a plan, timed in one worker: its jobs one after the other, then its shards."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spacepatch.arena import Arenas
from spacepatch.config import RunConfig
from spacepatch.data import Loss
from spacepatch.jobs import Job
from spacepatch.latents.encoders import EncoderSettings
from spacepatch.pipeline.plan import Plan
from spacepatch.pipeline.planning import probe_job
from spacepatch.pipeline.planwriting import write_plan
from spacepatch.pipeline.running import Running, write_task
from spacepatch.pipeline.timed_jobs import JobTimes, TimedJob, run_timed
from spacepatch.stages import OTHER, looking
from spacepatch.storage import scratch_folder
from spacepatch.workers import Fault, WorkerPool

STAGES = (
    *("probe", "decode", "resize", "encode", "wait", "tubelets"),
    *("pack", "compress", "hash", "write", OTHER),
)
"""In the order of the data. `encode` and `wait` are there with an encoder only; `wait` is for one
that computes beside, on an accelerator."""


@dataclass(slots=True)
class StageTimes:
    """What the stages of a plan took, in seconds; sources that are lost are in no number."""

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    whole: float = 0.0
    """By clocks of its own: the sum of `seconds`."""
    decoded: int = 0
    """Pictures that the decoder made."""
    wanted: int = 0
    """Those of them that became frames."""
    floor: float = 0.0
    """Of decoding every frame of the same clips, and nothing else."""
    floor_frames: int = 0
    jobs: float = 0.0
    """Of the jobs alone, without probes, packs and shards."""
    busy: float = 0.0
    """Of the jobs, those in which the encoder computed."""
    tokens: int = 0
    losses: list[Loss] = field(default_factory=list)
    lost: set[str] = field(default_factory=set)
    """Ids of sources of which nothing could be had."""

    def add(self, seconds: Mapping[str, float]) -> None:
        """Take a stopwatch's stages into account."""
        for name, own in seconds.items():
            self.seconds[name] += own

    def to_json(self, seconds_of_video: float) -> dict[str, Any]:
        """`stages`, `whole`, `floor`, `pictures` and `encoder` of `spacepatch bench`."""

        def row(seconds: float) -> dict[str, float | None]:
            return {
                "seconds": seconds,
                "ms_per_frame": 1000 * seconds / self.wanted,
                "ms_per_second_of_video": 1000 * seconds / seconds_of_video
                if seconds_of_video
                else None,
                "share": seconds / self.whole,
            }

        has_encoder = self.busy > 0
        there = [name for name in STAGES if name not in ("encode", "wait") or has_encoder]
        if not self.seconds["compress"]:
            there.remove("compress")
        return {
            "stages": {name: row(self.seconds[name]) for name in there},
            "whole": row(self.whole),
            "floor": row(self.floor) | {"ratio": self.whole / self.floor},
            "pictures": {
                "wanted": self.wanted,
                "decoded": self.decoded,
                "floor": self.floor_frames,
            },
            "encoder": {
                "busy": self.busy / self.jobs,
                "jobs_wait_for_it": (self.seconds["encode"] + self.seconds["wait"]) / self.jobs,
            }
            if has_encoder
            else None,
        }


def time_stages(
    plan: Plan,
    *,
    config: RunConfig,
    folder: Path,
    pool: WorkerPool,
    encoder: EncoderSettings | None,
    frames_of: Counter[str],
) -> StageTimes:
    """Run a plan in a pool of one worker, the floor of each job beside it.

    Args:
        folder: for the shards.
        frames_of: by the id of a source, the frames that all of its clips have: a plan of some of
            them has that share of its probe.
    """
    times = StageTimes()
    stored = write_plan(folder, plan)
    with closing(Arenas(scratch_folder(folder))) as arenas:
        for task in stored.tasks:
            running = Running.of(stored.part(task), arenas, encoder)
            _time_task(times, running, config, folder, pool, frames_of)
    return times


def _time_task(
    times: StageTimes,
    running: Running,
    config: RunConfig,
    folder: Path,
    pool: WorkerPool,
    frames_of: Counter[str],
) -> None:
    """Take one task into account: its jobs, then its shard."""
    jobs = dict(running.jobs)
    asked = (
        (key, TimedJob(job, probe_job(job.source, config), floor_first=number % 2 == 0))
        for number, (key, job) in enumerate(running.jobs)
    )
    for key, outcome in pool.map(run_timed, asked):
        is_fault = isinstance(outcome, Fault)
        running.outcomes[key[1]] = outcome if is_fault else outcome.result
        if is_fault or not any(clip.num_kept for clip in outcome.result.clips):
            times.lost.add(jobs[key].source.source_id)
        else:
            _add(times, jobs[key], outcome, frames_of[jobs[key].source.source_id])
    begin = time.perf_counter()
    with looking() as watch:
        report = write_task(running, folder)
    times.whole += time.perf_counter() - begin
    times.add(watch.seconds)
    times.tokens += report.num_tokens
    times.losses += report.losses


def _add(times: StageTimes, job: Job, outcome: JobTimes, num_frames: int) -> None:
    probe = outcome.probe * sum(len(clip.frame_pts) for clip in job.clips) / num_frames
    times.add({**outcome.stages, "probe": probe})
    times.whole += probe + outcome.whole
    times.jobs += outcome.whole
    times.busy += outcome.beside.get("encode", 0.0) + outcome.stages.get("encode", 0.0)
    times.decoded += outcome.counts["decoded"]
    times.wanted += outcome.counts["decode"]
    times.floor += outcome.floor
    times.floor_frames += outcome.floor_frames
