"""Tokens dropped at load, held against plain numpy on what tarfile reads."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from loaded_packs import assert_same, drawn_order, segments_of
from small_runs import make_dataset

from spacepatch.drop import drop_rate_at
from spacepatch.loader import STACKED, PackDataset
from spacepatch.masks import cu_seqlens


@pytest.fixture(scope="session")
def static(part_damaged, tmp_path_factory) -> Path:
    """Static tubelets are dropped, and a mask is stored."""
    out = tmp_path_factory.mktemp("static") / "out"
    settings = {"fps": "4", "drop": "static", "mask": "tube:0.5", "store_mask": True}
    return make_dataset(part_damaged, out, **settings)


def chosen(pack: dict, num_kept, *key: object) -> list[list[int]]:
    """Of each segment, the places in the pack of the first tokens of a random order."""
    return [
        [
            tokens.start + place
            for place in sorted(
                drawn_order(segment["num_kept"], *key, segment["segment_id"], "keep")[
                    : num_kept(segment["num_kept"])
                ].tolist()
            )
        ]
        for segment, tokens in segments_of(pack)
    ]


def assert_dropped(pack: dict, whole: dict, places: list[list[int]]) -> None:
    """Only these tokens of `whole`, which has no padding, are left."""
    index = [place for segment in places for place in segment]
    lengths = [len(segment) for segment in places]
    borders = [sum(lengths[:place]) for place in range(len(lengths) + 1)]
    expected = {name: value[index] if name in STACKED else value for name, value in whole.items()}
    expected |= {
        "cu_seqlens": torch.tensor(borders, dtype=torch.int32),
        "max_seqlen": max(lengths),
        "num_tokens": len(index),
        "segments": [
            segment | {"offset": offset, "num_kept": length}
            for segment, offset, length in zip(whole["segments"], borders, lengths, strict=False)
        ],
    }
    starts = whole["cu_seqlens"].tolist()
    visible = whole.get("visible", torch.ones(whole["num_tokens"], dtype=torch.bool))
    taken = [
        [place - start for place in segment if visible[place]]
        for segment, start in zip(places, starts, strict=False)
    ]
    expected["keep"] = [torch.tensor(keep, dtype=torch.int64) for keep in taken]
    expected["restore"] = [
        torch.tensor(restored(keep, stop - start))
        for keep, start, stop in zip(taken, starts, starts[1:], strict=False)
    ]
    assert_same(pack, expected)
    assert torch.equal(cu_seqlens(pack["segment_ids"]), pack["cu_seqlens"])


def restored(keep: list[int], num_tokens: int) -> list[int]:
    """Where each token is among those that are kept, and then those that are not."""
    kept = set(keep)
    order = keep + [place for place in range(num_tokens) if place not in kept]
    return sorted(range(num_tokens), key=order.__getitem__)


def num_kept(dataset: PackDataset) -> dict[str, int]:
    return {s["segment_id"]: s["num_kept"] for pack in dataset for s in pack["segments"]}


@pytest.mark.parametrize("folder", ["packed_folder", "static"])
def test_what_is_left_of_a_pack_is_its_own_in_all_tensors(folder, request) -> None:
    folder = request.getfixturevalue(folder)
    dataset = PackDataset(folder, padded=False, drop="random:0.5", seed=3)
    dataset.set_epoch(2)
    for pack, whole in zip(dataset, PackDataset(folder, padded=False), strict=True):
        places = chosen(whole, lambda num: int(num * 0.5), 3, 2)
        assert_dropped(pack, whole, places)


def test_the_dataset_of_static_tubelets_has_run_lengths_and_a_mask(static) -> None:
    pack = PackDataset(static, drop="random:0.5")[0]
    kept = pack["num_tokens"]
    assert pack["run_lengths"].dtype == torch.int32
    assert pack["run_lengths"][:kept].min() == 1
    assert pack["run_lengths"].max() > 1
    assert not pack["run_lengths"][kept:].any()
    assert 0 < pack["visible"].sum() < kept


def test_a_mask_at_load_lies_where_it_lay_before_the_drop(packed_folder) -> None:
    whole = PackDataset(packed_folder, padded=False, mask="random:0.5")
    dataset = PackDataset(packed_folder, padded=False, mask="random:0.5", drop="random:0.5")
    for pack, before in zip(dataset, whole, strict=True):
        assert_dropped(pack, before, chosen(before, lambda num: int(num * 0.5), 0, 0))


def test_padding_fills_up_what_was_dropped(packed_folder) -> None:
    padded = PackDataset(packed_folder, drop="random:0.5")
    for pack, left in zip(
        padded, PackDataset(packed_folder, padded=False, drop="random:0.5"), strict=True
    ):
        kept = pack["num_tokens"]
        assert len(pack["tokens"]) == padded.pack_length
        for name in ("tokens", "segment_ids", "positions", "seconds"):
            assert torch.equal(pack[name][:kept], left[name])
            assert not pack[name][kept:].any()


def test_a_number_of_tokens_is_at_most_that_number(packed_folder) -> None:
    dataset = PackDataset(packed_folder, padded=False, drop="tokens:300")
    for pack, whole in zip(dataset, PackDataset(packed_folder, padded=False), strict=True):
        assert_dropped(pack, whole, chosen(whole, lambda num: min(num, 300), 0, 0))


def test_one_token_of_each_segment_stays_at_any_rate(packed_folder) -> None:
    for pack in PackDataset(packed_folder, drop="random:0.999999"):
        assert pack["cu_seqlens"].tolist() == list(range(len(pack["segments"]) + 1))


def test_a_rate_that_is_drawn_differs_by_segment_and_by_epoch(packed_folder) -> None:
    dataset = PackDataset(packed_folder, drop="random:uniform:0.2..0.8")
    whole = num_kept(PackDataset(packed_folder))
    rates = []
    for epoch in (0, 1):
        dataset.set_epoch(epoch)
        left = num_kept(dataset)
        rates.append({name: 1 - left[name] / whole[name] for name in left})
    values = [rate for drawn in rates for rate in drawn.values()]
    assert len(values) == 2 * len(whole) > 20
    # Rounding down can add the share of one token.
    assert 0.2 <= min(values) < 0.35
    assert 0.65 < max(values) < 0.8 + 1 / min(whole.values())
    assert rates[0].keys() == rates[1].keys()
    assert all(rates[0][name] != rates[1][name] for name in whole)


def test_other_tokens_are_dropped_in_another_epoch_and_the_same_ones_again(packed_folder) -> None:
    dataset = PackDataset(packed_folder, drop="random:0.5")

    def positions(epoch: int) -> torch.Tensor:
        dataset.set_epoch(epoch)
        return dataset[0]["positions"]

    first = positions(0)
    assert not torch.equal(positions(1), first)
    assert torch.equal(positions(0), first)


@pytest.mark.parametrize("rate", [0.8, 0.43, drop_rate_at(150, 1000)])
def test_a_rate_that_is_set_goes_over_the_drop_that_was_given(packed_folder, rate) -> None:
    dataset = PackDataset(packed_folder, padded=False, drop="tokens:3")
    dataset.set_drop_rate(rate)
    for pack, whole in zip(dataset, PackDataset(packed_folder, padded=False), strict=True):
        assert_dropped(pack, whole, chosen(whole, lambda num: max(1, int(num * (1 - rate))), 0, 0))


def test_a_rate_of_zero_drops_nothing(packed_folder, pack_dataset) -> None:
    dataset = PackDataset(packed_folder, drop="random:0.5")
    dataset.set_drop_rate(0)
    for pack, whole in zip(dataset, pack_dataset, strict=True):
        everything = [torch.arange(segment["num_kept"]) for segment in whole["segments"]]
        assert_same(pack, whole | {"keep": everything, "restore": everything})


def test_a_lower_rate_keeps_what_a_higher_one_keeps(packed_folder) -> None:
    dataset = PackDataset(packed_folder, padded=False)
    kept = []
    for rate in (0.8, 0.2):
        dataset.set_drop_rate(rate)
        pack = dataset[0]
        places = zip(pack["segment_ids"].tolist(), pack["positions"].tolist(), strict=True)
        kept.append({(segment, *position) for segment, position in places})
    assert kept[0] < kept[1]


@pytest.mark.parametrize("rate", [-0.1, 1, 1.5, float("nan"), Fraction(1)])
def test_a_rate_that_leaves_nothing_is_refused(packed_folder, rate) -> None:
    with pytest.raises(ValueError, match="must be in"):
        PackDataset(packed_folder).set_drop_rate(rate)


@pytest.mark.parametrize(
    ("drop", "message"),
    [
        ("static", r"spacepatch tokenize --drop static:0\.1"),
        ("static:0.2", r"spacepatch tokenize --drop static:0\.2"),
        ("random:1", "rates are below 1"),
        ("half", "none of random:RATE"),
    ],
)
def test_what_cannot_be_dropped_at_load_is_refused(packed_folder, drop, message) -> None:
    with pytest.raises(ValueError, match=message):
        PackDataset(packed_folder, drop=drop)


def test_seconds_stay_true_when_tokens_are_dropped(packed_folder, pack_dataset) -> None:
    dropped = PackDataset(packed_folder, drop="random:0.7")
    for pack, whole in zip(dropped, pack_dataset, strict=True):
        for (segment, tokens), (_, before) in zip(
            segments_of(pack), segments_of(whole), strict=True
        ):
            times = dict(
                zip(
                    whole["positions"][before][:, 0].tolist(),
                    whole["seconds"][before].tolist(),
                    strict=True,
                )
            )
            rows = pack["positions"][tokens][:, 0].tolist()
            assert pack["seconds"][tokens].tolist() == [times[row] for row in rows]
            assert np.isin(rows, range(segment["grid_thw"][0])).all()
