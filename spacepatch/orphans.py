"""End a worker whose parent has ended: it must not decode on, or hang on, for nobody."""

from __future__ import annotations

import os
import select
import shutil
import sys
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
