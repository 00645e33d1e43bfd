"""A lock on an object store: a lease, which ends by itself when its owner is gone.

The lease NAME is the object `.spacepatch/NAME.000001`, made by a request that fails where there is
one. Its owner says in it until when it holds, and puts that off while it lives. Who finds one that
has ended makes the next number; of several who try, one can. The highest number is the lease. One
that is given back stays, and says so: it marks the folder as ours, and no number comes twice.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any

from spacepatch.errors import ConfigError, ResumeError, StoreError
from spacepatch.remote.paths import StorePath
from spacepatch.storage import PRIVATE

SECONDS = "SPACEPATCH_LEASE_SECONDS"
"""Variable of the environment that says how long a lease holds when nobody puts it off."""
DEFAULT_SECONDS = 120.0
RENEWALS = 4
"""In the time that a lease holds."""

_held: dict[str, list[Lease]] = {}
"""What this process holds, by the folder's path without its slashes."""


class Lease:
    """One that is held; made by `lease`."""

    def __init__(self, folder: StorePath, name: str, number: int, seconds: float) -> None:
        self._folder, self._name, self._number = folder, name, number
        self._seconds = seconds
        self._identity = secrets.token_hex(8)
        self._ended = threading.Event()
        self._renewer = threading.Thread(target=self._renew, name="spacepatch-lease", daemon=True)

    @property
    def path(self) -> StorePath:
        return _path_of(self._folder, self._name, self._number)

    def take(self) -> bool:
        """Whether it is ours now."""
        if not self.path.create(self._content(seconds=self._seconds)):
            return False
        self._renewer.start()
        return True

    def check(self) -> None:
        """Raise a ResumeError where another run has taken it over, while we slept or were cut off
        from the store."""
        numbers = _numbers(self._folder, self._name)
        found = _read(self.path) if max(numbers, default=0) == self._number else None
        if found is None or found.get("identity") != self._identity:
            self._ended.set()
            raise ResumeError(
                f"{self._folder}: another run took over, for this one did not renew its lease for "
                f"{self._seconds:g} s: asleep, or cut off from the store; start it again when the "
                "other is done"
            )

    def release(self) -> None:
        """Let others in."""
        self._ended.set()
        self._renewer.join()
        with suppress(StoreError, ResumeError):  # then it ends by itself
            self.check()
            self.path.overwrite(self._content(seconds=0))

    def _renew(self) -> None:
        while not self._ended.wait(self._seconds / RENEWALS):
            # Whoever writes looks for himself whether the lease is still ours.
            with suppress(StoreError, ResumeError):
                self.check()
                self.path.overwrite(self._content(seconds=self._seconds))

    def _content(self, *, seconds: float) -> bytes:
        until = time.time() + seconds
        return json.dumps(
            {
                "owner": f"{socket.gethostname()}, process {os.getpid()}",
                "identity": self._identity,
                "until": datetime.fromtimestamp(until, UTC).isoformat(),
                "seconds": seconds,
            }
        ).encode()


@contextmanager
def lease(folder: StorePath, name: str) -> Iterator[None]:
    """Hold a lease until the block ends; killed, until its time is over.

    Raises:
        ResumeError: another run holds it now; says who and until when.
        StoreError: the store cannot be written.
    """
    while numbers := _numbers(folder, name):
        if _has_ended(folder, _path_of(folder, name, max(numbers))):
            break
    held = Lease(folder, name, max(numbers, default=0) + 1, _lease_seconds())
    if not held.take():
        raise _refusal(folder, _read(held.path))
    _held.setdefault(folder.path.strip("/"), []).append(held)
    try:
        for number in numbers:
            _path_of(folder, name, number).unlink(missing_ok=True)
        yield
    finally:
        _held[folder.path.strip("/")].remove(held)
        held.release()


def check_leases(folder: StorePath) -> None:
    """Before anything is written to or removed from a folder: raise a ResumeError where another run
    has taken it from us."""
    for held in _held.get(folder.path.strip("/"), ()):
        held.check()


def refuse_held(folder: StorePath, is_other: Callable[[str], bool]) -> None:
    """Raise a ResumeError where somebody holds one of the leases whose names `is_other` takes."""
    for name in sorted(set(filter(is_other, _names(folder)))):
        while numbers := _numbers(folder, name):
            if _has_ended(folder, _path_of(folder, name, max(numbers))):
                break


def _has_ended(folder: StorePath, path: StorePath) -> bool:
    """Whether nobody holds a lease that is there; False: it is there no more.

    Raises:
        ResumeError: its owner may still hold it.
    """
    found = _read(path)
    if found is None:
        return False
    # 0, where it was given back.
    seconds = float(found.get("seconds", 0))
    if found and 0 < datetime.fromisoformat(found["until"]).timestamp() - time.time() <= seconds:
        raise _refusal(folder, found)
    # One of two clocks may be wrong: whoever lives renews it before our eyes.
    time.sleep(2 * seconds / RENEWALS)
    again = _read(path)
    if again is not None and again != found:
        raise _refusal(folder, again)
    return again is not None


def _refusal(folder: StorePath, found: dict[str, Any] | None) -> ResumeError:
    found = found or {}
    return ResumeError(
        f"{folder}: another spacepatch run ({found.get('owner', 'unknown')}) is writing to this "
        f"folder; its lease ends at {found.get('until', '?')[:19]} UTC, unless it is alive and "
        "renews it: wait for it, or give another --out"
    )


def _read(path: StorePath) -> dict[str, Any] | None:
    """What a lease says; empty, if that is nothing; None: it is gone."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        found = json.loads(content)
        float(found["seconds"])
        datetime.fromisoformat(found["until"])
    except (KeyError, TypeError, ValueError):
        return {}
    return dict(found)


def _names(folder: StorePath) -> Iterator[str]:
    for entry in (folder / PRIVATE).sizes():
        name, _, number = entry.rpartition(".")
        if re.fullmatch(r"\d{6}", number):
            yield name


def _numbers(folder: StorePath, name: str) -> list[int]:
    pattern = re.compile(rf"{re.escape(name)}\.(\d{{6}})")
    matches = (pattern.fullmatch(entry) for entry in (folder / PRIVATE).sizes())
    return sorted(int(match[1]) for match in matches if match)


def _path_of(folder: StorePath, name: str, number: int) -> StorePath:
    return folder / PRIVATE / f"{name}.{number:06d}"


def _lease_seconds() -> float:
    text = os.environ.get(SECONDS, str(DEFAULT_SECONDS))
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0
    if not 0 < seconds < float("inf"):
        raise ConfigError(f"{SECONDS}: {text!r} is no number of seconds above 0")
    return seconds
