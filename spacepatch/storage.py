"""Write durably, publish atomically, lock: the only file that renames, syncs or removes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
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
    temporary = private_folder(path.parent) / f"{path.name}.tmp-{os.getpid()}"
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
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


def sweep_temporary(output: Path) -> None:
    """Remove temporary files that a killed run left. Only under the lock."""
    for path in sorted(private_folder(output).glob("*.tmp-*")):
        path.unlink(missing_ok=True)


def remove(paths: list[Path]) -> None:
    """Remove files in the given order, durably: an interrupted removal never leaves a later one
    gone and an earlier one there."""
    for path in paths:
        path.unlink(missing_ok=True)
        if path.parent.is_dir():
            sync_folder(path.parent)


def remove_private(output: Path) -> None:
    """Remove logs and temporary files, keeping the lock that is being held."""
    folder = output / PRIVATE
    if folder.is_dir():
        for path in sorted(folder.iterdir()):
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != "lock":
                path.unlink(missing_ok=True)


@contextmanager
def lock(output: Path) -> Iterator[BaseFileLock]:
    """Own `output` until the block ends or the process dies, however it dies (`flock`).

    Raises:
        ResumeError: another run owns it now.
    """
    from filelock import FileLock, Timeout

    held = FileLock(private_folder(output) / "lock", timeout=0)
    try:
        held.acquire()
    except Timeout:
        raise ResumeError(
            f"{output}: another spacepatch run is writing to this folder; "
            "wait for it, or give another --out"
        ) from None
    try:
        yield held
    finally:
        held.release()
