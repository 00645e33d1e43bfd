"""What must be known of each autoencoder class of diffusers, read from the config of the model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from spacepatch.framerules import FrameRule

Config = Mapping[str, Any]
"""The arguments that the class was built with: config.json, and its own defaults for the rest."""

FRAMES = FrameRule(0, 1)
"""Of a class that takes images: each frame by itself."""


class Unsupported(Exception):
    """A config of a known class that its own `encode` cannot serve; the message says why."""


@dataclass(frozen=True, slots=True)
class Facts:
    """How a model turns pixels into latents."""

    stride: tuple[int, int, int]
    """Frames, rows and columns of pixels for each latent."""
    channels: int
    """Of a latent."""
    output: str
    """What `encode` returns: `gaussian` (a mean and a variance), `latents`, or `vectors` that a
    codebook then turns into codes."""
    rule: FrameRule = FRAMES
    is_video: bool = False
    """Whether it takes a clip at once, or images."""
    codebook_size: int | None = None


def _kl(config: Config) -> Facts:
    side = 2 ** (len(config["block_out_channels"]) - 1)
    return Facts((1, side, side), config["latent_channels"], "gaussian")


def _vq(config: Config) -> Facts:
    side, size = 2 ** (len(config["block_out_channels"]) - 1), config["num_vq_embeddings"]
    return Facts((1, side, side), 1, "vectors", codebook_size=size)


def _latents(config: Config) -> Facts:
    # AutoencoderTiny and AutoencoderDC: every stage but one halves the sides.
    side = 2 ** (len(config["encoder_block_out_channels"]) - 1)
    return Facts((1, side, side), config["latent_channels"], "latents")


def _causal(step: int, side: int, channels: int, output: str = "gaussian") -> Facts:
    return Facts((step, side, side), channels, output, FrameRule(1, step), is_video=True)


def _wan(config: Config) -> Facts:
    step = 2 ** sum(map(bool, config["temperal_downsample"]))
    # `_encode` reads the first frame, then 4 at a time, whatever the config says, and leaves out
    # what is over: with another stride it would lose frames that the rule promises to keep.
    if step != 4:
        raise Unsupported(f"temperal_downsample makes 1 latent of {step} frames, must be of 4")
    side = 2 ** (len(config["dim_mult"]) - 1) * (config.get("patch_size") or 1)
    return _causal(step, side, config["z_dim"])


def _hunyuan_video(config: Config) -> Facts:
    step, side = config["temporal_compression_ratio"], config["spatial_compression_ratio"]
    return _causal(step, side, config["latent_channels"])


def _cogvideox(config: Config) -> Facts:
    step = int(config["temporal_compression_ratio"])
    # It reads 8 frames at a time, and what is over with the first of these.
    if 8 % step:
        raise Unsupported(f"temporal_compression_ratio is {step}, must divide 8")
    return _causal(step, 2 ** (len(config["block_out_channels"]) - 1), config["latent_channels"])


def _ltx_video(config: Config) -> Facts:
    if config["patch_size_t"] != 1:
        raise Unsupported(f"patch_size_t is {config['patch_size_t']}, must be 1")
    step, side = 1, config["patch_size"]
    for scales, kind in zip(
        config["spatio_temporal_scaling"], config["downsample_type"], strict=False
    ):
        if scales:
            step *= 1 if kind == "spatial" else 2
            side *= 1 if kind == "temporal" else 2
    return _causal(step, side, config["latent_channels"])


def _mochi(config: Config) -> Facts:
    step, side = math.prod(config["temporal_expansions"]), math.prod(config["spatial_expansions"])
    return _causal(step, side, config["latent_channels"])


def _cosmos(config: Config) -> Facts:
    step, side = config["temporal_compression_ratio"], config["spatial_compression_ratio"]
    return _causal(step, side, config["latent_channels"], "latents")


def _magvit(config: Config) -> Facts:
    # The last block halves nothing.
    halving = config["down_block_types"][:-1]
    step = 2 ** sum(kind == "SpatialTemporalDownBlock3D" for kind in halving)
    # It reads the first frame, then 4 at a time.
    if 4 % step:
        raise Unsupported(f"down_block_types make 1 latent of {step} frames, must divide 4")
    return _causal(step, 2 ** len(halving), config["latent_channels"])


AUTOENCODERS: dict[str, Callable[[Config], Facts]] = {
    "AutoencoderKL": _kl,
    "AutoencoderKLTemporalDecoder": _kl,
    "AutoencoderTiny": _latents,
    "AutoencoderDC": _latents,
    "VQModel": _vq,
    "AutoencoderKLWan": _wan,
    "AutoencoderKLHunyuanVideo": _hunyuan_video,
    "AutoencoderKLCogVideoX": _cogvideox,
    "AutoencoderKLLTXVideo": _ltx_video,
    "AutoencoderKLMochi": _mochi,
    "AutoencoderKLCosmos": _cosmos,
    "AutoencoderKLMagvit": _magvit,
}
"""Classes of diffusers by the `_class_name` of config.json. All take pixels as -1 to 1."""
