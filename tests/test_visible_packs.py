"""visible_packs: several stored packs a step, of which the encoder gets what is visible."""

from __future__ import annotations

import shutil
from itertools import islice
from pathlib import Path

import pytest
import torch
from small_runs import make_dataset
from tiny_packs import WIDTH, as_json, batch_keys, flip_pack, keys_of

from spacepatch.loader import PackDataset, visible_packs

ROWS = 196
"""Tokens of a grid row of 14 x 14, as of 224 x 224 pixels in patches of 16."""


@pytest.fixture(scope="session")
def squares(sample_clips, tmp_path_factory) -> Path:
    """Packs of two grids of 4 x 14 x 14 each."""
    return make_dataset(
        [sample_clips / "square_320x320.mp4"],
        tmp_path_factory.mktemp("squares") / "out",
        patch="1x4x4",
        fps="8",
        max_tokens_per_frame=ROWS,
        clip_seconds=0.5,
        min_seconds=0.4,
        pack_length=8 * ROWS,
        workers=1,
    )


def assert_gathered(batch: dict) -> None:
    """By plain loops: the encoder's rows are the visible ones of the stored packs, in order."""
    decoder = batch["packs"]
    rows, ids, positions, seconds, grids, places = [], [], [], [], [], []
    restore = torch.full(decoder["visible"].shape, len(batch["tokens"]))
    for pack in range(len(decoder["tokens"])):
        for segment in range(1, len(decoder["segments"][pack]) + 1):
            own = (decoder["segment_ids"][pack] == segment) & decoder["visible"][pack]
            if not own.any():
                continue
            places.append([pack, segment])
            grids.append(decoder["segments"][pack][segment - 1]["grid_thw"])
            for token in torch.nonzero(own).ravel().tolist():
                restore[pack, token] = len(rows)
                rows.append(decoder["tokens"][pack, token])
                positions.append(decoder["positions"][pack, token])
                seconds.append(decoder["seconds"][pack, token])
                ids.append(len(places))
    num = len(rows)
    assert batch["num_tokens"] == num == int(decoder["visible"].sum())
    assert torch.equal(batch["tokens"][:num], torch.stack(rows))
    assert torch.equal(batch["positions"][:num], torch.stack(positions))
    assert torch.equal(batch["seconds"][:num], torch.stack(seconds))
    assert batch["segment_ids"][:num].tolist() == ids
    for name in ("tokens", "positions", "seconds", "segment_ids"):
        assert not batch[name][num:].any()
        assert batch[name].dtype == decoder[name].dtype
    lengths = [ids.count(segment) for segment in range(1, len(places) + 1)]
    assert batch["cu_seqlens"].dtype == torch.int32
    assert batch["cu_seqlens"].diff().tolist() == lengths
    assert batch["cu_seqlens"][0] == 0
    assert batch["max_seqlen"] == max(lengths)
    assert batch["places"].tolist() == places
    assert batch["grid_thw"].tolist() == grids
    assert torch.equal(batch["restore"], restore)


@pytest.mark.parametrize("rate", [0, 0.3, 0.75, 0.95])
@pytest.mark.parametrize("kind", ["random", "tube"])
def test_the_encoder_gets_what_is_visible_and_nothing_else(tiny, kind, rate) -> None:
    loader = visible_packs(PackDataset(tiny), rate, kind=kind)
    batches = list(loader)
    assert len(batches) == len(loader)
    assert len({batch["tokens"].shape for batch in batches}) == 1
    assert batches[0]["tokens"].shape[1] == WIDTH
    for batch in batches:
        assert_gathered(batch)


@pytest.mark.parametrize(
    "options",
    [
        {"drop": "random:0.5"},
        {"token_order": "random"},
        {"pad_multiple": 16, "fixed_shapes": True, "normalized": True},
        {"drop": "tokens:9", "token_order": "random", "pad_multiple": 8},
    ],
)
def test_it_does_so_whatever_the_packs_are(tiny, options) -> None:
    for batch in islice(visible_packs(PackDataset(tiny, **options), 0.6), 3):
        assert_gathered(batch)


def test_restore_brings_what_is_encoded_to_its_places_among_fill(tiny) -> None:
    batch = next(iter(visible_packs(PackDataset(tiny), 0.75)))
    decoder = batch["packs"]
    encoded = batch["tokens"].float() + 1  # so that fill differs from black
    fill = torch.full((1, WIDTH), -7.0)
    whole = torch.cat([encoded, fill])[batch["restore"]]
    visible = decoder["visible"]
    assert whole.shape == decoder["tokens"].shape
    assert torch.equal(whole[visible], decoder["tokens"][visible].float() + 1)
    assert (whole[~visible] == -7).all()


@pytest.mark.parametrize(
    ("kind", "rate", "visible", "ratio"), [("random", 0.75, 196, 4), ("tube", 0.9, 4 * 20, 9.8)]
)
def test_the_encoder_has_as_many_fewer_tokens_as_are_hidden(
    squares, kind, rate, visible, ratio
) -> None:
    packs = PackDataset(squares)
    assert {tuple(grid) for pack in packs for grid in pack["grid_thw"].tolist()} == {(4, 14, 14)}
    assert {pack["num_tokens"] for pack in packs} == {8 * ROWS}
    for batch in visible_packs(packs, rate, kind=kind):
        decoder = batch["packs"]["tokens"].shape[:2].numel()
        assert decoder == round(ratio) * 8 * ROWS
        assert batch["num_tokens"] == round(ratio) * 2 * visible
        assert decoder / batch["num_tokens"] == pytest.approx(ratio)
        # All but full: what is left over makes it a multiple of 64.
        assert 0 <= len(batch["tokens"]) - batch["num_tokens"] < 64


def test_masks_are_those_of_the_packs_and_other_ones_each_epoch(tiny) -> None:
    loader = visible_packs(PackDataset(tiny, seed=6), 0.75, packs_per_step=1)
    packs = PackDataset(tiny, seed=6, mask="random:0.75")
    keys = keys_of(tiny)
    seen = []
    for epoch in range(2):
        packs.set_epoch(epoch)
        drawn = {}
        for batch in loader:
            [key] = batch_keys(batch["packs"])
            drawn[key] = batch["packs"]["visible"][0]
            assert torch.equal(drawn[key], packs[keys.index(key)]["visible"])
        seen.append(drawn[keys[0]])
    assert not torch.equal(*seen)


def test_the_packs_that_were_given_keep_their_own_mask(tiny) -> None:
    packs = PackDataset(tiny, mask="random:0.2")
    before = packs[0]["visible"]
    next(iter(visible_packs(packs, 0.9)))
    assert torch.equal(packs[0]["visible"], before)


def test_a_stop_leaves_the_stream_as_it_is(tiny) -> None:
    def make():
        return visible_packs(PackDataset(tiny), 0.75, packs_per_step=2)

    whole = list(make())
    for stop in range(1, len(whole)):
        first, second = make(), make()
        list(islice(first, stop))
        second.load_state_dict(as_json(first.state_dict()))
        for one, other in zip(second, whole[stop:], strict=True):
            assert torch.equal(one["tokens"], other["tokens"])
            assert torch.equal(one["restore"], other["restore"])
            assert batch_keys(one["packs"]) == batch_keys(other["packs"])


def test_ranks_and_workers_give_the_same_as_one(tiny) -> None:
    alone = visible_packs(PackDataset(tiny), 0.75, packs_per_step=4)
    ranks = [
        visible_packs(
            PackDataset(tiny), 0.75, packs_per_step=2, rank=rank, world_size=2, num_workers=rank
        )
        for rank in range(2)
    ]
    for one, *shared in zip(alone, *ranks, strict=True):
        given = [key for batch in shared for key in batch_keys(batch["packs"])]
        assert given == batch_keys(one["packs"])
        num = [batch["num_tokens"] for batch in shared]
        parts = [batch["tokens"][:n] for batch, n in zip(shared, num, strict=True)]
        assert torch.equal(torch.cat(parts), one["tokens"][: sum(num)])


def test_a_state_of_another_rate_is_refused(tiny) -> None:
    state = visible_packs(PackDataset(tiny), 0.75).state_dict()
    with pytest.raises(ValueError, match=r"random:0\.75.*random:0\.5"):
        visible_packs(PackDataset(tiny), 0.5).load_state_dict(state)


def test_batches_of_several_widths_are_of_one_each(widths) -> None:
    loader = visible_packs(PackDataset(widths), 0.75)
    shapes = set()
    for batch in loader:
        assert_gathered(batch)
        shapes.add(tuple(batch["tokens"].shape))
    assert {shape[1] for shape in shapes} == {48, 192}
    assert len({shape[0] for shape in shapes}) == 1


@pytest.mark.parametrize("replaced", ["least", "first"])
def test_bad_packs_that_are_replaced_by_fuller_ones_have_room(tiny, tmp_path, replaced) -> None:
    folder = shutil.copytree(tiny, tmp_path / "copy")
    lengths = [pack["num_tokens"] for pack in PackDataset(folder)]
    assert min(lengths) + 30 < max(lengths)
    light = sorted(range(len(lengths)), key=lengths.__getitem__)
    for number in light[:3] if replaced == "least" else (0, 1):
        flip_pack(folder, number)
    packs = PackDataset(folder, on_bad_shard="skip")
    [batch] = visible_packs(packs, 0, packs_per_step=len(lengths))
    assert_gathered(batch)
    assert packs.num_bad_packs > 1


@pytest.mark.parametrize("rate", [1e-5, 0.1 + 0.2, 0.9999])
def test_any_rate_below_one_is_taken(tiny, rate) -> None:
    for batch in islice(visible_packs(PackDataset(tiny), rate), 2):
        assert_gathered(batch)


@pytest.mark.parametrize(
    ("packs", "mask", "message"),
    [
        ({"padded": False}, {}, "padded"),
        ({}, {"kind": "blocks"}, "blocks"),
        ({}, {"kind": "multi-block"}, "multi-block"),
        ({}, {"mask_rate": 1}, "1"),
        ({}, {"mask_rate": -0.5}, "-0.5"),
    ],
)
def test_what_is_no_mask_is_refused(tiny, packs, mask, message) -> None:
    with pytest.raises(ValueError, match=message):
        visible_packs(PackDataset(tiny, **packs), **{"mask_rate": 0.5} | mask)
