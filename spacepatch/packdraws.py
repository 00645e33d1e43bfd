"""What is drawn of a pack anew each epoch: the tokens that are dropped, those that a model sees."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from spacepatch.drop import Drop, StaticDrop, keep_random, parse_drop
from spacepatch.randomness import Draws
from spacepatch.shards import PackMembers
from spacepatch.visible import Mask


def read_drop(text: str) -> Drop:
    drop = parse_drop(text)
    if isinstance(drop, StaticDrop):
        raise ValueError(
            f"drop {text!r}: what stands still is found in frames, when they are cut: "
            f"spacepatch tokenize --drop {drop}"
        )
    return drop


def drop_tokens(pack: PackMembers, drop: Drop, key: tuple[int, int]) -> PackMembers:
    """What is left of a pack, in the order that it was in; at least one token of each segment."""
    table = pack.segments.copy()
    described, kept, length = [], [], 0
    for row, segment in zip(table, pack.document["segments"], strict=True):
        offset, num_tokens = row[:2].tolist()
        identity = segment["segment_id"]
        num_kept = drop.draw(Draws(*key, identity, "drop")).num_kept(num_tokens)
        kept.append(offset + keep_random(num_tokens, num_kept, draws=Draws(*key, identity, "keep")))
        row[:2] = length, num_kept
        described.append(segment | {"offset": length, "num_kept": num_kept})
        length += num_kept
    index = np.concatenate(kept)
    return replace(
        pack,
        tokens=pack.tokens[index],
        segments=table,
        segment_ids=pack.segment_ids[index],
        positions=pack.positions[index],
        run_lengths=None if pack.run_lengths is None else pack.run_lengths[index],
        visible=None if pack.visible is None else pack.visible[index],
        document=pack.document | {"segments": described},
    )


def draw_visible(pack: PackMembers, mask: Mask, key: tuple[int, int]) -> np.ndarray:
    """``(N,)`` bool: a mask over the whole grid of each segment, at the tokens that there are."""
    visible = []
    for row, segment in zip(pack.segments.tolist(), pack.document["segments"], strict=True):
        offset, num_kept, *grid = row[:5]
        drawn = mask.visible(tuple(grid), Draws(*key, segment["segment_id"], "mask"))
        places = pack.positions[offset : offset + num_kept].astype(np.int64)
        visible.append(drawn.reshape(grid)[tuple(places.T)])
    return np.concatenate(visible)
