"""PackStream: shards read from the front to the back, by several ranks and workers, with resume."""

from __future__ import annotations

import pickle
import random
import sys
from collections import Counter
from itertools import islice

import pytest
from loaded_packs import assert_same, read_plainly
from tiny_packs import (
    Key,
    as_json,
    batch_keys,
    epoch_steps,
    key_of,
    one_epoch,
    rank_loaders,
    step_keys,
    widths_of,
)
from torch.utils.data import DataLoader

from spacepatch.loader import PackDataset, PackLoader, PackStream


@pytest.fixture(scope="session")
def shard_of(tiny) -> dict[Key, str]:
    """The shard of each pack, by the names of the members of the tar."""
    shards = {}
    for tar in sorted(tiny.glob("*.tar")):
        for pack in read_plainly(tiny, tar.stem):
            shards[key_of(pack["pack"]["segments"])] = tar.stem
    return shards


def turns(items) -> list:
    """Without repetitions that follow one another."""
    items = list(items)
    return [item for place, item in enumerate(items) if place == 0 or items[place - 1] != item]


# --- what an epoch gives ----------------------------------------------------------------------


@pytest.mark.parametrize("uneven", ["pad", "drop"])
@pytest.mark.parametrize(
    ("world_size", "batch_size", "buffer"), [(1, 1, 4), (1, 3, 16), (2, 2, 3), (3, 1, 1), (5, 2, 8)]
)
def test_ranks_give_all_packs_in_equal_steps_and_count_them(
    tiny, keys, world_size, batch_size, buffer, uneven
) -> None:
    loaders = rank_loaders(
        lambda: PackStream(tiny, shuffle_buffer=buffer, seed=4),
        world_size,
        batch_size=batch_size,
        uneven=uneven,
    )
    for epoch in range(2):
        assert {loader.epoch for loader in loaders} == {epoch}
        given = [key for batches in epoch_steps(loaders) for key in step_keys(batches)]
        [counts] = {loader.counts for loader in loaders}
        times = Counter(given)
        assert len(given) == counts.steps * world_size * batch_size
        assert counts.packs == len(keys)
        assert counts.repeated == len(given) - len(times)
        assert counts.dropped == len(keys) - len(times)
        if uneven == "pad":
            assert counts.dropped == 0
            # No more than what makes the longest share full on all ranks.
            longest = -(-len(keys) // world_size)
            assert counts.steps == -(-longest // batch_size)
        else:
            assert counts.repeated == 0
            assert counts.steps == len(keys) // world_size // batch_size


@pytest.mark.parametrize("num_workers", [1, 2])
def test_workers_and_ranks_share_out_without_overlap(tiny, keys, num_workers) -> None:
    loaders = rank_loaders(
        lambda: PackStream(tiny, shuffle_buffer=4), 2, num_workers=num_workers, uneven="drop"
    )
    given = [key for batches in epoch_steps(loaders) for key in step_keys(batches)]
    assert len(given) == len(set(given)) == len(keys) // (2 * num_workers) * 2 * num_workers
    assert loaders[0].counts.dropped == len(keys) - len(given)


def test_more_ranks_than_packs_all_have_a_step(tiny, keys) -> None:
    loaders = rank_loaders(lambda: PackStream(tiny), len(keys) + 5)
    steps = [step_keys(batches) for batches in epoch_steps(loaders)]
    assert [len(step) for step in steps] == [len(keys) + 5]
    assert set(steps[0]) == set(keys)
    assert loaders[0].counts.repeated == 5


def test_packs_are_those_of_the_dataset_bit_by_bit(tiny, keys) -> None:
    options = {"mask": "random:0.5", "drop": "random:0.2", "token_order": "random"}
    packs = PackDataset(tiny, **options)
    loader = PackLoader(PackStream(tiny, **options))
    for epoch in range(2):
        packs.set_epoch(epoch)
        for batch in loader:
            pack = packs[keys.index(batch_keys(batch)[0])]
            assert_same({name: value[0] for name, value in batch.items()}, pack)


def test_an_epoch_and_a_seed_have_their_own_order_and_the_same_again(tiny) -> None:
    def orders(seed: int) -> list[list[Key]]:
        loader = PackLoader(PackStream(tiny, seed=seed, shuffle_buffer=3))
        return [one_epoch(loader) for _ in range(2)]

    drawn = [*orders(0), *orders(1)]
    assert len(set(map(tuple, drawn))) == 4
    assert orders(0) == drawn[:2]


def test_without_shuffle_packs_come_as_they_are_stored(tiny, keys) -> None:
    loader = PackLoader(PackStream(tiny), shuffle=False)
    assert one_epoch(loader) == one_epoch(loader) == keys


# --- reading forward --------------------------------------------------------------------------


def test_with_a_buffer_of_one_pack_each_shard_is_gone_through_from_front_to_back(
    tiny, keys, shard_of
) -> None:
    loader = PackLoader(PackStream(tiny, shuffle_buffer=1))
    orders = []
    for _ in range(3):
        given = one_epoch(loader)
        shards = turns(shard_of[key] for key in given)
        assert len(shards) == len(set(shard_of.values()))
        assert given == sorted(
            given, key=lambda key: (shards.index(shard_of[key]), keys.index(key))
        )
        orders.append(shards)
    assert len(set(map(tuple, orders))) > 1


def test_packs_come_no_further_from_their_place_than_a_buffer(tiny) -> None:
    for buffer in (2, 5):
        forward = one_epoch(PackLoader(PackStream(tiny, shuffle_buffer=1, seed=9)))
        given = one_epoch(PackLoader(PackStream(tiny, shuffle_buffer=buffer, seed=9)))
        assert given != forward
        for first in range(0, len(given), buffer):
            part = slice(first, first + buffer)
            assert sorted(given[part]) == sorted(forward[part])


opened: list[str] = []
sys.addaudithook(
    lambda event, args: (
        opened.append(str(args[0])) if event == "open" and str(args[0]).endswith(".tar") else None
    )
)


@pytest.mark.parametrize("buffer", [1, 4, 7])
def test_no_shard_is_opened_again_once_another_was_opened(tiny, buffer) -> None:
    loader = PackLoader(PackStream(tiny, shuffle_buffer=buffer))
    for _ in range(4):
        opened.clear()
        assert one_epoch(loader)
        shards = turns(opened)
        assert len(shards) == len(set(shards)) == len(list(tiny.glob("*.tar")))


# --- a DataLoader of one's own ----------------------------------------------------------------


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_plain_loader_gives_each_pack_once(tiny, keys, num_workers) -> None:
    stream = PackStream(tiny, mask="random:0.5", shuffle_buffer=4)
    loader = DataLoader(stream, batch_size=None, num_workers=num_workers)
    packs = PackDataset(tiny, mask="random:0.5")
    orders = []
    for epoch in (0, 3):
        stream.set_epoch(epoch)
        packs.set_epoch(epoch)
        given = list(loader)
        orders.append([key_of(pack["segments"]) for pack in given])
        assert sorted(orders[-1]) == sorted(keys)
        for key, pack in zip(orders[-1][:4], given, strict=False):
            assert_same(pack, packs[keys.index(key)])
    assert orders[0] != orders[1]


def test_ranks_of_a_plain_loader_share_out_the_packs(tiny, keys, monkeypatch) -> None:
    given = []
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "3")
        given += [key_of(pack["segments"]) for pack in PackStream(tiny)]
    assert sorted(given) == sorted(keys)


@pytest.mark.parametrize("buffer", [0, -1])
def test_a_buffer_holds_a_pack_or_more(tiny, buffer) -> None:
    with pytest.raises(ValueError, match=f"shuffle_buffer is {buffer}"):
        PackStream(tiny, shuffle_buffer=buffer)


# --- resume -----------------------------------------------------------------------------------


def fuzz(make, *, world_size: int, stops: int, epochs: int, draw: random.Random, **options) -> None:
    """Stop all ranks at random steps and go on with other loaders of the same numbers."""
    loaders = rank_loaders(make, world_size, **options)
    unbroken = [[step_keys(batches) for batches in epoch_steps(loaders)] for _ in range(epochs + 1)]
    expected = [step for epoch in unbroken for step in epoch]
    place = 0
    loaders = rank_loaders(make, world_size, **options)
    for _ in range(stops):
        loops = [iter(loader) for loader in loaders]
        for _ in range(draw.choice([0, 1, 1, 2, 3, 7])):
            batches = [next(loop, None) for loop in loops]
            if all(batch is None for batch in batches):
                loops = [iter(loader) for loader in loaders]
                batches = [next(loop) for loop in loops]
            if place == len(expected):
                break
            assert step_keys(batches) == expected[place]
            place += 1
        if place == len(expected):
            break
        states = [as_json(loader.state_dict()) for loader in loaders]
        assert all(state == states[0] for state in states)
        loaders = rank_loaders(make, world_size, **options)
        for loader in loaders:
            loader.load_state_dict(states[0])
    assert place > len(unbroken[0])


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("uneven", ["pad", "drop"])
@pytest.mark.parametrize(
    ("world_size", "batch_size", "buffer"), [(1, 1, 4), (1, 2, 16), (2, 1, 3), (3, 2, 5)]
)
def test_random_stops_leave_the_stream_as_it_is(
    tiny, world_size, batch_size, buffer, uneven, shuffle
) -> None:
    draw = random.Random(f"{world_size} {batch_size} {buffer} {uneven} {shuffle}")
    fuzz(
        lambda: PackStream(tiny, shuffle_buffer=buffer),
        world_size=world_size,
        stops=25,
        epochs=6,
        draw=draw,
        batch_size=batch_size,
        uneven=uneven,
        shuffle=shuffle,
    )


@pytest.mark.parametrize(("world_size", "uneven"), [(1, "pad"), (2, "drop")])
def test_random_stops_of_two_workers_leave_the_stream_as_it_is(tiny, world_size, uneven) -> None:
    fuzz(
        lambda: PackStream(tiny, shuffle_buffer=3),
        world_size=world_size,
        stops=8,
        epochs=3,
        draw=random.Random("eleven"),
        num_workers=2,
        uneven=uneven,
    )


def test_several_widths_go_on_with_one_width_at_a_step(widths) -> None:
    width_of = widths_of(widths)

    def make() -> PackStream:
        return PackStream(widths, shuffle_buffer=3)

    loaders = rank_loaders(make, 3)
    steps = [[width_of[key] for key in step_keys(batches)] for batches in epoch_steps(loaders)]
    assert all(len(set(step)) == 1 for step in steps)
    assert {step[0] for step in steps} == {48, 192}
    for world_size in (1, 2):
        draw = random.Random("widths")
        fuzz(make, world_size=world_size, stops=25, epochs=6, draw=draw)


def test_tensors_are_the_same_after_a_stop_in_the_middle_of_a_buffer(tiny) -> None:
    def make() -> PackLoader:
        packs = PackStream(tiny, shuffle_buffer=6, mask="tube:0.5", drop="random:0.5")
        return PackLoader(packs)

    whole = list(make())
    for stop in (1, 4, 6, 8, len(whole) - 1):
        first, second = make(), make()
        list(islice(first, stop))
        second.load_state_dict(as_json(first.state_dict()))
        for one, other in zip(second, whole[stop:], strict=True):
            assert_same(*({k: v[0] for k, v in batch.items()} for batch in (one, other)))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_loop_that_is_left_early_goes_on_where_it_was_left(tiny, num_workers) -> None:
    def make() -> PackLoader:
        return PackLoader(PackStream(tiny, shuffle_buffer=3), num_workers=num_workers)

    unbroken = make()
    whole = [one_epoch(unbroken), one_epoch(unbroken)]
    loader = make()
    given = [
        key for stop in (1, 2, 3, 1) for batch in islice(loader, stop) for key in batch_keys(batch)
    ]
    assert loader.num_steps_left == len(whole[0]) - 7
    assert given + one_epoch(loader) == whole[0]
    assert (loader.epoch, one_epoch(loader)) == (1, whole[1])


@pytest.mark.parametrize(
    ("stream", "options", "message"),
    [
        ({}, {"batch_size": 2}, "batch_size 1, here 2"),
        ({}, {"num_workers": 2}, "num_workers 0, here 2"),
        ({}, {"rank": 0, "world_size": 2}, "world_size 1, here 2"),
        ({}, {"uneven": "drop"}, "uneven 'pad', here 'drop'"),
        ({}, {"shuffle": False}, "shuffle True, here False"),
        ({"shuffle_buffer": 8}, {}, "shuffle_buffer 16, here 8"),
        ({"seed": 1}, {}, "seed 0, here 1"),
        ({"mask": "random:0.5"}, {}, "mask None, here 'random:0.5'"),
    ],
)
def test_other_numbers_are_refused_and_both_are_named(tiny, stream, options, message) -> None:
    state = PackLoader(PackStream(tiny)).state_dict()
    with pytest.raises(ValueError, match=message):
        PackLoader(PackStream(tiny, **stream), **options).load_state_dict(as_json(state))


@pytest.mark.parametrize(
    "progress", [{"steps": -1}, {"steps": 9999}, {"steps": 1.5}, {"48": 1}, None]
)
def test_garbage_is_refused(tiny, progress) -> None:
    loader = PackLoader(PackStream(tiny))
    with pytest.raises(ValueError, match="state"):
        loader.load_state_dict(loader.state_dict() | {"progress": progress})


def test_what_was_given_is_counted_on_all_ranks(tiny) -> None:
    loader = PackLoader(PackStream(tiny), batch_size=2, rank=1, world_size=3)
    list(islice(loader, 2))
    assert loader.packs_given == {str(tiny): 12}
    assert loader.num_steps_left == len(loader) - 2


def test_a_worker_that_is_spawned_has_the_share_of_its_rank(tiny, monkeypatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    stream = PackStream(tiny)
    own, sent = [key_of(pack["segments"]) for pack in stream], pickle.dumps(stream)
    monkeypatch.delenv("RANK")
    monkeypatch.delenv("WORLD_SIZE")
    assert [key_of(pack["segments"]) for pack in pickle.loads(sent)] == own
    assert 0 < len(own) < len(PackDataset(tiny))
