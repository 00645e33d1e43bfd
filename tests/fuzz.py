"""Feed mutated videos to the command line; `make fuzz`, or `python tests/fuzz.py --help`.

A case is a number: the same seed, number and seed files give the same bytes. Whatever a case does,
a run must end by itself, count every file, and leave a dataset that verifies.
"""

from __future__ import annotations

import argparse
import io
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import av
import numpy as np
import psutil
import pyarrow.parquet as parquet

from spacepatch.data import LOSS_REASONS

HERE = Path(__file__).resolve().parent
CLIPS = HERE.parent / "samples" / "clips"
CORPUS = HERE.parent.parent / "shared" / "corpus"
MAX_SEED_BYTES = 300_000
"""Of a seed: a mutation in a small file is more likely to meet something that matters."""
MADE: dict[str, tuple[str, ...]] = {
    "made.ts": ("mpegts", "libx264"),
    "made.avi": ("avi", "mpeg4"),
    "made.mpg": ("mpeg", "mpeg2video"),
    "made.flv": ("flv", "flv"),
    "made.webm": ("webm", "libvpx"),
    "made.gif": ("gif", "gif", "rgb8"),
    "made_series.jpg": ("mjpeg", "mjpeg", "yuvj420p"),
    "made.h264": ("h264", "libx264"),
    "made.hevc": ("hevc", "libx265"),
    "made.asf": ("asf", "wmv2"),
    "made.mkv": ("matroska", "ffv1"),
    "made.apng": ("apng", "apng", "rgb24"),
}
"""Short clips of containers and codecs that the samples lack: format, codec, pixel format."""
ENCODER_OPTIONS = {
    "libx264": {"x264-params": "no-asm=1"},  # its assembly does not decide alike every time
    "libx265": {"x265-params": "log-level=none:pools=none:frame-threads=1"},
}
SETTINGS = "--num-frames 4 --max-tokens-per-frame 16 --timeout 20 --workers 2 --shard-size 16MB"
BATCH = 250
SECONDS_A_BATCH = 600.0
"""A batch that takes longer hangs: it takes 20 s."""
NOISE = re.compile(
    r" @ 0x|Traceback|PyAV library|terminate called|malloc\(|free\(\)|^\[[a-z0-9_]+ "
)
"""What FFmpeg, the C library or a bug of ours would print on the user's terminal."""
INTERESTING = (
    b"moov trak mdia minf stbl stsd stts ctts stsc stsz stco co64 elst tkhd mvhd mdhd hdlr avcC"
    b" hvcC av1C esds colr pasp mdat moof traf trun tfhd sidx ftyp free RIFF LIST hdrl avih"
    b" strh strf idx1 movi OggS FLV GIF8 IHDR IDAT acTL fcTL fdAT"
).split() + [
    bytes.fromhex(x)
    for x in "1a45dfa3 18538067 1549a966 1654ae6b 1f43b675 1c53bb6b 000001 ffd8 ffc0 ffda".split()
]
"""Boxes, chunks, elements and start codes: sizes and fields stand around them."""
EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF,
            0x7FFFFFFFFFFFFFFF, 0xFFFFFFFFFFFFFFFF)  # fmt: skip


# --- cases -------------------------------------------------------------------------------------


def load_seeds() -> list[tuple[str, bytes]]:
    """(name, content) in a fixed order: made ones, samples, and the small ones of the corpus."""
    seeds = [(name, make_clip(*how)) for name, how in sorted(MADE.items())]
    for folder in (CLIPS, CORPUS):
        paths = sorted(folder.iterdir()) if folder.is_dir() else []
        seeds += [
            (path.name, path.read_bytes())
            for path in paths
            if path.suffix != ".tsv" and 0 < path.stat().st_size < MAX_SEED_BYTES
        ]
    return seeds


def make_clip(container_format: str, codec: str, pixel_format: str = "yuv420p") -> bytes:
    """Twelve small frames, encoded on one thread: always the same bytes."""
    file = io.BytesIO()
    file.name = f"a.{container_format}"  # type: ignore[attr-defined]
    # Matroska makes up an id of its own, a random one, but for this.
    exact = {"fflags": "+bitexact"}
    with av.open(file, "w", format=container_format, options=exact) as container:
        stream = container.add_stream(codec, rate=25)
        stream.pix_fmt = pixel_format
        stream.width, stream.height, stream.thread_count = 96, 64, 1
        stream.options = ENCODER_OPTIONS.get(codec, {})
        ramp = np.add.outer(np.arange(64), np.arange(96))
        for number in range(12):
            rgb = np.stack([ramp, ramp[::-1], ramp + 8 * number], 2).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(rgb).reformat(format=stream.pix_fmt)
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()


def make_case(seeds: list[tuple[str, bytes]], *, seed: int, number: int) -> tuple[str, bytes]:
    """Name and content of one case: a seed file under one to four mutations."""
    chance = random.Random(f"{seed}:{number}")
    name, content = chance.choice(seeds)
    data = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 3, 4))):
        mutation = chance.choice(MUTATIONS)
        data = mutation(data, chance, seeds) or bytearray(b"\0")
    return f"{number:06d}_{Path(name).stem.strip('-')[:24]}{Path(name).suffix}", bytes(data)


Seeds = list[tuple[str, bytes]]
Mutation = Callable[[bytearray, random.Random, Seeds], bytearray]


def _span(data: bytearray, chance: random.Random, most: int = 4096) -> tuple[int, int]:
    start = chance.randrange(len(data))
    return start, min(len(data), start + 1 + chance.randrange(most))


def _near_headers(data: bytearray, chance: random.Random) -> int:
    """A place in the first or last 4 KB, where most containers keep their tables."""
    place = chance.randrange(min(4096, len(data)))
    return place if chance.random() < 0.6 else len(data) - 1 - place


def flip_bits(data: bytearray, chance: random.Random, seeds: Seeds) -> bytearray:
    for _ in range(chance.choice((1, 2, 8, 64))):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return data


def flip_header_bytes(data: bytearray, chance: random.Random, seeds: Seeds) -> bytearray:
    for _ in range(chance.choice((1, 2, 8))):
        data[_near_headers(data, chance)] = chance.randrange(256)
    return data


def set_extreme(data: bytearray, chance: random.Random, seeds: Seeds) -> bytearray:
    place, width = _near_headers(data, chance), chance.choice((1, 2, 4, 8))
    value = chance.choice(EXTREMES) & (256**width - 1)
    order = chance.choice(("big", "little"))
    data[place : place + width] = value.to_bytes(width, order)  # type: ignore[arg-type]
    return data


def change_size(data: bytearray, chance: random.Random, seeds: Seeds) -> bytearray:
    """Another size before, or another field after, a box, chunk or start code."""
    mark = chance.choice(INTERESTING)
    places = [match.start() for match in re.finditer(re.escape(mark), data)]
    if not places:
        return set_extreme(data, chance, seeds)
    place = chance.choice(places)
    if chance.random() < 0.4 and place >= 4:
        at = place - 4
    else:
        at = min(len(data), place + len(mark) + chance.randrange(0, 32, 4))
    old = int.from_bytes(data[at : at + 4], "big")
    new = chance.choice((old + 1, old - 1, old * 2, old // 2, *EXTREMES[:11])) & 0xFFFFFFFF
    data[at : at + 4] = new.to_bytes(4, "big")
    return data


def delete(data: bytearray, chance: random.Random, seeds: Seeds) -> bytearray:
    start, stop = _span(data, chance)
    del data[start:stop]
    return data


def duplicate(data: bytearray, chance: random.Random, seeds: Seeds) -> bytearray:
    start, stop = _span(data, chance)
    data[stop:stop] = data[start:stop] * chance.choice((1, 1, 2, 16))
    return data


def swap(data: bytearray, chance: random.Random, seeds: Seeds) -> bytearray:
    (a, b), (c, d) = sorted((_span(data, chance), _span(data, chance)))
    b = min(b, c)
    return data[:a] + data[c:d] + data[b:c] + data[a:b] + data[d:]


def truncate(data: bytearray, chance: random.Random, seeds: Seeds) -> bytearray:
    del data[chance.randrange(len(data)) :]
    return data


def zero(data: bytearray, chance: random.Random, seeds: Seeds) -> bytearray:
    start, stop = _span(data, chance)
    data[start:stop] = bytes(stop - start)
    return data


def insert_noise(data: bytearray, chance: random.Random, seeds: Seeds) -> bytearray:
    place = _near_headers(data, chance)
    data[place:place] = chance.randbytes(chance.choice((1, 3, 8, 100)))
    return data


def splice(data: bytearray, chance: random.Random, seeds: Seeds) -> bytearray:
    """The beginning of one seed and the end of another."""
    _, other = chance.choice(seeds)
    return data[: chance.randrange(len(data))] + other[chance.randrange(len(other)) :]


MUTATIONS: tuple[Mutation, ...] = (
    flip_bits, flip_header_bytes, set_extreme, set_extreme, change_size, change_size, delete,
    duplicate, swap, truncate, zero, insert_noise, splice,
)  # fmt: skip


# --- runs --------------------------------------------------------------------------------------


@dataclass
class Tally:
    """What became of the cases so far."""

    num_files: int = 0
    num_written: int = 0
    """Files of which something was written."""
    reasons: Counter[str] = field(default_factory=Counter)
    """Files by the reasons of their losses; a file can have several."""
    unexplained: list[str] = field(default_factory=list)
    """Cases lost to a crash or a timeout: bugs of FFmpeg or of ours, that cost one file."""


def run_batch(cases: Iterator[tuple[str, bytes]], folder: Path, tally: Tally) -> None:
    """Tokenize the cases in one run.

    Raises:
        AssertionError: the run failed or hung, forgot a file, or left something behind.
    """
    inputs, out, temporary = folder / "in", folder / "out", folder / "tmp"
    inputs.mkdir()
    temporary.mkdir()
    names = set()
    for name, content in cases:
        (inputs / name).write_bytes(content)
        names.add(name)
    command = ["tokenize", str(inputs), "--out", str(out), *SETTINGS.split()]
    code, said = run_cli(command, temporary)
    assert code in (0, 3), f"exit code {code}: {said[-2000:]}"
    assert not NOISE.search(said), f"noise: {said[-2000:]}"
    assert not list(temporary.iterdir()), f"left behind: {list(temporary.iterdir())}"
    assert not list(out.rglob("*.tmp-*"))
    code, said = run_cli(["verify", str(out)], temporary)
    assert code == 0, said[-2000:]
    account(out, names, tally)


def run_cli(arguments: list[str], temporary: Path) -> tuple[int, str]:
    """Exit code and all that is said; a hang, or a process that stays, is an error."""
    process = subprocess.Popen(
        [sys.executable, "-m", "spacepatch", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="backslashreplace",
        start_new_session=True,
        env={**os.environ, "TMPDIR": str(temporary)},
    )
    try:
        said, _ = process.communicate(timeout=SECONDS_A_BATCH)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise AssertionError(f"hangs for {SECONDS_A_BATCH:g} s") from None
    assert not session_of(process.pid), "processes are left"
    return process.returncode, said


def session_of(leader: int) -> list[psutil.Process]:
    """Processes of the session that `leader` began; they get a moment to end."""
    deadline = time.monotonic() + 5
    while True:
        found = []
        for process in psutil.process_iter():
            try:
                if os.getsid(process.pid) == leader:
                    found.append(process)
            except (ProcessLookupError, PermissionError):
                continue
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.05)


def account(out: Path, names: set[str], tally: Tally) -> None:
    """Every file is a source, and has segments or a loss with a reason of the closed list."""
    sources = parquet.read_table(out / "sources.parquet").column("source").to_pylist()
    assert sorted(sources) == sorted(names), sorted(set(sources) ^ names)
    written = set(parquet.read_table(out / "segments.parquet").column("source").to_pylist())
    losses = parquet.read_table(out / "losses.parquet").to_pylist()
    lost = {(loss["source"], loss["reason"]) for loss in losses}
    for name, reason in lost:
        assert name in names and reason in LOSS_REASONS, (name, reason)
    missing = names - written - {name for name, _ in lost}
    assert not missing, f"lost in silence: {sorted(missing)}"
    tally.num_files += len(names)
    tally.num_written += len(written)
    tally.reasons.update(reason for _, reason in lost)
    tally.unexplained += sorted(
        f"{name}: {reason}" for name, reason in lost if reason in ("crash", "timeout")
    )


def fuzz(*, num_files: int, seed: int, first: int = 0, batch: int = BATCH) -> Tally:
    """Run `num_files` cases in batches."""
    seeds = load_seeds()
    tally = Tally()
    start = time.monotonic()
    for begin in range(first, first + num_files, batch):
        numbers = range(begin, min(begin + batch, first + num_files))
        make = partial(make_case, seeds, seed=seed)
        with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
            try:
                run_batch((make(number=number) for number in numbers), Path(folder), tally)
            except AssertionError as error:
                where = f"seed {seed}, cases {numbers.start} to {numbers.stop - 1}"
                raise AssertionError(f"{where}: {error}") from error
        seconds = time.monotonic() - start
        print(f"{tally.num_files} files, {seconds:.0f} s", file=sys.stderr, flush=True)
    print(f"seed {seed}, {len(seeds)} seed files, {tally.num_files} mutated files, {seconds:.0f} s")
    print(f"{'written, some of it at least':30} {tally.num_written:6}")
    for reason, count in tally.reasons.most_common():
        print(f"{'lost, some of it: ' + reason:30} {count:6}")
    for case in tally.unexplained:
        print(f"to be looked at: {case} (--seed {seed} --first NUMBER --keep FOLDER writes it)")
    return tally


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--keep", type=Path, help="only write the first case to this folder")
    arguments = parser.parse_args()
    if arguments.keep:
        name, content = make_case(load_seeds(), seed=arguments.seed, number=arguments.first)
        arguments.keep.mkdir(parents=True, exist_ok=True)
        (arguments.keep / name).write_bytes(content)
        print(arguments.keep / name)
        return
    fuzz(
        num_files=arguments.files,
        seed=arguments.seed,
        first=arguments.first,
        batch=arguments.batch,
    )


if __name__ == "__main__":
    main()
