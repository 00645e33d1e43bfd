"""Who may attend to whom, from segment ids alone.

Nothing is inferred from positions or token values: a token of zeros is no padding.
"""

from __future__ import annotations

import torch


def block_mask(segment_ids: torch.Tensor) -> torch.Tensor:
    """Let each token attend to its own segment, in the form `scaled_dot_product_attention` takes.

    A padding token attends to itself alone: a row without any key would be NaN after softmax, and
    poison the gradients of all rows. Its output is finite and means nothing; mask it in the loss.

    For queries of ``(B, heads, N, d)`` use ``block_mask(segment_ids)[:, None]``. The mask takes
    N * N bytes: make it once a batch, not once a layer.

    Args:
        segment_ids: ``(..., N)`` integers, 0 = padding.

    Returns:
        ``(..., N, N)`` bool, True where token i (row) may see token j (column).
    """
    keys = segment_ids[..., None, :]
    mask = (segment_ids[..., :, None] == keys) & (keys != 0)
    mask.diagonal(dim1=-2, dim2=-1).fill_(True)
    return mask


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
