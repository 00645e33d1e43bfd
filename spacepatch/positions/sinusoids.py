"""Fixed embeddings of sines and cosines, for one axis or several."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch


def _halves(angles: torch.Tensor) -> torch.Tensor:
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def _alternating(angles: torch.Tensor) -> torch.Tensor:
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)


SINUSOIDS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "halves": _halves,
    "alternating": _alternating,
}
"""How the values of one axis lie: `halves` is all sines, then all cosines (MAE, V-JEPA);
`alternating` is sine, cosine, sine, .. (arXiv 1706.03762, VideoMAE)."""


def sinusoidal(
    coordinates: torch.Tensor,
    *,
    dims: Sequence[int],
    layout: str = "halves",
    base: float = 10000.0,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Embed each axis in sines and cosines of its own, side by side.

    Pair i of an axis of d values has the angle coordinate / base^(2i / d) (arXiv 1706.03762, 3.5).

    - MAE (util/pos_embed.py, `get_2d_sincos_pos_embed`), where w comes first:
      ``sinusoidal(positions[:, [2, 1]], dims=(D // 2, D // 2), layout="halves")``
    - VideoMAE (modeling_finetune.py, `get_sinusoid_encoding_table`), 1-D over the whole grid:
      ``sinusoidal(raster_index(..)[:, None], dims=(D,), layout="alternating")``
    - t, h and w, each with a third:
      ``sinusoidal(positions, dims=(D // 3, D // 3, D // 3))``

    Args:
        coordinates: ``(N, A)``, integers or not: indices, fractions, seconds.
        dims: A even numbers of values, one an axis.
        layout: one of `SINUSOIDS`.
        dtype: of what is returned; computed in float64.

    Returns:
        ``(N, sum(dims))``.

    Raises:
        ValueError: an odd number of values, another number of them than of axes, or an unknown
            layout.
    """
    if layout not in SINUSOIDS:
        raise ValueError(f"unknown layout {layout!r}; one of {', '.join(SINUSOIDS)}")
    angles = axis_angles(coordinates, dims, base)
    return torch.cat([SINUSOIDS[layout](each) for each in angles], dim=-1).to(dtype)


def axis_angles(coordinates: torch.Tensor, dims: Sequence[int], base: float) -> list[torch.Tensor]:
    """For each axis ``(N, d / 2)`` float64 angles, coordinate / base^(2i / d)."""
    if coordinates.shape[-1] != len(dims) or any(dim % 2 for dim in dims):
        axes = coordinates.shape[-1]
        raise ValueError(f"{axes} axes need {axes} even numbers of values: {tuple(dims)}")
    columns = coordinates.double().unbind(dim=-1)
    return [
        column[..., None] * frequencies(dim, base).to(column.device)
        for column, dim in zip(columns, dims, strict=True)
    ]


def frequencies(dim: int, base: float) -> torch.Tensor:
    """``(dim / 2,)`` float64: base^(-2i / dim)."""
    # An axis without values has none, and 0 / 0 is not asked for.
    return base ** -(torch.arange(0, dim, 2, dtype=torch.float64) / max(dim, 1))
