"""How fast the loader yields packs, beside webdataset and beside numpy; `make bench`.

One core, one process, files in the page cache. Each contender adds up every byte of every array
that it yields, by the same function, so that none can put work off. They take turns, and what is
reported are the medians of ratios within one round: a machine that slows down slows all.

- `webdataset`: `WebDataset(tars, shardshuffle=False).decode()`, its default decoding.
- `numpy`: the bytes of the same members by memory map, copied and added up: what the memory gives.
- `padded`, `ragged`: `PackDataset` in the order of its shards, filled up to `pack_length` or not.
- `first`, `numpy-first`: the same in a process that reads the shards for the first time: it maps
  them, the kernel enters each page, and `PackDataset` verifies the checksum of each pack. What is
  wanted of `padded` and `ragged` is of the passes after it.
"""

from __future__ import annotations

import argparse
import cProfile
import mmap
import os
import pstats
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import av
import numpy as np
import torch
import webdataset

from spacepatch.config import load_config
from spacepatch.loader import PackDataset
from spacepatch.pipeline import tokenize

WANTED = {"webdataset": 5.0, "numpy": 0.7}
"""What `padded` and `ragged` shall do at least, in terms of the others."""
SIDE = 256
FRAMES_A_VIDEO = 400
FRAMES_A_CLIP = 16
WORD = 8


@dataclass(frozen=True, slots=True)
class Pass:
    """One contender once through all packs."""

    seconds: float
    packs: int
    num_bytes: int
    """Of all arrays that it yielded."""
    token_sum: int
    """Of the tokens alone, modulo 2^64: the same for all contenders."""


# --- a dataset ---------------------------------------------------------------------------------


def make_dataset(folder: Path, *, num_bytes: int, tubelet_size: int, pack_length: int) -> Path:
    """About `num_bytes` of tokens of 16 x 16 pixels: clips of many sizes, several to a pack."""
    videos = folder / "videos"
    videos.mkdir(parents=True)
    # The areas of sides from SIDE / 2 to SIDE are 7/12 of the largest on average.
    a_video = FRAMES_A_VIDEO * SIDE * SIDE * 3 * 7 // 12
    first = videos / "00000.avi"
    _make_video(first)
    for number in range(1, max(1, round(num_bytes / a_video))):
        os.link(first, videos / f"{number:05d}.avi")
    settings = {
        "every_frame": True,
        "clip_seconds": f"{FRAMES_A_CLIP}/25",
        "resolution": f"uniform:{SIDE // 2}..{SIDE}",
        "patch": f"{tubelet_size}x16x16",
        "pack_length": pack_length,
        "shard_size": "200MB",
    }
    shards = folder / "shards"
    tokenize([str(videos)], out=shards, config=load_config(settings))
    shutil.rmtree(videos)
    return shards


def _make_video(path: Path) -> None:
    noise = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25, options={"qscale": "8"})
        stream.width, stream.height, stream.pix_fmt = SIDE, SIDE, "yuv420p"
        for _ in range(FRAMES_A_VIDEO):
            coarse = noise.integers(0, 256, (SIDE // 16, SIDE // 16, 3), dtype=np.uint8)
            picture = coarse.repeat(16, axis=0).repeat(16, axis=1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
        container.mux(stream.encode())


# --- contenders --------------------------------------------------------------------------------


def add_up(array: np.ndarray) -> int:
    """Every byte of a contiguous array, as words of 8 bytes modulo 2^64."""
    flat = array.reshape(-1).view(np.uint8)
    whole = len(flat) // WORD * WORD
    words = int(np.add.reduce(flat[:whole].view(np.uint64), dtype=np.uint64))
    rest = int.from_bytes(flat[whole:].tobytes(), "little")
    return (words + rest) % 2**64


Arrays = Iterator[dict[str, np.ndarray]]
"""A pack after the other, from member to array."""


def by_spacepatch(packs: PackDataset) -> Arrays:
    for index in range(len(packs)):
        pack = packs[index]
        yield {name: x.numpy() for name, x in pack.items() if isinstance(x, torch.Tensor)}


def by_webdataset(packs: PackDataset) -> Arrays:
    tars = [str(packs.folder / f"{shard['name']}.tar") for shard in packs.document["shards"]]
    for sample in webdataset.WebDataset(tars, shardshuffle=False).decode():
        yield {
            name.removesuffix(".npy"): x for name, x in sample.items() if isinstance(x, np.ndarray)
        }


Maps = list[tuple[mmap.mmap, list[list[tuple[int, int]]]]]
"""Of each shard: its tar, and of each pack the offset and size of each member."""


def open_maps(packs: PackDataset) -> Maps:
    maps: Maps = []
    for shard in packs.document["shards"]:
        index = np.load(packs.folder / f"{shard['name']}.index.npy")
        with (packs.folder / f"{shard['name']}.tar").open("rb") as file:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        maps.append((content, index.tolist()))
    return maps


def by_numpy(packs: PackDataset, maps: Maps) -> Arrays:
    """The arrays of the members, cut from the map by the index, without their headers, copied."""
    members = packs.document["members"]
    for content, index in maps:
        for row in index:
            yield {
                name.removesuffix(".npy"): _cut(content, *place)
                for name, place in zip(members, row, strict=True)
                if name.endswith(".npy")
            }


def _cut(content: mmap.mmap, offset: int, size: int) -> np.ndarray:
    header = 10 + int.from_bytes(content[offset + 8 : offset + 10], "little")  # npy version 1
    return np.frombuffer(content, np.uint8, size - header, offset + header).copy()


def run_pass(arrays: Arrays) -> Pass:
    packs = num_bytes = token_sum = 0
    begin = time.perf_counter()
    for pack in arrays:
        packs += 1
        for name, array in pack.items():
            num_bytes += array.nbytes
            value = add_up(array)
            if name == "tokens":
                token_sum += value
    seconds = time.perf_counter() - begin
    return Pass(seconds, packs, num_bytes, token_sum % 2**64)


def measure(folder: Path, rounds: int) -> dict[str, list[Pass]]:
    """The passes of each contender, one a round."""
    padded, ragged = PackDataset(folder), PackDataset(folder, padded=False)
    maps = open_maps(padded)
    contenders: dict[str, Callable[[], Arrays]] = {
        "first": lambda: by_spacepatch(PackDataset(folder)),
        "padded": lambda: by_spacepatch(padded),
        "ragged": lambda: by_spacepatch(ragged),
        "webdataset": lambda: by_webdataset(padded),
        "numpy": lambda: by_numpy(padded, maps),
        "numpy-first": lambda: by_numpy(padded, open_maps(padded)),
    }
    for make in contenders.values():  # not measured: the page cache is filled, the checksums known
        run_pass(make())
    passes: dict[str, list[Pass]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, make in contenders.items():
            passes[name].append(run_pass(make()))
    return passes


# --- figures -----------------------------------------------------------------------------------


def ratio(passes: dict[str, list[Pass]], one: str, other: str) -> float:
    """How many times as many packs a second `one` yields as `other`: the median of the rounds."""
    pairs = zip(passes[one], passes[other], strict=True)
    return median(b.seconds / a.seconds for a, b in pairs)


def write_figures(passes: dict[str, list[Pass]], token_bytes: int) -> bool:
    """Print a row a contender; return whether what is wanted was reached."""
    print(f"{'':12}{'packs/s':>10}{'GB/s':>8}" + "".join(f"{'x ' + o:>14}" for o in WANTED))
    for name, made in passes.items():
        seconds = median(one.seconds for one in made)
        ratios = "".join(f"{ratio(passes, name, other):>14.2f}" for other in WANTED)
        print(
            f"{name:12}{made[0].packs / seconds:>10.1f}{token_bytes / seconds / 1e9:>8.2f}{ratios}"
        )
    return all(
        ratio(passes, name, other) >= least
        for name in ("padded", "ragged")
        for other, least in WANTED.items()
    )


def write_profile(folder: Path, *, padded: bool) -> None:
    for name, warm in (("the first pass", False), ("a pass after it", True)):
        packs = PackDataset(folder, padded=padded)
        if warm:
            run_pass(by_spacepatch(packs))
        profile = cProfile.Profile()
        profile.runcall(run_pass, by_spacepatch(packs))
        print(f"\n{name}, padded={padded}:")
        pstats.Stats(profile, stream=sys.stdout).sort_stats("tottime").print_stats(14)


def report(shards: Path, options: argparse.Namespace) -> bool:
    packs = PackDataset(shards)
    width = packs.document["token_width"]
    token_bytes = packs.document["totals"]["tokens"] * width
    print(
        f"\n{len(packs)} packs of {packs.pack_length} tokens x {width} bytes, "
        f"{token_bytes / 1e6:.0f} MB of tokens"
    )
    if options.profile:
        write_profile(shards, padded=True)
        write_profile(shards, padded=False)
        return True
    reached = write_figures(measure(shards, options.rounds), token_bytes)
    print("wanted of padded and ragged:", WANTED, "- reached" if reached else "- NOT reached")
    return reached


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="where to make datasets; default: /dev/shm")
    parser.add_argument("--shards", type=Path, help="a dataset that there is, in place of those")
    parser.add_argument("--megabytes", type=int, default=750)
    parser.add_argument(
        "--tubelet-sizes", type=int, nargs="+", default=[2, 1], help="1: tokens of 768 bytes"
    )
    parser.add_argument("--pack-length", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--profile", action="store_true", help="where the loader's time goes")
    options = parser.parse_args()
    memory = Path("/dev/shm")
    parent = options.folder or (memory if memory.is_dir() else None)
    torch.set_num_threads(1)
    reached = []
    for tubelet_size in options.tubelet_sizes[: 1 if options.shards else None]:
        with tempfile.TemporaryDirectory(prefix="loader-", dir=parent) as folder:
            shards = options.shards or make_dataset(
                Path(folder),
                num_bytes=options.megabytes * 10**6,
                tubelet_size=tubelet_size,
                pack_length=options.pack_length,
            )
            with on_one_core():
                reached.append(report(shards, options))
    return 0 if all(reached) else 1


@contextmanager
def on_one_core() -> Iterator[None]:
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    yield
    os.sched_setaffinity(0, cores)


if __name__ == "__main__":
    sys.exit(main())
