"""See that memory does not grow with the number of clips, nor with their length; `make soak`.

What is measured, and why:
- *own*: `Anonymous` of /proc/PID/smaps_rollup: heap, stacks, FFmpeg's pictures. The arena is a
  memory file, which this leaves out; `Private_*` does not, for a page of it that only the worker
  has touched so far is private there. A leak is growth of this.
- *resident*: `RssAnon` + `RssFile`: own memory and the code in use, what a process costs the
  machine beside the arena. Peaks are compared by this.
- *arena*: `Pss_Shmem`, in which a page that two processes have mapped counts once.
Peaks are the largest of samples 20 ms apart; VmHWM, the kernel's own peak without gaps (arena
included), stands beside them.
"""

from __future__ import annotations

import argparse
import gc
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import av
import numpy as np
import psutil

from spacepatch.limits import OOM_SCORE

HERE = Path(__file__).resolve().parent
MB = 1024**2
MOST_GROWTH = 4 * MB
"""Of a worker, from a quarter of 2,000 clips to the last one."""
LEAST_GROWTH = 2 * MB
"""What fewer clips may grow by: allocators take memory in steps."""
MOST_PARENT_PER_CLIP = 20_000
"""Bytes of the parent for each clip of a plan: its rows, its times, its account."""
MOST_RATIO = 1.10
"""Of a long clip's peak to that of 60 s of the same content."""
SHARD_BYTES = 32_000_000
ARENAS = 2
"""Shards in memory: one that is written and one that is decoded."""
INTERVAL = 0.02
KINDS: tuple[tuple[str, str, str], ...] = (
    ("mp4", "libx264", "yuv420p"),
    ("mkv", "libx264", "yuv444p"),
    ("mp4", "libx265", "yuv420p10le"),
    ("webm", "libvpx-vp9", "yuv420p"),
    ("webm", "libvpx", "yuv420p"),
    ("avi", "mpeg4", "yuv420p"),
    ("ts", "mpeg2video", "yuv420p"),
    ("mkv", "ffv1", "yuv420p"),
    ("gif", "gif", "rgb8"),
    ("png", "png", "rgb24"),
)
"""Ending, codec and pixel format of the short clips."""
VARIANTS = 5
"""Sizes and lengths of each kind: 50 different files."""
ENCODER_OPTIONS = {
    "libx265": {"x265-params": "log-level=none:pools=none:frame-threads=1"},
    "libvpx-vp9": {"cpu-used": "8", "deadline": "realtime"},
}


# --- clips -------------------------------------------------------------------------------------


def make_short_clips(folder: Path, num_clips: int) -> None:
    """`num_clips` names in turn for 50 small files, each name with the same mix before it."""
    folder.mkdir()
    kinds = [(kind, variant) for variant in range(VARIANTS) for kind in KINDS]
    paths: list[Path] = []
    for number in range(num_clips):
        (ending, codec, pixel_format), variant = kinds[number % len(kinds)]
        paths.append(folder / f"{number:05d}.{ending}")
        if number < len(kinds):
            _make_clip(paths[number], codec, pixel_format, variant)
        else:
            os.link(paths[number % len(kinds)], paths[number])


def _make_clip(path: Path, codec: str, pixel_format: str, variant: int) -> None:
    width, height = 96 + 32 * variant, 96 + 16 * (variant % 3)
    form = "image2" if path.suffix == ".png" else None
    with av.open(str(path), "w", format=form) as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = width, height, pixel_format
        stream.thread_count = 1
        stream.options = ENCODER_OPTIONS.get(codec, {})
        ramp = np.add.outer(np.arange(height), np.arange(width))
        for k in range(1 if form else 10 + variant):
            rgb = np.stack([ramp, ramp[::-1] + variant, ramp + 8 * k], 2).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(rgb).reformat(format=pixel_format)
            frame.pts = k
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def make_long_clips(folder: Path, seconds: int, ending: str) -> tuple[Path, Path]:
    """60 s of 320x180 at 25 a second, and a stream copy of it over and over."""
    ffmpeg = shutil.which("ffmpeg")
    assert ffmpeg is not None, "ffmpeg is not on the PATH"
    short, long = folder / f"short.{ending}", folder / f"long.{ending}"
    picture = "testsrc2=s=320x180:r=25:d=60,noise=alls=4:allf=t"
    encode = "-c:v libx264 -preset veryfast -bf 2 -g 50 -pix_fmt yuv420p".split()
    made = ["-f", "lavfi", "-i", picture, *encode, short]
    looped = ["-stream_loop", str(seconds // 60 - 1), "-i", short, "-c", "copy", long]
    for arguments in (made, looped):
        subprocess.run([ffmpeg, "-v", "error", *arguments], check=True)
    return short, long


# --- memory ------------------------------------------------------------------------------------


@dataclass
class Seen:
    """What the samples of one process say, in bytes."""

    own: list[int] = field(default_factory=list)
    own_planning: list[int] = field(default_factory=list)
    """The same before the plan was made: of a worker, as it probed."""
    resident: int = 0
    """Peak, without the arena."""
    high_water: int = 0
    """VmHWM: the kernel's peak, with the arena."""


@dataclass
class Usage:
    """The memory of one run."""

    parent: Seen = field(default_factory=Seen)
    workers: dict[int, Seen] = field(default_factory=dict)
    """By process id, in order of their start."""
    resident: int = 0
    """Peak of all processes together at one moment, without the arena."""
    arena: int = 0
    seconds: float = 0.0

    @property
    def worker_peak(self) -> int:
        return max(seen.resident for seen in self.workers.values())


def run_watched(source: Path, out: Path, settings: str) -> Usage:
    """Run `spacepatch tokenize`, and look at all of its processes until it ends.

    Raises:
        AssertionError: it failed.
    """
    usage = Usage()
    began = time.monotonic()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "spacepatch",
                "tokenize",
                source,
                "--out",
                out,
                *settings.split(),
            ],
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
        )
        try:
            parent = psutil.Process(process.pid)
            while process.poll() is None:
                _sample(parent, usage, is_planned=(out / "plan.json").exists())
                time.sleep(INTERVAL)
        except BaseException:
            process.terminate()  # it ends its workers
            process.wait()
            raise
        said.seek(0)
        assert process.returncode == 0, said.read()[-2000:]
    usage.seconds = time.monotonic() - began
    return usage


def _sample(parent: psutil.Process, usage: Usage, *, is_planned: bool) -> None:
    resident = arena = 0
    try:
        processes = [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for process in processes:
        try:
            exact = read_sizes(f"/proc/{process.pid}/smaps_rollup")
            status = read_sizes(f"/proc/{process.pid}/status")  # one moment for all that is added
            score = int(Path(f"/proc/{process.pid}/oom_score_adj").read_text())
        except OSError:
            continue  # it ended just now
        if "Anonymous" not in exact or "RssAnon" not in status:
            continue
        mine = status["RssAnon"] + status["RssFile"]
        resident += mine
        arena += exact["Pss_Shmem"]
        if process.pid == parent.pid:
            seen = usage.parent
        elif score == OOM_SCORE:
            seen = usage.workers.setdefault(process.pid, Seen())
        else:
            continue  # a worker that still starts, or what multiprocessing needs: in the sum only
        (seen.own if is_planned else seen.own_planning).append(exact["Anonymous"])
        seen.resident = max(seen.resident, mine)
        seen.high_water = max(seen.high_water, status["VmHWM"])
    usage.resident = max(usage.resident, resident)
    usage.arena = max(usage.arena, arena)


def read_sizes(path: str) -> dict[str, int]:
    """The fields of a file in /proc that are in kB, in bytes."""
    lines = (line.split() for line in Path(path).read_text().splitlines())
    return {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines if words[-1] == "kB"}


def growth(own: list[int]) -> int:
    """From a quarter of a process's life to its end, by medians: single pictures come and go."""
    few = max(1, len(own) // 20)
    quarter = len(own) // 4
    return int(median(own[-few:]) - median(own[quarter : quarter + few]))


# --- shows -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Figure:
    """A line of the table: what was measured, and what it may be."""

    name: str
    value: float
    limit: float
    unit: str

    @property
    def is_within(self) -> bool:
        return self.value <= self.limit

    def __str__(self) -> str:
        verdict = "ok" if self.is_within else "TOO MUCH"
        return f"{self.name:58} {self.value:9.2f} {self.unit:5} <= {self.limit:7.2f}  {verdict}"


def soak_clips(folder: Path, num_clips: int) -> Iterator[Figure]:
    """Many short clips: in one process that calls what a worker calls, and through the CLI.

    Of 2,000 clips one worker has all probes and its successor all decoding (2,000 jobs each, see
    `MAX_JOBS_PER_WORKER`), so neither of them hides growth by being replaced.
    """
    limit = max(LEAST_GROWTH, MOST_GROWTH * num_clips / 2000) / MB
    make_short_clips(folder / "clips", num_clips)
    make_short_clips(folder / "few", num_clips // 4)
    said = run_python("from soak import loop; loop(sys.argv[1])", folder / "clips")
    marks = [int(word) for word in said.split()]
    print("own MB of one process after each quarter:", *(f"{mark / MB:.1f}" for mark in marks))
    name = f"one process, clip {num_clips // 4} to {num_clips} (probe and decode)"
    yield Figure(name, (marks[-1] - marks[0]) / MB, limit, "MB")

    settings = "--workers 1 --num-frames 8 --max-tokens-per-frame 64 --shard-size 2MB"
    small = run_watched(folder / "few", folder / "few-out", settings)
    usage = run_watched(folder / "clips", folder / "out", settings)
    show_run(f"{num_clips} short clips", usage)
    for word, series in (
        ("probing", [seen.own_planning for seen in usage.workers.values()]),
        ("decoding", [seen.own for seen in usage.workers.values()]),
    ):
        # One that was started as the last job ended has next to no samples.
        grown = growth(max(series, key=len))
        yield Figure(f"worker, {word} from a quarter on", grown / MB, limit, "MB")
    more = max(usage.parent.own) - max(small.parent.own)
    each = more / (num_clips - num_clips // 4)
    yield Figure("parent, for each clip more", each / 1000, MOST_PARENT_PER_CLIP / 1000, "kB")


def soak_long(folder: Path, seconds: int, ending: str) -> Iterator[Figure]:
    """A clip of `seconds` against one of 60 s.

    FFmpeg reads the whole sample table of an MP4 as it opens it, 36 bytes a frame. What a process
    takes that does nothing else, in the long file more than in the short one, is its, not ours.
    """
    short, long = make_long_clips(folder, seconds, ending)
    settings = f"--workers 1 --fps 2 --max-tokens-per-frame 8 --shard-size {SHARD_BYTES}"
    usages = {}
    for path in (short, long):
        out = folder / f"out-{path.name}"
        usages[path] = run_watched(path, out, settings)
        show_run(path.name, usages[path])
        shutil.rmtree(out)
    table = max(0, bare_size(long) - bare_size(short)) if ending == "mp4" else 0
    print(f"FFmpeg's own table of {long.name}: {table / MB:.1f} MB")
    before, after = usages[short], usages[long]
    pairs = {
        "worker": (before.worker_peak, after.worker_peak - table),
        "parent": (before.parent.resident, after.parent.resident),
        "all processes together": (before.resident, after.resident - table),
    }
    for name, (least, most) in pairs.items():
        yield Figure(f"{ending}, {seconds} s to 60 s: {name}", most / least, MOST_RATIO, "times")
    limit = ARENAS * SHARD_BYTES / MB + 1
    yield Figure(f"{ending}, {seconds} s: arena", after.arena / MB, limit, "MB")
    long.unlink()


def show_run(name: str, usage: Usage) -> None:
    """The peaks of a run, on a line for each process."""
    print(f"{name}: {usage.seconds:.0f} s, peak {usage.resident / MB:.1f} MB and "
          f"{usage.arena / MB:.1f} MB of arena")  # fmt: skip
    for word, seen in [("parent", usage.parent), *(("worker", w) for w in usage.workers.values())]:
        peaks = max(seen.own + seen.own_planning), seen.resident, seen.high_water
        own, resident, high = (peak / MB for peak in peaks)
        print(f"  {word}: own {own:.1f} MB, resident {resident:.1f} MB, VmHWM {high:.1f} MB")


def bare_size(path: Path) -> int:
    """Own bytes of a process that has a file open with PyAV, and does nothing else."""
    print_size = "from soak import read_sizes; print(read_sizes('/proc/self/status')['RssAnon'])"
    return int(run_python(f"import av; held = av.open(sys.argv[1]); {print_size}", path))


def run_python(program: str, path: Path) -> str:
    """What a fresh process prints; `path` is its argument."""
    command = [sys.executable, "-c", f"import sys; sys.path[0] = {str(HERE)!r}; {program}", path]
    return subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout


def loop(folder: str) -> None:
    """Probe and decode each file of a folder here; prints own bytes after each quarter."""
    from spacepatch.arena import Arena
    from spacepatch.clipwriter import TokenSettings
    from spacepatch.config import RunConfig
    from spacepatch.jobs import Job, run_job
    from spacepatch.pipeline import make_plan
    from spacepatch.probes import ProbeJob, probe_source

    config = RunConfig(num_frames=8, max_tokens_per_frame=64, workers=1)
    with tempfile.TemporaryDirectory(prefix="soak-") as out:
        plan = make_plan([folder], config=config, out=Path(out)).whole()
    settings = TokenSettings(config.layout, config.tail, config.resampler)
    clips = [clip for task in plan.tasks for clip in task.clips]
    clips.sort(key=lambda clip: plan.sources[clip.source].source.name)
    largest = max(clip.num_tokens * settings.width_of(clip) for clip in clips)
    gc.freeze()
    with Arena(largest, folder=Path(folder)) as arena:
        for number, clip in enumerate(clips, 1):
            planned = plan.sources[clip.source]
            found = probe_source(ProbeJob(planned.source))
            assert found.info is not None and planned.info is not None, found
            job = Job(
                source=planned.source,
                content_id=planned.content_id,
                info=planned.info,
                clips=(clip,),
                clip_ids=("",),
                offsets=(0,),
                arena=arena.path,
                settings=settings,
            )
            assert len(run_job(job).clips[0].rows), planned.source.name
            gc.collect()  # as `workers` does
            if number % (len(clips) // 4) == 0:
                print(read_sizes("/proc/self/smaps_rollup")["Anonymous"], flush=True)


def soak(folder: Path, *, num_clips: int, seconds: int, endings: Sequence[str]) -> list[Figure]:
    """Everything, in `folder`; prints the table."""
    figures = list(soak_clips(folder, num_clips)) if num_clips else []
    figures += (figure for name in endings for figure in soak_long(folder, seconds, name))
    print("", *figures, sep="\n")
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=2000, help="short clips; 0: leave them out")
    parser.add_argument("--seconds", type=int, default=3 * 3600, help="of the long clip")
    parser.add_argument("--endings", nargs="*", default=["mkv", "mp4"], help="of the long clip")
    parser.add_argument("--folder", type=Path, help="where to work; it takes 1 GB")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-", dir=asked.folder) as folder:
        where = Path(folder)
        figures = soak(where, num_clips=asked.clips, seconds=asked.seconds, endings=asked.endings)
    if not all(figure.is_within for figure in figures):
        sys.exit(1)


if __name__ == "__main__":
    main()
