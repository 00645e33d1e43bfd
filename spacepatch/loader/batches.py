"""Packs to batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from spacepatch.loader.tensors import STACKED, STACKED_IF_FIXED


def collate(packs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Make a batch of padded packs, as `DataLoader(..., collate_fn=collate)`.

    Returns:
        tokens (B, N, D), segment_ids (B, N), positions (B, N, 3), seconds (B, N), and where packs
        have them run_lengths and visible (B, N), pixels (B, P, Dp), pixel_segment_ids (B, P) and
        pixel_positions (B, P, 3), as tensors. With `fixed_shapes` also those of one row a segment:
        grid_thw and patch (B, M, 3), cu_seqlens_padded (B, M + 2). The others, whose shapes differ
        from pack to pack, as lists with one entry a pack.

    Raises:
        ValueError: the tokens of the packs differ in width, or packs are not padded.
    """
    widths = sorted({pack["tokens"].shape[1] for pack in packs})
    if len(widths) > 1:
        raise ValueError(
            f"packs of tokens of {widths} values make no batch: "
            "PackDataset(.., token_width=..) has those of one width, and PackLoader makes batches "
            "of one width"
        )
    lengths = sorted({len(pack["tokens"]) for pack in packs})
    if len(lengths) > 1:
        raise ValueError(
            f"packs of {lengths} tokens make no batch: take them padded, or batch_size=1"
        )
    stacked: tuple[str, ...] = STACKED
    borders = packs[0].get("cu_seqlens_padded", ())
    if len(borders) == len(packs[0]["grid_thw"]) + 2:
        stacked += STACKED_IF_FIXED
    return {
        name: torch.stack([pack[name] for pack in packs])
        if name in stacked
        else [pack[name] for pack in packs]
        for name in packs[0]
    }
