"""Who may attend to whom, as SDPA, FlexAttention and variable-length kernels take it.

Segments are told by their ids, and time and raster order by positions. Nothing is inferred from
token values (a token of zeros is no padding) nor from the order that tokens are stored in.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn.attention.flex_attention import BlockMask

WITHIN = ("segment", "row")
"""What a token looks within: its `segment`, or its `row`, one t of it, as in Qwen's vision towers
and the spatial layers of a factorized ViViT."""


def _raster_ranks(positions: torch.Tensor) -> torch.Tensor:
    # One pair of factors for the whole pack orders the tokens of each segment rightly: they only
    # have to exceed every h and w.
    factors = positions[..., 1:].amax(dim=-2) + 1
    height, width = factors[..., :1], factors[..., 1:]
    return (positions[..., 0] * height + positions[..., 1]) * width + positions[..., 2]


def _frame_ranks(positions: torch.Tensor) -> torch.Tensor:
    return positions[..., 0]


CAUSAL: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "token": _raster_ranks,
    "frame": _frame_ranks,
}
"""What is no later than a token: `token`, those up to itself in raster order (VideoGPT, Image
Transformer); `frame`, those of its own t and before."""


def block_mask(
    segment_ids: torch.Tensor,
    positions: torch.Tensor | None = None,
    *,
    within: str = "segment",
    causal: str | None = None,
    prefix_frames: int = 0,
) -> torch.Tensor:
    """Let each token attend to its own segment, in the form `scaled_dot_product_attention` takes.

    A padding token attends to itself alone: a row without any key would be NaN after softmax, and
    poison the gradients of all rows. Its output is finite and means nothing; mask it in the loss.

    For queries of ``(B, heads, N, d)`` use ``block_mask(segment_ids)[:, None]``. The mask takes
    N * N bytes: make it once a batch, not once a layer, or use `flex_mask`.

    Args:
        segment_ids: ``(..., N)`` integers, 0 = padding.
        positions: ``(..., N, 3)`` integers t, h, w; needed by `within` = "row" and by `causal`.
        within: one of `WITHIN`.
        causal: one of `CAUSAL`, or all tokens.
        prefix_frames: with `causal`: tokens of t < `prefix_frames` condition the others. They see
            each other in both directions, later tokens see all of them, they see none later.

    Returns:
        ``(..., N, N)`` bool, True where token i (row) may see token j (column).

    Raises:
        ValueError: an unknown word; no positions where they are needed; `prefix_frames` without
            `causal`.
    """
    groups, ranks = _groups_and_ranks(segment_ids, positions, within, causal, prefix_frames)
    mask = groups[..., :, None] == groups[..., None, :]
    if causal is not None:
        mask &= ranks[..., None, :] <= ranks[..., :, None]
    return mask


def flex_mask(
    segment_ids: torch.Tensor,
    positions: torch.Tensor | None = None,
    *,
    within: str = "segment",
    causal: str | None = None,
    prefix_frames: int = 0,
    block_size: int = 128,
) -> BlockMask:
    """`block_mask` in the form `flex_attention` takes, without the N x N of the dense mask.

    It holds two int64 a token and tables of 4 * (N / block_size)**2 int32; `create_block_mask` of
    PyTorch makes the dense mask on its way. Masks of packs of one shape differ in their tensors
    alone, so a compiled model does not recompile: make one outside of the model for each batch, in
    the process that trains (PyTorch cannot send it from a worker).

    A block counts as empty or full by the ranges of segments and times in it. So the mask is exact
    in any order of tokens, and skips most in the stored one.

    Args:
        segment_ids: ``(N,)`` or ``(B, N)`` integers, 0 = padding.
        positions: ``(N, 3)`` or ``(B, N, 3)``, as in `block_mask`.
        within: as in `block_mask`.
        causal: as in `block_mask`.
        prefix_frames: as in `block_mask`.
        block_size: tokens of a block, both of queries and of keys.

    Returns:
        A mask for queries of ``(B, heads, N, d)``, the same for all heads; B is 1 for one pack.

    Raises:
        ValueError: as `block_mask`.
    """
    num_tokens = segment_ids.shape[-1]
    groups, ranks = (
        tensor.reshape(-1, num_tokens)
        for tensor in _groups_and_ranks(segment_ids, positions, within, causal, prefix_frames)
    )
    low_group, high_group = _block_ranges(groups, block_size)
    low_rank, high_rank = _block_ranges(ranks, block_size)
    some = (low_group[:, :, None] <= high_group[:, None]) & (
        low_group[:, None] <= high_group[:, :, None]
    )
    some &= low_rank[:, None] <= high_rank[:, :, None]
    # Full: all queries and all keys are of one group, and no key is later than any query.
    full = (low_group[:, :, None] == high_group[:, None]) & (
        low_group[:, None] == high_group[:, :, None]
    )
    full &= high_rank[:, None] <= low_rank[:, :, None]
    if num_tokens % block_size:
        # A block that ends past the tokens is not full: kernels check no border in full ones.
        full[:, -1, :] = False
        full[:, :, -1] = False

    def sees(
        pack: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor
    ) -> torch.Tensor:
        same = groups[pack, query] == groups[pack, key]
        return same & (ranks[pack, key] <= ranks[pack, query])

    return BlockMask.from_kv_blocks(
        *_listed(some & ~full),
        *_listed(full),
        BLOCK_SIZE=block_size,
        mask_mod=sees,
        seq_lengths=(num_tokens, num_tokens),
    )


def cu_seqlens(segment_ids: torch.Tensor) -> torch.Tensor:
    """The borders of the segments of one pack, as variable-length attention kernels take them.

    Args:
        segment_ids: ``(N,)`` integers: 1, 1, .. 2, 2, .. S, and then 0 for padding.

    Returns:
        ``(S + 1,)`` int32 on the same device: starts with 0, strictly increasing, ends at the kept
        tokens, so that padding belongs to no segment. All padding gives ``[0]``.

    Raises:
        ValueError: the ids are not of that form; a kernel would read past its buffers.
    """
    if segment_ids.ndim != 1:
        raise ValueError(f"segment_ids of one pack are (N,), not {tuple(segment_ids.shape)}")
    ids = segment_ids.long()
    before = torch.cat([ids.new_zeros(1), ids])[:-1]
    step = ids - before
    # The first of a segment; within one; padding, which nothing but padding follows.
    begins = (step == 1) & ((before > 0) | (torch.arange(len(ids), device=ids.device) == 0))
    valid = begins | (step == 0) | (ids == 0)
    if not valid.all():
        place = int((~valid).nonzero()[0])
        raise ValueError(
            f"segment_ids[{place}] is {int(ids[place])} after {int(before[place])}; "
            "they must be 1, 1, .. 2, 2, .. and then 0 for padding"
        )
    ends = torch.count_nonzero(ids)[None]
    return torch.cat([begins.nonzero().flatten(), ends]).int()


def _groups_and_ranks(
    segment_ids: torch.Tensor,
    positions: torch.Tensor | None,
    within: str,
    causal: str | None,
    prefix_frames: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Every mask as two numbers a token, both ``(..., N)`` int64.

    Token i sees token j where their groups are equal and the rank of j is no higher than that of i.
    """
    if within not in WITHIN:
        raise ValueError(f"unknown within {within!r}; one of {', '.join(WITHIN)}")
    if causal is not None and causal not in CAUSAL:
        raise ValueError(f"unknown causal {causal!r}; one of {', '.join(CAUSAL)}")
    if prefix_frames < 0 or (prefix_frames and causal is None):
        raise ValueError(
            f"prefix_frames={prefix_frames} with causal={causal!r}: it is a number of frames that "
            f"the causal order is lifted for; give causal, one of {', '.join(CAUSAL)}"
        )
    if segment_ids.shape[-1] == 0:
        return segment_ids.long(), segment_ids.long()

    groups, ranks = segment_ids.long(), torch.zeros_like(segment_ids, dtype=torch.int64)
    if within == "row" or causal is not None:
        if positions is None:
            asked = f"causal={causal!r}" if causal is not None else f"within={within!r}"
            raise ValueError(f"{asked} goes by t, h, w: give positions, (.., N, 3)")
        places = positions.long()
        times = places[..., 0]
        if within == "row":
            groups = groups * (times.amax(dim=-1, keepdim=True) + 1) + times
        if causal is not None:
            # The tokens of the prefix are all as early as one another.
            ranks = (CAUSAL[causal](places) + 1).masked_fill(times < prefix_frames, 0)

    # Each padding token is a group of its own. Groups beyond all others keep blocks apart.
    padding = segment_ids == 0
    numbers = torch.arange(1, segment_ids.shape[-1] + 1, device=segment_ids.device)
    own = groups.masked_fill(padding, 0).amax(dim=-1, keepdim=True) + numbers
    return torch.where(padding, own, groups), ranks


def _block_ranges(numbers: torch.Tensor, block_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The lowest and the highest of each block, ``(B, blocks)``; the last may be shorter."""
    missing = -numbers.shape[-1] % block_size
    whole = torch.cat([numbers, numbers[:, -1:].expand(-1, missing)], dim=1)
    lowest, highest = whole.view(len(whole), -1, block_size).aminmax(dim=-1)
    return lowest, highest


def _listed(blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``(B, queries, keys)`` bool as a count and, first those that count, indices of key blocks."""
    table = blocks[:, None].int()
    indices = table.argsort(dim=-1, descending=True, stable=True)
    return table.sum(dim=-1, dtype=torch.int32), indices.int()
