"""Where each token lies in its grid: as indices, as fractions, in the order of its model."""

from __future__ import annotations

from collections.abc import Callable

import torch

from spacepatch.masks import cu_seqlens


def _own(grids: torch.Tensor) -> torch.Tensor:
    return grids


def _longer(grids: torch.Tensor) -> torch.Tensor:
    longer = grids[:, 1:].amax(dim=1, keepdim=True)
    return torch.cat([grids[:, :1], longer, longer], dim=1)


SIDES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"own": _own, "longer": _longer}
"""What a coordinate is a fraction of: its `own` side of the grid (both h and w fill [0, 1)), or the
`longer` of height and width (the aspect ratio is kept: the shorter side ends at short / long)."""


def fractional_coordinates(
    positions: torch.Tensor,
    segment_ids: torch.Tensor,
    grid_thw: torch.Tensor,
    *,
    side: str = "own",
) -> torch.Tensor:
    """Coordinates as fractions, index / side (NaViT, arXiv 2307.06304, section 2.1 and fig. 16).

    NaViT's absolute coordinates are the indices themselves, `positions[:, 1:]`. In fig. 16, images
    of 96 x 128 and 224 x 160 in patches of 32 reach (2, 3) and (6, 4) of grids 3 x 4 and 7 x 5.
    With ``side="longer"`` their shorter sides end at 3 / 4 = 0.75 and 5 / 7 = 0.71.

    Args:
        positions: ``(N, 3)`` integers t, h, w.
        segment_ids: ``(N,)`` integers, 0 = padding.
        grid_thw: ``(S, 3)`` integers.
        side: one of `SIDES`; t is always a fraction of its own.

    Returns:
        ``(N, 3)`` float64 in [0, 1).

    Raises:
        ValueError: an unknown side.
    """
    if side not in SIDES:
        raise ValueError(f"unknown side {side!r}; one of {', '.join(SIDES)}")
    return positions.double() / SIDES[side](grids_of(segment_ids, grid_thw))


def frame_index(
    positions: torch.Tensor, segment_ids: torch.Tensor, grid_thw: torch.Tensor
) -> torch.Tensor:
    """The place of each token in its grid row, h * W + w: ViT's 1-D index (arXiv 2010.11929, 3.1).

    Also the spatial index of a factorized ViViT, whose temporal one is `positions[:, 0]`.

    Returns:
        ``(N,)`` int64.
    """
    widths = grids_of(segment_ids, grid_thw)[:, 2]
    return positions[:, 1] * widths + positions[:, 2]


def raster_index(
    positions: torch.Tensor, segment_ids: torch.Tensor, grid_thw: torch.Tensor
) -> torch.Tensor:
    """The place of each token in its whole grid, (t * H + h) * W + w.

    It is what V-JEPA 2 calls ids and takes its masks in (`separate_positions` of
    src/models/utils/modules.py undoes it), and what the joint tables of ViViT and VideoMAE are
    indexed with. It stays true where tokens were dropped.

    Returns:
        ``(N,)`` int64.
    """
    grids = grids_of(segment_ids, grid_thw)
    frame = grids[:, 1] * grids[:, 2]
    return positions[:, 0] * frame + frame_index(positions, segment_ids, grid_thw)


def vision_positions(grid_thw: torch.Tensor, *, merge_size: int = 1) -> torch.Tensor:
    """The positions of undropped grids, for inference without a pack.

    Equals `get_vision_position_ids(grid_thw, merge_size, include_temporal=True)` of transformers
    (src/transformers/vision_utils.py).

    Args:
        grid_thw: ``(S, 3)`` integers.
        merge_size: m of the order `merge m x m`, (t, h/m, w/m, m, m); 1 is raster order.

    Returns:
        ``(N, 3)`` int64 t, h, w; N is the sum of t * h * w.

    Raises:
        ValueError: a grid that does not divide into blocks.
    """
    parts = [torch.zeros(0, 3, dtype=torch.int64)]
    for t, h, w in grid_thw.tolist():
        if h % merge_size or w % merge_size:
            raise ValueError(f"grid {(t, h, w)} does not divide into blocks of {merge_size}")
        raster = torch.cartesian_prod(torch.arange(t), torch.arange(h), torch.arange(w))
        # (t gh mh gw mw) axis -> (t gh gw mh mw) axis
        blocks = raster.view(t, h // merge_size, merge_size, w // merge_size, merge_size, 3)
        parts.append(blocks.transpose(2, 3).reshape(-1, 3))
    return torch.cat(parts).to(grid_thw.device)


def slice_cu_seqlens(segment_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """The borders of the grid rows (one t of one segment): Qwen's vision towers attend within.

    For whole grids it equals `get_vision_cu_seqlens` of transformers: [0, 24, 48, 52] for the grids
    [[2, 4, 6], [1, 2, 2]]. Taken from the tokens and not from the grids, it stays true where tokens
    were dropped. Borders of whole segments are `masks.cu_seqlens`.

    Args:
        segment_ids: ``(N,)`` integers: 1, 1, .. 2, 2, .. S, and then 0 for padding.
        positions: ``(N, 3)`` integers, t ascending in each segment.

    Returns:
        ``(rows + 1,)`` int32, starting with 0 and ending at the tokens without padding.

    Raises:
        ValueError: ids of any other form.
    """
    num_tokens = cu_seqlens(segment_ids)[-1:]
    rows = torch.stack([segment_ids.long(), positions[:, 0].long()], dim=1)
    begins = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
    begins[1:] = (rows[1:] != rows[:-1]).any(dim=1)
    begins &= segment_ids != 0
    return torch.cat([begins.nonzero().flatten().int(), num_tokens])


def grids_of(segment_ids: torch.Tensor, grid_thw: torch.Tensor) -> torch.Tensor:
    """The grid of each token's segment, ``(N, 3)`` int64; 1, 1, 1 for padding."""
    grids = grid_thw.to(segment_ids.device).long()
    return torch.cat([grids.new_ones(1, 3), grids])[segment_ids.long()]
