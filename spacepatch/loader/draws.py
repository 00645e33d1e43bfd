"""What is drawn of a pack anew each epoch: the tokens that are dropped, their order, those that a
model sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from spacepatch.drop import Drop, StaticDrop, keep_random, parse_drop
from spacepatch.randomness import Draws
from spacepatch.shards import PackMembers
from spacepatch.visible import Mask

TOKEN_ORDERS = ("stored", "random")
"""How the tokens of a segment lie in a pack: as they are stored, or in an order that is drawn."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """A pack of which something was drawn."""

    pack: PackMembers
    chosen: list[np.ndarray]
    """Of each segment ``(num_kept,)`` int64: which of its stored tokens lie in the pack, as they
    lie there."""


def read_drop(text: str) -> Drop:
    drop = parse_drop(text)
    if isinstance(drop, StaticDrop):
        raise ValueError(
            f"drop {text!r}: what stands still is found in frames, when they are cut: "
            f"spacepatch tokenize --drop {drop}"
        )
    return drop


def choose_tokens(
    pack: PackMembers, *, drop: Drop | None, token_order: str, key: tuple[int, int]
) -> Drawn:
    """Drop tokens, at least one of each segment stays, and bring those that are left into order.

    Args:
        token_order: a word of `TOKEN_ORDERS`.
        key: seed and epoch. With the segment's id it says all that is drawn.
    """
    chosen = []
    for num_tokens, segment in zip(
        pack.segments[:, 1].tolist(), pack.document["segments"], strict=True
    ):
        identity = segment["segment_id"]
        kept = np.arange(num_tokens)
        if drop is not None:
            num_kept = drop.draw(Draws(*key, identity, "drop")).num_kept(num_tokens)
            kept = keep_random(num_tokens, num_kept, draws=Draws(*key, identity, "keep"))
        if token_order == "random":
            kept = kept[Draws(*key, identity, "order").order(len(kept))]
        chosen.append(kept)
    if drop is None and token_order == "stored":
        return Drawn(pack, chosen)
    return Drawn(_take(pack, chosen), chosen)


def draw_visible(pack: PackMembers, mask: Mask, key: tuple[int, int]) -> np.ndarray:
    """``(N,)`` bool: a mask over the whole grid of each segment, at the tokens that there are."""
    visible = []
    for row, segment in zip(pack.segments.tolist(), pack.document["segments"], strict=True):
        offset, num_kept, *grid = row[:5]
        drawn = mask.visible(tuple(grid), Draws(*key, segment["segment_id"], "mask"))
        places = pack.positions[offset : offset + num_kept].astype(np.int64)
        visible.append(drawn.reshape(grid)[tuple(places.T)])
    return np.concatenate(visible)


def encoder_order(
    drawn: Drawn, num_stored: Sequence[int]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """What of each segment the encoder takes, and how what it makes is put back.

    Args:
        num_stored: tokens of each segment as stored.

    Returns:
        keep: S arrays int64, which of the stored tokens the encoder takes, in its order: those of
            the pack, of them those that are visible.
        restore: S arrays ``(num_stored,)`` int64: ``cat([encoded, fill])[restore]`` is in stored
            order, where fill has a row for each token that the encoder did not take, in stored
            order. MAE's `ids_restore` (arXiv 2111.06377).
    """
    keeps, restores = [], []
    visible = drawn.pack.visible
    for row, chosen, total in zip(drawn.pack.segments, drawn.chosen, num_stored, strict=True):
        seen = slice(None) if visible is None else visible[row[0] : row[0] + row[1]] > 0
        keep = chosen[seen]
        taken = np.zeros(total, bool)
        taken[keep] = True
        order = np.concatenate([keep, np.flatnonzero(~taken)])
        restore = np.empty(total, np.int64)
        restore[order] = np.arange(total)
        keeps.append(keep.astype(np.int64))
        restores.append(restore)
    return keeps, restores


def _take(pack: PackMembers, chosen: list[np.ndarray]) -> PackMembers:
    """The chosen tokens of each segment, as they are chosen, one segment after the other."""
    table = pack.segments.copy()
    offsets = table[:, 0].tolist()
    lengths = np.array([len(kept) for kept in chosen])
    table[:, 1] = lengths
    table[:, 0] = np.cumsum(lengths) - lengths
    index = np.concatenate([kept + first for kept, first in zip(chosen, offsets, strict=True)])
    described = [
        segment | {"offset": offset, "num_kept": num_kept}
        for segment, (offset, num_kept) in zip(
            pack.document["segments"], table[:, :2].tolist(), strict=True
        )
    ]
    return replace(
        pack,
        tokens=pack.tokens[index],
        segments=table,
        segment_ids=np.repeat(np.arange(1, len(table) + 1, dtype=np.int32), lengths),
        positions=pack.positions[index],
        run_lengths=None if pack.run_lengths is None else pack.run_lengths[index],
        visible=None if pack.visible is None else pack.visible[index],
        document=pack.document | {"segments": described},
    )
