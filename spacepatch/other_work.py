"""How many cores other work on this machine takes, while this process does nothing."""

from __future__ import annotations

import os
import time
from collections.abc import Collection
from pathlib import Path

from spacepatch.limits import available_cores

LOOK_SECONDS = 0.25
"""Of the clock of /proc/stat, 25 ticks of each core."""
MOST_TAKEN = 0.1
"""Share of the cores that others may take: what every machine does beside, and not more."""
IDLE = (3, 4)
"""Of the columns of a core in /proc/stat: idle, and waiting for a disk."""
COLUMNS = 8
"""Those after them are in the first ones already."""


class OtherWork:
    """What others take, looked for whenever nothing of ours runs."""

    def __init__(self) -> None:
        self.num_cores = available_cores()
        """That are ours to use."""
        self._taken: list[float] = []
        self._reads_load = True

    @property
    def cores(self) -> float | None:
        """That others took, on average; None: this system does not tell."""
        return sum(self._taken) / len(self._taken) if self._taken else None

    @property
    def is_busy(self) -> bool:
        """Whether they took so many that times mean little."""
        return (self.cores or 0) > MOST_TAKEN * self.num_cores

    def look(self) -> None:
        """Wait for a moment, and see who works meanwhile."""
        ours = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set[int]()
        before = _reading()
        if before:
            time.sleep(LOOK_SECONDS)
            busy = busy_cores(before, _reading(), ours)
            if busy is not None:
                # Of more cores than a container may use, others may have those that are left.
                left = len(ours) - busy
                self._taken.append(max(0.0, self.num_cores - left))
        elif self._reads_load and hasattr(os, "getloadavg"):
            # Of the last minute, so that only the first one has nothing of ours in it.
            self._taken.append(min(os.getloadavg()[0], float(self.num_cores)))
        self._reads_load = False


def busy_cores(before: str, after: str, ours: Collection[int]) -> float | None:
    """How many of some cores worked between two readings of /proc/stat; None: they do not tell."""
    ticks = [_ticks(text) for text in (before, after)]
    busy = 0.0
    for core in ours:
        if any(core not in found for found in ticks):
            return None
        passed = [late - early for early, late in zip(*(t[core] for t in ticks), strict=True)]
        if sum(passed) > 0:
            busy += 1 - sum(passed[column] for column in IDLE) / sum(passed)
    return busy if ours else None


def _reading() -> str:
    try:
        return Path("/proc/stat").read_text()
    except OSError:
        return ""


def _ticks(text: str) -> dict[int, list[int]]:
    """By core, ticks in each state since the system was started."""
    found = {}
    for line in text.splitlines():
        name, *values = line.split() or [""]
        if name.startswith("cpu") and name[3:].isdigit() and len(values) > max(IDLE):
            found[int(name[3:])] = [int(value) for value in values[:COLUMNS]]
    return found
