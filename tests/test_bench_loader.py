"""A short run of the loader's benchmark: that all contenders yield the same tokens, and that it
would see one that does not. Nothing here is timed; `make bench` is long."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from spacepatch.loader import PackDataset
from tests.benchmarks import loader as bench_loader


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    return bench_loader.make_dataset(folder, num_bytes=1, tubelet_size=2, pack_length=4096)


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset leaves its tars open
def test_every_contender_adds_up_the_same_tokens_and_all_that_it_yields(shards: Path) -> None:
    passes = bench_loader.measure(shards, rounds=2)
    assert [len(made) for made in passes.values()] == [2] * len(passes)
    everyone = [one for made in passes.values() for one in made]
    assert len({(one.packs, one.token_sum) for one in everyone}) == 1
    packs = PackDataset(shards)
    assert everyone[0].packs == len(packs) > 1

    bytes_of = {name: made[0].num_bytes for name, made in passes.items()}
    for name, loaded in (("padded", packs), ("ragged", PackDataset(shards, padded=False))):
        tensors = [x for pack in loaded for x in pack.values() if isinstance(x, torch.Tensor)]
        assert bytes_of[name] == sum(x.numel() * x.element_size() for x in tensors)
    # As stored: positions are int16, there are no seconds, and segments.npy has 8 int32 a segment.
    totals = packs.document["totals"]
    stored = totals["tokens"] * (packs.document["token_width"] + 4 + 6) + totals["segments"] * 32
    assert bytes_of["webdataset"] == bytes_of["numpy"] == stored


def test_the_sum_is_of_every_byte() -> None:
    array = np.random.default_rng(0).integers(0, 256, 1003, dtype=np.uint8)
    as_words = [array[at : at + 8].tobytes() for at in range(0, 1003, 8)]
    expected = sum(int.from_bytes(word, "little") for word in as_words) % 2**64
    assert bench_loader.add_up(array) == expected
    for place in (0, 500, 1002):
        other = array.copy()
        other[place] ^= 1
        assert bench_loader.add_up(other) != expected


def test_ratios_are_the_medians_of_rounds() -> None:
    def passes(*seconds: float) -> list[bench_loader.Pass]:
        return [bench_loader.Pass(one, 10, 1, 1) for one in seconds]

    # One round in which the machine is ten times slower, for both alike.
    made = {"padded": passes(1, 10, 1), "webdataset": passes(5, 50, 6)}
    assert bench_loader.ratio(made, "padded", "webdataset") == 5
