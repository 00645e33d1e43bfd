"""Whole processes, timed from their start to their end, that take turns."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Run:
    """One process, with all that it started and waited for."""

    seconds: float
    """By the clock on the wall: imports, workers and what Python does as it ends included."""
    cpu_seconds: float
    said: str
    """Its standard output."""


Runs = dict[str, list[Run]]
"""From a contender to its runs, one a round."""


def run(command: Sequence[str | Path], *, folder: Path | None = None) -> Run:
    """Run a command to its end.

    Args:
        folder: to run it in; None: this one.

    Raises:
        RuntimeError: it failed; with the end of what it said.
    """
    with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as complaints:
        began = time.perf_counter()
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=said, stderr=complaints, cwd=folder
        )
        # Not `wait`: wait4 also says what the process and its own children took of the CPU.
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        complaints.seek(0)
        if process.returncode:
            words = " ".join(map(str, command))
            last = complaints.read().decode(errors="replace")[-2000:]
            raise RuntimeError(f"exit code {process.returncode}: {words}\n{last}")
        return Run(seconds, usage.ru_utime + usage.ru_stime, said.read().decode())


def take_turns(
    contenders: Mapping[str, Callable[[], Run]],
    *,
    rounds: int,
    most_rounds: Mapping[str, int] | None = None,
) -> Runs:
    """Run each contender once a round, so that a machine that slows down slows all of them.

    Args:
        most_rounds: of contenders that sit out the later rounds.
    """
    runs: Runs = {name: [] for name in contenders}
    for number in range(rounds):
        for name, start in contenders.items():
            if number < (most_rounds or {}).get(name, rounds):
                runs[name].append(start())
                seconds = runs[name][-1].seconds
                print(f"  round {number + 1}, {name}: {seconds:.2f} s", file=sys.stderr, flush=True)
    return runs


def ratios(runs: Runs, one: str, other: str) -> list[float]:
    """Seconds of `one` over those of `other`, of each round that has both."""
    return [a.seconds / b.seconds for a, b in zip(runs[one], runs[other], strict=False)]
