"""Tiny autoencoders of images: TAESD, TAESDXL, TAESD3, TAEF1, TAEF2; 8 x 8 pixels a latent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from spacepatch.errors import ConfigError, EncodeError
from spacepatch.framerules import FrameRule
from spacepatch.latents.encoders import (
    EncoderSettings,
    LatentEncoder,
    check_frames,
    check_latents,
    local_path,
)
from spacepatch.latents.exactness import compute, find_device
from spacepatch.latents.tiny_files import Parts, find_parts, read_parts
from spacepatch.latents.tiny_networks import Mismatch, TinyNetwork
from spacepatch.latents.transfer import to_device, to_host

ENCODER = "conv block" + 3 * " halve block block block" + " conv"
DECODER = "clamp conv relu" + 3 * " block block block double plain" + " block conv"
STRIDE = 8
BATCH = 1
"""Frames (of video models, latents) at once by default: a CPU gains nothing by more, and a 1080p
frame takes 2 GB."""


def load_tae(asked: EncoderSettings) -> LatentEncoder:
    """Load a tiny autoencoder, of images or of video, from a folder or a weight file.

    Its keys say which it is: the authors' own (a file for each part), those of diffusers'
    AutoencoderTiny, or those of a video model. Without a decoder, `decode` returns None.
    `allow_download` and `trust` change nothing: nothing is downloaded, and nothing here can run.
    `batch` are frames; of video models, latents.

    Raises:
        ConfigError: nothing is there, or more than one file could be meant, or a pickle; or a
            posterior, which these models have none of.
        EncodeError: weights that are damaged, incomplete, of another model, or not those expected.
    """
    from spacepatch.latents.taehv import TinyVideoEncoder, is_video

    if asked.posterior != "mean":
        raise ConfigError(
            f"--posterior {asked.posterior}: {asked.spec} has no posterior; leave it at mean"
        )
    if asked.tiles:
        raise ConfigError(f"--encode-tiles: {asked.spec} has no tiles; leave it out")
    place = find_device(asked.device)
    name, files = find_parts(local_path("tae", asked.where), allow_pickle=asked.allow_pickle)
    parts = read_parts(
        name, files, allow_pickle=asked.allow_pickle, expect_sha256=asked.expect_sha256
    )
    kind = TinyVideoEncoder if is_video(parts) else TinyImageEncoder
    return kind(parts, device=place, dtype=asked.dtype, batch=asked.batch)


class TinyEncoder:
    """What the tiny autoencoders of images and of video have in common: all but their networks.

    Latents are in the space that the diffusion model itself works in (its VAE's own latents scaled
    and shifted).
    """

    kind = "latents"
    codebook_size: int | None = None
    architecture: str
    is_local: bool
    rule: FrameRule
    stride: tuple[int, int, int]
    multiple: tuple[int, int]

    def __init__(
        self,
        parts: Parts,
        encoder: TinyNetwork,
        decoder: TinyNetwork | None,
        *,
        device: torch.device,
        dtype: str,
        batch: int | None,
    ) -> None:
        numbers = getattr(torch, dtype)
        self._encoder = encoder.to(device, numbers)
        self._decoder = None if decoder is None else decoder.to(device, numbers)
        self._device = device
        self._batch = BATCH if batch is None else batch
        self._encoder_sha256 = parts.encoder_sha256
        self.name = f"tae:{parts.name}"
        self.channels = encoder.out_channels
        self.constants = parts.constants
        self.weights = parts.weights
        self.dtype = dtype

    def encode(self, frames: np.ndarray, *, seed: tuple[object, ...] = ()) -> np.ndarray:
        """See `LatentEncoder.encode`; ``(T', H', W', C)`` float32."""
        check_frames(self, frames)
        return self._compute(lambda: self._encode(frames))

    def decode(self, latents: np.ndarray) -> np.ndarray | None:
        """See `LatentEncoder.decode`."""
        if self._decoder is None:
            return None
        check_latents(self, latents)
        decoder = self._decoder
        return self._compute(lambda: self._decode(decoder, latents))

    def identity(self) -> dict[str, Any]:
        """See `LatentEncoder.identity`."""
        return {
            "architecture": self.architecture,
            "weights_sha256": self._encoder_sha256,
            "dtype": self.dtype,
            "device": self._device.type,
            "batch": self._batch,
        }

    def _compute(self, run: Callable[[], np.ndarray]) -> np.ndarray:
        return compute(run, name=self.name, device=self._device, batch=self._batch)

    def _encode(self, frames: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def _decode(self, decoder: TinyNetwork, latents: np.ndarray) -> np.ndarray:
        raise NotImplementedError


class TinyImageEncoder(TinyEncoder):
    """A `LatentEncoder` that takes each frame by itself, pixels as 0 to 1."""

    architecture = "tae"
    is_local = True
    rule = FrameRule(0, 1)
    stride = (1, STRIDE, STRIDE)
    multiple = (STRIDE, STRIDE)

    def __init__(
        self, parts: Parts, *, device: torch.device, dtype: str, batch: int | None
    ) -> None:
        networks = build_networks(parts, ENCODER, DECODER, in_channels=3)
        super().__init__(parts, *networks, device=device, dtype=dtype, batch=batch)
        self._how: Any = {"batch": self._batch, "device": device, "dtype": dtype}

    def _encode(self, frames: np.ndarray) -> np.ndarray:
        moved, made = to_device(frames, self._device), []
        for start in range(0, len(frames), self._batch):
            some = moved[start : start + self._batch]
            pixels = pixels_of(some, batch=self._batch, dtype=self.dtype)
            made.append(from_channels(self._encoder(pixels)))
        return to_host(made, len(frames))

    def _decode(self, decoder: TinyNetwork, latents: np.ndarray) -> np.ndarray:
        num, height, width, _ = latents.shape
        frames = np.empty((num, height * STRIDE, width * STRIDE, 3), np.uint8)
        for start in range(0, num, self._batch):
            some = latents[start : start + self._batch].astype(np.float32)
            made = decoder(to_channels(some, **self._how))
            frames[start : start + self._batch] = frames_of(made)[: num - start]
        return frames


def build_networks(
    parts: Parts, encoder: str, decoder: str, *, in_channels: int
) -> tuple[TinyNetwork, TinyNetwork | None]:
    """The networks of both parts, which fit each other.

    Raises:
        EncodeError: the weights are not theirs, with the first key that is not.
    """
    wrong = "is this another model, or a damaged file? Give a whole tiny autoencoder"
    try:
        encoding = TinyNetwork(encoder, parts.encoder, in_channels=in_channels)
    except Mismatch as error:
        raise EncodeError(f"{parts.path}: in the encoder, {error}: {wrong}") from None
    if parts.decoder is None:
        return encoding, None
    try:
        decoding = TinyNetwork(decoder, parts.decoder, in_channels=encoding.out_channels)
        if decoding.out_channels != in_channels:
            raise Mismatch(f"{decoding.out_channels} channels come out, must be {in_channels}")
    except Mismatch as error:
        raise EncodeError(f"{parts.path}: in its decoder, {error}: {wrong}") from None
    return encoding, decoding


def pixels_of(frames: torch.Tensor, *, batch: int, dtype: str) -> torch.Tensor:
    """``(N, H, W, 3)`` uint8 to ``(batch, 3, H, W)`` of 0 to 1, as `to_channels`."""
    missing = frames.new_zeros((batch - len(frames), *frames.shape[1:]))
    whole = torch.cat([frames, missing]) if len(missing) else frames
    levels = whole.permute(0, 3, 1, 2).to(torch.float32)
    return levels.div_(255).to(getattr(torch, dtype))


def to_channels(array: np.ndarray, *, batch: int, device: torch.device, dtype: str) -> torch.Tensor:
    """``(N, H, W, C)`` to ``(batch, C, H, W)``, channels last in memory.

    Zeros follow the N: another number of frames may be summed in another order.
    """
    whole = np.zeros((batch, *array.shape[1:]), array.dtype)
    whole[: len(array)] = array
    return torch.from_numpy(whole).to(device).permute(0, 3, 1, 2).to(getattr(torch, dtype))


def from_channels(x: torch.Tensor) -> torch.Tensor:
    """``(N, C, H, W)`` to ``(N, H, W, C)`` float32."""
    return x.float().permute(0, 2, 3, 1)


def frames_of(x: torch.Tensor) -> np.ndarray:
    """``(N, 3, H, W)`` of 0 to 1 to ``(N, H, W, 3)`` uint8, rounded half to even."""
    levels = x.float().clamp(0, 1).mul(255).round().to(torch.uint8)
    return levels.permute(0, 2, 3, 1).cpu().numpy()
