"""What a benchmark found: figures against what is wanted of them, on the screen and as JSON."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

from tests.benchmarks.children import Runs

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "build" / "benchmarks"
PACKAGES = ("spacepatch", "av", "numpy", "torch", "decord", "webdataset", "pyarrow", "scipy")


@dataclass(frozen=True, slots=True)
class Figure:
    """One thing measured, and what is wanted of the median of it."""

    work: str
    measure: str
    """What the numbers are, with their unit."""
    each: Sequence[float]
    """Of each round."""
    at_most: float | None = None
    at_least: float | None = None

    @property
    def is_reached(self) -> bool:
        middle = median(self.each)
        return (self.at_most is None or middle <= self.at_most) and (
            self.at_least is None or middle >= self.at_least
        )

    def cells(self) -> list[str]:
        """The row of a table: work, measure, min, median, max, wanted, verdict."""
        bounds = [
            f"{sign} {bound:g}"
            for sign, bound in ((">=", self.at_least), ("<=", self.at_most))
            if bound is not None
        ]
        verdict = ("reached" if self.is_reached else "NOT reached") if bounds else ""
        numbers = (min(self.each), median(self.each), max(self.each))
        return [
            self.work,
            self.measure,
            *(f"{number:.3g}" if abs(number) < 100 else f"{number:.0f}" for number in numbers),
            ", ".join(bounds),
            verdict,
        ]


HEADINGS = ["work", "measure", "min", "median", "max", "wanted", ""]


def conclude(
    figures: Sequence[Figure],
    *,
    path: Path,
    settings: Mapping[str, Any],
    runs: Mapping[str, Runs] | None = None,
) -> int:
    """Print the figures, write them with every single time, and return the exit code.

    Args:
        path: of the JSON file.
        runs: by work.
    """
    rows = [HEADINGS, *(figure.cells() for figure in figures)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())
    document = {
        "machine": describe_machine(),
        "settings": dict(settings),
        "figures": [
            asdict(figure) | {"median": median(figure.each), "is_reached": figure.is_reached}
            for figure in figures
        ],
        "runs": {
            work: {name: [asdict(one) for one in made] for name, made in contenders.items()}
            for work, contenders in (runs or {}).items()
        },
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n")
    print(f"written: {path}")
    return 0 if all(figure.is_reached for figure in figures) else 1


def describe_machine() -> dict[str, Any]:
    """What the figures hold for."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": versions,
        "commit": _commit(),
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _commit() -> str | None:
    """Of the checkout, with `-dirty` where files differ from it; None where there is no git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
