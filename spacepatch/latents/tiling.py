"""Encode in tiles, as some models of diffusers can: on request, and only where it is right."""

from __future__ import annotations

from typing import Any

from spacepatch.errors import ConfigError
from spacepatch.latents.autoencoders import Facts

TILED = (
    "AutoencoderKL",
    "AutoencoderTiny",
    "AutoencoderDC",
    "AutoencoderKLWan",
    "AutoencoderKLHunyuanVideo",
    "AutoencoderKLCogVideoX",
    "AutoencoderKLLTXVideo",
    "AutoencoderKLMochi",
)
"""Classes that put the latents of every tile in their place. Two more have the switch: the encode
of AutoencoderKLCosmos never looks at it, and that of AutoencoderKLMagvit joins tiles without
cutting off what they share, so that latents of the second tile lie where they do not belong."""


def turn_on_tiles(model: Any, facts: Facts) -> dict[str, float]:
    """Have a model encode and decode frames that are larger than its tiles in tiles.

    Returns:
        The sizes of its tiles and of what they share, by the names that diffusers has for them.

    Raises:
        ConfigError: it has no tiles, or they do not begin where latents begin.
    """
    name = type(model).__name__
    if name not in TILED:
        raise _refused(f"{name} has no tiles, or wrong ones (those that have: {', '.join(TILED)})")
    if name == "AutoencoderTiny" and facts.channels != 4:
        raise _refused(f"{name} has tiles for 4 latent channels only, not for {facts.channels}")
    model.enable_tiling()
    sizes = {key: value for key, value in vars(model).items() if key.startswith("tile_")}
    for axis in ("size", "height", "width"):
        if f"tile_sample_min_{axis}" in sizes and not _is_whole(sizes, axis, facts.stride[1]):
            pixels = sizes[f"tile_sample_min_{axis}"]
            raise _refused(
                f"the tiles of {pixels} pixels of this {name} do not begin where latents begin"
            )
    return sizes


def _is_whole(sizes: dict[str, float], axis: str, side: int) -> bool:
    """Whether tiles are as far from each other in pixels as their latents are in latents."""
    pixels, step = sizes[f"tile_sample_min_{axis}"], sizes.get(f"tile_sample_stride_{axis}")
    if not isinstance(pixels, int):
        return False
    if step is not None:
        return pixels % side == 0 and step % side == 0
    # With the roundings of diffusers.
    latents = sizes[f"tile_latent_min_{axis}"]
    either = (f"tile_overlap_factor_{axis}", "tile_overlap_factor")
    share = next(sizes[key] for key in either if key in sizes)
    return int(pixels * (1 - share)) == side * (latents - int(latents * share))


def _refused(reason: str) -> ConfigError:
    return ConfigError(f"--encode-tiles: {reason}; leave it out")
