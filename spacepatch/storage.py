"""Write durably, publish atomically, lock: the only file that renames, syncs or removes.

On an object store the same is done by `spacepatch.remote`, of which a local run loads none.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypeGuard, cast
from urllib.parse import unquote, urlsplit

from spacepatch.errors import ConfigError, ResumeError

if TYPE_CHECKING:
    from spacepatch.remote.paths import StorePath

PRIVATE = ".spacepatch"
"""Folder inside an output folder for lock, logs and temporary files; not part of the format."""


def open_folder(place: str | Path, *, writes: bool = False) -> Path:
    """The folder, or file in one, that a user names: on local disk, or by URL on an object store.

    Raises:
        ConfigError: a URL of a kind that cannot be read, or with `writes` not written.
        MissingDependencyError: a package for it is not installed.
    """
    if not isinstance(place, str):
        if not is_on_store(place) and re.match(r"[a-z][a-z0-9+.-]+:/[^/]", str(place)):
            raise ConfigError(f"{place}: was a URL before it was made a Path; give it as text")
        return place
    if not re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", place):
        return Path(place)
    if place.startswith("file://"):
        parts = urlsplit(place)
        if parts.netloc not in ("", "localhost"):
            raise ConfigError(f"{place}: is on another machine; give file:///FOLDER")
        return Path(unquote(parts.path))
    from spacepatch.extras import needed

    for module, package in (("fsspec", "fsspec"), ("upath", "universal_pathlib")):
        needed(module, package, by=place, extra="remote")
    from spacepatch.remote.paths import open_store

    # It has of a Path what is asked of one here.
    return cast(Path, open_store(place, writes=writes))


def local_file(place: str) -> Path:
    """A file or folder that must be on local disk; raises a ConfigError for another URL."""
    path = open_folder(place) if place.startswith("file://") else Path(place)
    if "://" in place and not place.startswith("file://"):
        raise ConfigError(f"{place}: must be on local disk here")
    return path


def is_on_store(path: Path | StorePath) -> TypeGuard[StorePath]:
    """Whether a path of `open_folder` is on an object store."""
    return not isinstance(path, Path)


def publish(path: Path, write: Callable[[IO[bytes]], None]) -> None:
    """Make `path` appear whole or not at all, and survive a power cut.

    `write` fills a temporary file under `.spacepatch/`, which is synced, renamed onto `path`, and
    the folder synced after it.

    Raises:
        OSError: the disk is full or read-only; nothing is visible at `path` then.
        ResumeError: on an object store, another run has taken over.
    """
    if is_on_store(path):
        from spacepatch.remote.uploads import upload

        folder = path.parent
        upload(path, write, before=lambda: _check_leases(folder))
        return
    # Drawn: processes of several machines have the same numbers.
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


def publish_folder(path: Path, files: Mapping[str, bytes]) -> None:
    """`publish` for a folder of files, on local disk, that is not there yet."""
    temporary = private_folder(path.parent) / f"{path.name}.tmp-{uuid.uuid4().hex}"
    temporary.mkdir()
    try:
        for name, content in files.items():
            with (temporary / name).open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        sync_folder(temporary)
        temporary.replace(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_folder(path.parent)


def _write_all(file: IO[bytes], content: bytes) -> None:
    file.write(content)


def sync_folder(folder: Path) -> None:
    """Make renames and removals inside `folder` durable; those of an object store are."""
    if is_on_store(folder):
        return
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


def scratch_folder(output: Path) -> Path:
    """Where what no later run needs may lie for a while: always on local disk."""
    return Path(tempfile.gettempdir()) if is_on_store(output) else private_folder(output)


def sizes_in(folder: Path) -> dict[str, int]:
    """Bytes of each file of a folder by its name; on an object store by one request for many."""
    if is_on_store(folder):
        return folder.sizes()
    with os.scandir(folder) as entries:
        return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}


def sweep_temporary(output: Path, stems: Collection[str] | None = None) -> None:
    """Remove temporary files, and half uploads, that a killed run left. Only under the lock.

    Args:
        stems: those of a rank's own shards, for others may be writing; None: whatever is there.
    """
    if is_on_store(output):
        from spacepatch.remote.uploads import abort_uploads

        abort_uploads(output, stems)
        return
    for path in sorted(private_folder(output).glob("*.tmp-*")):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif stems is None or path.name.partition(".")[0] in stems:
            path.unlink(missing_ok=True)


def remove(paths: list[Path]) -> None:
    """Remove files in the given order, durably: an interrupted removal never leaves a later one
    gone and an earlier one there."""
    if paths and is_on_store(paths[0]):
        _check_leases(paths[0].parent)
    for path in paths:
        path.unlink(missing_ok=True)
        if not is_on_store(path) and path.parent.is_dir():
            sync_folder(path.parent)


def remove_private(output: Path) -> None:
    """Remove logs and temporary files, keeping the locks: one is being held."""
    folder = output / PRIVATE
    if not is_on_store(output) and folder.is_dir():
        for path in sorted(folder.iterdir()):
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != "lock" and path.suffix != ".lock":
                path.unlink(missing_ok=True)


def remove_folder(folder: Path) -> None:
    """Remove a folder of our own inside a private one, with all that is in it."""
    if is_on_store(folder):
        remove([cast(Path, folder / name) for name in folder.sizes()])
    elif folder.is_dir():
        shutil.rmtree(folder)


@contextmanager
def lock(output: Path) -> Iterator[None]:
    """Own `output` until the block ends or the process dies, however it dies: by `flock`, or by a
    lease on an object store.

    Raises:
        ResumeError: another run, or a rank of one, owns it now.
    """
    if is_on_store(output):
        from spacepatch.remote.leases import lease, refuse_held

        with lease(output, "lock"):
            refuse_held(output, lambda name: name.startswith("rank-"))
            yield
        return
    with _held(output, "lock", "another spacepatch run is writing to this folder"):
        for path in sorted(private_folder(output).glob("rank-*.lock")):
            if _is_held(path):
                raise _refusal(output, f"{_rank_of(path)} is writing to this folder")
        yield


@contextmanager
def lock_rank(output: Path, number: int, world_size: int) -> Iterator[None]:
    """Own what rank `number` writes to `output`, as `lock` owns it all.

    Each rank holds a lock of its own, and only then looks at those that it must not meet: of two
    that start at once at least one sees the other.

    Raises:
        ResumeError: this rank, a rank of another world size or a whole run is at work there.
    """
    own, others = f"rank-{number}-of-{world_size}", f"-of-{world_size}"
    if is_on_store(output):
        from spacepatch.remote.leases import lease, refuse_held

        with lease(output, own):
            refuse_held(output, lambda name: not name.endswith(others))
            yield
        return
    taken = f"rank {number} of {world_size} is writing to this folder already"
    with _held(output, f"{own}.lock", taken):
        if _is_held(private_folder(output) / "lock"):
            raise _refusal(output, "another spacepatch run is writing to this folder")
        for path in sorted(private_folder(output).glob("rank-*.lock")):
            if not path.stem.endswith(others) and _is_held(path):
                raise _refusal(
                    output,
                    f"{_rank_of(path)} is writing to this folder, and not of {world_size}",
                )
        yield


@contextmanager
def _held(output: Path, name: str, otherwise: str) -> Iterator[None]:
    from filelock import FileLock, Timeout

    held = FileLock(private_folder(output) / name, timeout=0)
    try:
        held.acquire()
    except Timeout:
        raise _refusal(output, otherwise) from None
    try:
        yield
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


def _check_leases(folder: StorePath) -> None:
    from spacepatch.remote.leases import check_leases

    check_leases(folder)
