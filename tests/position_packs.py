"""Packs made by loops, for the tests of positions: what the loader yields, token by token."""

from __future__ import annotations

import torch


def make_pack(grids, *, merge=1, padding=0, keep=None):
    """(positions, segment_ids, grid_thw) of whole grids in the order `merge m x m`.

    `keep(k)` says whether the k-th token stays.
    """
    rows, ids = [], []
    for segment, (grid_t, grid_h, grid_w) in enumerate(grids, 1):
        for t in range(grid_t):
            for block_h in range(0, grid_h, merge):
                for block_w in range(0, grid_w, merge):
                    for h in range(block_h, block_h + merge):
                        for w in range(block_w, block_w + merge):
                            rows.append((t, h, w))
                            ids.append(segment)
    places = [place for place in range(len(rows)) if keep is None or keep(place)]
    rows = [rows[place] for place in places] + [(0, 0, 0)] * padding
    ids = [ids[place] for place in places] + [0] * padding
    return (
        torch.tensor(rows, dtype=torch.int32).reshape(-1, 3),
        torch.tensor(ids, dtype=torch.int32),
        torch.tensor(grids, dtype=torch.int32),
    )
