"""Write durably, publish atomically, lock: the only file that renames, syncs or removes."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

from spacepatch.errors import ResumeError

if TYPE_CHECKING:
    from filelock import BaseFileLock

PRIVATE = ".spacepatch"
"""Folder inside an output folder for lock, logs and temporary files; not part of the format."""


def publish(path: Path, write: Callable[[IO[bytes]], None]) -> None:
    """Make `path` appear whole or not at all, and survive a power cut.

    `write` fills a temporary file under `.spacepatch/`, which is synced, renamed onto `path`, and
    the folder synced after it.

    Raises:
        OSError: the disk is full or read-only; nothing is visible at `path` then.
    """
    temporary = private_folder(path.parent) / f"{path.name}.tmp-{uuid.uuid4().hex}"
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # a write that fails does not say of what
        raise
    sync_folder(path.parent)


def publish_bytes(path: Path, content: bytes) -> None:
    """`publish` for content that is at hand."""
    publish(path, lambda file: _write_all(file, content))


def _write_all(file: IO[bytes], content: bytes) -> None:
    file.write(content)


def sync_folder(folder: Path) -> None:
    """Make renames and removals inside `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def private_folder(output: Path) -> Path:
    """`output/.spacepatch`, made on first use."""
    folder = output / PRIVATE
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def sweep_temporary(output: Path, stems: Collection[str] | None = None) -> None:
    """Remove temporary files that a killed run left. Only under the lock.

    Args:
        stems: those of a rank's own shards, for others may be writing; None: whatever is there.
    """
    for path in sorted(private_folder(output).glob("*.tmp-*")):
        if stems is None or path.name.partition(".")[0] in stems:
            path.unlink(missing_ok=True)


def remove(paths: list[Path]) -> None:
    """Remove files in the given order, durably: an interrupted removal never leaves a later one
    gone and an earlier one there."""
    for path in paths:
        path.unlink(missing_ok=True)
        if path.parent.is_dir():
            sync_folder(path.parent)


def remove_private(output: Path) -> None:
    """Remove logs and temporary files, keeping the locks: one is being held."""
    folder = output / PRIVATE
    if folder.is_dir():
        for path in sorted(folder.iterdir()):
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != "lock" and path.suffix != ".lock":
                path.unlink(missing_ok=True)


@contextmanager
def lock(output: Path) -> Iterator[BaseFileLock]:
    """Own `output` until the block ends or the process dies, however it dies (`flock`).

    Raises:
        ResumeError: another run, or a rank of one, owns it now.
    """
    with _held(output, "lock", "another spacepatch run is writing to this folder") as held:
        for path in sorted(private_folder(output).glob("rank-*.lock")):
            if _is_held(path):
                raise _refusal(output, f"{_rank_of(path)} is writing to this folder")
        yield held


@contextmanager
def lock_rank(output: Path, number: int, world_size: int) -> Iterator[BaseFileLock]:
    """Own what rank `number` writes to `output`, as `lock` owns it all.

    Each rank holds a lock of its own, and only then looks at those that it must not meet: of two
    that start at once at least one sees the other.

    Raises:
        ResumeError: this rank, a rank of another world size or a whole run is at work there.
    """
    own = f"rank-{number}-of-{world_size}.lock"
    others = f"-of-{world_size}.lock"
    taken = f"rank {number} of {world_size} is writing to this folder already"
    with _held(output, own, taken) as held:
        if _is_held(private_folder(output) / "lock"):
            raise _refusal(output, "another spacepatch run is writing to this folder")
        for path in sorted(private_folder(output).glob("rank-*.lock")):
            if not path.name.endswith(others) and _is_held(path):
                raise _refusal(
                    output,
                    f"{_rank_of(path)} is writing to this folder, and not of {world_size}",
                )
        yield held


@contextmanager
def _held(output: Path, name: str, otherwise: str) -> Iterator[BaseFileLock]:
    from filelock import FileLock, Timeout

    held = FileLock(private_folder(output) / name, timeout=0)
    try:
        held.acquire()
    except Timeout:
        raise _refusal(output, otherwise) from None
    try:
        yield held
    finally:
        held.release()


def _is_held(path: Path) -> bool:
    """Whether somebody owns a lock file. To look is to share it for a moment: of many that look at
    once, none takes another for its owner."""
    import fcntl

    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _rank_of(path: Path) -> str:
    return path.stem.replace("-", " ")


def _refusal(output: Path, who: str) -> ResumeError:
    return ResumeError(f"{output}: {who}; wait for it, or give another --out")
