"""Sources probed by a pool of workers of this machine: small ones several to a trip."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator

from spacepatch.probes import Batch, Probed, ProbeJob, cut_into_batches, probe_batch
from spacepatch.workers import Fault, WorkerPool


def probe_each(jobs: Iterable[ProbeJob], *, pool: WorkerPool) -> Generator[tuple[int, Probed]]:
    """(place in `jobs`, what was found) of each, in the order that they end in.

    `jobs` are read as workers become free.
    """
    batches = cut_into_batches(jobs, workers=pool.workers)
    alone: deque[Batch] = deque()

    def asked() -> Iterator[tuple[Batch, list[ProbeJob]]]:
        while batch := alone.popleft() if alone else next(batches, None):
            yield batch, [job for _, job in batch]

    waiting = True
    while waiting:
        for batch, outcome in pool.map(probe_batch, asked()):
            if isinstance(outcome, Fault) and len(batch) > 1:
                # One of them crashed or hangs: each goes by itself, so that it costs no other.
                alone += [[item] for item in batch]
                continue
            if isinstance(outcome, Fault):
                outcome = [Probed("", None, outcome.reason, outcome.message)]
            for (place, _), found in zip(batch, outcome, strict=True):
                yield place, found
        waiting = bool(alone)  # of the last ones that the pool was given
