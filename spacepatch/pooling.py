"""From tokens to one vector a segment, and back to the grid of each segment."""

from __future__ import annotations

import torch

from spacepatch.positions.coordinates import grids_of, raster_index


def segment_mean(
    tokens: torch.Tensor, segment_ids: torch.Tensor, *, max_segments: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean of each segment's tokens (NaViT, arXiv 2307.06304, section 2.1: masked pooling).

    Args:
        tokens: ``(..., N, D)`` floats.
        segment_ids: ``(..., N)`` integers, 0 = padding.
        max_segments: segments that there is room for: the shape is the same for every batch.

    Returns:
        ``(..., max_segments, D)`` in the dtype of `tokens`, summed in float32 at least, and
        ``(..., max_segments)`` bool, True where there is such a segment; 0 where there is none.
        Segment s is at s - 1.

    Raises:
        ValueError: ids that there is no room for (when compiled, PyTorch's own index error).
    """
    slots, counts = _slots(tokens, segment_ids, max_segments)
    sums = tokens.new_zeros(
        len(counts), tokens.shape[-1], dtype=torch.promote_types(tokens.dtype, torch.float32)
    )
    sums = sums.index_add(0, slots, tokens.flatten(0, -2).to(sums.dtype))
    means = (sums / counts[:, None].clamp(min=1)).to(tokens.dtype)
    return _by_segment(means, segment_ids), _by_segment(counts > 0, segment_ids)


def segment_max(
    tokens: torch.Tensor, segment_ids: torch.Tensor, *, max_segments: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The highest value of each segment in each of D; its gradient is shared evenly by ties.

    Arguments, results and errors are those of `segment_mean`.
    """
    slots, counts = _slots(tokens, segment_ids, max_segments)
    highest = tokens.new_zeros(len(counts), tokens.shape[-1]).scatter_reduce(
        0,
        slots[:, None].expand(-1, tokens.shape[-1]),
        tokens.flatten(0, -2),
        "amax",
        include_self=False,
    )
    return _by_segment(highest, segment_ids), _by_segment(counts > 0, segment_ids)


def scatter(
    tokens: torch.Tensor,
    positions: torch.Tensor,
    segment_ids: torch.Tensor,
    grid_thw: torch.Tensor,
) -> list[torch.Tensor]:
    """Lay the tokens of one pack out in the grids of their segments, whatever order they lie in.

    Cells whose token was dropped are 0. Which they are, tokens of ones say.

    Args:
        tokens: ``(N, ...)``, say (N, D).
        positions: ``(N, 3)`` integers t, h, w.
        segment_ids: ``(N,)`` integers, 0 = padding.
        grid_thw: ``(S, 3)`` integers.

    Returns:
        S tensors ``(T, H, W, ...)``.

    Raises:
        ValueError: ids without a grid, positions beyond it.
    """
    _check_ids(segment_ids, len(grid_thw), "the grids are")
    beyond = (positions < 0) | (positions >= grids_of(segment_ids, grid_thw))
    beyond = beyond.any(dim=1) & (segment_ids != 0)
    if beyond.any():
        place = int(beyond.nonzero()[0])
        segment = int(segment_ids[place])
        raise ValueError(
            f"positions[{place}] is {tuple(positions[place].tolist())}, beyond the grid "
            f"{tuple(grid_thw[segment - 1].tolist())} of segment {segment}"
        )
    sizes = grid_thw.prod(dim=1).tolist()
    begins = torch.tensor([0, *sizes], device=segment_ids.device).cumsum(0)
    cells = begins[segment_ids.long() - 1] + raster_index(positions, segment_ids, grid_thw)
    # By where each cell's token lies, not by where each token goes: PyTorch gathers any dtype, and
    # scatters no uint16. Padding goes to one cell more, and a dropped cell takes a token of zeros.
    cells = torch.where(segment_ids == 0, begins[-1], cells)
    sources = cells.new_full((sum(sizes) + 1,), len(tokens))
    sources[cells] = torch.arange(len(tokens), device=cells.device)
    flat = torch.cat([tokens, tokens.new_zeros(1, *tokens.shape[1:])])[sources[:-1]]
    grids = zip(torch.split(flat, sizes), grid_thw.tolist(), strict=True)
    return [rows.reshape(*grid, *tokens.shape[1:]) for rows, grid in grids]


def _slots(
    tokens: torch.Tensor, segment_ids: torch.Tensor, max_segments: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The slot of each token, ``(packs * N,)``, and the tokens of each slot, int64.

    A pack has a slot for its padding and then `max_segments`: no shape hangs on the ids.
    """
    if tokens.shape[:-1] != segment_ids.shape:
        raise ValueError(
            f"tokens {tuple(tokens.shape)} do not go with segment_ids {tuple(segment_ids.shape)}: "
            "they are (.., N, D) and (.., N)"
        )
    if not torch.compiler.is_compiling():  # a check of values would break the graph
        _check_ids(segment_ids, max_segments, "max_segments is")
    ids = segment_ids.long().reshape(-1, segment_ids.shape[-1])
    packs = torch.arange(len(ids), device=ids.device)[:, None]
    num_slots = len(ids) * (max_segments + 1)
    # Unchecked ids would fall into the slots of the next pack: an index out of range fails.
    slots = torch.where(ids > max_segments, num_slots, ids + packs * (max_segments + 1)).flatten()
    counts = slots.new_zeros(num_slots)
    return slots, counts.index_add(0, slots, torch.ones_like(slots))


def _by_segment(slots: torch.Tensor, segment_ids: torch.Tensor) -> torch.Tensor:
    """(packs (1 + max_segments)) .. -> packs max_segments .., without the slots of padding."""
    packs = segment_ids.shape[:-1]
    by_pack = slots.reshape(*packs, -1, *slots.shape[1:])
    return by_pack.narrow(len(packs), 1, by_pack.shape[len(packs)] - 1)


def _check_ids(segment_ids: torch.Tensor, most: int, what: str) -> None:
    """One look at the values, so one wait for the device."""
    outside = (segment_ids < 0) | (segment_ids > most)
    if outside.any():
        segment = int(segment_ids[outside][0])
        raise ValueError(f"segment_ids have a segment {segment}, and {what} {most}")
