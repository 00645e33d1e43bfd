"""PackLoader over PackDataset: who gets which pack, and when."""

from __future__ import annotations

import math
from collections import Counter
from itertools import islice

import pytest
import torch
from loaded_packs import assert_same
from tiny_packs import (
    WIDTH,
    Key,
    batch_keys,
    drawn_epoch,
    epoch_steps,
    keys_of,
    one_epoch,
    rank_loaders,
    step_keys,
    widths_of,
)

from spacepatch.loader import PackDataset, PackLoader

# --- one epoch --------------------------------------------------------------------------------


def test_the_tiny_dataset_has_several_shards_and_packs_of_several_segments(tiny, keys) -> None:
    assert len(PackDataset(tiny).document["shards"]) > 3
    assert len(set(keys)) == len(keys) > 12
    assert max(map(len, keys)) > 2


def test_each_pack_comes_exactly_once_an_epoch_in_the_drawn_order(tiny, keys) -> None:
    loader = PackLoader(PackDataset(tiny, seed=3))
    for epoch in range(3):
        assert loader.epoch == epoch
        given = one_epoch(loader)
        assert given == drawn_epoch(keys, 3, epoch)
        assert Counter(given) == Counter(keys)


def test_each_epoch_and_each_seed_has_another_order_and_the_same_again(tiny) -> None:
    def orders(seed: int) -> list[list[Key]]:
        loader = PackLoader(PackDataset(tiny, seed=seed))
        return [one_epoch(loader) for _ in range(2)]

    drawn = [*orders(0), *orders(1)]
    assert len(set(map(tuple, drawn))) == 4
    assert orders(1) == drawn[2:]


def test_without_shuffle_packs_come_as_they_are_stored_in_every_epoch(tiny, keys) -> None:
    loader = PackLoader(PackDataset(tiny), shuffle=False, batch_size=2)
    for _ in range(2):
        given = one_epoch(loader)
        assert given[: len(keys)] == keys
        assert len(given) - len(keys) == len(keys) % 2


@pytest.mark.parametrize("uneven", ["pad", "drop"])
@pytest.mark.parametrize(
    ("world_size", "batch_size"), [(1, 1), (1, 4), (2, 1), (3, 2), (4, 3), (5, 1), (7, 1), (11, 1)]
)
def test_ranks_share_out_the_epoch_and_count_what_is_given(
    tiny, keys, world_size, batch_size, uneven
) -> None:
    loaders = rank_loaders(
        lambda: PackDataset(tiny, seed=1), world_size, batch_size=batch_size, uneven=uneven
    )
    [counts] = {loader.counts for loader in loaders}
    [length] = {len(loader) for loader in loaders}
    steps = [step_keys(batches) for batches in epoch_steps(loaders)]
    given = [key for step in steps for key in step]
    size = world_size * batch_size
    assert all(len(step) == size for step in steps)
    assert len(steps) == counts.steps == length
    order = drawn_epoch(keys, 1, 0)
    if uneven == "drop":
        assert given == order[: len(keys) // size * size]
    else:
        assert given[: len(keys)] == order
        assert len(given) == math.ceil(len(keys) / size) * size
    times = Counter(given)
    assert counts.packs == len(keys)
    assert counts.repeated == sum(number - 1 for number in times.values())
    assert counts.dropped == len(set(keys) - set(given))
    assert {loader.epoch for loader in loaders} == {1}


def test_more_ranks_than_packs_and_shards_all_have_a_step(tiny, keys) -> None:
    world_size = 2 * len(keys) + 3
    loaders = rank_loaders(lambda: PackDataset(tiny), world_size)
    [step] = [step_keys(batches) for batches in epoch_steps(loaders)]
    assert len(step) == world_size
    assert min(Counter(step)[key] for key in keys) == 2
    assert loaders[0].counts.repeated == world_size - len(keys)


def test_the_order_is_the_same_whatever_ranks_workers_and_batches_are(tiny, keys) -> None:
    order = drawn_epoch(keys, 0, 0)
    for world_size, batch_size, num_workers in ((1, 1, 2), (1, 3, 1), (2, 2, 1)):
        loaders = rank_loaders(
            lambda: PackDataset(tiny), world_size, batch_size=batch_size, num_workers=num_workers
        )
        given = [key for batches in epoch_steps(loaders) for key in step_keys(batches)]
        assert given[: len(keys)] == order


def test_rank_and_world_are_taken_from_the_environment_of_torchrun(tiny, monkeypatch) -> None:
    given = [one_epoch(PackLoader(PackDataset(tiny), rank=1, world_size=3))]
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    given.append(one_epoch(PackLoader(PackDataset(tiny))))
    assert given[0] == given[1]
    monkeypatch.setenv("RANK", "3")
    with pytest.raises(ValueError, match="rank 3"):
        PackLoader(PackDataset(tiny))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size 0"),
        ({"num_workers": -1}, "num_workers -1"),
        ({"uneven": "both"}, "pad, drop"),
        ({"rank": 1}, "world_size None"),
        ({"rank": 2, "world_size": 2}, "rank 2"),
        ({"uneven": "drop", "batch_size": 1000}, "uneven='pad'"),
        ({"drop_last": True}, "drop_last"),
        ({"in_order": False}, "in_order"),
        ({"sampler": []}, "sampler"),
    ],
)
def test_what_cannot_be_shared_out_is_refused(tiny, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        PackLoader(PackDataset(tiny), **options)


# --- several loops ----------------------------------------------------------------------------


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_loop_that_is_left_early_goes_on_where_it_was_left(tiny, keys, num_workers) -> None:
    loader = PackLoader(PackDataset(tiny), num_workers=num_workers)
    given: list[Key] = []
    for stop in (1, 3, 2):
        given += [key for batch in islice(loader, stop) for key in batch_keys(batch)]
        assert loader.epoch == 0
        assert loader.num_steps_left == len(keys) - len(given)
        assert sum(loader.packs_given.values()) == len(given)
    given += one_epoch(loader)
    assert given == drawn_epoch(keys, 0, 0)
    assert loader.epoch == 1
    assert one_epoch(loader) == drawn_epoch(keys, 0, 1)


def test_a_loop_that_is_left_at_the_last_batch_goes_on_with_the_next_epoch(tiny, keys) -> None:
    loader = PackLoader(PackDataset(tiny))
    assert len(list(islice(loader, len(keys)))) == len(keys)
    assert loader.epoch == 1
    assert one_epoch(loader) == drawn_epoch(keys, 0, 1)
    assert loader.epoch == 2


def test_any_epoch_can_be_gone_to(tiny, keys) -> None:
    loader = PackLoader(PackDataset(tiny, mask="random:0.5"))
    next(iter(loader))
    loader.set_epoch(7)
    packs = PackDataset(tiny, mask="random:0.5")
    packs.set_epoch(7)
    batch = next(iter(loader))
    assert batch_keys(batch)[0] == drawn_epoch(keys, 0, 7)[0]
    pack = packs[keys.index(batch_keys(batch)[0])]
    assert_same({name: value[0] for name, value in batch.items()}, pack)
    with pytest.raises(ValueError, match="-1"):
        loader.set_epoch(-1)


def test_persistent_workers_draw_anew_each_epoch(tiny, keys) -> None:
    alone = PackLoader(PackDataset(tiny, mask="random:0.5", drop="random:0.3"), batch_size=2)
    workers = PackLoader(
        PackDataset(tiny, mask="random:0.5", drop="random:0.3"), batch_size=2, num_workers=2
    )
    seen = []
    for _ in range(2):
        for one, other in zip(alone, workers, strict=True):
            for pack in range(2):
                assert_same(*({k: v[pack] for k, v in batch.items()} for batch in (one, other)))
        seen.append(one["visible"].sum().item() and one["positions"].tolist())
    assert seen[0] != seen[1]


# --- several token widths ---------------------------------------------------------------------


@pytest.mark.parametrize("uneven", ["pad", "drop"])
@pytest.mark.parametrize(("world_size", "batch_size"), [(1, 1), (2, 1), (2, 2), (3, 1)])
def test_at_each_step_all_ranks_have_one_width(widths, world_size, batch_size, uneven) -> None:
    loaders = rank_loaders(
        lambda: PackDataset(widths), world_size, batch_size=batch_size, uneven=uneven
    )
    steps = list(epoch_steps(loaders))
    shapes = [{batch["tokens"].shape for batch in batches} for batches in steps]
    assert all(len(shape) == 1 for shape in shapes)
    seen = [shape.pop()[-1] for shape in shapes]
    assert set(seen) == {48, 192}
    assert seen != sorted(seen) or len(seen) < 4  # the widths take turns
    expected, repeated, dropped = 0, 0, 0
    for packs in Counter(widths_of(widths).values()).values():
        rest = packs % (world_size * batch_size)
        expected += packs // (world_size * batch_size) + (uneven == "pad" and rest > 0)
        repeated += -packs % (world_size * batch_size) * (uneven == "pad")
        dropped += rest * (uneven == "drop")
    [counts] = {loader.counts for loader in loaders}
    assert (len(steps), repeated, dropped) == (expected, counts.repeated, counts.dropped)
    assert counts.steps == expected
    given = Counter(key for batches in steps for key in step_keys(batches))
    assert given.total() - len(given) == repeated
    assert len(set(keys_of(widths)) - set(given)) == dropped


def test_one_width_can_be_taken_alone(widths) -> None:
    wide = [key for key, width in widths_of(widths).items() if width == 192]
    loader = PackLoader(PackDataset(widths, token_width=192))
    assert Counter(one_epoch(loader)) == Counter(wide)
    with pytest.raises(ValueError, match=r"\[48, 192\]"):
        PackDataset(widths, token_width=7)
    state = loader.state_dict()
    with pytest.raises(ValueError, match="token_width 192, here 48"):
        PackLoader(PackDataset(widths, token_width=48)).load_state_dict(state)


def test_batches_hold_what_the_packs_hold(tiny, keys) -> None:
    packs = PackDataset(tiny)
    for batch in PackLoader(packs, batch_size=3):
        for place, key in enumerate(batch_keys(batch)):
            one = {name: value[place] for name, value in batch.items()}
            assert_same(one, packs[keys.index(key)])
        assert batch["tokens"].shape == (3, 128, WIDTH)
        assert batch["tokens"].dtype == torch.uint8
