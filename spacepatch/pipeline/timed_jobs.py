"""A job under the stopwatch, beside the floor: every frame of its clips decoded, and no more."""

from __future__ import annotations

import os
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from spacepatch.data import VideoInfo
from spacepatch.decode import decode_pictures
from spacepatch.errors import SourceError
from spacepatch.jobs import Job, JobResult, run_job, tokens_of
from spacepatch.probes import ProbeJob, probe_source
from spacepatch.stages import looking
from spacepatch.workers import Fault, beat

MOST_SECONDS_TO_START = 60
"""For all workers of a pool, after which those that are there begin."""


@dataclass(frozen=True, slots=True)
class TimedJob:
    """A job, and how its source is probed."""

    job: Job
    probe: ProbeJob
    floor_first: bool
    """Before the job, not after it: so that neither always finds what the other warmed."""


@dataclass(frozen=True, slots=True)
class JobTimes:
    """What a job took, in seconds."""

    result: JobResult
    probe: float
    whole: float
    """Of the job without its probe, by a clock of its own: the sum of `stages`."""
    stages: dict[str, float]
    beside: dict[str, float]
    """Of other threads: an encoder on an accelerator."""
    counts: Counter[str]
    """`decoded`: pictures that the decoder made; `decode`: those that were wanted."""
    floor: float
    floor_frames: int


def run_timed(timed: TimedJob) -> JobTimes | Fault:
    """Probe the source, run the job and decode all of its frames, each under the clock."""
    begin = time.perf_counter()
    found = probe_source(timed.probe)
    probe = time.perf_counter() - begin
    if found.info is None:
        return Fault(found.reason, found.message, stage="probe")
    floor = _decode_all(timed.job, found.info) if timed.floor_first else (0.0, 0)
    begin = time.perf_counter()
    with looking() as watch:
        result = run_job(timed.job)
    whole = time.perf_counter() - begin
    if isinstance(result, Fault):
        return result
    if not timed.floor_first:
        floor = _decode_all(timed.job, found.info)
    return JobTimes(result, probe, whole, watch.seconds, watch.beside, watch.counts, *floor)


def _decode_all(job: Job, info: VideoInfo) -> tuple[float, int]:
    """Seconds and number of all frames of the clips of a job, and of those between them, by PyAV.

    A source that is damaged ends where it cannot be read on, as its job does.
    """
    from av.error import FFmpegError

    pts = info.frame_pts
    first = min(int(clip.frame_indices[0]) for clip in job.clips)
    end = 1 + max(int(clip.frame_indices[-1]) for clip in job.clips)
    if not info.still:
        start_pts = min(clip.start_pts for clip in job.clips)
        stop_pts = max(clip.stop_pts for clip in job.clips)
        first = min(first, int(pts.searchsorted(start_pts)))
        end = max(end, int(pts.searchsorted(stop_pts)))
    count = 0
    begin = time.perf_counter()
    with suppress(SourceError, FFmpegError, OSError):
        for _ in decode_pictures(
            job.source.uri,
            info=info,
            indices=np.arange(first, end),
            pts=pts[first:end],
            offset=job.source.member_offset,
            num_bytes=job.source.num_bytes,
            on_picture=beat,
            interlaced="keep",
            max_pixels=job.settings.max_pixels,
        ):
            count += 1
    return time.perf_counter() - begin, count


@dataclass(frozen=True, slots=True)
class Start:
    """What a worker does before the clock runs."""

    folder: Path
    workers: int
    job: Job | None
    """Done once for nothing: the first one imports, and loads the encoder."""


def start_worker(start: Start) -> None:
    """Get ready, and wait until all workers are."""
    if start.job is not None:
        # An encoder that finds no memory will say so again when it is to encode.
        with suppress(SourceError):
            for _ in tokens_of(start.job):
                beat()
    (start.folder / str(os.getpid())).touch()
    end = time.monotonic() + MOST_SECONDS_TO_START
    while len(list(start.folder.iterdir())) < start.workers and time.monotonic() < end:
        beat()
        time.sleep(0.01)
