"""What every job of a run is told, as plain values."""

from __future__ import annotations

from typing import Any

from spacepatch.clipwriter import TokenSettings
from spacepatch.config import parse_colour
from spacepatch.data import EncoderFacts
from spacepatch.drop import static_threshold
from spacepatch.latents.encoders import EncoderSettings
from spacepatch.tubelets import merge_of


def token_settings(
    asked: dict[str, Any],
    *,
    token_dtype: str,
    encoder: EncoderSettings | None = None,
    facts: EncoderFacts | None = None,
    pixel_tubelet: tuple[int, int, int] | None = None,
) -> TokenSettings:
    """What every job of a run is told, from its effective settings."""
    return TokenSettings(
        layout=asked["layout"],
        merge=merge_of(asked["order"]),
        halo=asked["halo"],
        tail=asked["tail"],
        resampler=asked["resampler"],
        decoder=asked["decoder"],
        trust_input=asked["trust_input"],
        max_pixels=asked["max_pixels"],
        interlaced=asked["interlaced"],
        untagged=asked["untagged"],
        hdr=asked["hdr"],
        background=parse_colour(asked["background"]),
        alpha=asked["alpha"],
        allow_corrupt=asked["allow_corrupt"],
        static_threshold=static_threshold(asked["drop"]),
        token_dtype=token_dtype,
        encoder=encoder,
        facts=facts,
        pixel_tubelet=pixel_tubelet,
    )
