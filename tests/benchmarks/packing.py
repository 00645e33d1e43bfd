"""How long a million lengths take to pack, how that grows, and in how much memory.

Lengths are uniform in 1 .. 8192, in packs of 8192, seeded. Each packer has a process of its own for
each number of lengths, which packs three times and says the least seconds of the CPU, and by how
much its peak is above what it held before. Packers that solve equations (scipy) are for lengths
that repeat: so many distinct ones they do not take, or take minutes for. Wikipedia's histogram is
that of Krell et al. (arXiv 2107.02027), 16.3 M sequences in packs of 512; ../shared has it.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import tracemalloc
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from spacepatch.cutting import pack_cut_to_fit
from spacepatch.packers import ALL_PACKERS, NEEDS_SCIPY
from spacepatch.packing import count_packs
from tests.benchmarks.children import run
from tests.benchmarks.results import RESULTS, ROOT, Figure, conclude
from tests.soak import MB, read_sizes

NUMBERS = (250_000, 500_000, 1_000_000)
PACK_LENGTH = 8192
REPEATS = 3
MOST_SECONDS = 1.0
"""For a million lengths."""
MOST_GROWTH = 1.25
"""Of the time for one length, from the fewest lengths to the most."""
HISTOGRAMS = ROOT.parent / "shared" / "packing" / "histograms.json"
MOST_SECONDS_OF_HISTOGRAM = 0.2


def packers() -> dict[str, Callable[[np.ndarray], Sequence[object]]]:
    """Each packs ``(n,)`` lengths, and is known by the words of the command line."""
    plain = {
        name: partial(packer, pack_length=PACK_LENGTH)
        for name, packer in ALL_PACKERS.items()
        if name not in NEEDS_SCIPY
    }
    return {
        **plain,
        "first-fit, window 64": partial(
            ALL_PACKERS["first-fit"], pack_length=PACK_LENGTH, window=64
        ),
        "cut-to-fit": lambda lengths: pack_cut_to_fit(
            lengths, np.ones_like(lengths), pack_length=PACK_LENGTH
        ),
    }


def pack_here(name: str, number: int) -> dict[str, float]:
    """Pack `number` lengths in this process."""
    lengths = np.random.default_rng(0).integers(1, PACK_LENGTH + 1, number)
    pack = packers()[name]
    before = _memory("VmRSS")
    seconds, num_packs = [], 0
    for _ in range(REPEATS):
        began = time.process_time()
        packs = pack(lengths)
        seconds.append(time.process_time() - began)
        num_packs = len(packs)
        del packs  # not two at a time
    return {
        "seconds": min(seconds),
        "packs": num_packs,
        "fill": int(lengths.sum()) / (num_packs * PACK_LENGTH),
        "megabytes": (_memory("VmHWM") - before) / MB,
    }


def _memory(field: str) -> int:
    return read_sizes("/proc/self/status")[field]


def measure(numbers: Sequence[int]) -> list[Figure]:
    figures = []
    for name in packers():
        found = [_in_process(name, number) for number in numbers]
        most = f"{name}, {numbers[-1]:,} lengths"
        each = [made["seconds"] / number for made, number in zip(found, numbers, strict=True)]
        span = f"{name}, {numbers[0]:,} to {numbers[-1]:,}"
        figures += [
            Figure(most, "s", [found[-1]["seconds"]], at_most=MOST_SECONDS),
            Figure(span, "growth of time a length", [each[-1] / each[0]], at_most=MOST_GROWTH),
            Figure(most, "MB of memory", [found[-1]["megabytes"]]),
            Figure(most, "fill of packs", [found[-1]["fill"]]),
        ]
    return figures


def _in_process(name: str, number: int) -> dict[str, float]:
    print(f"  {name}, {number:,}", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "tests.benchmarks.packing", "--here", name, str(number)]
    return json.loads(run(command, folder=ROOT).said)


def count_histogram() -> list[Figure]:
    """Pack Wikipedia by the histogram of its lengths."""
    if not HISTOGRAMS.exists():
        print(f"{HISTOGRAMS} is not there: Wikipedia's histogram is not packed")
        return []
    counts = [0, *json.loads(HISTOGRAMS.read_text())["wikipedia_512"]]
    seconds = []
    for _ in range(REPEATS):
        began = time.process_time()
        num_packs = count_packs(counts, pack_length=512, packer="best-fit-decreasing")
        seconds.append(time.process_time() - began)
    tracemalloc.start()
    count_packs(counts, pack_length=512, packer="best-fit-decreasing")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    work = f"Wikipedia, {sum(counts):,} sequences in {num_packs:,} packs"
    return [
        Figure(work, "s, best-fit-decreasing", seconds, at_most=MOST_SECONDS_OF_HISTOGRAM),
        Figure(work, "MB of memory", [peak / MB]),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--here", nargs=2, metavar=("PACKER", "NUMBER"), help=argparse.SUPPRESS)
    parser.add_argument("--numbers", type=int, nargs="+", default=NUMBERS, help="of lengths")
    parser.add_argument("--json", type=Path, default=RESULTS / "packing.json")
    options = parser.parse_args()
    if options.here:
        name, number = options.here
        print(json.dumps(pack_here(name, int(number))))
        return 0
    figures = [*measure(options.numbers), *count_histogram()]
    return conclude(figures, path=options.json, settings={"numbers": list(options.numbers)})


if __name__ == "__main__":
    sys.exit(main())
