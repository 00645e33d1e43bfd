"""What each store costs: bytes a token, the time to write it, and how fast it is loaded.

`python -m tests.benchmarks.stores --source FOLDER`; 20 clips of the folder, spread evenly over
those that give all of their frames. The stores take turns: each round writes each of them by a
process of one worker on one core (`spacepatch tokenize`, from start to end), and loads it by a
process of one core: `PackDataset` in order, every byte of the tokens added up. A process reads
everything three times: the first time includes opening, mapping and checksums; what is reported
are the tokens by the CPU seconds of the third. `refs` decode at each of them: the cache of decoded
tokens is made too small to help.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks.children import Run, Runs, run, take_turns
from tests.benchmarks.results import RESULTS, Figure, conclude

STORES = {
    "tokens": [],
    "refs": ["--store", "refs"],
    "refs --checked": ["--store", "refs", "--checked"],
    "compressed": ["--store", "compressed"],
    "compressed:42": ["--store", "compressed:42"],
}
PASSES = 3
NUM_CLIPS = 20
MOST_BYTES = 3_000_000
"""Of a clip's file: what is measured is tokens, and long clips have the same."""


def choose_clips(folder: Path, wanted: int) -> list[Path]:
    """Clips of a folder that lose nothing, spread evenly over their names."""
    import pyarrow.parquet as parquet

    with tempfile.TemporaryDirectory(prefix="stores-") as name:
        out = Path(name) / "refs"
        command = [sys.executable, "-m", "spacepatch", "tokenize", str(folder), "--out", str(out)]
        # Some are lost, which is no failure here.
        done = run([*_tolerant(command), "--store", "refs", "--checked"])
        del done
        columns = ["source", "bytes", "frames_lost", "num_tokens", "num_frames"]
        rows = parquet.read_table(out / "sources.parquet", columns=columns).to_pylist()
        lost = set(parquet.read_table(out / "losses.parquet")["source"].to_pylist())
    whole = sorted(
        row["source"]
        for row in rows
        if row["num_tokens"] and row["num_frames"] > 1 and row["source"] not in lost
        if row["bytes"] <= MOST_BYTES
    )
    chosen = [whole[part * len(whole) // wanted] for part in range(min(wanted, len(whole)))]
    return [folder / name for name in dict.fromkeys(chosen)]


def _tolerant(command: Sequence[str]) -> list[str]:
    """Exit code 3, whole sources are lost, counts as success."""
    return ["sh", "-c", '"$@" || [ $? -eq 3 ]', "sh", *command]


def write_once(clips: Sequence[Path], out: Path, flags: Sequence[str]) -> Run:
    command = [sys.executable, "-m", "spacepatch", "tokenize", "--workers", "1", "--overwrite"]
    return run([*_on_one_core(), *command, "--out", str(out), *flags, "--", *map(str, clips)])


def load_once(out: Path, clips: Sequence[Path]) -> Run:
    """`said`: what `_load` prints."""
    command = [sys.executable, "-m", "tests.benchmarks.stores", "--load", str(out)]
    return run([*_on_one_core(), *command, "--clips", *map(str, clips)])


def _on_one_core() -> list[str]:
    return ["taskset", "-c", str(min(os.sched_getaffinity(0)))]


def _load(out: Path, clips: Sequence[Path]) -> None:
    """Print, as JSON, tokens by second of each pass, and what all of the tokens add up to."""
    import torch

    from spacepatch.loader import PackDataset
    from tests.benchmarks.loader import add_up

    torch.set_num_threads(1)
    roots = {number: str(clip) for number, clip in enumerate(clips)}
    packs = PackDataset(out, padded=False, source_root=roots, decode_cache="1kB")
    rates, total, tokens = [], 0, 0
    for _ in range(PASSES):
        began, total, tokens = time.process_time(), 0, 0
        for pack in packs:
            total = (total + add_up(pack["tokens"].numpy())) % 2**64
            tokens += pack["num_tokens"]
        rates.append(tokens / (time.process_time() - began))
    print(json.dumps({"rates": rates, "sum": total, "tokens": tokens}))


def measure(
    clips: Sequence[Path], folder: Path, rounds: int
) -> tuple[list[Figure], dict[str, Runs], dict[str, Any]]:
    stores = {name: folder / str(place) for place, name in enumerate(STORES)}
    written = take_turns(
        {
            name: lambda out=out, name=name: write_once(clips, out, STORES[name])
            for name, out in stores.items()
        },
        rounds=rounds,
    )
    loaded = take_turns(
        {name: lambda out=out: load_once(out, clips) for name, out in stores.items()},
        rounds=rounds,
    )
    figures, found = [], {}
    for name, out in stores.items():
        told = [json.loads(one.said) for one in loaded[name]]
        tokens = told[0]["tokens"]
        size = sum(path.stat().st_size for path in out.iterdir() if path.is_file())
        shards = sum(path.stat().st_size for path in out.glob("*.tar"))
        found[name] = {"tokens": tokens, "bytes": size, "tar_bytes": shards, "sum": told[0]["sum"]}
        figures += [
            Figure(name, "bytes a token, all files", [size / tokens]),
            Figure(name, "bytes a token, tars", [shards / tokens]),
            Figure(name, "s to write, one core", [one.seconds for one in written[name]]),
            Figure(name, "tokens/s a core loaded, third pass", [one["rates"][-1] for one in told]),
            Figure(name, "tokens/s a core loaded, first pass", [one["rates"][0] for one in told]),
        ]
    exact = {one["sum"] for name, one in found.items() if ":" not in name}
    if len(exact) > 1:
        raise RuntimeError(f"stores do not give the same tokens: {found}")
    return figures, {"write": written, "load": loaded}, found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", type=Path, help="a folder of clips")
    parser.add_argument("--num-clips", type=int, default=NUM_CLIPS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to write; default: /dev/shm")
    parser.add_argument("--results", type=Path, default=RESULTS / "stores.json")
    parser.add_argument("--load", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--clips", type=Path, nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.load:
        _load(options.load, options.clips)
        return 0
    memory = Path("/dev/shm")
    parent = options.folder or (memory if memory.is_dir() else None)
    source = options.source or Path(__file__).parents[2] / "samples" / "clips"
    clips = choose_clips(source, options.num_clips)
    with tempfile.TemporaryDirectory(prefix="stores-", dir=parent) as folder:
        figures, runs, found = measure(clips, Path(folder), options.rounds)
    settings = {
        "source": source.name,
        "clips": [clip.name for clip in clips],
        "rounds": options.rounds,
        "stores": found,
    }
    return conclude(figures, path=options.results, settings=settings, runs=runs)


if __name__ == "__main__":
    sys.exit(main())
