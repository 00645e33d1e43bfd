"""What a run will do: its settings, sources and tasks, as they are known before decoding."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol

from spacepatch.data import ClipSpec, EncoderFacts, Loss, Source, Task, VideoInfo
from spacepatch.pipeline.placement import Placement
from spacepatch.shards import Layout


@dataclass(frozen=True, slots=True)
class PlannedSource:
    """A source with what its probe found."""

    source: Source
    content_id: str
    info: VideoInfo | None
    """Without its table of frames; None: it could not be probed."""
    num_frames: int
    duration_seconds: float
    num_selected: int = 0
    """Frames of all of its clips in the plan."""


@dataclass(frozen=True, slots=True)
class PlannedTask:
    """A task without its clips, which are read when it is run."""

    number: int
    """Position in the plan; the shard's number."""
    split: str
    task_id: str
    num_clips: int
    num_jobs: int
    """Sources that its clips are of."""
    num_frames: int
    num_tokens: int
    """Kept ones."""


class AnyTask(Protocol):
    """A task, with its clips or without."""

    @property
    def number(self) -> int: ...
    @property
    def split(self) -> str: ...
    @property
    def task_id(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run will do, or a part of that: every rank and every later start reads the same."""

    plan_id: str
    """Empty until it is written."""
    name: str
    settings: dict[str, Any]
    """The effective settings that are part of a fingerprint."""
    fingerprints: dict[str, str]
    environment: dict[str, str]
    layout: Layout
    placement: Placement
    num_ignored: int
    inputs: str
    """Fingerprint of what the SOURCE arguments say: names, ranges, columns."""
    encoder: EncoderFacts | None = None
    """None: pixels are cut."""
    sources: tuple[PlannedSource, ...] = ()
    tasks: tuple[Task, ...] = ()
    losses: tuple[Loss, ...] = ()
    """Known before decoding: sources that cannot be probed, clips that the settings rule out."""

    @property
    def num_tokens(self) -> int:
        """Kept ones: exact, or with `is_bound` the most that there can be."""
        return sum(clip.num_kept for task in self.tasks for clip in task.clips)

    @property
    def is_bound(self) -> bool:
        """Whether what is kept depends on the pictures: static tubelets are dropped."""
        return self.layout.run_lengths

    @property
    def num_clips(self) -> int:
        return sum(len(task.clips) for task in self.tasks)

    def part(self, task: AnyTask) -> Plan:
        """The plan of one task alone, with the same ids: no task needs more of it than its own."""
        (own,) = (each for each in self.tasks if each.number == task.number)
        rows = sorted({clip.source for clip in own.clips})
        places = {row: place for place, row in enumerate(rows)}
        clips: tuple[ClipSpec, ...] = tuple(
            replace(clip, source=places[clip.source]) for clip in own.clips
        )
        sources = tuple(self.sources[row] for row in rows)
        return replace(self, sources=sources, tasks=(replace(own, clips=clips),), losses=())


class PlanOfTasks(Protocol):
    """A plan in memory, or one on disk: what is asked of it to run its tasks."""

    @property
    def plan_id(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def environment(self) -> dict[str, str]: ...
    def part(self, task: AnyTask) -> Plan: ...
