"""Tiny autoencoders of video (TAEHV): of Wan 2.1 and 2.2, HunyuanVideo 1 and 1.5, LTX 2.

Facts from https://github.com/madebyollin/taehv: the order of layers, padding, trimming, and that
latents come in the space that the diffusion model itself works in.
"""

from __future__ import annotations

from math import isqrt, prod

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812

from spacepatch.errors import EncodeError
from spacepatch.framerules import FrameRule
from spacepatch.latents.tae import (
    TinyEncoder,
    build_networks,
    frames_of,
    from_channels,
    pixels_of,
    to_channels,
)
from spacepatch.latents.tiny_files import Parts
from spacepatch.latents.tiny_networks import Memory, TinyNetwork
from spacepatch.latents.transfer import to_device, to_host

ENCODER = "conv relu" + 3 * " pool halve memory memory memory" + " conv"
DECODER = "clamp conv relu" + 3 * " memory memory memory double grow plain" + " relu conv"
# By side of the pixel blocks that are made channels, and latent channels: others (MiniMax H3 has
# 24 channels, and groups of 17 frames) may count frames in another way.
_KNOWN = {
    (1, 16): "HunyuanVideo, Wan 2.1, CogVideoX, Open-Sora 1.3",
    (2, 32): "HunyuanVideo 1.5",
    (2, 48): "Wan 2.2",
    (4, 128): "LTX 2",
}


def is_video(parts: Parts) -> bool:
    """Whether these are the keys of a video model: its third layer pools frames."""
    return "2.conv.weight" in parts.encoder


class TinyVideoEncoder(TinyEncoder):
    """A `LatentEncoder` that takes 1 + k r frames, where r is 4 (LTX 2: 8).

    As in the VAEs that these models stand in for, the first latent stands for the first frame, and
    each other for the next r. It is computed from r - 1 frames more than it stands for: after the
    clip they are repeats of the last frame. The decoder's first r - 1 frames lie before the clip
    and are left out. Both is the authors' way, so nothing of a clip is added or lost.
    """

    architecture = "taehv"
    is_local = False

    def __init__(
        self, parts: Parts, *, device: torch.device, dtype: str, batch: int | None
    ) -> None:
        self._patch = _patch(parts.encoder)
        speed = _speed(parts.encoder, ENCODER, "pool")
        if parts.decoder is not None:
            _slow_down(parts.decoder, speed)
        encoder, decoder = build_networks(parts, ENCODER, DECODER, in_channels=3 * self._patch**2)
        if parts.decoder is not None and (made := _speed(parts.decoder, DECODER, "grow")) != speed:
            raise EncodeError(
                f"{parts.path}: its decoder makes {made} frames of a latent, must be {speed}: "
                "is this another model?"
            )
        if (self._patch, encoder.out_channels) not in _KNOWN:
            raise EncodeError(
                f"{parts.path}: a video model of {encoder.out_channels} latent channels and "
                f"{self._patch} x {self._patch} pixel blocks, whose frame rule is not known here; "
                f"known are those of {'; '.join(_KNOWN.values())}"
            )
        super().__init__(parts, encoder, decoder, device=device, dtype=dtype, batch=batch)
        self.rule = FrameRule(1, speed)
        self.stride = (speed, 8 * self._patch, 8 * self._patch)
        self.multiple = (8 * self._patch, 8 * self._patch)

    def _encode(self, frames: np.ndarray) -> np.ndarray:
        num, speed, batch = self.rule.num_latents(len(frames)), self.rule.step, self._batch
        moved = to_device(frames, self._device)
        seen = torch.cat([moved, moved[-1:].expand(speed - 1, -1, -1, -1)])
        memory: Memory = {}
        parts = []
        for start in range(0, num, batch):
            some = seen[start * speed : (start + batch) * speed]
            pixels = pixels_of(some, batch=batch * speed, dtype=self.dtype)
            made = self._encoder(F.pixel_unshuffle(pixels, self._patch), memory)
            parts.append(from_channels(made))
        return to_host(parts, num)

    def _decode(self, decoder: TinyNetwork, latents: np.ndarray) -> np.ndarray:
        num, height, width, _ = latents.shape
        speed, rows, columns = self.stride
        batch = self._batch
        frames = np.empty((num * speed, height * rows, width * columns, 3), np.uint8)
        memory: Memory = {}
        for start in range(0, num, batch):
            some = latents[start : start + batch].astype(np.float32)
            x = to_channels(some, batch=batch, device=self._device, dtype=self.dtype)
            made = F.pixel_shuffle(decoder(x, memory), self._patch)
            place = slice(start * speed, (start + batch) * speed)
            frames[place] = frames_of(made)[: (num - start) * speed]
        return frames[speed - 1 :]


def _patch(encoder: dict[str, torch.Tensor]) -> int:
    """Side of the pixel blocks that the first layer takes as channels; 1 where there is no telling,
    which the shapes will tell of."""
    weight = encoder.get("0.weight")
    return 1 if weight is None or weight.ndim != 4 else max(1, isqrt(weight.shape[1] // 3))


def _speed(weights: dict[str, torch.Tensor], words: str, word: str) -> int:
    """Frames for each latent: the product of what the layers called `word` pool or grow."""
    return prod(_stride(weights[key]) for key in _keys(weights, words, word))


def _slow_down(decoder: dict[str, torch.Tensor], speed: int) -> None:
    """Let the decoder make `speed` frames of a latent, in place.

    Files hold layers that grow more than the model does; of those, from the first on, it takes
    what makes the last of the frames.
    """
    for key in _keys(decoder, DECODER, "grow"):
        if _speed(decoder, DECODER, "grow") > speed:
            decoder[key] = decoder[key][-decoder[key].shape[1] :]


def _keys(weights: dict[str, torch.Tensor], words: str, word: str) -> list[str]:
    """The keys of the layers called `word`, those of them that are there."""
    keys = [f"{number}.conv.weight" for number, one in enumerate(words.split()) if one == word]
    return [key for key in keys if key in weights and weights[key].ndim == 4]


def _stride(weight: torch.Tensor) -> int:
    """Of a layer that pools (in by out channels) or grows (out by in)."""
    sides = sorted(weight.shape[:2])
    return max(1, sides[1] // max(1, sides[0]))
