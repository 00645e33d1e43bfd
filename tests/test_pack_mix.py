"""PackMix: several datasets in one stream, by weight, counted and resumable."""

from __future__ import annotations

import random
from collections import Counter
from fractions import Fraction
from itertools import islice, pairwise
from pathlib import Path

import pytest
import torch
from loaded_packs import assert_same
from tiny_packs import (
    Key,
    as_json,
    batch_keys,
    epoch_steps,
    keys_of,
    one_epoch,
    rank_loaders,
    step_keys,
    tiny_dataset,
)

from spacepatch.loader import PackDataset, PackLoader, PackMix


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> dict[str, Path]:
    base = tmp_path_factory.getbasetemp()
    return {kind: tiny_dataset(base, kind) for kind in ("tiny", "alike", "longer", "widths")}


@pytest.fixture(scope="session")
def owners(folders) -> dict[Key, str]:
    """The dataset of each pack."""
    return {key: name for name, folder in folders.items() for key in keys_of(folder)}


def make_mix(folders, num_packs=None, seed=0, options=None, **weights) -> PackMix:
    return PackMix(
        {
            name: (PackDataset(folders[name], **(options or {})), weight)
            for name, weight in weights.items()
        },
        num_packs=num_packs,
        seed=seed,
    )


def largest_remainder(weights: list[float], total: int) -> list[int]:
    """Seats by whole shares, and then one each by the largest rest."""
    shares = [Fraction(weight) * total / sum(map(Fraction, weights)) for weight in weights]
    seats = [int(share) for share in shares]
    while sum(seats) < total:
        rests = [share - seat for share, seat in zip(shares, seats, strict=True)]
        seats[rests.index(max(rests))] += 1
    return seats


# --- quotas -----------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [(1, 1), (0.7, 0.3), (5, 1), (1 / 3, 2 / 3), (0.1, 1e6)])
@pytest.mark.parametrize("num_packs", [13, 20, 101])
def test_quotas_are_the_weights_by_largest_remainder(folders, weights, num_packs) -> None:
    expected = largest_remainder(list(weights), num_packs)
    if not all(expected):
        with pytest.raises(ValueError, match=f"num_packs {num_packs} leaves tiny without a pack"):
            make_mix(folders, num_packs, tiny=weights[0], alike=weights[1])
        return
    mix = make_mix(folders, num_packs, tiny=weights[0], alike=weights[1])
    assert mix.quotas == expected


def test_the_number_that_a_refusal_names_is_enough(folders) -> None:
    with pytest.raises(ValueError, match=r"take (\d+) or more") as refusal:
        make_mix(folders, 3, tiny=1, alike=9.5)
    least = int(str(refusal.value).split("take ")[1].split()[0])
    assert make_mix(folders, least, tiny=1, alike=9.5).quotas[0] == 1


def test_an_epoch_gives_exactly_the_quotas_and_counts_them(folders, owners) -> None:
    mix = make_mix(folders, 20, tiny=0.7, alike=0.3)
    loader = PackLoader(mix)
    for _ in range(3):
        given = Counter()
        for batch in loader:
            given.update(owners[key] for key in batch_keys(batch))
            assert loader.packs_given == {name: given[name] for name in ("tiny", "alike")}
        assert given == {"tiny": 14, "alike": 6}
    assert len(loader) == 20


def test_the_default_epoch_has_as_many_packs_as_all_datasets(folders) -> None:
    total = sum(len(keys_of(folders[name])) for name in ("tiny", "alike"))
    assert sum(make_mix(folders, tiny=1, alike=2).quotas) == total


def test_datasets_come_in_turns_and_not_one_after_the_other(folders, owners) -> None:
    given = [owners[key] for key in one_epoch(PackLoader(make_mix(folders, 40, tiny=1, alike=1)))]
    changes = sum(one != other for one, other in pairwise(given))
    assert 10 < changes < 30


# --- passes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("num_packs", [8, 20, 37])
def test_no_pack_comes_again_before_all_others_of_its_dataset_have_come(
    folders, owners, num_packs
) -> None:
    loader = PackLoader(make_mix(folders, num_packs, tiny=0.6, alike=0.4), batch_size=1)
    streams: dict[str, list[Key]] = {"tiny": [], "alike": []}
    for _ in range(8):
        for key in one_epoch(loader):
            streams[owners[key]].append(key)
    passes = []
    for name, stream in streams.items():
        keys = sorted(keys_of(folders[name]))
        whole = len(stream) // len(keys)
        for turn in range(whole):
            one_pass = stream[turn * len(keys) : (turn + 1) * len(keys)]
            assert sorted(one_pass) == keys
            passes.append(tuple(one_pass))
        rest = stream[whole * len(keys) :]
        assert len(rest) == len(set(rest))
    assert len(set(passes)) == len(passes) > 2


def test_each_pass_draws_other_masks_and_the_same_in_any_epoch(folders, owners) -> None:
    options = {"mask": "random:0.5"}
    mix = make_mix(folders, 40, options=options, tiny=1, alike=3)
    packs = PackDataset(folders["alike"], **options)
    keys = keys_of(folders["alike"])
    turns = Counter()
    for batch in PackLoader(mix):
        [key] = batch_keys(batch)
        if owners[key] == "alike":
            packs.set_epoch(turns[key])
            expected = packs[keys.index(key)]["visible"]
            turns[key] += 1
            assert torch.equal(batch["visible"][0], expected)
    assert max(turns.values()) > 1


def test_packs_are_those_of_their_dataset(folders, owners) -> None:
    plain = {name: PackDataset(folders[name]) for name in ("tiny", "alike")}
    keys = {name: keys_of(folders[name]) for name in plain}
    for batch in PackLoader(make_mix(folders, tiny=1, alike=1), batch_size=2):
        for place, key in enumerate(batch_keys(batch)):
            expected = plain[owners[key]][keys[owners[key]].index(key)]
            assert_same({name: value[place] for name, value in batch.items()}, expected)


# --- shapes -----------------------------------------------------------------------------------


def test_packs_of_one_shape_share_batches(folders, owners) -> None:
    loader = PackLoader(make_mix(folders, 40, tiny=1, alike=1), batch_size=4)
    mixed = [{owners[key] for key in batch_keys(batch)} for batch in loader]
    assert {"tiny", "alike"} in mixed


@pytest.mark.parametrize("world_size", [1, 3])
def test_datasets_of_other_shapes_are_never_in_one_batch(folders, owners, world_size) -> None:
    loaders = rank_loaders(
        lambda: make_mix(folders, 60, tiny=1, alike=1, longer=1, widths=1), world_size, batch_size=2
    )
    [counts] = {loader.counts for loader in loaders}
    shapes = Counter()
    given: list[Key] = []
    for batches in epoch_steps(loaders):
        keys = step_keys(batches)
        given += keys
        [shape] = {tuple(batch["tokens"].shape) for batch in batches}
        shapes[shape] += 1
        kinds = {owners[key] for key in keys}
        assert kinds <= {"tiny", "alike"} or len(kinds) == 1
    assert set(shapes) == {(2, 128, 48), (2, 192, 48), (2, 64, 48), (2, 64, 192)}
    assert len(given) == 60 + counts.repeated
    assert sum(shapes.values()) == counts.steps
    assert loaders[0].epoch == 1


def test_what_differs_in_its_tensors_is_another_shape(folders, owners) -> None:
    mix = PackMix(
        {
            "tiny": (PackDataset(folders["tiny"], mask="random:0.5"), 1),
            "alike": (PackDataset(folders["alike"]), 1),
        }
    )
    for batch in PackLoader(mix, batch_size=2):
        assert len({owners[key] for key in batch_keys(batch)}) == 1


# --- resume -----------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [("tiny", "alike"), ("tiny", "longer", "widths")])
def test_random_stops_leave_the_stream_as_it_is(folders, names) -> None:
    draw = random.Random(str(names))

    def make() -> PackMix:
        return make_mix(folders, 23, seed=4, **dict.fromkeys(names, 1.5))

    unbroken = PackLoader(make(), batch_size=2)
    expected = [key for _ in range(5) for key in one_epoch(unbroken)]
    given: list[Key] = []
    loader = PackLoader(make(), batch_size=2)
    while loader.epoch < 4:
        given += [key for batch in islice(loader, draw.randint(0, 5)) for key in batch_keys(batch)]
        state = as_json(loader.state_dict())
        loader = PackLoader(make(), batch_size=2)
        loader.load_state_dict(state)
    assert given == expected[: len(given)]
    assert len(given) >= 4 * 23


def test_a_mix_of_one_shape_goes_on_with_other_ranks_and_batches(folders) -> None:
    draw = random.Random("ranks")

    def make() -> PackMix:
        return make_mix(folders, 23, tiny=2, alike=1)

    unbroken = PackLoader(make())
    epochs = [one_epoch(unbroken) for _ in range(4)]
    for stop in range(1, 23, 2):
        first = PackLoader(make())
        list(first)
        given = [key for batch in islice(first, stop) for key in batch_keys(batch)]
        state = as_json(first.state_dict())
        world_size, batch_size = draw.randint(1, 3), draw.randint(1, 3)
        loaders = rank_loaders(make, world_size, batch_size=batch_size)
        for loader in loaders:
            loader.load_state_dict(state)
        given += [key for batches in epoch_steps(loaders) for key in step_keys(batches)]
        assert given[:23] == epochs[1]
        assert len(given) < 23 + world_size * batch_size


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "seed 0, here 1"),
        ({"num_packs": 21}, "quotas"),
        ({"tiny": 2.0}, "quotas"),
        ({"options": {"mask": "random:0.5"}}, "random:0.5"),
    ],
)
def test_a_state_of_another_mix_is_refused(folders, change, message) -> None:
    settings = {"num_packs": 20, "tiny": 1.0, "alike": 1.0}
    state = as_json(PackLoader(make_mix(folders, **settings)).state_dict())
    with pytest.raises(ValueError, match=message):
        PackLoader(make_mix(folders, **settings | change)).load_state_dict(state)


def test_a_state_of_the_same_names_for_other_datasets_is_refused(folders) -> None:
    tiny, alike = PackDataset(folders["tiny"]), PackDataset(folders["alike"])
    state = PackLoader(PackMix({"a": (tiny, 1), "b": (alike, 1)})).state_dict()
    with pytest.raises(ValueError, match="another stream"):
        PackLoader(PackMix({"a": (alike, 1), "b": (tiny, 1)})).load_state_dict(state)
    with pytest.raises(ValueError, match="another stream"):
        PackLoader(tiny).load_state_dict(state)


@pytest.mark.parametrize("weight", [0, -1, float("nan"), float("inf")])
def test_a_weight_that_is_no_share_is_refused(folders, weight) -> None:
    with pytest.raises(ValueError, match="weight of alike"):
        make_mix(folders, tiny=1, alike=weight)


@pytest.mark.parametrize("num_packs", [0, 1, -5])
def test_fewer_packs_than_datasets_are_refused(folders, num_packs) -> None:
    with pytest.raises(ValueError, match=f"num_packs.*{num_packs}"):
        make_mix(folders, num_packs, tiny=1, alike=1)


def test_a_mix_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="needs a dataset"):
        PackMix({})


def test_what_is_no_dataset_is_refused_by_name(folders) -> None:
    with pytest.raises(ValueError, match="a mix takes PackDatasets"):
        PackMix({"tiny": (str(folders["tiny"]), 1)})
    with pytest.raises(ValueError, match="give a PackDataset"):
        PackLoader(str(folders["tiny"]))
