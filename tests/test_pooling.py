"""Pooling and laying out by segment, held against loops over segments."""

from __future__ import annotations

import pytest
import torch
from loaded_packs import make_ids, segments_of
from position_packs import make_pack

from spacepatch.pooling import scatter, segment_max, segment_mean

PACKS = [([3, 1, 4], 2), ([10], 0), ([], 10), ([1, 1, 1, 2], 5)]
POOLS = [(segment_mean, torch.mean), (segment_max, torch.amax)]
GRIDS = [(3, 2, 4), (1, 2, 2), (2, 4, 2)]


def make_batch() -> tuple[torch.Tensor, torch.Tensor]:
    """(tokens, segment_ids) of packs with 3, 1, 0 and 4 segments."""
    ids = torch.stack([make_ids(lengths, padding) for lengths, padding in PACKS])
    tokens = torch.randn(*ids.shape, 6, generator=torch.Generator().manual_seed(0))
    return tokens.requires_grad_(), ids


def by_loops(tokens, ids, max_segments, pool) -> tuple[torch.Tensor, torch.Tensor]:
    rows, mask = [], []
    for pack_tokens, pack_ids in zip(tokens, ids, strict=True):
        for segment in range(1, max_segments + 1):
            own = pack_tokens[pack_ids == segment]
            rows.append(pool(own, dim=0) if len(own) else torch.zeros(tokens.shape[-1]))
            mask.append(len(own) > 0)
    shape = (len(ids), max_segments)
    return torch.stack(rows).unflatten(0, shape), torch.tensor(mask).view(shape)


@pytest.mark.parametrize(("pool", "reference"), POOLS)
@pytest.mark.parametrize("max_segments", [4, 7])
def test_pools_are_those_of_each_segment_alone(pool, reference, max_segments) -> None:
    tokens, ids = make_batch()
    pooled, mask = pool(tokens, ids, max_segments=max_segments)
    expected, expected_mask = by_loops(tokens, ids, max_segments, reference)
    assert pooled.shape == (4, max_segments, 6)
    torch.testing.assert_close(pooled, expected, rtol=0, atol=1e-6)
    assert torch.equal(mask, expected_mask)


@pytest.mark.parametrize(("pool", "reference"), POOLS)
def test_gradients_are_those_of_each_segment_alone(pool, reference) -> None:
    tokens, ids = make_batch()
    with torch.no_grad():
        tokens[0, 5] = tokens[0, 4]  # ties, which share
    weight = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(1))
    gradients = [
        torch.autograd.grad((pooled[0] * weight).sum(), tokens)[0]
        for pooled in (pool(tokens, ids, max_segments=5), by_loops(tokens, ids, 5, reference))
    ]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-6)
    assert not gradients[0][ids == 0].any()


@pytest.mark.parametrize("pool", [segment_mean, segment_max])
def test_gradients_agree_with_finite_differences(pool) -> None:
    tokens, ids = make_batch()
    assert torch.autograd.gradcheck(
        lambda values: pool(values, ids, max_segments=5)[0],
        tokens.detach().double().requires_grad_(),
    )


@pytest.mark.parametrize("pool", [segment_mean, segment_max])
def test_one_pack_pools_as_in_a_batch_and_in_any_order(pool) -> None:
    tokens, ids = make_batch()
    places = torch.randperm(10, generator=torch.Generator().manual_seed(2))
    batch, masks = pool(tokens, ids, max_segments=4)
    for pack in range(len(ids)):
        pooled, mask = pool(tokens[pack, places], ids[pack, places], max_segments=4)
        torch.testing.assert_close(pooled, batch[pack], rtol=0, atol=1e-6)
        assert torch.equal(mask, masks[pack])


@pytest.mark.parametrize("pool", [segment_mean, segment_max])
def test_nothing_of_other_segments_or_padding_gets_in(pool) -> None:
    tokens, ids = make_batch()
    before, _ = pool(tokens, ids, max_segments=4)
    spoiled = tokens.detach().clone()
    spoiled[ids == 0] = float("nan")
    spoiled[0, :3] = float("inf")
    after, _ = pool(spoiled, ids, max_segments=4)
    assert (after[0, 0] == float("inf")).all()
    before[0, 0] = after[0, 0]
    assert torch.equal(after, before)


def test_the_highest_of_negative_values_is_negative() -> None:
    pooled, _ = segment_max(-torch.ones(3, 2), make_ids([2], 1), max_segments=1)
    assert torch.equal(pooled, -torch.ones(1, 2))


def test_the_sum_of_float16_may_be_more_than_float16_holds() -> None:
    tokens = torch.full((4096, 2), 100, dtype=torch.float16)
    pooled, _ = segment_mean(tokens, make_ids([4096], 0), max_segments=1)
    assert pooled.dtype == torch.float16
    assert pooled.tolist() == [[100, 100]]


@pytest.mark.parametrize("pool", [segment_mean, segment_max])
def test_pools_compile_to_one_graph_for_packs_of_any_segments(pool) -> None:
    torch.compiler.reset()
    compiled = torch.compile(pool, backend="eager", fullgraph=True)
    tokens, ids = make_batch()
    tokens = tokens.detach()
    compiled(tokens, ids, max_segments=4)
    with torch.compiler.set_stance("fail_on_recompile"):
        for packs in (ids, ids.flip(0), torch.zeros_like(ids), torch.ones_like(ids)):
            expected = pool(tokens, packs, max_segments=4)
            assert all(map(torch.equal, compiled(tokens, packs, max_segments=4), expected))


@pytest.mark.parametrize("pool", [segment_mean, segment_max])
def test_segments_without_room_are_refused(pool) -> None:
    tokens, ids = make_batch()
    with pytest.raises(ValueError, match="a segment 4, and max_segments is 3"):
        pool(tokens, ids, max_segments=3)
    compiled = torch.compile(pool, backend="eager", fullgraph=True)
    with pytest.raises((RuntimeError, IndexError), match=r"index|bounds"):
        compiled(tokens.detach(), ids.flip(0), max_segments=3)


@pytest.mark.parametrize("pool", [segment_mean, segment_max])
def test_tokens_of_other_ids_are_refused(pool) -> None:
    tokens, ids = make_batch()
    with pytest.raises(ValueError, match=r"\(4, 9, 6\) .* \(4, 10\)"):
        pool(tokens[:, 1:], ids, max_segments=4)


@pytest.mark.parametrize("merge", [1, 2])
@pytest.mark.parametrize("keep", [None, lambda place: place % 3 != 1], ids=["whole", "dropped"])
def test_tokens_lie_at_their_positions_and_dropped_cells_are_zeros(merge, keep) -> None:
    positions, ids, grids = make_pack(GRIDS, merge=merge, padding=3, keep=keep)
    tokens = torch.randn(len(ids), 5, generator=torch.Generator().manual_seed(0))
    expected = [torch.zeros(*grid, 5) for grid in GRIDS]
    for token, (t, h, w), segment in zip(tokens, positions.tolist(), ids.tolist(), strict=True):
        if segment:
            expected[segment - 1][t, h, w] = token
    laid = scatter(tokens, positions, ids, grids)
    assert len(laid) == len(expected)
    assert all(map(torch.equal, laid, expected))


def test_gradients_go_back_to_the_tokens_and_padding_gets_none() -> None:
    positions, ids, grids = make_pack(GRIDS, merge=2, padding=3, keep=lambda place: place % 5)
    tokens = torch.randn(len(ids), 2, requires_grad=True)
    weights = [torch.randn(*grid, 2) for grid in GRIDS]
    laid = scatter(tokens, positions, ids, grids)
    sum((one * weight).sum() for one, weight in zip(laid, weights, strict=True)).backward()
    for gradient, (t, h, w), segment in zip(tokens.grad, positions, ids, strict=True):
        expected = weights[segment - 1][t, h, w] if segment else torch.zeros(2)
        assert torch.equal(gradient, expected)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int64, torch.float16])
def test_stored_dtypes_stay(dtype) -> None:
    positions, ids, grids = make_pack([(1, 2, 2)], padding=1)
    tokens = torch.tensor([[7], [8], [9], [10], [11]]).to(dtype)
    (laid,) = scatter(tokens, positions, ids, grids)
    assert laid.dtype == dtype
    assert laid.flatten().tolist() == [7, 8, 9, 10]


def test_real_packs_lie_in_their_grids(pack_dataset) -> None:
    for pack in pack_dataset:
        laid = scatter(pack["tokens"], pack["positions"], pack["segment_ids"], pack["grid_thw"])
        for one, grid, (segment, own) in zip(
            laid, pack["grid_thw"].tolist(), segments_of(pack), strict=True
        ):
            assert list(one.shape[:3]) == grid, segment
            t, h, w = pack["positions"][own].long().unbind(dim=1)
            assert torch.equal(one[t, h, w], pack["tokens"][own])


def test_a_pack_of_padding_has_no_grids() -> None:
    ids, positions = torch.zeros(4, dtype=torch.int32), torch.zeros(4, 3, dtype=torch.int32)
    assert scatter(torch.randn(4, 2), positions, ids, torch.zeros(0, 3, dtype=torch.int32)) == []


def test_places_beyond_the_grid_are_refused() -> None:
    positions, ids, grids = make_pack(GRIDS)
    positions[25, 2] = 2
    with pytest.raises(
        ValueError, match=r"positions\[25\] is \(0, 0, 2\).*\(1, 2, 2\) of segment 2"
    ):
        scatter(torch.randn(len(ids), 2), positions, ids, grids)


def test_segments_without_a_grid_are_refused() -> None:
    positions, ids, grids = make_pack(GRIDS)
    with pytest.raises(ValueError, match="a segment 3, and the grids are 2"):
        scatter(torch.randn(len(ids), 2), positions, ids, grids[:2])
