"""What more clips, more workers and longer clips cost: time and memory of `spacepatch tokenize`.

- `clips`: 1, 2, 4 and 8 x the yardstick at 8 fps. Raw seconds a clip fall as start-up is shared
  out, which would hide that each clip costs more. So each round also has a run over one clip of two
  frames, which is start-up and little else; its time is taken off. The raw figures, and what the
  last clips cost by what the first ones do (from differences of times alone), stand beside.
- `workers`: how much faster two workers are than one, by how much faster two processes decode.
- `memory`: peaks of each process with the most clips. `resident` is without the arena (the memory
  that workers and parent share), VmHWM is the kernel's own figure, with it.
- `minutes`: a clip of 1, 30 and 60 minutes at 2 fps, judged as `clips` is, and the memory of
  the longest by that of the shortest.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from tests.benchmarks import clips as making
from tests.benchmarks.children import Run, Runs, ratios, take_turns
from tests.benchmarks.contenders import (
    add_options,
    decode_only,
    prepared,
    removed,
    spacepatch,
)
from tests.benchmarks.results import RESULTS, Figure, conclude
from tests.soak import MB, Usage, bare_size, run_watched

SIZES = (1, 2, 4, 8)
"""Times the yardstick."""
MINUTES = (1, 30, 60)
FLAT = 0.05
"""How much dearer than with the fewest a clip or a minute may be."""
LEAST_GAIN = 0.95
"""Of two workers, by what decoding alone gains."""
MOST_MEMORY = 1.1
"""Of the longest clip, by the shortest."""


@dataclass(frozen=True)
class Part:
    """What one part found."""

    figures: list[Figure]
    runs: Runs = field(default_factory=dict)


# --- time --------------------------------------------------------------------------------------


def grow_clips(clips: making.Clips, out: Path, rounds: int, sizes: Sequence[int] = SIZES) -> Part:
    folders = clips.copies(max(sizes))
    making.read_once(folders)
    sources = {0: [clips.blink()]} | {n: folders[:n] for n in sizes}
    contenders = {str(n): partial(spacepatch, source, out) for n, source in sources.items()}
    runs = take_turns(contenders, rounds=rounds)
    return Part(linearity("x the clips, 8 fps", runs), runs)


def grow_minutes(
    clips: making.Clips, out: Path, rounds: int, minutes: Sequence[int] = MINUTES
) -> Part:
    paths = {n: clips.minutes(n) for n in minutes}
    making.read_once(paths.values())
    settings = ("--fps", "2")
    contenders = {
        str(n): partial(spacepatch, [path], out, settings=settings)
        for n, path in ({0: clips.blink()} | paths).items()
    }
    runs = take_turns(contenders, rounds=rounds)
    memory = compare_memory(paths[min(minutes)], paths[max(minutes)], out, " ".join(settings))
    return Part([*linearity("minutes, 2 fps", runs), *memory], runs)


def linearity(unit: str, runs: Runs) -> list[Figure]:
    """Whether time grows linearly with size.

    Args:
        runs: by size, as digits, from 0: start-up alone.
    """
    sizes = np.array([int(name) for name in runs][1:])
    times = np.array([[run.seconds for run in made] for made in runs.values()])  # (sizes, rounds)
    start_up, times = times[0], times[1:]
    raw = times / sizes[:, None]
    cost = (times - start_up) / sizes[:, None]
    steps = np.diff(times, axis=0) / np.diff(sizes)[:, None]
    span = f"{sizes[0]} to {sizes[-1]} {unit}"
    figures = [
        Figure(span, "s of start-up", start_up.tolist()),
        Figure(span, "cost of the last step by the first", (steps[-1] / steps[0]).tolist()),
    ]
    for size, each_raw, each in zip(sizes, raw / raw[0], cost / cost[0], strict=True):
        work, measure = f"{size} {unit}", f"time for each by that of {sizes[0]}"
        figures += [
            Figure(work, f"{measure}, raw", each_raw.tolist()),
            Figure(work, f"{measure}, without start-up", each.tolist(), at_most=1 + FLAT),
        ]
    return figures


def add_workers(clips: making.Clips, out: Path, rounds: int) -> Part:
    folder = clips.yardstick()
    making.read_once([folder])
    contenders: dict[str, Callable[[], Run]] = {}
    for number in (1, 2):
        settings = ("--workers", str(number))
        contenders |= {
            f"decode-only {number}": partial(decode_only, [folder], processes=number),
            f"spacepatch {number}": partial(spacepatch, [folder], out, settings=settings),
        }
    runs = take_turns(contenders, rounds=rounds)
    theirs = ratios(runs, "decode-only 1", "decode-only 2")
    ours = ratios(runs, "spacepatch 1", "spacepatch 2")
    shares = [a / b for a, b in zip(ours, theirs, strict=True)]
    work = "2 workers by 1, 8 fps"
    return Part(
        [
            Figure(work, "gain of decode-only", theirs),
            Figure(work, "gain of spacepatch", ours),
            Figure(work, "gain, decode-only's = 1", shares, at_least=LEAST_GAIN),
        ],
        runs,
    )


# --- memory ------------------------------------------------------------------------------------


def watch_memory(
    clips: making.Clips, out: Path, rounds: int = 1, sizes: Sequence[int] = SIZES
) -> Part:
    """Once, whatever the rounds, in a run that is not timed: looking at processes takes time."""
    folders = clips.copies(max(sizes))
    listed = clips.folder / "memory.txt"
    paths = (path for folder in folders for path in sorted(folder.glob("*.mp4")))
    listed.write_text("".join(f"{path.relative_to(clips.folder)}\n" for path in paths))
    with removed(out):
        usage = run_watched(Path(f"@{listed}"), out, "")
    return Part(peaks(f"{max(sizes)} x the clips, 8 fps", usage))


def peaks(work: str, usage: Usage) -> list[Figure]:
    """The peaks of each process, in MB of 2^20 bytes."""
    workers = [(f"worker {number + 1}", w) for number, w in enumerate(usage.workers.values())]
    return [
        *(
            figure
            for name, seen in [("parent", usage.parent), *workers]
            for figure in (
                Figure(work, f"MB, {name}, resident", [seen.resident / MB]),
                Figure(work, f"MB, {name}, VmHWM", [seen.high_water / MB]),
            )
        ),
        Figure(work, "MB, all processes, resident", [usage.resident / MB]),
        Figure(work, "MB, arena", [usage.arena / MB]),
    ]


def compare_memory(short: Path, long: Path, out: Path, settings: str) -> list[Figure]:
    """The peaks of two clips, and of the larger worker of each the ratio."""
    usages = {}
    for path in (short, long):
        with removed(out):
            usages[path] = run_watched(path, out, settings)
    # FFmpeg reads the whole sample table of an MP4 as it opens it. That is not ours.
    table = max(0, bare_size(long) - bare_size(short))
    name = f"{long.stem} minutes by {short.stem}, 2 fps"
    workers = (usages[long].worker_peak - table) / usages[short].worker_peak
    parents = usages[long].parent.resident / usages[short].parent.resident
    return [
        *peaks(f"{short.stem} minutes, 2 fps", usages[short]),
        *peaks(f"{long.stem} minutes, 2 fps", usages[long]),
        Figure(name, "MB, FFmpeg's own table of the file", [table / MB]),
        Figure(name, "worker's peak without that", [workers], at_most=MOST_MEMORY),
        Figure(name, "parent's peak", [parents], at_most=MOST_MEMORY),
    ]


PARTS: dict[str, Callable[[making.Clips, Path, int], Part]] = {
    "clips": grow_clips,
    "workers": add_workers,
    "memory": watch_memory,
    "minutes": grow_minutes,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    making.add_options(parser)
    add_options(parser)
    parser.add_argument("--only", choices=PARTS, action="append", help="parts; default: all")
    parser.add_argument("--json", type=Path, default=RESULTS / "growth.json")
    options = parser.parse_args()
    clips = making.open_clips(options)
    found = {}
    with prepared(options) as folder:
        for name in options.only or PARTS:
            print(name, file=sys.stderr)
            found[name] = PARTS[name](clips, folder / "out", options.rounds)
    return conclude(
        [figure for part in found.values() for figure in part.figures],
        path=options.json,
        settings={"source": clips.name, "rounds": options.rounds},
        runs={name: part.runs for name, part in found.items()},
    )


if __name__ == "__main__":
    sys.exit(main())
