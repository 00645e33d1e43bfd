"""What outlives its parent: workers, which end, and what is left to remove."""

from __future__ import annotations

import os
import select
import shutil
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing import parent_process

LAST_SECONDS = 2
"""That a process which was killed may take to go, after its files were closed."""


def die_with_parent(folder: str) -> None:
    """Wait for the end of the parent, however it ends, and end this process at once.

    Args:
        folder: for temporary files of the parent, who has not removed it where it was killed: Ray,
            for one, ends what is idle by force.
    """
    parent = parent_process()
    assert parent is not None, "a worker is started by somebody"
    parent.join()
    # A parent that lives has only let go of this worker: it needs the folder, or removes it itself.
    if parent.pid is not None and _has_ended(parent.pid):
        shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


def clean_up_after_parent(folder: str, semaphores: Sequence[str]) -> None:
    """Wait for the end of the parent, however it ends, and remove what it left.

    Ray ends the processes of a node all at once, those that would have cleaned up among them. They
    are killed by their group, so this one makes itself one of its own.

    Args:
        folder: for its temporary files.
        semaphores: names of those that it shares with its workers.
    """
    from _multiprocessing import sem_unlink  # type: ignore[import-not-found]

    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    assert parent is not None, "it is started by the one that it waits for"
    parent.join()
    shutil.rmtree(folder, ignore_errors=True)
    for name in semaphores:
        with suppress(OSError):
            sem_unlink(name)
    os._exit(0)


def _has_ended(pid: int) -> bool:
    """Whether a process has ended, waited for by its own parent or not, where that can be told."""
    if sys.platform != "linux":
        return False
    try:
        process = os.pidfd_open(pid)
    except OSError as error:
        return isinstance(error, ProcessLookupError)
    ended, _, _ = select.select([process], [], [], LAST_SECONDS)
    return bool(ended)
