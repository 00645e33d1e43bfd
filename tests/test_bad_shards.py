"""Shards that are missing or damaged: named, or counted and replaced."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from loaded_packs import assert_same
from spoiled_shards import edit_json
from tiny_packs import (
    KINDS_OF_PACKS,
    Key,
    as_json,
    batch_keys,
    epoch_steps,
    flip_pack,
    key_of,
    keys_of,
    one_epoch,
    rank_loaders,
    step_keys,
    widths_of,
)

from spacepatch.errors import ShardError
from spacepatch.loader import PackDataset, PackLoader, PackStream


@pytest.fixture
def copy(tiny, tmp_path) -> Path:
    return shutil.copytree(tiny, tmp_path / "copy")


@pytest.fixture(params=KINDS_OF_PACKS)
def kind(request) -> type:
    return KINDS_OF_PACKS[request.param]


def shards_of(folder: Path) -> list[dict]:
    return json.loads((folder / "dataset.json").read_text())["shards"]


def packs_of(folder: Path, shard: int) -> range:
    """The numbers of the packs of a shard."""
    sizes = [entry["packs"] for entry in shards_of(folder)]
    return range(sum(sizes[:shard]), sum(sizes[: shard + 1]))


# --- whole shards -----------------------------------------------------------------------------


def remove(path: Path) -> None:
    path.unlink()


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def garble(path: Path) -> None:
    path.write_bytes(b"\x93NUMPY garbage" if path.name.endswith(".npy") else b"{garbage")


def empty(path: Path) -> None:
    path.write_bytes(b"")


def foreign_index(path: Path) -> None:
    np.save(path, np.load(path)[:-1])


WHOLE: dict[str, tuple[str, Callable[[Path], None]]] = {
    "no tar": (".tar", remove),
    "tar cut off": (".tar", cut_off),
    "empty tar": (".tar", empty),
    "no index": (".index.npy", remove),
    "index cut off": (".index.npy", cut_off),
    "garbled index": (".index.npy", garble),
    "index of fewer packs": (".index.npy", foreign_index),
    "no receipt": (".json", remove),
    "garbled receipt": (".json", garble),
}


@pytest.mark.parametrize("defect", WHOLE)
def test_a_shard_that_cannot_be_opened_is_named_or_left_out(copy, keys, kind, defect) -> None:
    suffix, spoil = WHOLE[defect]
    name = shards_of(copy)[1]["name"]
    spoil(copy / f"{name}{suffix}")
    with pytest.raises(ShardError, match=name):
        one_epoch(PackLoader(kind(copy)))
    packs = kind(copy, on_bad_shard="skip")
    bad = packs_of(copy, 1)
    assert list(packs.bad_shards) == [name]
    assert name in packs.bad_shards[name]
    assert packs.num_bad_packs == len(bad)
    good = [key for number, key in enumerate(keys) if number not in bad]
    assert sorted(one_epoch(PackLoader(packs))) == sorted(good)
    assert PackLoader(packs).counts.packs == len(good)


def test_an_index_that_points_elsewhere_is_found_by_the_checksum(copy, kind) -> None:
    name = shards_of(copy)[0]["name"]
    index = np.load(copy / f"{name}.index.npy")
    for change in (512, 2**40, 2**63):
        wrong = index.copy()
        wrong[0, 0, 0] += np.uint64(change)
        np.save(copy / f"{name}.index.npy", wrong)
        with pytest.raises(ShardError, match=name):
            one_epoch(PackLoader(kind(copy)))
        packs = kind(copy, on_bad_shard="skip")
        assert len(one_epoch(PackLoader(packs))) == packs.document["totals"]["packs"]
        assert packs.num_bad_packs == 1


def test_no_shard_that_can_be_read_is_an_error(copy, kind) -> None:
    for shard in shards_of(copy):
        (copy / f"{shard['name']}.tar").unlink()
    with pytest.raises(ShardError, match="no shard can be read"):
        kind(copy, on_bad_shard="skip")


def test_ranks_keep_equal_steps_where_a_shard_is_left_out(copy, keys, kind) -> None:
    cut_off(copy / f"{shards_of(copy)[0]['name']}.tar")
    good = set(keys) - {keys[number] for number in packs_of(copy, 0)}
    loaders = rank_loaders(lambda: kind(copy, on_bad_shard="skip"), 3, batch_size=2)
    steps = [step_keys(batches) for batches in epoch_steps(loaders)]
    assert {key for step in steps for key in step} == good
    assert len(steps) == loaders[0].counts.steps == -(-len(good) // 6)


def test_a_state_is_refused_where_another_shard_is_left_out(tiny, tmp_path) -> None:
    shards = shards_of(tiny)
    same = [place for place, shard in enumerate(shards) if shard["packs"] == shards[0]["packs"]]
    loaders = []
    for place in same[:2]:
        folder = shutil.copytree(tiny, tmp_path / str(place))
        (folder / f"{shards[place]['name']}.tar").unlink()
        loaders.append(PackLoader(PackDataset(folder, on_bad_shard="skip")))
    first, second = loaders
    with pytest.raises(ValueError, match="another stream"):
        second.load_state_dict(as_json(first.state_dict()))


# --- single packs -----------------------------------------------------------------------------


def expected_replacement(keys: list[Key], bad: set[int], number: int) -> Key:
    while number in bad:
        number = (number + 1) % len(keys)
    return keys[number]


@pytest.mark.parametrize("bad", [{3}, {3, 4}, {0, 14}, set(range(1, 15))])
def test_a_pack_of_a_wrong_checksum_is_replaced_by_the_next_good_one(copy, keys, kind, bad) -> None:
    bad = {number for number in bad if number < len(keys)}
    names = [flip_pack(copy, number) for number in sorted(bad)]
    with pytest.raises(ShardError, match=rf"({'|'.join(names)})\.tar: pack \d+ is damaged"):
        one_epoch(PackLoader(kind(copy)))
    packs = kind(copy, on_bad_shard="skip")
    assert packs.num_bad_packs == 0  # found when they are read
    loader = PackLoader(packs, shuffle=False)
    for _ in range(2):
        assert [key for batch in loader for key in batch_keys(batch)] == [
            expected_replacement(keys, bad, number) for number in range(len(keys))
        ]
        assert packs.num_bad_packs == len(bad)


def test_a_replacement_has_the_width_of_the_pack(widths, tmp_path) -> None:
    folder = shutil.copytree(widths, tmp_path / "copy")
    width_of = widths_of(widths)
    keys = keys_of(widths)
    last = max(number for number, key in enumerate(keys) if width_of[key] == 192)
    for number in (0, last):
        flip_pack(folder, number)
    for kind in KINDS_OF_PACKS.values():
        packs = kind(folder, on_bad_shard="skip")
        counts = PackLoader(packs, batch_size=2).counts
        batches = list(PackLoader(packs, batch_size=2))
        assert len(batches) == counts.steps
        assert {len({width_of[key] for key in batch_keys(batch)}) for batch in batches} == {1}
        assert packs.num_bad_packs == 2


@pytest.mark.parametrize("num_workers", [1, 2])
def test_bad_packs_are_replaced_and_counted_in_workers_too(copy, keys, kind, num_workers) -> None:
    for number in (2, 3, 9):
        flip_pack(copy, number)
    packs = kind(copy, on_bad_shard="skip")
    loader = PackLoader(packs, num_workers=num_workers)
    for _ in range(2):
        batches = list(loader)
        assert len(batches) == loader.counts.steps
        assert {key for batch in batches for key in batch_keys(batch)} == {
            key for number, key in enumerate(keys) if number not in (2, 3, 9)
        }
        assert packs.num_bad_packs == 3


def test_an_error_in_a_worker_names_the_shard(copy, kind) -> None:
    name = flip_pack(copy, 5)
    with pytest.raises(ShardError, match=rf"{name}\.tar: pack \d+ is damaged"):
        list(PackLoader(kind(copy), num_workers=1))


@pytest.mark.parametrize(
    ("kind", "options"),
    [(PackDataset, {}), *((PackStream, {"shuffle_buffer": buffer}) for buffer in (1, 4, 16))],
)
def test_a_stop_leaves_the_stream_with_bad_packs_as_it_is(copy, keys, kind, options) -> None:
    for number in (2, 3, 9):
        flip_pack(copy, number)

    def make() -> PackLoader:
        return PackLoader(kind(copy, on_bad_shard="skip", **options))

    whole = [batch_keys(batch) for batch in make()]
    assert len(whole) == len(keys)
    for stop in (*range(1, len(whole), 3), len(whole) - 1):
        first, second = make(), make()
        for place, _ in enumerate(first, 1):
            if place == stop:
                break
        second.load_state_dict(as_json(first.state_dict()))
        assert [batch_keys(batch) for batch in second] == whole[stop:]


def test_more_than_the_greatest_share_of_bad_packs_is_an_error(copy, keys, kind) -> None:
    bad = packs_of(copy, 0)
    (copy / f"{shards_of(copy)[0]['name']}.tar").unlink()
    share = len(bad) / len(keys)
    with pytest.raises(ShardError, match=f"{len(bad)} of {len(keys)} packs are bad"):
        kind(copy, on_bad_shard="skip", max_bad_fraction=share - 0.01)
    packs = kind(copy, on_bad_shard="skip", max_bad_fraction=share + 0.01)
    assert one_epoch(PackLoader(packs))
    flip_pack(copy, len(keys) - 1)
    with pytest.raises(ShardError, match=f"{len(bad) + 1} of {len(keys)} packs are bad"):
        one_epoch(PackLoader(kind(copy, on_bad_shard="skip", max_bad_fraction=share + 0.01)))


def test_words_that_say_nothing_of_bad_shards_are_refused(tiny, kind) -> None:
    with pytest.raises(ValueError, match="on_bad_shard is 'ignore', must be one of error, skip"):
        kind(tiny, on_bad_shard="ignore")


def test_what_is_not_damaged_is_read_as_before(copy, tiny, keys) -> None:
    flip_pack(copy, 6)
    damaged, good = PackDataset(copy), PackDataset(tiny)
    for number in range(len(keys)):
        if number != 6:
            assert_same(damaged[number], good[number])
            assert key_of(damaged[number]["segments"]) == keys[number]


def test_a_number_of_packs_that_dataset_json_does_not_say_is_named(copy, kind) -> None:
    name = shards_of(copy)[0]["name"]
    edit_json(
        copy / "dataset.json",
        lambda document: document["shards"][0].update(
            packs=document["shards"][0]["packs"] + 1,
            token_widths=[[48, document["shards"][0]["packs"] + 1]],
        ),
    )
    with pytest.raises(ShardError, match=rf"{name}\.tar.*dataset\.json says"):
        one_epoch(PackLoader(kind(copy)))
