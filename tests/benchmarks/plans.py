"""Plans of very many sources, simulated: how long each step takes, and in how much memory.

There are no files. A Parquet manifest of so many rows is read as any manifest is; then so many
sources, whose names and sizes are made up, are listed, probed by answers that are made up (50 kinds
of clips of 2 to 11 seconds, one source in 1,000 unreadable), and everything after that is what
`spacepatch plan --out` does: parts kept on disk, clips chosen, runs ordered, tasks cut, the plan
written and read again, its figures counted, and what one rank of 1,000 reads of it. Each number of
sources has a process of its own, of which the seconds of the CPU and the peak of the memory of each
step are measured.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet

from spacepatch.config import load_config
from spacepatch.data import Part, Source, VideoInfo
from spacepatch.listings import Listing, SourceTable
from spacepatch.manifests import manifest_entries
from spacepatch.pipeline.forecast import forecast
from spacepatch.pipeline.planfile import open_plan
from spacepatch.pipeline.planning import plan_run
from spacepatch.probes import Probed, ProbeJob
from spacepatch.sources import make_source_id
from tests.benchmarks.children import run
from tests.benchmarks.results import RESULTS, ROOT, Figure, conclude
from tests.soak import MB, read_sizes

NUMBERS = (10_000, 100_000, 1_000_000)
"""Ten million take ten times as long as the last one: --numbers 10000000."""
SIZES = ((360, 640), (480, 854), (720, 1280), (1280, 720), (540, 960))
SECONDS = range(2, 12)
RANKS = 1000
MOST_GROWTH = 1.25
"""Of the time a source, from a tenth of the sources to all."""
MOST_BYTES = 40
"""Of memory that each further source takes."""
ROWS = 100_000


def sources(number: int) -> Iterator[Source]:
    """Sources in folders of 1,000, none of which exists."""
    for place in range(number):
        name = f"{place // 1000:05d}/clip-{place:08d}.mp4"
        identity = make_source_id(name, ordinal=0)
        yield Source(f"/videos/{name}", name, 0, identity, 2_000_000 + place % 1000)


def write_manifest(path: Path, number: int) -> None:
    """As a manifest of them would be, with a caption each."""
    schema = pa.schema([("uri", pa.string()), ("caption", pa.string())])
    with parquet.ParquetWriter(path, schema) as writer:
        for first in range(0, number, ROWS):
            places = range(first, min(first + ROWS, number))
            uris = [f"{place // 1000:05d}/clip-{place:08d}.mp4" for place in places]
            captions = [f"what clip {place} shows" for place in places]
            writer.write_table(pa.table({"uri": uris, "caption": captions}, schema=schema))


@cache
def info(kind: int) -> VideoInfo:
    """What the probe of a clip tells."""
    size, seconds = SIZES[kind % len(SIZES)], SECONDS[kind // len(SIZES)]
    frames = seconds * 30
    return VideoInfo(
        container="mov,mp4,m4a,3gp,3g2,mj2",
        codec="h264",
        stream_index=0,
        parts=(Part(0, 0, size, size, Fraction(1)),),
        rotation=0,
        pixel_format="yuv420p",
        colour={
            **dict.fromkeys(("matrix", "primaries", "transfer"), "bt709"),
            "range": "tv",
            "tagged": "yes",
        },
        bit_depth=8,
        hdr="",
        interlaced="",
        alpha=False,
        time_base=Fraction(1, 30),
        frame_pts=np.arange(frames, dtype=np.int64),
        stop_pts=frames,
        num_packets=frames,
        num_before_key=0,
        pts_repaired="",
        still=False,
        keyframes=np.arange(0, frames, 60, dtype=np.int64),
    )


def probe(jobs: Iterable[ProbeJob]) -> Iterator[tuple[int, Probed]]:
    """As of `Executor.probe`, without looking at anything."""
    for place, job in enumerate(jobs):
        drawn = int(job.source.source_id[:8], 16)
        if drawn % 1000 == 0:
            yield place, Probed("", None, "unreadable", "no container that FFmpeg can read")
        else:
            yield place, Probed(job.source.source_id, info(drawn % 50))


def simulate(
    number: int, scratch: Path, without: Sequence[str] = ()
) -> dict[str, dict[str, float]]:
    """Plan so many sources in this process; seconds and megabytes at most of each step."""
    found: dict[str, dict[str, float]] = {}

    @contextmanager
    def step(name: str) -> Iterator[None]:
        # The kernel takes what is resident now for the peak.
        Path("/proc/self/clear_refs").write_text("5")
        began = time.process_time()
        yield
        seconds = time.process_time() - began
        found[name] = {
            "seconds": seconds,
            "megabytes": read_sizes("/proc/self/status")["VmHWM"] / MB,
        }
        print(f"    {name}: {seconds:.1f} s", file=sys.stderr, flush=True)

    config = load_config({})
    if "manifest" not in without:
        write_manifest(scratch / "manifest.parquet", number)
        with step("manifest"):
            assert sum(1 for _ in manifest_entries(scratch / "manifest.parquet")) == number
    with step("list"):
        listing = Listing(SourceTable(sources(number)), 0)
    probed = Clock()
    with step("plan"):
        stored = plan_run(config, listing, probe=probe, on_probed=probed, out=scratch)
    # The two halves of it: what is kept of each source, then order, tasks and the plan itself.
    found["probe and choose"] = {"seconds": probed.seconds}
    with step("open"):
        stored = open_plan(scratch, listing.find)
    if "figures" not in without:
        with step("figures"):
            totals = forecast(stored)["totals"]
        assert totals["clips"] + totals["losses"]["unreadable"] >= number
    with step("rank"):
        own = replace(stored, tasks=stored.tasks[:: max(1, len(stored.tasks) // RANKS) or 1])
        for task in own.tasks[: max(1, len(stored.tasks) // RANKS)]:
            own.part(task)
    assert stored.num_clips + sum(1 for _ in stored.losses()) >= number
    found["size"] = {
        "plan_megabytes": (scratch / "plan.parquet").stat().st_size / MB,
        "tasks": len(stored.tasks),
        "clips": stored.num_clips,
    }
    return found


class Clock:
    """Told of progress; how long it took until all were probed."""

    def __init__(self) -> None:
        self._began = time.process_time()
        self.seconds = 0.0

    def __call__(self, done: int, total: int) -> None:
        if done == total:
            self.seconds = time.process_time() - self._began


STEPS = ("manifest", "list", "plan", "open", "figures", "rank")


def measure(
    numbers: Sequence[int], scratch: Path | None, without: Sequence[str] = ()
) -> list[Figure]:
    made = []
    for number in numbers:
        print(f"  {number:,} sources", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            command = [
                sys.executable,
                "-m",
                "tests.benchmarks.plans",
                "--here",
                str(number),
                folder,
            ]
            command += ["--without", *without] if without else []
            made.append(json.loads(run(command, folder=ROOT).said))
    figures = []
    for number, one in zip(numbers, made, strict=True):
        work = f"{number:,} sources"
        for name in filter(one.get, (*STEPS, "probe and choose")):
            figures.append(Figure(work, f"s of the CPU, {name}", [one[name]["seconds"]]))
        for name in filter(one.get, STEPS):
            figures.append(Figure(work, f"MB at most, {name}", [one[name]["megabytes"]]))
        figures.append(Figure(work, "MB of plan.parquet", [one["size"]["plan_megabytes"]]))
        figures.append(Figure(work, "shards", [one["size"]["tasks"]]))
    return figures + grown(numbers, made)


def grown(numbers: Sequence[int], made: Sequence[dict[str, dict[str, float]]]) -> list[Figure]:
    """From each number of sources to the next: the time a source, and the memory of each more."""

    def seconds(one: dict[str, dict[str, float]]) -> float:
        return sum(one[name]["seconds"] for name in filter(one.get, STEPS))

    def peak(one: dict[str, dict[str, float]]) -> float:
        return max(one[name]["megabytes"] for name in filter(one.get, STEPS))

    figures = []
    for place in range(1, len(numbers)):
        few, many = numbers[place - 1], numbers[place]
        work = f"{few:,} to {many:,} sources"
        growth = seconds(made[place]) / many / (seconds(made[place - 1]) / few)
        each = (peak(made[place]) - peak(made[place - 1])) * MB / (many - few)
        # Of few, buffers that have a fixed size are not full yet.
        most = MOST_BYTES if few >= 100_000 else None
        figures += [
            Figure(work, "growth of time a source", [growth], at_most=MOST_GROWTH),
            Figure(work, "bytes of memory a source more", [each], at_most=most),
        ]
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--here", nargs=2, metavar=("NUMBER", "FOLDER"), help=argparse.SUPPRESS)
    parser.add_argument("--numbers", type=int, nargs="+", default=NUMBERS, help="of sources")
    parser.add_argument("--scratch", type=Path, help="folder for plans: 4 kB a source")
    parser.add_argument(
        "--without",
        nargs="+",
        choices=("manifest", "figures"),
        default=(),
        help="steps",
    )
    parser.add_argument("--json", type=Path, default=RESULTS / "plans.json")
    options = parser.parse_args()
    if options.here:
        number, folder = options.here
        print(json.dumps(simulate(int(number), Path(folder), options.without)))
        return 0
    figures = measure(options.numbers, options.scratch, options.without)
    return conclude(figures, path=options.json, settings={"numbers": list(options.numbers)})


if __name__ == "__main__":
    sys.exit(main())
