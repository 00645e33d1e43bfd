"""A transformer over packs: tokens of many segments in one row, none of which sees another's."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from spacepatch.positions import apply_rope, rope_angles, sinusoidal


def sines(positions: torch.Tensor, width: int) -> torch.Tensor:
    """A fixed embedding of t, h and w, side by side; zeros fill what they leave of `width`.

    Args:
        positions: ``(.., N, 3)`` as the loader gives them.

    Returns:
        ``(.., N, width)`` float32.
    """
    third = width // 6 * 2
    made = sinusoidal(positions, dims=(third, third, third), base=100.0)
    return F.pad(made, (0, width - 3 * third))


def rotations(positions: torch.Tensor, head_width: int) -> torch.Tensor:
    """Angles of a 3-D RoPE for `Transformer`: t, h and w each turn a third of a head.

    Returns:
        ``(.., N, head_width // 6 * 3)`` float64.
    """
    third = head_width // 6 * 2
    return rope_angles(positions, split=(third, third, third), base=100.0)


class Attention(nn.Module):
    """Multi-head self-attention under a mask."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(
        self, x: torch.Tensor, mask: torch.Tensor, angles: torch.Tensor | None = None
    ) -> torch.Tensor:
        # (B, N, 3 * heads * d) -> three of (B, heads, N, d)
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if angles is not None:
            q, k = apply_rope(q, angles[:, None]), apply_rope(k, angles[:, None])
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None])
        return self.out(seen.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention and an MLP, each after a layer norm and beside the residual stream.

    With `condition_width` a vector for each token shifts, scales and gates both (adaLN-Zero of DiT,
    arXiv 2212.09748, section 3.2): the block begins as the identity.
    """

    def __init__(self, width: int, heads: int, *, condition_width: int | None = None) -> None:
        super().__init__()
        plain = condition_width is None
        self.norm1 = nn.LayerNorm(width, elementwise_affine=plain)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=plain)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        self.modulation = None
        if condition_width is not None:
            self.modulation = nn.Linear(condition_width, 6 * width)
            nn.init.zeros_(self.modulation.weight)
            nn.init.zeros_(self.modulation.bias)

    def forward(
        self,
        x: torch.Tensor,
        mask: torch.Tensor,
        angles: torch.Tensor | None = None,
        condition: torch.Tensor | None = None,
    ) -> torch.Tensor:
        if self.modulation is None or condition is None:
            x = x + self.attention(self.norm1(x), mask, angles)
            return x + self.mlp(self.norm2(x))
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(F.silu(condition)).chunk(
            6, dim=-1
        )
        normed = self.norm1(x) * (1 + scale1) + shift1
        x = x + gate1 * self.attention(normed, mask, angles)
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)


class Transformer(nn.Module):
    """Blocks and a last layer norm.

        mask = block_mask(batch["segment_ids"], batch["positions"], causal="token")
        y = transformer(x, mask, angles=rotations(batch["positions"], 16))

    The mask is all that keeps segments apart, so it is made once a batch, by the recipe, which
    knows who may see whom.
    """

    def __init__(
        self, width: int, *, depth: int, heads: int, condition_width: int | None = None
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            Block(width, heads, condition_width=condition_width) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)

    def forward(
        self,
        x: torch.Tensor,
        mask: torch.Tensor,
        *,
        angles: torch.Tensor | None = None,
        condition: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Let the tokens of each pack look at each other.

        Args:
            x: ``(B, N, width)``.
            mask: ``(B, N, N)`` bool of `spacepatch.masks.block_mask`; no row without a key.
            angles: ``(B, N, d / 2)`` of `rotations`.
            condition: ``(B, N, condition_width)``, say the embedding of each segment's time step.

        Returns:
            ``(B, N, width)``. What padding gets means nothing.
        """
        for block in self.blocks:
            x = block(x, mask, angles, condition)
        return self.norm(x)
