"""Masks of each kind, dense and for FlexAttention, held against loops over pairs of tokens."""

from __future__ import annotations

import itertools
import shutil

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from position_packs import make_pack
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.utils._python_dispatch import TorchDispatchMode

from spacepatch.masks import block_mask, cu_seqlens, flex_mask
from spacepatch.positions import slice_cu_seqlens

KINDS = [
    {},
    {"within": "row"},
    {"causal": "token"},
    {"causal": "frame"},
    {"causal": "token", "prefix_frames": 1},
    {"causal": "token", "prefix_frames": 2},
    {"causal": "frame", "prefix_frames": 2},
    {"causal": "frame", "prefix_frames": 9},  # more than there are
    {"within": "row", "causal": "token"},
]
GRIDS = [(3, 2, 4), (1, 2, 2), (4, 2, 2)]
ORDERS = ["raster", "merge", "dropped", "shuffled"]
BACKENDS = [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION]
UNFUSED = "ignore:flex_attention called without torch.compile:UserWarning"
kinds = pytest.mark.parametrize(
    "kind", KINDS, ids=lambda kind: " ".join(map(str, kind.values())) or "segment"
)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Tensors this small are several times slower on two threads of busy cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make_order(order: str, *, grids=GRIDS, padding=5):
    """(positions, segment_ids) of one pack, its tokens stored in this order."""
    positions, ids, _ = make_pack(
        grids,
        merge=2 if order == "merge" else 1,
        padding=padding,
        keep=(lambda place: place % 3 != 1) if order == "dropped" else None,
    )
    if order == "shuffled":
        borders = [0, *torch.bincount(ids)[1:].cumsum(0).tolist()]
        generator = torch.Generator().manual_seed(1)
        for start, stop in itertools.pairwise(borders):
            places = start + torch.randperm(stop - start, generator=generator)
            positions[start:stop] = positions[places]
    return positions, ids


def sees(mine, other, *, within="segment", causal=None, prefix_frames=0) -> bool:
    """What the sentences of `block_mask` say of two tokens, each (place in pack, segment, thw)."""
    if 0 in (mine[1], other[1]):
        return mine[0] == other[0]
    if mine[1] != other[1] or (within == "row" and mine[2][0] != other[2][0]):
        return False
    if causal is None or other[2][0] < prefix_frames:
        return True
    return other[2] <= mine[2] if causal == "token" else other[2][0] <= mine[2][0]


def pairs(positions, ids, **kind) -> torch.Tensor:
    tokens = list(zip(range(len(ids)), ids.tolist(), positions.tolist(), strict=True))
    return torch.tensor([[sees(mine, other, **kind) for other in tokens] for mine in tokens])


def make_qkv(num_tokens: int, *, seed: int = 0, packs: int = 1) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(packs, 2, num_tokens, 16, generator=generator) for _ in range(3)]


@kinds
@pytest.mark.parametrize("order", ORDERS)
def test_the_mask_is_what_its_sentences_say_in_any_order(order, kind) -> None:
    positions, ids = make_order(order)
    assert torch.equal(block_mask(ids, positions, **kind), pairs(positions, ids, **kind))


def test_rows_are_those_that_qwen_has_borders_of(pack_dataset) -> None:
    for pack in pack_dataset:
        mask = block_mask(pack["segment_ids"], pack["positions"], within="row")
        borders = slice_cu_seqlens(pack["segment_ids"], pack["positions"]).tolist()
        expected = torch.eye(len(mask), dtype=torch.bool)
        for start, stop in itertools.pairwise(borders):
            expected[start:stop, start:stop] = True
        assert torch.equal(mask, expected)


@kinds
def test_masks_of_a_batch_are_those_of_its_packs(kind) -> None:
    packs = [make_order("raster"), make_order("raster", grids=[(2, 6, 3)], padding=13)]
    positions = torch.stack([positions for positions, _ in packs])
    ids = torch.stack([ids for _, ids in packs])
    expected = torch.stack([pairs(*pack, **kind) for pack in packs])
    assert torch.equal(block_mask(ids, positions, **kind), expected)
    assert torch.equal(dense(flex_mask(ids, positions, **kind))[:, 0], expected)


def dense(mask) -> torch.Tensor:
    """What a FlexAttention kernel lets through: of listed blocks alone, of full ones all."""
    packs, _, queries, keys = mask.shape
    size = mask.BLOCK_SIZE[0]
    seen = torch.zeros(packs, 1, queries, keys, dtype=torch.bool)
    places = torch.arange(max(queries, keys))
    for pack in range(packs):
        for row in range(mask.kv_num_blocks.shape[-1]):
            for counts, indices, is_full in (
                (mask.kv_num_blocks, mask.kv_indices, False),
                (mask.full_kv_num_blocks, mask.full_kv_indices, True),
            ):
                for column in indices[pack, 0, row, : counts[pack, 0, row]].tolist():
                    i = places[row * size : min((row + 1) * size, queries)][:, None]
                    j = places[column * size : min((column + 1) * size, keys)]
                    assert not is_full or (i.shape[0] == size and j.shape[0] == size)
                    assert not seen[pack, 0, i, j].any()  # no block is listed twice
                    through = torch.tensor(True) if is_full else mask.mask_mod(pack, 0, i, j)
                    seen[pack, 0, i, j] = through.expand(len(i), len(j))
    return seen


@kinds
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("block_size", "padding"), [(3, 5), (8, 5), (8, 0), (128, 5)])
def test_blocks_let_the_same_through_as_the_dense_mask(order, kind, block_size, padding) -> None:
    positions, ids = make_order(order, padding=padding)
    mask = flex_mask(ids, positions, **kind, block_size=block_size)
    assert torch.equal(dense(mask)[0, 0], pairs(positions, ids, **kind))


@kinds
def test_in_stored_order_no_block_is_visited_in_vain(kind) -> None:
    positions, ids = make_order("raster", grids=[(6, 4, 4), (1, 2, 8), (5, 8, 4)], padding=40)
    mask = flex_mask(ids, positions, **kind, block_size=8)
    expected = create_block_mask(
        mask.mask_mod, 1, 1, len(ids), len(ids), device="cpu", BLOCK_SIZE=8
    )
    assert torch.equal(mask.kv_num_blocks, expected.kv_num_blocks)
    assert torch.equal(mask.full_kv_num_blocks, expected.full_kv_num_blocks)
    assert torch.equal(mask.q_num_blocks, expected.q_num_blocks)


class LargestTensor(TorchDispatchMode):
    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return out


@pytest.mark.parametrize("num_tokens", [8192, 32768])
def test_a_flex_mask_is_made_without_the_dense_one(num_tokens) -> None:
    positions, ids = make_order("raster", grids=[(num_tokens // 4096 - 1, 64, 64)], padding=4096)
    with LargestTensor() as largest:
        flex_mask(ids, positions, causal="frame")
    assert 0 < largest.numel <= 3 * num_tokens  # positions, as int64


@kinds
@pytest.mark.parametrize("order", ["merge", "shuffled"])
@pytest.mark.filterwarnings(UNFUSED)
def test_attention_is_that_of_each_token_over_what_it_may_see(order, kind) -> None:
    positions, ids = make_order(order)
    query, key, value = make_qkv(len(ids))
    may_see = pairs(positions, ids, **kind)
    expected = torch.empty_like(query, dtype=torch.float64)
    for i in range(len(ids)):
        seen = may_see[i].nonzero().flatten().tolist()
        scores = key[0, :, seen].double() @ query[0, :, i, :, None].double() / 16**0.5
        expected[0, :, i] = (scores.softmax(dim=1) * value[0, :, seen].double()).sum(dim=1)
    mask = block_mask(ids, positions, **kind)
    for backend in BACKENDS:
        with sdpa_kernel(backend):
            out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        torch.testing.assert_close(out.double(), expected, rtol=0, atol=1e-5)
    flex = flex_attention(query, key, value, block_mask=flex_mask(ids, positions, **kind))
    torch.testing.assert_close(flex.double(), expected, rtol=0, atol=1e-5)


def model(tokens: torch.Tensor, attend) -> torch.Tensor:
    """Two layers, so that what a token sees of others in the first reaches it in the second."""
    generator = torch.Generator().manual_seed(7)
    for _ in range(2):
        weight = torch.randn(16, 96, generator=generator) / 4
        query, key, value = (tokens @ weight).unflatten(-1, (3, 2, 16)).permute(1, 2, 0, 3)[:, None]
        tokens = tokens + attend(query, key, value)[0].mean(dim=0)
    return tokens


def attention_of(name: str, positions, ids, kind):
    if name == "flex":
        mask = flex_mask(ids, positions, **kind)
        return lambda *qkv: flex_attention(*qkv, block_mask=mask)
    mask = block_mask(ids, positions, **kind)

    def attend(*qkv):
        with sdpa_kernel(getattr(SDPBackend, name)):
            return F.scaled_dot_product_attention(*qkv, attn_mask=mask)

    return attend


@kinds
@pytest.mark.parametrize("name", ["MATH", "FLASH_ATTENTION", "flex"])
@pytest.mark.filterwarnings(UNFUSED)
def test_a_changed_token_changes_those_that_may_see_it_and_no_bit_of_others(name, kind) -> None:
    positions, ids = make_order("shuffled")
    attend = attention_of(name, positions, ids, kind)
    seen = pairs(positions, ids, **kind)
    tokens = make_qkv(len(ids))[0][0, 0]
    before = model(tokens, attend)
    for changed in range(0, len(ids), 6):
        other = tokens.clone()
        other[changed] = -3 * other[changed]
        same = (model(other, attend) == before).all(dim=1)
        assert torch.equal(same, ~seen[:, changed])


@kinds
@pytest.mark.parametrize("name", ["MATH", "FLASH_ATTENTION"])
def test_gradients_reach_what_a_token_may_see_and_nothing_else(name, kind) -> None:
    positions, ids = make_order("shuffled")
    attend = attention_of(name, positions, ids, kind)
    seen = pairs(positions, ids, **kind)
    for token in range(1, len(ids), 6):
        tokens = make_qkv(len(ids))[0][0, 0].requires_grad_()
        model(tokens, attend)[token].square().sum().backward()
        assert torch.equal((tokens.grad != 0).any(dim=1), seen[token])


@pytest.mark.parametrize("name", ["MATH", "FLASH_ATTENTION"])
@pytest.mark.parametrize("causal", [None, "token", "frame"])
def test_gradients_of_other_segments_are_bit_identical(name, causal) -> None:
    positions, ids = make_order("merge")
    attend = attention_of(name, positions, ids, {"causal": causal})
    gradients = []
    for factor in (1, -3):
        tokens = make_qkv(len(ids))[0][0, 0]
        tokens[ids == 2] *= factor
        tokens.requires_grad_()
        model(tokens, attend).square().sum().backward()
        gradients.append(tokens.grad)
    same = (gradients[0] == gradients[1]).all(dim=1)
    assert torch.equal(same, ids != 2)


@kinds
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("grids", [[(2, 2, 3)], [(3, 2, 100), (1, 30, 20)]], ids=["small", "large"])
def test_padding_gives_no_nan_forward_or_backward(grids, backend, kind) -> None:
    """The large pack has rows without a key in the first tile of a kernel."""
    positions, ids = make_order("raster", grids=grids, padding=0)
    num_tokens = len(ids)
    for padding in range(1, 13) if num_tokens == 12 else (1, 599, 1200):
        ids[num_tokens - padding :] = 0
        positions[num_tokens - padding :] = 0
        qkv = [tensor.requires_grad_() for tensor in make_qkv(num_tokens, seed=padding)]
        with sdpa_kernel(backend):
            out = F.scaled_dot_product_attention(*qkv, attn_mask=block_mask(ids, positions, **kind))
            out.square().sum().backward()
        assert out.isfinite().all()
        assert all(tensor.grad.isfinite().all() for tensor in qkv)


@pytest.mark.filterwarnings(UNFUSED)
def test_flex_attention_over_nothing_but_padding_is_finite() -> None:
    ids = torch.zeros(2, 40, dtype=torch.int32)
    out = flex_attention(*make_qkv(40, packs=2), block_mask=flex_mask(ids))
    assert out.isfinite().all()


def test_masks_of_other_packs_and_kinds_do_not_recompile() -> None:
    torch.compiler.reset()

    @torch.compile(backend="eager", fullgraph=True)
    def layer(query, key, value, mask):
        return flex_attention(query, key, value, block_mask=mask).relu()

    packs = [make_order("raster"), make_order("shuffled"), make_order("raster", grids=[(2, 11, 2)])]
    qkv = make_qkv(49)
    layer(*qkv, flex_mask(packs[0][1], packs[0][0], **KINDS[0]))
    with torch.compiler.set_stance("fail_on_recompile"):
        for positions, ids in packs:
            for kind in KINDS:
                layer(*qkv, flex_mask(ids, positions, **kind))
        with pytest.raises(RuntimeError, match="recompil"):  # it would be seen
            layer(*make_qkv(44), flex_mask(packs[0][1][:44], packs[0][0][:44]))


@pytest.mark.skipif(shutil.which("g++") is None, reason="TorchInductor needs a C++ compiler")
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")
def test_the_compiled_kernel_attends_as_sdpa_does() -> None:
    torch.compiler.reset()
    compiled = torch.compile(flex_attention)
    for order in ("raster", "shuffled"):
        positions, ids = make_order(order, grids=[(3, 8, 8), (2, 2, 2), (4, 5, 4)], padding=90)
        query, key, value = make_qkv(len(ids))
        for kind in KINDS:
            mask = flex_mask(ids, positions, **kind)
            out = compiled(query, key, value, block_mask=mask)
            dense_mask = block_mask(ids, positions, **kind)
            expected = F.scaled_dot_product_attention(query, key, value, attn_mask=dense_mask)
            torch.testing.assert_close(out, expected, rtol=0, atol=1e-5)
            other = value.clone()
            other[:, :, ids == 2] += 100
            changed = (compiled(query, key, other, block_mask=mask) != out).any(dim=3)[0]
            assert torch.equal(changed, (ids == 2).expand(2, -1))


def test_borders_are_those_of_the_segments_and_rows_of_any_kind_of_pack() -> None:
    positions, ids = make_order("merge")
    assert cu_seqlens(ids).tolist() == [0, 24, 28, 44]
    assert slice_cu_seqlens(ids, positions).tolist() == [0, 8, 16, 24, 28, 32, 36, 40, 44]


@pytest.mark.parametrize("make", [block_mask, flex_mask])
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ({"within": "frame"}, "unknown within 'frame'; one of segment, row"),
        ({"causal": "row"}, "unknown causal 'row'; one of token, frame"),
        ({"prefix_frames": 2}, "prefix_frames=2 with causal=None"),
        ({"causal": "frame", "prefix_frames": -1}, "prefix_frames=-1"),
    ],
)
def test_what_no_mask_is_meant_by_is_refused(make, kind, message) -> None:
    positions, ids = make_order("raster")
    with pytest.raises(ValueError, match=message):
        make(ids, positions, **kind)


@pytest.mark.parametrize("make", [block_mask, flex_mask])
@pytest.mark.parametrize("kind", [{"within": "row"}, {"causal": "frame"}])
def test_order_without_positions_is_refused(make, kind) -> None:
    with pytest.raises(ValueError, match="give positions"):
        make(torch.ones(4, dtype=torch.int32), **kind)
