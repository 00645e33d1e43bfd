"""PackLoader over PackDataset goes on exactly where it was left, with other ranks and workers."""

from __future__ import annotations

import random
from collections import Counter
from itertools import islice

import pytest
from loaded_packs import assert_same
from tiny_packs import (
    WIDTH,
    Key,
    as_json,
    batch_keys,
    drawn_epoch,
    keys_of,
    one_epoch,
    rank_loaders,
    step_keys,
    widths_of,
)

from spacepatch.loader import PackDataset, PackLoader, PackStream


class Ranks:
    """All ranks of a run in lockstep, that can be stopped and begun again with other numbers."""

    def __init__(self, make) -> None:
        self._make = make
        self.state = None

    def begin(self, world_size: int, **options) -> None:
        self.loaders = rank_loaders(self._make, world_size, **options)
        if self.state is not None:
            for loader in self.loaders:
                loader.load_state_dict(self.state)
        self._loops = [iter(loader) for loader in self.loaders]

    def step(self) -> list[dict]:
        """The batches of all ranks; the next epoch begins where one ends."""
        batches = [next(loop, None) for loop in self._loops]
        if all(batch is None for batch in batches):
            self._loops = [iter(loader) for loader in self.loaders]
            batches = [next(loop) for loop in self._loops]
        return batches

    def stop(self) -> None:
        """Keep what any rank says of where it is; all must say the same."""
        states = [as_json(loader.state_dict()) for loader in self.loaders]
        assert all(state == states[0] for state in states)
        self.state = states[0]
        del self._loops, self.loaders


class Unbroken:
    """What the packs of one width must be, step by step, by plain counting."""

    def __init__(self, keys: list[Key], seed: int, uneven: str) -> None:
        self._keys, self._seed, self._uneven = keys, seed, uneven
        self.epoch = self._given = 0

    def step(self, size: int) -> list[Key]:
        left = len(self._keys) - self._given
        if left < (size if self._uneven == "drop" else 1):
            self.epoch, self._given = self.epoch + 1, 0
        order = drawn_epoch(self._keys, self._seed, self.epoch)
        step = [order[(self._given + place) % len(order)] for place in range(size)]
        self._given = min(self._given + size, len(order))
        return step


@pytest.mark.parametrize("uneven", ["pad", "drop"])
def test_a_hundred_random_stops_with_other_ranks_and_batches_leave_the_stream_as_it_is(
    tiny, keys, uneven
) -> None:
    draw = random.Random(f"stops {uneven}")
    ranks = Ranks(lambda: PackDataset(tiny, seed=5))
    unbroken = Unbroken(keys, 5, uneven)
    sizes = Counter()
    for stop in range(100):
        world_size, batch_size = draw.randint(1, 4), draw.randint(1, 3)
        sizes[world_size] += 1
        workers = 2 if stop % 25 == 7 else 0
        world_size = 1 if workers else world_size
        ranks.begin(world_size, batch_size=batch_size, num_workers=workers, uneven=uneven)
        # Some stop at once, some go through more than an epoch.
        for _ in range(draw.choice([0, 1, 1, 2, 3, 5, len(keys)])):
            assert step_keys(ranks.step()) == unbroken.step(world_size * batch_size)
        ranks.stop()
    assert unbroken.epoch > 20
    assert len(sizes) == 4


@pytest.mark.parametrize(
    "options",
    [
        {"mask": "random:0.75", "drop": "random:uniform:0.1..0.6", "token_order": "random"},
        {"mask": "tube:0.5", "fixed_shapes": True, "pad_multiple": 8},
    ],
    ids=["drawn", "fixed"],
)
def test_what_is_drawn_is_the_same_after_random_stops_bit_by_bit(tiny, keys, options) -> None:
    draw = random.Random("tensors")
    ranks = Ranks(lambda: PackDataset(tiny, seed=2, **options))
    unbroken = Unbroken(keys, 2, "pad")
    plain = PackDataset(tiny, seed=2, **options)
    for stop in range(20):
        world_size, batch_size = draw.randint(1, 3), draw.randint(1, 2)
        ranks.begin(world_size, batch_size=batch_size, num_workers=2 * (stop == 9))
        for _ in range(draw.randint(0, 4)):
            batches = ranks.step()
            expected = unbroken.step(world_size * batch_size)
            plain.set_epoch(unbroken.epoch)
            packs = [
                {name: value[place] for name, value in batch.items()}
                for batch in batches
                for place in range(batch_size)
            ]
            for key, pack in zip(expected, packs, strict=True):
                assert_same(pack, plain[keys.index(key)])
        ranks.stop()
    assert unbroken.epoch > 2


def test_a_state_loaded_twice_gives_the_same_stream_twice(tiny) -> None:
    loader = PackLoader(PackDataset(tiny), batch_size=2)
    list(islice(loader, 3))
    state = as_json(loader.state_dict())
    rest = one_epoch(loader)
    for _ in range(2):
        loader.load_state_dict(state)
        assert one_epoch(loader) == rest
    list(islice(loader, 2))
    assert state == as_json(state)  # no loop has changed what was taken before


def test_workers_that_read_ahead_do_not_count_as_given(tiny, keys) -> None:
    loader = PackLoader(PackDataset(tiny), num_workers=2, prefetch_factor=4)
    loop = iter(loader)
    next(loop)
    next(loop)
    state = loader.state_dict()
    other = PackLoader(PackDataset(tiny))
    other.load_state_dict(state)
    assert one_epoch(other) == drawn_epoch(keys, 0, 0)[2:]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "seed 0, here 1"),
        ({"mask": "random:0.5"}, "mask None, here 'random:0.5'"),
        ({"drop": "random:0.5"}, "drop None, here 'random:0.5'"),
        ({"token_order": "random"}, "token_order 'stored', here 'random'"),
    ],
)
def test_a_state_of_another_stream_is_refused_with_both_values(tiny, change, message) -> None:
    state = PackLoader(PackDataset(tiny)).state_dict()
    with pytest.raises(ValueError, match=message):
        PackLoader(PackDataset(tiny, **change)).load_state_dict(state)


def test_a_state_of_another_dataset_order_or_kind_of_stream_is_refused(tiny, alike) -> None:
    state = PackLoader(PackDataset(tiny)).state_dict()
    with pytest.raises(ValueError, match="plan_id"):
        PackLoader(PackDataset(alike)).load_state_dict(state)
    with pytest.raises(ValueError, match="shuffle True, here False"):
        PackLoader(PackDataset(tiny), shuffle=False).load_state_dict(state)
    with pytest.raises(ValueError, match="shuffle_buffer"):
        PackLoader(PackStream(tiny)).load_state_dict(state)


GARBAGE = {
    "nothing": lambda state: None,
    "a list": lambda state: [],
    "no keys": lambda state: {},
    "a later version": lambda state: state | {"version": 2},
    "only a version": lambda state: {"version": state["version"]},
    "no identity": lambda state: state | {"of": None},
    "no epoch": lambda state: {name: value for name, value in state.items() if name != "epoch"},
    "an epoch of words": lambda state: state | {"epoch": "two"},
    "half an epoch": lambda state: state | {"epoch": 0.5},
    "an epoch beyond all": lambda state: state | {"epoch": 2**70},
    "an epoch below 0": lambda state: state | {"epoch": -1},
    "no progress": lambda state: state | {"progress": None},
    "progress below 0": lambda state: state | {"progress": {str(WIDTH): -4}},
    "progress of no group": lambda state: state | {"progress": {"99": 3}},
    "more than there is": lambda state: state | {"progress": {str(WIDTH): 9999}},
    "half a pack": lambda state: state | {"progress": {str(WIDTH): 2.5}},
}


@pytest.mark.parametrize("name", GARBAGE)
def test_garbage_is_refused_and_the_loader_stays_where_it_is(tiny, keys, name) -> None:
    loader = PackLoader(PackDataset(tiny))
    list(islice(loader, 3))
    before = as_json(loader.state_dict())
    with pytest.raises(ValueError, match=r"state|epoch"):
        loader.load_state_dict(GARBAGE[name](as_json(before)))
    assert as_json(loader.state_dict()) == before
    assert one_epoch(loader) == drawn_epoch(keys, 0, 0)[3:]


def test_packs_of_several_widths_go_on_in_the_same_order_with_other_ranks(widths) -> None:
    draw = random.Random("widths")
    width_of = widths_of(widths)
    ranks = Ranks(lambda: PackDataset(widths))
    given: dict[tuple[int, int], list[Key]] = {}
    for _ in range(40):
        world_size = draw.randint(1, 3)
        ranks.begin(world_size)
        for _ in range(draw.randint(0, 4)):
            keys = step_keys(ranks.step())
            [width] = {width_of[key] for key in keys}
            [epoch] = {loader._epoch for loader in ranks.loaders}
            given.setdefault((epoch, width), []).extend(keys)
        ranks.stop()
    assert len(given) > 6
    epochs = max(epoch for epoch, _ in given)
    for (epoch, width), keys in given.items():
        own = [key for key in keys_of(widths) if width_of[key] == width]
        order = drawn_epoch(own, 0, epoch, width)
        assert keys[: len(order)] == order[: len(keys)]
        assert epoch == epochs or len(keys) >= len(order)


def test_with_the_same_numbers_the_turns_of_the_widths_are_the_same_too(widths) -> None:
    whole = one_epoch(PackLoader(PackDataset(widths), batch_size=2))
    for stop in range(1, len(whole) // 2):
        first = PackLoader(PackDataset(widths), batch_size=2)
        given = [key for batch in islice(first, stop) for key in batch_keys(batch)]
        second = PackLoader(PackDataset(widths), batch_size=2)
        second.load_state_dict(as_json(first.state_dict()))
        assert given + one_epoch(second) == whole
