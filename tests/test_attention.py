"""Attention over packs: no segment sees another, and padding gives no NaN."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from loaded_packs import make_ids, segments_of
from torch.nn.attention import SDPBackend, sdpa_kernel

from spacepatch.masks import block_mask

BACKENDS = [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION]


class Attention(torch.nn.Module):
    """One layer of self-attention over real tokens."""

    def __init__(self, width: int, heads: int = 4, size: int = 16) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.heads = heads
        self.project = torch.nn.Linear(width, 3 * heads * size)

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        parts = self.project(tokens / 127.5 - 1).unflatten(-1, (3, self.heads, -1))
        query, key, value = parts.permute(1, 2, 0, 3)[:, None]
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return out[0].transpose(0, 1).flatten(1)


@pytest.fixture(scope="session")
def padded_pack(pack_dataset) -> dict:
    """The one with the most segments of the packs with padding."""
    packs = [pack for pack in pack_dataset if pack["num_tokens"] < pack_dataset.pack_length]
    pack = max(packs, key=lambda pack: len(pack["segments"]))
    assert len(pack["segments"]) > 1
    return pack


@pytest.mark.parametrize("backend", BACKENDS)
def test_packed_segments_get_the_same_as_each_alone(pack_dataset, padded_pack, backend) -> None:
    attention = Attention(pack_dataset.document["token_width"])
    with torch.no_grad(), sdpa_kernel(backend):
        packed = attention(padded_pack["tokens"], block_mask(padded_pack["segment_ids"]))
        for _, tokens in segments_of(padded_pack):
            alone = attention(padded_pack["tokens"][tokens])
            torch.testing.assert_close(packed[tokens], alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_changed_tokens_leave_the_other_segments_bit_identical(
    pack_dataset, padded_pack, backend
) -> None:
    attention = Attention(pack_dataset.document["token_width"])
    mask = block_mask(padded_pack["segment_ids"])
    with torch.no_grad(), sdpa_kernel(backend):
        before = attention(padded_pack["tokens"], mask)
        for _, changed in segments_of(padded_pack):
            tokens = padded_pack["tokens"].clone()
            tokens[changed] = 255 - tokens[changed]
            after = attention(tokens, mask)
            others = torch.ones(len(tokens), dtype=torch.bool)
            others[changed] = False
            assert torch.equal(after[others], before[others])
            assert not torch.equal(after[changed], before[changed])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("padding", range(13))
def test_padding_gives_no_nan_forward_or_backward(padding, backend) -> None:
    ids = make_ids([3, 5, 4], 0)
    ids[len(ids) - padding :] = 0
    generator = torch.Generator().manual_seed(padding)
    query, key, value = (
        torch.randn(1, 2, len(ids), 8, generator=generator).requires_grad_() for _ in range(3)
    )
    with sdpa_kernel(backend):
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=block_mask(ids))
        out.square().sum().backward()
    assert out.isfinite().all()
    assert all(tensor.grad.isfinite().all() for tensor in (query, key, value))
