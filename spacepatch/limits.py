"""What this process may use of the machine, and what a worker may."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

WORKER_MEMORY = 4_000_000_000
"""Bytes that a worker may have for itself: the largest pictures allowed take 0.2 GB each, and a
codec refers to 16 of them."""
WORKER_FILE_BYTES = 1024**2
"""Size of a file that a worker may write."""
WORKER_FILES = 256
"""Files that a worker may have open: it needs a dozen."""
OOM_SCORE = 500
"""Of -1000 to 1000: where memory runs out, the kernel ends a worker and not the run."""
M_MMAP_THRESHOLD, LARGE_BLOCK = -3, 2**20
M_TRIM_THRESHOLD, SPARE_HEAP = -1, 2**21
"""See mallopt(3)."""


def available_cores() -> int:
    """Cores that this process may use: affinity and cgroup limits respected, at least one."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    for quota in _cgroup_quotas():
        cores = min(cores, max(1, int(quota)))
    return cores


def _cgroup_quotas() -> Iterator[float]:
    try:
        limit, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if limit != "max":
            yield int(limit) / int(period)
    except (OSError, ValueError):
        pass
    try:
        folder = Path("/sys/fs/cgroup/cpu")
        limit = (folder / "cpu.cfs_quota_us").read_text()
        if int(limit) > 0:
            yield int(limit) / int((folder / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError):
        pass


def most_open_files() -> int:
    """Files that this process may have open (`ulimit -n`)."""
    try:
        import resource
    except ImportError:  # Windows: what its C library allows
        return 512
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft


def give_back_large_blocks() -> None:
    """Have glibc map blocks of 1 MB and more one by one, as it does until it first frees one.

    After that it takes them from its heap, where the index of each MP4 that is opened leaves holes:
    16 MB at the end of one of three hours. What is free at the end of the heap, up to `SPARE_HEAP`,
    stays: given back after each file and asked for again, it was a fifth of a small file's probe.
    """
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # musl has no mallopt
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(M_MMAP_THRESHOLD, LARGE_BLOCK)
            mallopt(M_TRIM_THRESHOLD, SPARE_HEAP)


def limit_itself(memory: int) -> None:
    """Bound what a hostile file can make this process take, as far as the system can.

    Memory is RLIMIT_DATA: private memory that can be written (Linux 4.7). RLIMIT_AS counts code and
    the shared arena too: with torch imported and an arena of 6 GB mapped, 6.9 GB of it, where
    RLIMIT_DATA counts 0.2 GB.
    """
    try:
        import resource
    except ImportError:  # Windows
        return
    with suppress(OSError):
        score = Path("/proc/self/oom_score_adj")
        score.write_text(str(max(OOM_SCORE, int(score.read_text()))))
    limits = {
        resource.RLIMIT_CORE: 0,  # a core holds gigabytes, and somebody's pictures
        resource.RLIMIT_NOFILE: WORKER_FILES,
        resource.RLIMIT_DATA: memory,
        # A worker writes into the arena and pipes; but PyTorch, as it loads, tries out the
        # folder for temporary files. Beyond it Python makes an error of it, not a signal.
        resource.RLIMIT_FSIZE: WORKER_FILE_BYTES,
    }
    for kind, limit in limits.items():
        most = resource.getrlimit(kind)[1]
        limit = limit if most == resource.RLIM_INFINITY else min(limit, most)
        with suppress(OSError, ValueError):  # macOS knows fewer limits
            resource.setrlimit(kind, (limit, limit))
