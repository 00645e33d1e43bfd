"""Masked prediction with an encoder that sees visible tokens only, packed by how many those are."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch.nn.functional import pad

from spacepatch.loader.batches import collate
from spacepatch.loader.dataset import PackDataset
from spacepatch.loader.loading import PackLoader
from spacepatch.visible import MASKS, RandomMask, TubeMask

LENGTH_UNIT = 64
"""Lengths of encoder sequences are multiples of so many tokens, as kernels like them."""


def visible_packs(
    packs: PackDataset,
    mask_rate: float,
    *,
    kind: str = "random",
    packs_per_step: int | None = None,
    **options: Any,
) -> PackLoader:
    """Several stored packs a step, of which the visible tokens fill one sequence of the encoder.

    An asymmetric autoencoder (MAE, arXiv 2111.06377; VideoMAE, arXiv 2203.12602) encodes what is
    visible and decodes everything. With 75 % masked, four stored packs make one sequence of the
    encoder, which then has a quarter of the tokens of the decoder, and next to no padding.

    Args:
        packs: padded. Their mask is replaced.
        mask_rate: in [0, 1), the share of tokens that is hidden, drawn anew each epoch.
        kind: ``random``, or ``tube``: the same places in all rows.
        packs_per_step: stored packs g; default: as many as fill a sequence of about `pack_length`.
        options: of `PackLoader`.

    Returns:
        A loader whose batches are dicts. Of the encoder, in one sequence of E tokens, the same E in
        all batches: ``tokens`` (E, D), ``segment_ids`` (E,) int32, 1 to S over all g packs, 0 =
        padding, ``positions`` (E, 3) and ``seconds`` (E,), ``cu_seqlens`` (S + 1,) int32,
        ``max_seqlen``, ``num_tokens``, ``grid_thw`` (S, 3), and ``places`` (S, 2) int64: the stored
        pack of each segment, 0 to g - 1, and its segment id there; a segment of which nothing is
        visible is not among them. Of the decoder ``packs``: the g stored packs as `collate` makes
        them, with ``visible`` (g, N); and ``restore`` (g, N) int64, so that
        ``cat([encoded, fill])[restore]`` is (g, N, C), where ``encoded`` is (E, C) and ``fill``
        (1, C) stands for all tokens that are masked, and for padding.

    Raises:
        ValueError: there is no such mask; the packs are not padded, or varied.
    """
    if packs.is_varied:
        raise ValueError(
            "visible_packs sizes its sequence by the segments as stored, and vary makes others: "
            "take the visible tokens of PackDataset(.., mask=..)"
        )
    if not packs.padded:
        raise ValueError("visible_packs needs padded packs: the decoder's stack to a batch")
    if kind not in MASKS:
        raise ValueError(f"kind is {kind!r}, must be one of {', '.join(MASKS)}")
    if not 0 <= mask_rate < 1:
        raise ValueError(f"mask_rate is {mask_rate}, must be in [0, 1)")
    mask = MASKS[kind](Fraction(str(mask_rate)))
    if not len(packs):
        raise ValueError(f"{packs.folder}: there are no packs: was everything lost?")
    lengths = _visible_lengths(packs, mask)
    if packs_per_step is None:
        packs_per_step = max(1, round(packs.pack_length / int(lengths.max())))
    most = max(_most(packs, lengths[group], packs_per_step) for group in _widths(packs))
    masked = copy.copy(packs)
    masked.set_mask(mask)
    return PackLoader(
        masked,
        batch_size=packs_per_step,
        collate_fn=_Gather(-(-most // LENGTH_UNIT) * LENGTH_UNIT),
        **options,
    )


def _widths(packs: PackDataset) -> list[np.ndarray]:
    return [packs.packs.of_width(width, 0) for width in packs.packs.widths()]


def _most(packs: PackDataset, lengths: np.ndarray, packs_per_step: int) -> int:
    """Visible tokens of the fullest step. Few packs come several times in one, and the longest may
    come in the place of bad ones."""
    longest = np.sort(lengths)[::-1]
    if packs.can_replace:
        longest = longest[:1]
    return int(np.resize(longest, packs_per_step).sum())


def _visible_lengths(packs: PackDataset, mask: RandomMask | TubeMask) -> np.ndarray:
    """``(packs,)`` int64: the visible tokens of each; where tokens were dropped, no more than."""
    table = packs.segments
    grids, numbers = np.unique(table.grid_thw, axis=0, return_inverse=True)
    visible = np.array([mask.num_visible(tuple(grid)) for grid in grids.tolist()])
    lengths = table.per_pack(np.minimum(visible[numbers.ravel()], table.num_kept))
    return np.asarray(lengths[table.places_of(packs.packs)])


@dataclass(frozen=True, slots=True)
class _Gather:
    length: int
    """Tokens of the encoder's sequence."""

    def __call__(self, packs: list[dict[str, Any]]) -> dict[str, Any]:
        decoder = collate(packs)
        visible = decoder["visible"]
        num_tokens = int(visible.sum())
        # A number for each segment of all packs; those that are there are numbered 1, 2, ..
        ids = decoder["segment_ids"]
        keys = ids.long() + torch.arange(len(ids))[:, None] * (int(ids.max()) + 1)
        found, numbers, counts = torch.unique_consecutive(
            keys[visible], return_inverse=True, return_counts=True
        )
        places = torch.stack([found // (int(ids.max()) + 1), found % (int(ids.max()) + 1)], dim=-1)
        restore = torch.full(visible.shape, self.length)
        restore[visible] = torch.arange(num_tokens)
        grids = [decoder["grid_thw"][pack][segment - 1] for pack, segment in places.tolist()]
        return {
            "tokens": self._filled(decoder["tokens"][visible]),
            "segment_ids": self._filled(numbers.int() + 1),
            "positions": self._filled(decoder["positions"][visible]),
            "seconds": self._filled(decoder["seconds"][visible]),
            "cu_seqlens": pad(counts.cumsum(0), (1, 0)).int(),
            "max_seqlen": int(counts.max()) if num_tokens else 0,
            "num_tokens": num_tokens,
            "grid_thw": torch.stack(grids) if grids else torch.zeros(0, 3, dtype=torch.int32),
            "places": places,
            "restore": restore,
            "packs": decoder,
        }

    def _filled(self, rows: torch.Tensor) -> torch.Tensor:
        out = rows.new_zeros(self.length, *rows.shape[1:])
        out[: len(rows)] = rows
        return out
