"""What a whole plan has in common: the layout of its packs, and the fingerprints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from spacepatch.config import RunConfig, fingerprint
from spacepatch.config.stores import floor_of
from spacepatch.data import ClipSpec, EncoderFacts
from spacepatch.drop import static_threshold
from spacepatch.environment import environment
from spacepatch.pipeline.encoders import pixel_tubelet_of
from spacepatch.shards import Layout
from spacepatch.token_dtypes import code_dtype
from spacepatch.tubelets import token_width

SMALL_TOKEN_BYTES = 64
"""From here up an index of its own is cheap beside the token (index auto)."""


def largest_side(clips: Sequence[ClipSpec]) -> int:
    """The most cells along an axis of any of their grids."""
    return max((max(clip.grid_thw) for clip in clips), default=0)


def layout_of(config: RunConfig, largest: int, facts: EncoderFacts | None = None) -> Layout:
    """What every pack of this run has in common.

    Args:
        largest: the most cells along an axis of any grid, see `largest_side`.
    """
    channels = config.channels if facts is None else facts.channels
    dtype = "uint8"
    if facts is not None:
        size = facts.codebook_size
        dtype = config.latent_dtype if size is None else code_dtype(size)
    widths = tuple(
        token_width(tubelet_size, (height, width), channels, config.halo)
        for tubelet_size, height, width in config.patches
    )
    layout = Layout(
        pack_length=config.pack_length,
        token_dtype=dtype,
        token_widths=tuple(sorted(set(widths), reverse=True)),
        index=config.index,
        position_dtype="int16" if largest < 2**15 else "int32",
        order=config.order,
        store=config.store.partition(":")[0],
        floor=floor_of(config.store),
        channels=channels,
        halo=config.halo,
        run_lengths=static_threshold(config.drop) is not None,
        visible=config.store_mask,
        pixel_tubelet=pixel_tubelet_of(config, facts),
    )
    if layout.index != "auto":
        return layout
    index = "full" if layout.content_bytes(min(widths)) >= SMALL_TOKEN_BYTES else "compact"
    return replace(layout, index=index)


def fingerprints_of(config: RunConfig, facts: EncoderFacts | None = None) -> dict[str, str]:
    """What makes the tokens, what lays them out, and with which libraries."""
    return {
        **content_fingerprints(config.part("token"), config.part("layout"), facts),
        "environment": fingerprint(environment_of(config)),
    }


def content_fingerprints(
    token: dict[str, Any], layout: dict[str, Any], facts: EncoderFacts | None
) -> dict[str, str]:
    """The fingerprints `token` and `layout`, of the settings that are parts of them."""
    if facts is not None:
        # Whatever its file or folder is called; its constants say how tokens are to be read.
        token = token | {"encoder": facts.identity}
        layout = layout | {"constants": facts.constants}
    return {"token": fingerprint(token), "layout": fingerprint(layout)}


def environment_of(config: RunConfig) -> dict[str, str]:
    """`environment` of the libraries that these settings use."""
    kind = (config.encoder or "").partition(":")[0]
    return environment(config.resampler, config.decoder, kind, config.packer)
