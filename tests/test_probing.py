"""How sources are shared out to those that probe them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice, repeat
from pathlib import Path

import pytest

from spacepatch.executors.probing import probe_each
from spacepatch.probes import LOOK_AHEAD, MOST_IN_BATCH, ProbeJob, cut_into_batches
from spacepatch.sources import list_sources
from spacepatch.workers import WorkerPool


@pytest.fixture
def job(sample_clips: Path) -> ProbeJob:
    """A small one."""
    (listed,) = list_sources([str(sample_clips / "still_picture_400x300.png")]).sources
    return ProbeJob(listed)


def test_a_list_without_end_is_probed_as_it_comes(job: ProbeJob) -> None:
    asked = 0

    def jobs() -> Iterator[ProbeJob]:
        nonlocal asked
        for one in repeat(job):
            asked += 1
            yield one

    with WorkerPool(workers=1, timeout=60) as pool:
        found = list(islice(probe_each(jobs(), pool=pool), 100))
    assert sorted(place for place, _ in found) == list(range(100))
    assert all(probed.info is not None for _, probed in found)
    assert asked <= LOOK_AHEAD + 100 + MOST_IN_BATCH * (pool.capacity + 1)


@pytest.mark.parametrize(
    ("number", "workers", "sizes"),
    [
        (0, 2, []),
        (9, 2, [1] * 9),
        (100, 2, [12] * 8 + [4]),
        (1000, 2, [16] * 62 + [8]),
    ],
)
def test_few_sources_go_one_by_one_and_many_go_together(
    job: ProbeJob, number: int, workers: int, sizes: list[int]
) -> None:
    batches = list(cut_into_batches(repeat(job, number), workers=workers))
    assert [place for batch in batches for place, _ in batch] == list(range(number))
    assert [len(batch) for batch in batches] == sizes


def test_more_go_together_as_more_are_known(job: ProbeJob) -> None:
    batches = cut_into_batches(repeat(job, 10_000), workers=32)
    sizes = [len(batch) for batch in batches]
    assert sizes[:-1] == sorted(sizes[:-1])
    assert sizes[0] == (LOOK_AHEAD + 1) // (32 * 4)
    assert sizes[-2] == MOST_IN_BATCH
