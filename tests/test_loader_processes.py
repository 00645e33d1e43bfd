"""Packs in other processes, in batches, and with few files open."""

from __future__ import annotations

import multiprocessing
import pickle
import subprocess
import sys

import pytest
from loaded_packs import assert_same
from torch.utils.data import DataLoader

from spacepatch.loader import PackDataset, collate
from spacepatch.loader import dataset as reading
from spacepatch.masks import block_mask

ignore_fork_warning = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")


@ignore_fork_warning
@pytest.mark.parametrize("start", ["spawn", "fork"])
def test_workers_give_the_same_packs_as_none(packed_folder, pack_dataset, start) -> None:
    shared = PackDataset(packed_folder)
    assert shared[0]  # so that a shard is open here when the workers start
    workers = DataLoader(
        shared, batch_size=None, num_workers=2, multiprocessing_context=start, timeout=120
    )
    for one, other in zip(pack_dataset, workers, strict=True):
        assert_same(one, other)


def test_no_open_shard_travels_with_a_pickle(packed_folder) -> None:
    dataset = PackDataset(packed_folder)
    pack = dataset[0]
    travelled = pickle.loads(pickle.dumps(dataset))
    assert travelled._readers == {}
    assert len(dataset._readers) == 1
    assert_same(travelled[0], pack)


@ignore_fork_warning
def test_a_forked_process_opens_its_own_shards(packed_folder) -> None:
    dataset = PackDataset(packed_folder)
    before = dataset._reader(0)

    def child() -> None:
        sys.exit(23 if dataset._reader(0) is not before else 1)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(60)
    assert process.exitcode == 23
    assert dataset._reader(0) is before


def test_few_open_shards_give_the_same_packs(packed_folder, pack_dataset, monkeypatch) -> None:
    monkeypatch.setattr(reading, "MAX_OPEN_SHARDS", 1)
    thrifty = PackDataset(packed_folder)
    order = [*range(len(pack_dataset)), *range(0, len(pack_dataset), 2)]
    for index in order:
        assert_same(thrifty[index], pack_dataset[index])
        assert len(thrifty._readers) == 1


def test_batches_stack_padded_packs(pack_dataset) -> None:
    batches = list(DataLoader(pack_dataset, batch_size=2, collate_fn=collate))
    assert sum(len(batch["tokens"]) for batch in batches) == len(pack_dataset)
    n, d = pack_dataset.pack_length, pack_dataset.document["token_width"]
    assert batches[0]["tokens"].shape == (2, n, d)
    assert batches[0]["positions"].shape == (2, n, 3)
    assert block_mask(batches[0]["segment_ids"]).shape == (2, n, n)
    first = {name: value[0] for name, value in batches[0].items()}
    assert_same(first, pack_dataset[0])


def test_nothing_but_a_user_imports_the_loader_or_torch() -> None:
    script = (
        "import sys, spacepatch, spacepatch.pipeline, spacepatch.shards\n"
        "print({'torch', 'spacepatch.loader', 'spacepatch.masks'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", script]
    assert subprocess.run(command, capture_output=True, text=True).stdout == "set()\n"
