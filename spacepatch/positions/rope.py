"""Rotary embedding over t, h and w: the score of two tokens depends on their distance only."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from spacepatch.positions.sinusoids import axis_angles


def rope_angles(
    positions: torch.Tensor,
    *,
    split: Sequence[int],
    seconds: torch.Tensor | None = None,
    base: float = 10000.0,
) -> torch.Tensor:
    """Angles of an axial RoPE (RoPE, arXiv 2104.09864, 3.2.2): each axis owns a part of a head.

    Pair i of an axis that owns d values is turned by coordinate * base^(-2i / d). Splits of known
    models, for heads of d values:

    - Wan 2.1 (wan/modules/model.py), d = 128: (44, 42, 42), neighbours
    - HunyuanVideo (`rope_dim_list`), d = 128: (16, 56, 56), neighbours, base 256
    - vision towers of Qwen (`VisionRotaryEmbedding`): (0, d // 2, d // 2), halves

    Args:
        positions: ``(N, 3)`` t, h, w; or ``(N, A)`` of any coordinates.
        split: values of a head that each axis owns, even; what is left of the head is not turned.
        seconds: ``(N,)`` takes the place of t, so that the distance in time is the true one. Scale
            it to the unit that the model shall know, say ``seconds * 8``.

    Returns:
        ``(N, sum(split) / 2)`` float64. Make it on the CPU for a device that has no float64.

    Raises:
        ValueError: an odd part, or another number of parts than of axes.
    """
    coordinates = positions.double()
    if seconds is not None:
        coordinates = torch.cat([seconds.double()[:, None], coordinates[:, 1:]], dim=1)
    return torch.cat(axis_angles(coordinates, split, base), dim=-1)


def _apart(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    first, second = x.chunk(2, dim=-1)
    return first, second


def _joined(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    return torch.cat([first, second], dim=-1)


def _every_other(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x[..., 0::2], x[..., 1::2]


def _alternated(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    return torch.stack([first, second], dim=-1).flatten(-2)


Parting = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
Joining = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

PAIRS: dict[str, tuple[Parting, Joining]] = {
    "halves": (_apart, _joined),
    "neighbours": (_every_other, _alternated),
}
"""Which two values turn together: i and i + d/2 (`rotate_half` of transformers: Llama, Qwen), or 2i
and 2i + 1 (RoFormer, Wan, CogVideoX, HunyuanVideo)."""


def apply_rope(x: torch.Tensor, angles: torch.Tensor, *, pairs: str = "halves") -> torch.Tensor:
    """Turn queries or keys by their angles.

    Args:
        x: ``(..., N, d)``, say (heads, N, d).
        angles: ``(N, r / 2)`` or any shape that broadcasts with x; values from r on stay.
        pairs: one of `PAIRS`.

    Returns:
        The shape and dtype of x; computed in float32 at least.

    Raises:
        ValueError: unknown pairs, or more angles than d / 2.
    """
    if pairs not in PAIRS:
        raise ValueError(f"unknown pairs {pairs!r}; one of {', '.join(PAIRS)}")
    width = 2 * angles.shape[-1]
    if width > x.shape[-1]:
        raise ValueError(f"{angles.shape[-1]} angles turn {width} values, a head has {x.shape[-1]}")
    part, join = PAIRS[pairs]
    dtype = torch.promote_types(x.dtype, torch.float32)
    # Sines of float64 angles: a float32 angle near 10,000 is off by up to 0.0005.
    cos, sin = angles.cos().to(x.device, dtype), angles.sin().to(x.device, dtype)
    first, second = part(x[..., :width].to(dtype))
    turned = join(first * cos - second * sin, second * cos + first * sin)
    return torch.cat([turned.to(x.dtype), x[..., width:]], dim=-1)
