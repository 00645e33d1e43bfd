"""How far a run is, on stderr: a live line on a terminal, else a plain one now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import typer

from spacepatch.cli.saying import say
from spacepatch.data import POLICY_REASONS, TaskReport
from spacepatch.pipeline import JobReport, Watch
from spacepatch.pipeline.plan import PlannedTask
from spacepatch.pipeline.planfile import StoredPlan
from spacepatch.wording import counted, duration

SECONDS_BETWEEN = 30
"""Plain lines, at least: a log of a day has 3,000 of them at most."""


class RunProgress:
    """A live line on a terminal's stderr; where there is none, one line now and then."""

    def __init__(self, *, resumes: bool = True, seconds_between: float = SECONDS_BETWEEN) -> None:
        """
        Args:
            resumes: an interrupted run goes on where it stopped.
            seconds_between: plain lines, at least.
        """
        self._resumes, self._seconds_between = resumes, seconds_between
        self._live: Any = None
        self._task: Any = None
        self._tokens = self._planned = self._passed = self._lost = self._packs = 0
        self._packed_tokens = self._jobs = self._num_jobs = 0
        self._shards = self._num_shards = 0
        self._pack_length = 1
        self._seconds = 0.0
        self._start = self._said = time.monotonic()

    def __enter__(self) -> RunProgress:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
            from rich.table import Column

            whole = Column(no_wrap=True)
            self._live = Progress(
                TextColumn("{task.description}", table_column=whole),
                BarColumn(bar_width=10),
                TextColumn("{task.percentage:>3.0f}%", table_column=whole),
                TimeRemainingColumn(compact=True, table_column=whole),
                TextColumn("{task.fields[facts]}", table_column=Column(no_wrap=True)),
                console=Console(stderr=True),
                transient=True,
            )
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            goes_on = "finished shards are kept; the same command goes on from here"
            typer.echo(
                f"interrupted: {goes_on if self._resumes else 'nothing was written'}", err=True
            )

    def watch(self) -> Watch:
        return Watch(
            on_probed=self._on_probed,
            on_start=self._on_start,
            on_note=lambda note: say(f"note: {note}", err=True),
            on_job=self._on_job,
            on_task=self._on_task,
        )

    def _show(self, title: str, done: int, total: int, facts: str, plain: str = "") -> None:
        """`plain` is what a line without a terminal says, where it says more."""
        if self._live is None:
            if time.monotonic() - self._said >= self._seconds_between:
                self._say(plain or f"{title}: {facts}")
            return
        if self._task is None:
            self._task = self._live.add_task(title, total=total, facts=facts)
        self._live.update(
            self._task, description=title, completed=done, total=max(total, 1), facts=facts
        )

    def _say(self, line: str) -> None:
        if self._live is None:
            say(line, err=True)
            self._said = time.monotonic()
        else:
            self._live.console.print(line)

    def _on_probed(self, done: int, total: int) -> None:
        self._show("planning", done, total, f"{done}/{total} sources")

    def on_shard(self, done: int, total: int) -> None:
        """Of a dataset that is written anew."""
        self._show("rewriting", done, total, f"{done}/{total} shards")

    def on_pack(self, done: int, total: int) -> None:
        """Of a dataset that is unpacked."""
        self._show("unpacking", done, total, f"{done}/{total} packs")

    def _on_start(self, plan: StoredPlan, pending: Sequence[PlannedTask]) -> None:
        self._pack_length = plan.head.layout.pack_length
        self._planned = sum(task.num_tokens for task in pending)
        self._num_jobs = sum(task.num_jobs for task in pending)
        self._num_shards = len(plan.tasks)
        self._shards = len(plan.tasks) - len(pending)
        # What is lost before there are tasks is no rank's.
        self._lost = lost = _lost_by_plan(plan) if plan.is_whole else 0
        self._start = time.monotonic()
        if self._task is not None:
            self._live.remove_task(self._task)
            self._task = None
        self._say(
            f"plan: {counted(plan.num_sources, 'source')}{f' ({lost:,} lost)' if lost else ''}, "
            f"{counted(plan.num_clips, 'clip')}, {'<= ' if plan.head.is_bound else ''}"
            f"{counted(plan.num_tokens, 'token')}, {counted(len(plan.tasks), 'shard')}"
            + (f", {len(pending):,} left to do" if len(pending) < len(plan.tasks) else "")
        )
        if not plan.tasks:
            typer.echo("nothing to do: no clip of any source can be had", err=True)
        elif not pending:
            typer.echo("nothing left to do: every shard has its receipt", err=True)
        self._refresh(0)

    def _on_job(self, report: JobReport) -> None:
        self._jobs += 1
        self._tokens += report.tokens
        self._seconds += report.seconds_of_video
        self._lost += report.is_lost
        self._refresh(report.planned_tokens)

    def _on_task(self, report: TaskReport) -> None:
        self._shards += 1
        self._packs += report.num_packs
        self._packed_tokens += report.num_tokens
        self._refresh(0)

    def _refresh(self, planned: int) -> None:
        self._passed += planned
        elapsed = max(time.monotonic() - self._start, 1e-6)
        fill = left = ""
        if self._packs:
            fill = f" fill {self._packed_tokens / (self._packs * self._pack_length):.0%}"
        if 0 < self._passed < self._planned:
            seconds = elapsed * (self._planned / self._passed - 1)
            left = f", about {duration(seconds)} left"
        self._show(
            "eta",
            self._passed,
            self._planned,
            f"{self._jobs}/{self._num_jobs} videos {_brief(self._tokens)} tokens{fill} "
            f"{_brief(self._tokens / elapsed)}/s {self._seconds / elapsed:.1f}x {self._lost} lost",
            f"{self._shards:,}/{self._num_shards:,} shards, {self._jobs:,}/{self._num_jobs:,} "
            f"videos, {_brief(self._tokens)} tokens, {_brief(self._tokens / elapsed)}/s, "
            f"{self._lost:,} lost{left}",
        )


def _lost_by_plan(plan: StoredPlan) -> int:
    """Sources of which nothing is planned, though the settings asked for it."""
    lost = (
        row["source_id"]
        for row in plan.loss_rows()
        if not row["num_selected"] and row["reason"] not in POLICY_REASONS
    )
    return len(set(lost))


def _brief(number: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.1f}{letter}"
    return f"{number:.0f}"
