"""The commands that are compared: spacepatch as a user starts it, the floors, the stack by hand."""

from __future__ import annotations

import argparse
import compileall
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.benchmarks.children import Run, run

HERE = Path(__file__).resolve().parent
PACKAGE = HERE.parents[1] / "spacepatch"
MEMORY = Path("/dev/shm")


def decode_only(clips: Sequence[Path], *, processes: int | None = None) -> Run:
    chosen = [] if processes is None else ["--processes", str(processes)]
    return run([sys.executable, HERE / "decode_only.py", *clips, *chosen])


def hand_written(clips: Path, out: Path, *, fps: float) -> Run:
    with removed(out):
        return run([sys.executable, HERE / "hand_written.py", clips, out, str(fps)])


def write_floor(out: Path, *, num_bytes: int) -> Run:
    with removed(out):
        return run([sys.executable, HERE / "write_floor.py", out, str(num_bytes)])


def spacepatch(clips: Sequence[Path], out: Path, *, settings: Sequence[str] = ()) -> Run:
    with removed(out):
        return _tokenize(clips, out, settings)


def digests(clips: Sequence[Path], out: Path, *, settings: Sequence[str]) -> dict[str, Digest]:
    """Size and sha256 of every file that spacepatch writes, by its place in the folder."""
    with removed(out):
        _tokenize(clips, out, settings)
        return read_digests(out)


Digest = tuple[int, str]
"""Bytes of a file, and the sha256 of them."""


def read_digests(folder: Path) -> dict[str, Digest]:
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            found[path.relative_to(folder).as_posix()] = (path.stat().st_size, digest)
    return found


def _tokenize(clips: Sequence[Path], out: Path, settings: Sequence[str]) -> Run:
    # -m: what is measured is this checkout, wherever the `spacepatch` on the PATH comes from.
    command = [sys.executable, "-m", "spacepatch", "tokenize", *clips, "--out", out, "--json"]
    return run([*command, *settings])


def tokens_said(made: Run) -> int:
    """The tokens that spacepatch or the stack by hand says that it wrote."""
    said = json.loads(made.said)
    return said["totals"]["tokens"] if "totals" in said else said["tokens"]


@contextmanager
def removed(out: Path) -> Iterator[None]:
    """A folder that is not there before, nor after; removing it is not timed."""
    shutil.rmtree(out, ignore_errors=True)
    try:
        yield
    finally:
        shutil.rmtree(out, ignore_errors=True)


# --- where and on what -------------------------------------------------------------------------


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--out", type=Path, help="where output goes for a moment; default: /dev/shm, in memory"
    )
    parser.add_argument(
        "--cores", type=int, default=2, help="that all may use; what is wanted is for 2"
    )


@contextmanager
def prepared(options: argparse.Namespace) -> Iterator[Path]:
    """A folder for output, and this process and its children on so many cores."""
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < options.cores:
        print(f"only {len(allowed)} cores, not {options.cores}: what is wanted is for 2")
    os.sched_setaffinity(0, allowed[: options.cores])
    parent = options.out or (MEMORY if MEMORY.is_dir() else Path(tempfile.gettempdir()))
    kind = file_system(parent)
    if kind != "tmpfs":
        print(
            f"{parent} is on {kind or 'what cannot be told'}, not tmpfs: the disk is in the times"
        )
    # As pip leaves a package; else each start compiles it, where Python may write no bytecode.
    compileall.compile_dir(PACKAGE, quiet=1)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=parent) as folder:
        yield Path(folder)


def file_system(folder: Path) -> str | None:
    """The kind of file system that a folder is on; None: this system does not say."""
    try:
        mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return None
    place = folder.resolve()
    holding = [mount for mount in mounts if place.is_relative_to(mount[1])]
    # Of mounts on the same place the last one is seen.
    return max(enumerate(holding), key=lambda one: (len(one[1][1]), one[0]))[1][2]
