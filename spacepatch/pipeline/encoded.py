"""What a shard of an encoder's tokens has besides them: sums of channels, pixels, its encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from spacepatch.arena import Arena
from spacepatch.data import EncoderFacts
from spacepatch.latentwriter import pixel_clip
from spacepatch.pipeline.plan import Plan
from spacepatch.pipeline.segments import Made
from spacepatch.shards import Layout, SegmentContent
from spacepatch.token_dtypes import from_stored
from spacepatch.tubelets import LAYOUTS

RECEIPT_KEYS = ("name", "kind", "rule", "stride", "channels", "codebook_size", "is_local")
"""What a shard alone must say of its encoder, to be read without dataset.json."""

TOKENS_AT_ONCE = 2**14

Packs = Sequence[Sequence[SegmentContent]]


def encoder_of_receipt(facts: EncoderFacts) -> dict[str, Any]:
    values = facts.to_json()
    return {key: values[key] for key in RECEIPT_KEYS}


def encoder_of_dataset(
    facts: EncoderFacts, sums: Sequence[list[list[float]] | None]
) -> dict[str, Any]:
    """What dataset.json says of the encoder: its facts, and what was measured of its latents.

    `mean` and `std` are of each channel, over all that was written; None for codes.
    """
    return facts.to_json() | measured(sums)


def measured(sums: Sequence[list[list[float]] | None]) -> dict[str, Any]:
    """`mean` and `std` of each channel, from the sums of shards in their order."""
    found = [np.array(entry, np.float64) for entry in sums if entry is not None]
    if not found or not found[0].size:
        return {"mean": None, "std": None}
    counts, firsts, seconds = np.sum(found, axis=0)
    means = firsts / counts
    deviations = np.sqrt(np.maximum(seconds / counts - np.square(means), 0))
    return {"mean": means.tolist(), "std": deviations.tolist()}


def channel_sums(plan: Plan, packs: Packs) -> list[list[float]] | None:
    """Counts, sums and sums of squares of each channel; None without latents."""
    facts, layout = plan.encoder, plan.layout
    if facts is None or facts.kind != "latents":
        return None
    sums = np.zeros((3, facts.channels))
    for pack in packs:
        for content in pack:
            for start in range(0, len(content.tokens), TOKENS_AT_ONCE):
                stored = content.tokens[start : start + TOKENS_AT_ONCE]
                values = by_channel(
                    from_stored(stored, layout.token_dtype).astype(np.float64),
                    channels=facts.channels,
                    layout=plan.settings["layout"],
                )
                sums[0] += len(values)
                sums[1] += values.sum(axis=0)
                sums[2] += np.square(values).sum(axis=0)
    return sums.tolist() if packs else None


def by_channel(tokens: np.ndarray, *, channels: int, layout: str) -> np.ndarray:
    """``(N, D)`` tokens to ``(N * D / channels, channels)``: a row a cell."""
    if LAYOUTS[layout][0] == 0:
        return tokens.reshape(len(tokens), channels, -1).transpose(0, 2, 1).reshape(-1, channels)
    return tokens.reshape(-1, channels)


def with_pixels(
    content: SegmentContent, made: Made, arena: Arena, layout: Layout
) -> SegmentContent:
    """A whole clip's segment with its pixel tokens, which lie after its others in the arena."""
    assert layout.pixel_tubelet is not None, "there are such"
    _, grid_h, grid_w = pixel_clip(made.spec, layout.pixel_tubelet).grid_thw
    count, width = made.tokens.num_pixel_tokens, layout.width_of(made.spec)
    start = made.offset + made.spec.num_kept * layout.content_bytes(width)
    pixels = arena.tokens(start, count=count, dtype="uint8", width=layout.pixel_width)
    return replace(content, pixels=pixels, pixel_grid=(count // (grid_h * grid_w), grid_h, grid_w))


def pixel_counts(packs: Packs) -> dict[str, int]:
    """What a receipt says of pixel tokens: how many, and the most in a pack."""
    counts = [
        sum(len(content.pixels) for content in pack if content.pixels is not None) for pack in packs
    ]
    return {"pixel_tokens": sum(counts), "pack_pixel_tokens": max(counts, default=0)}
