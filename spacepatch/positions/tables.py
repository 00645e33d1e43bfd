"""Learned tables of position embeddings, and the slot of the class token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812

from spacepatch.masks import cu_seqlens
from spacepatch.positions.coordinates import frame_index


def factorized_embedding(coordinates: torch.Tensor, tables: Sequence[torch.Tensor]) -> torch.Tensor:
    """The sum of one learned embedding an axis (NaViT, arXiv 2307.06304, section 2.1).

    Args:
        coordinates: ``(N, A)`` integers, say `positions[:, 1:]` for h and w.
        tables: A tensors ``(longest side, D)``, in the order of the axes.

    Returns:
        ``(N, D)``.

    Raises:
        ValueError: another number of tables than of axes.
    """
    if coordinates.shape[1] != len(tables):
        raise ValueError(f"{len(tables)} tables for {coordinates.shape[1]} axes")
    rows = [table[coordinates[:, axis].long()] for axis, table in enumerate(tables)]
    return torch.stack(rows).sum(dim=0)


def resize_table(
    table: torch.Tensor,
    *,
    grid: tuple[int, int],
    new_grid: tuple[int, int],
    num_prefix: int = 0,
    mode: str = "bicubic",
) -> torch.Tensor:
    """Interpolate a learned 2-D table to another grid, by the target's size and never by a factor.

    `bicubic` antialiased is timm's rule (timm/layers/pos_embed.py, `resample_abs_pos_embed`).
    `bilinear` antialiased is FlexiViT's `jax.image.resize(.., "linear")` (big_vision,
    models/proj/flexi/vit.py) and SigLIP 2's.

    Args:
        table: ``(num_prefix + h * w, D)``, in raster order.
        grid: its own (h, w).
        new_grid: (h, w) wanted.
        num_prefix: rows before the grid that are kept as they are: 1 with ViT's class slot.
        mode: `bicubic` or `bilinear`.

    Returns:
        ``(num_prefix + new_h * new_w, D)``, in the dtype of `table`; computed in float32 at least.

    Raises:
        ValueError: the table does not fill its grid.
    """
    h, w = grid
    if len(table) != num_prefix + h * w:
        raise ValueError(f"a table of {len(table)} rows is not {num_prefix} + {h} x {w}")
    if tuple(new_grid) == (h, w):
        return table
    image = table[num_prefix:].to(torch.promote_types(table.dtype, torch.float32))
    image = image.view(1, h, w, -1).permute(0, 3, 1, 2)
    image = F.interpolate(image, size=tuple(new_grid), mode=mode, antialias=True)
    return torch.cat([table[:num_prefix], image[0].flatten(1).T.to(table.dtype)])


def packed_table(
    table: torch.Tensor,
    positions: torch.Tensor,
    segment_ids: torch.Tensor,
    grid_thw: torch.Tensor,
    *,
    grid: tuple[int, int],
    mode: str = "bicubic",
) -> torch.Tensor:
    """The embedding of each token of a pack from one 2-D table, resized once for each grid in it.

    Args:
        table: ``(h * w, D)``, without a class slot: see `insert_class_tokens`.
        positions: ``(N, 3)`` integers t, h, w; t plays no part.
        segment_ids: ``(N,)`` integers, 0 = padding.
        grid_thw: ``(S, 3)`` integers.
        grid: (h, w) of the table.
        mode: as `resize_table`.

    Returns:
        ``(N, D)``; padding gets zeros.
    """
    resized = [torch.zeros_like(table[:1])]
    starts = {}
    for _, h, w in grid_thw.tolist():
        if (h, w) not in starts:
            starts[h, w] = sum(map(len, resized))
            resized.append(resize_table(table, grid=grid, new_grid=(h, w), mode=mode))
    first = [0, *(starts[h, w] for _, h, w in grid_thw.tolist())]
    places = torch.tensor(first, device=segment_ids.device)[segment_ids.long()]
    return torch.cat(resized)[places + frame_index(positions, segment_ids, grid_thw)]


@dataclass(frozen=True)
class ClassSlots:
    """A pack of L tokens in which each segment begins with a class token."""

    index: torch.Tensor
    """``(L,)`` int64 into `torch.cat([class_row, rows])`: 0 for a class token (and for padding,
    where it means nothing), k + 1 for token k of the pack. Embeddings go the way of tokens."""
    segment_ids: torch.Tensor
    """``(L,)`` as before, with each class token in its segment."""
    positions: torch.Tensor
    """``(L, 3)`` as before, with 0, 0, 0 for class tokens: a rotary embedding leaves them as they
    are."""
    cu_seqlens: torch.Tensor
    """``(S + 1,)`` int32; `cu_seqlens[:-1]` are the places of the class tokens."""


def insert_class_tokens(
    segment_ids: torch.Tensor, positions: torch.Tensor, *, length: int | None = None
) -> ClassSlots:
    """Make room for one class token at the start of each segment (ViT, arXiv 2010.11929, eq. 1).

        slots = insert_class_tokens(segment_ids, positions)
        tokens = torch.cat([class_token[None], embedded])[slots.index]
        tokens += torch.cat([table[:1], packed_table(table[1:], ...)])[slots.index]

    Args:
        segment_ids: ``(N,)`` integers: 1, 1, .. 2, 2, .. S, and then 0 for padding.
        positions: ``(N, 3)`` integers.
        length: L, so that packs of differing S stack; default: N + S.

    Raises:
        ValueError: ids of any other form, or tokens and class tokens are more than `length`.
    """
    borders = cu_seqlens(segment_ids)
    num_tokens, num_segments = int(borders[-1]), len(borders) - 1
    length = len(segment_ids) + num_segments if length is None else length
    if num_tokens + num_segments > length:
        raise ValueError(f"{num_tokens} tokens and {num_segments} class tokens exceed {length}")
    ids = segment_ids[:num_tokens]
    tokens = torch.arange(num_tokens, device=ids.device)
    segments = torch.arange(num_segments + 1, device=ids.device)
    # Before a token of segment s lie s class tokens, its own among them.
    places = tokens + ids
    starts = borders + segments
    index = torch.zeros(length, dtype=torch.int64, device=ids.device)
    index[places] = tokens + 1
    new_ids = segment_ids.new_zeros(length)
    new_ids[places] = ids
    new_ids[starts[:-1]] = segments[1:].to(ids.dtype)
    new_positions = positions.new_zeros(length, 3)
    new_positions[places] = positions[:num_tokens]
    return ClassSlots(index, new_ids, new_positions, starts.int())
