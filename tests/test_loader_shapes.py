"""The shapes of packs: alignment, fixed shapes, normalized values, and orders and back again."""

from __future__ import annotations

from collections import Counter
from functools import partial
from itertools import islice, pairwise

import numpy as np
import pytest
import torch
from loaded_packs import assert_same, drawn_order
from tiny_packs import WIDTH, batch_keys, epoch_steps, keys_of, rank_loaders
from torch._dynamo.testing import CompileCounter

from spacepatch.loader import PackDataset, PackLoader, PackMix

BY_TOKEN = ("tokens", "segment_ids", "positions", "seconds", "visible")


def segment_parts(pack: dict, starts: list[int]) -> list[dict]:
    """Of each segment, what each tensor of one row a token has from its start on."""
    lengths = pack["cu_seqlens"].diff().tolist()
    return [
        {name: pack[name][start : start + length] for name in BY_TOKEN if name in pack}
        for start, length in zip(starts, lengths, strict=True)
    ]


# --- alignment --------------------------------------------------------------------------------


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("multiple", [1, 2, 3, 8, 16, 37, 64])
def test_segments_begin_at_multiples_and_hold_the_same_tokens(tiny, multiple, padded) -> None:
    options = {"mask": "random:0.5", "padded": padded}
    plain = PackDataset(tiny, **options)
    aligned = PackDataset(tiny, pad_multiple=multiple, **options)
    for one, other in zip(plain, aligned, strict=True):
        lengths = one["cu_seqlens"].diff().tolist()
        assert torch.equal(one["cu_seqlens"], other["cu_seqlens"])
        if multiple == 1:
            assert_same(one, other)
            continue
        starts = [0]
        for length in lengths:
            starts.append(starts[-1] + -(-length // multiple) * multiple)
        borders = other["cu_seqlens_padded"]
        assert borders.dtype == torch.int32
        assert borders.tolist() == starts
        assert [segment["offset"] for segment in other["segments"]] == starts[:-1]
        assert [segment["num_kept"] for segment in other["segments"]] == lengths
        for before, after in zip(
            segment_parts(one, one["cu_seqlens"][:-1].tolist()),
            segment_parts(other, starts[:-1]),
            strict=True,
        ):
            assert_same(before, after)
        size = aligned.padded_length if padded else starts[-1]
        ids = [0] * size
        for place, length in enumerate(lengths):
            ids[starts[place] : starts[place] + length] = [place + 1] * length
        assert other["segment_ids"].tolist() == ids
        padding = torch.tensor(ids) == 0
        for name in BY_TOKEN:
            assert len(other[name]) == size
            assert not other[name][padding].any(), name
        assert other["num_tokens"] == one["num_tokens"] == sum(lengths)
        assert other["max_seqlen"] == max(lengths)
        for name in ("keep", "restore"):
            assert all(map(torch.equal, one[name], other[name]))


@pytest.mark.parametrize("multiple", range(2, 65, 7))
def test_aligned_packs_have_one_length_that_is_a_multiple_and_no_longer_than_needed(
    tiny, multiple
) -> None:
    packs = PackDataset(tiny, pad_multiple=multiple)
    longest = max(
        sum(-(-length // multiple) * multiple for length in pack["cu_seqlens"].diff().tolist())
        for pack in PackDataset(tiny)
    )
    longest = max(longest, packs.pack_length)
    assert packs.padded_length == -(-longest // multiple) * multiple
    assert {len(pack["tokens"]) for pack in packs} == {packs.padded_length}
    dropped = PackDataset(tiny, pad_multiple=multiple, drop="random:uniform:0..0.5")
    assert {len(pack["tokens"]) for pack in dropped} == {packs.padded_length}


@pytest.mark.parametrize("multiple", [0, -8])
def test_a_multiple_is_one_or_more(tiny, multiple) -> None:
    with pytest.raises(ValueError, match=f"pad_multiple is {multiple}"):
        PackDataset(tiny, pad_multiple=multiple)


# --- fixed shapes -----------------------------------------------------------------------------


def shapes_of(batch: dict) -> dict[str, tuple]:
    return {
        name: (value.dtype, tuple(value.shape))
        for name, value in batch.items()
        if isinstance(value, torch.Tensor)
    }


@pytest.mark.parametrize("multiple", [1, 16])
def test_every_tensor_but_borders_is_of_one_shape_in_all_packs(tiny, multiple) -> None:
    options = {"mask": "random:0.5", "drop": "random:uniform:0..0.9"}
    packs = PackDataset(tiny, fixed_shapes=True, pad_multiple=multiple, **options)
    plain = PackDataset(tiny, pad_multiple=multiple, **options)
    most = max(len(pack["segments"]) for pack in plain)
    assert packs.max_segments == most > min(len(pack["segments"]) for pack in plain)
    shapes = [shapes_of(pack) for pack in packs]
    fixed = [{name: shape for name, shape in one.items() if name != "cu_seqlens"} for one in shapes]
    assert all(one == fixed[0] for one in fixed)
    for pack, one in zip(packs, plain, strict=True):
        num = len(one["segments"])
        for name in BY_TOKEN:
            assert torch.equal(pack[name], one[name])
        for name in ("grid_thw", "patch"):
            assert torch.equal(pack[name][:num], one[name])
            assert pack[name].shape == (most, 3)
            assert not pack[name][num:].any()
        borders = one.get("cu_seqlens_padded", one["cu_seqlens"]).tolist()
        rest = [packs.padded_length] * (most + 1 - num)
        assert pack["cu_seqlens_padded"].tolist() == borders + rest
        assert torch.equal(pack["cu_seqlens"], one["cu_seqlens"])


def test_batches_of_fixed_shapes_are_tensors_of_one_shape(tiny) -> None:
    loader = PackLoader(PackDataset(tiny, fixed_shapes=True), batch_size=3)
    [shapes] = {tuple(shapes_of(batch).items()) for batch in loader}
    names = dict(shapes)
    assert names["grid_thw"][1][0] == names["cu_seqlens_padded"][1][0] == 3
    assert names["tokens"] == (torch.uint8, (3, 128, WIDTH))


def test_batches_of_two_datasets_of_one_shape_are_of_one_shape_too(tiny, alike) -> None:
    mix = PackMix({"tiny": (PackDataset(tiny), 1), "alike": (PackDataset(alike), 1)})
    loader = PackLoader(mix, batch_size=4)
    own = set(keys_of(tiny))
    kinds = [{key in own for key in batch_keys(batch)} for batch in loader]
    assert {True, False} in kinds
    [_] = {tuple(shapes_of(batch).items()) for batch in loader}


def test_fixed_shapes_of_two_datasets_never_meet_in_a_batch_that_cannot_be_stacked(
    tiny, alike
) -> None:
    parts = {
        name: (PackDataset(folder, fixed_shapes=True), 1)
        for name, folder in (("tiny", tiny), ("alike", alike))
    }
    for batch in PackLoader(PackMix(parts), batch_size=4):
        assert isinstance(batch["grid_thw"], torch.Tensor)


def test_fixed_shapes_need_padding(tiny) -> None:
    with pytest.raises(ValueError, match="needs padded"):
        PackDataset(tiny, fixed_shapes=True, padded=False)


@pytest.mark.parametrize("fixed", [False, True])
def test_the_longest_of_the_padded_borders_goes_with_them(tiny, fixed) -> None:
    """A kernel that is told less leaves rows unwritten; one that is told another is made anew."""
    packs = PackDataset(tiny, fixed_shapes=fixed, pad_multiple=16)
    told = {pack["max_seqlen_padded"] for pack in packs}
    for pack in packs:
        assert pack["cu_seqlens_padded"].diff().max() <= pack["max_seqlen_padded"]
    assert told == {packs.padded_length} if fixed else max(told) < packs.padded_length


def test_a_model_on_fixed_shapes_is_compiled_at_most_twice(tiny) -> None:
    torch._dynamo.reset()
    counter = CompileCounter()

    @partial(torch.compile, backend=counter)
    def step(tokens, ids, grids, borders, weight) -> torch.Tensor:
        made = (tokens.float() / 255) @ weight
        of_grid = grids.float().sum(-1).mean()
        return (
            (made * (ids > 0).unsqueeze(-1)).sum() + of_grid + borders.diff(dim=-1).float().mean()
        )

    weight = torch.ones(WIDTH, 4)
    packs = PackDataset(tiny, fixed_shapes=True, pad_multiple=4, drop="random:uniform:0..0.7")
    loader = PackLoader(packs, batch_size=2)
    sums = Counter()
    for _ in range(3):
        for batch in loader:
            value = step(
                batch["tokens"],
                batch["segment_ids"],
                batch["grid_thw"],
                batch["cu_seqlens_padded"],
                weight,
            )
            sums[round(float(value), 2)] += 1
    assert len(sums) > 10
    assert 1 <= counter.frame_count <= 2
    torch._dynamo.reset()


# --- values -----------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"pad_multiple": 8}, {"fixed_shapes": True}])
def test_tokens_of_zeros_are_no_padding(tiny, options) -> None:
    black = 0
    for pack in PackDataset(tiny, **options):
        ids = pack["segment_ids"]
        for place, segment in enumerate(pack["segments"], 1):
            assert int((ids == place).sum()) == segment["num_kept"]
            if segment["source"] == "black.png":
                assert not pack["tokens"][ids == place].any()
                black += segment["num_kept"]
    assert black > 0


@pytest.mark.parametrize(
    "options",
    [{}, {"pad_multiple": 8}, {"padded": False}, {"drop": "random:0.5", "token_order": "random"}],
)
def test_normalized_tokens_are_those_of_normalize_and_padding_is_zero(tiny, options) -> None:
    stored = PackDataset(tiny, **options)
    made = PackDataset(tiny, normalized=True, **options)
    constants = stored.document["constants"]["normalize"]
    for one, other in zip(stored, made, strict=True):
        real = one["segment_ids"] > 0
        assert other["tokens"].dtype == torch.float32
        assert torch.equal(other["tokens"][real], stored.normalize(one["tokens"])[real])
        assert not other["tokens"][~real].any()
        rest = {name: value for name, value in one.items() if name != "tokens"}
        assert_same(rest, {name: value for name, value in other.items() if name != "tokens"})
    black = stored.normalize(torch.zeros(1, WIDTH, dtype=torch.uint8))
    assert black.abs().min() > 0, constants  # so that black and padding differ


# --- orders, and back again -------------------------------------------------------------------

DRAWN = [
    {"mask": "random:0.75"},
    {"mask": "tube:0.5"},
    {"mask": "multi-block"},
    {"drop": "random:0.6"},
    {"drop": "tokens:5"},
    {"token_order": "random"},
    {"token_order": "random", "mask": "random:0.75"},
    {"token_order": "random", "drop": "random:uniform:0.1..0.9"},
    {"token_order": "random", "drop": "random:0.4", "mask": "random:0.5", "pad_multiple": 16},
    {"token_order": "random", "drop": "random:0.4", "mask": "tube:0.5", "fixed_shapes": True},
]


@pytest.mark.parametrize("options", DRAWN, ids=str)
def test_restore_brings_what_the_encoder_makes_into_stored_order(tiny, options) -> None:
    packs = PackDataset(tiny, seed=7, **options)
    packs.set_epoch(2)
    for pack, stored in zip(packs, PackDataset(tiny, padded=False), strict=True):
        assert len(pack["keep"]) == len(pack["restore"]) == len(stored["segments"])
        borders = stored["cu_seqlens"].tolist()
        for place, (first, last) in enumerate(pairwise(borders)):
            tokens = stored["tokens"][first:last]
            own = pack["segment_ids"] == place + 1
            seen = own & pack["visible"] if "visible" in pack else own
            encoded = pack["tokens"][seen]
            keep, restore = pack["keep"][place], pack["restore"][place]
            assert keep.dtype == restore.dtype == torch.int64
            assert torch.equal(tokens[keep], encoded)
            assert torch.equal(stored["positions"][first:last][keep], pack["positions"][seen])
            hidden = np.setdiff1d(np.arange(last - first), keep.numpy())
            # Numbers that say which row they are, where tokens may be alike.
            made = torch.cat([keep, torch.from_numpy(hidden)])
            assert made[restore].tolist() == list(range(last - first))
            fill = torch.full((len(hidden), WIDTH), 9.5)
            whole = torch.cat([encoded.float(), fill])[restore]
            assert torch.equal(whole[keep], tokens[keep].float())
            assert (whole[hidden] == 9.5).all()


def test_a_random_order_is_a_permutation_of_each_segment_by_seed_epoch_and_segment(tiny) -> None:
    plain = PackDataset(tiny, padded=False)
    packs = PackDataset(tiny, padded=False, token_order="random", seed=3)
    packs.set_epoch(4)
    moved = 0
    for pack, stored in zip(packs, plain, strict=True):
        assert torch.equal(pack["cu_seqlens"], stored["cu_seqlens"])
        borders = stored["cu_seqlens"].tolist()
        for segment, first, last in zip(stored["segments"], borders, borders[1:], strict=False):
            order = drawn_order(last - first, 3, 4, segment["segment_id"], "order")
            moved += int((order != np.arange(last - first)).sum())
            for name in ("tokens", "positions", "seconds", "segment_ids"):
                assert torch.equal(pack[name][first:last], stored[name][first:last][order])
    assert moved > len(plain)


def test_what_is_drawn_hangs_on_seed_epoch_and_segment_alone(tiny) -> None:
    """And so it is the same in any worker, rank, batch and way to pad."""
    options = {"mask": "random:0.5", "drop": "random:uniform:0.1..0.6", "token_order": "random"}

    def drawn(packs) -> dict[str, tuple[list[int], list[int]]]:
        return {
            segment["segment_id"]: (keep.tolist(), restore.tolist())
            for pack in packs
            for segment, keep, restore in zip(
                pack["segments"], pack["keep"], pack["restore"], strict=True
            )
        }

    def unbatched(batches):
        for batch in batches:
            for place in range(len(batch["segments"])):
                yield {name: batch[name][place] for name in ("segments", "keep", "restore")}

    reference = drawn(PackDataset(tiny, **options))
    assert drawn(PackDataset(tiny, **options, padded=False, pad_multiple=4)) == reference
    loaders = rank_loaders(lambda: PackDataset(tiny, **options), 2, batch_size=2, num_workers=1)
    batches = [batch for step in epoch_steps(loaders) for batch in step]
    assert drawn(unbatched(batches)) == reference
    other = PackDataset(tiny, **options, seed=1)
    changed = [drawn(other)]
    other.set_epoch(1)
    changed.append(drawn(other))
    for one in changed:
        assert one.keys() == reference.keys()
        assert sum(one[name] == reference[name] for name in one) < len(one) / 4


def test_nothing_drawn_has_no_order(tiny) -> None:
    assert {"keep", "restore"}.isdisjoint(PackDataset(tiny)[0])


def test_words_that_are_no_order_are_refused(tiny) -> None:
    with pytest.raises(
        ValueError, match="token_order is 'shuffled', must be one of stored, random"
    ):
        PackDataset(tiny, token_order="shuffled")


def test_several_widths_have_fixed_shapes_each(widths) -> None:
    loader = PackLoader(PackDataset(widths, fixed_shapes=True), batch_size=2)
    shapes = {tuple(shapes_of(batch).items()) for batch in islice(loader, len(loader))}
    assert len(shapes) == 2
