"""Encoders that were saved as TorchScript, with a TOML beside them: `torchscript:FILE`."""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spacepatch.errors import ConfigError, EncodeError, SpacepatchError
from spacepatch.latents.checksums import check_sha256
from spacepatch.latents.encoders import (
    EncoderSettings,
    LatentEncoder,
    check_frames,
    check_latents,
    local_path,
)
from spacepatch.latents.exactness import compute, find_device
from spacepatch.latents.script_settings import ScriptSettings, read_settings
from spacepatch.latents.transfer import to_device

BATCH = 8
"""Frames at once by default, of models of images."""


def load_torchscript(asked: EncoderSettings) -> LatentEncoder:
    """Load an encoder as Cosmos-Tokenizer ships them, from `encoder.jit` and `encoder.toml`.

    Its first use is a clip of zeros, so that a script that does not do what its TOML says is known
    before any video is decoded. `allow_download` and `allow_pickle` change nothing.

    WHERE is the script, or a folder with `encoder.jit`; the TOML has the same name. The archive
    holds code, which runs as soon as it is used: only with `trust`. `batch` are frames of models of
    images; those of video take a clip at once.

    Raises:
        ConfigError: nothing is there, it is not trusted, or its TOML is wrong or does not fit.
        EncodeError: an archive that is damaged or not the expected one.
    """
    path = local_path("torchscript", asked.where)
    path = path / "encoder.jit" if path.is_dir() else path
    if not path.is_file():
        raise ConfigError(f"--encoder {asked.spec}: holds no encoder.jit")
    if not asked.trust:
        raise ConfigError(
            f"--encoder {asked.spec}: a TorchScript archive can run any code: if you know "
            "where it comes from, give --trust-encoder"
        )
    if asked.posterior != "mean":
        raise ConfigError(
            f"--posterior {asked.posterior}: a script has no posterior; leave it at mean"
        )
    if asked.tiles:
        raise ConfigError("--encode-tiles: a script has no tiles; leave it out")
    settings = read_settings(path.with_suffix(".toml"))
    is_video = settings.input == "video"
    if is_video and asked.batch not in (None, 1):
        raise ConfigError(
            f"--encode-batch {asked.batch}: {path} encodes a clip at once; leave it out"
        )
    place = find_device(asked.device)
    paths = [path] if settings.decoder is None else [path, path.parent / settings.decoder]
    contents = {file.name: _read(file) for file in paths}
    weights = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    check_sha256(path.parent, weights, asked.expect_sha256)
    scripts = [_load(file, contents[file.name], place, asked.dtype) for file in paths]
    encoder = ScriptedEncoder(
        scripts[0],
        scripts[1] if scripts[1:] else None,
        settings,
        name=f"torchscript:{path.parent.resolve().name if path.stem == 'encoder' else path.stem}",
        weights=weights,
        device=place,
        dtype=asked.dtype,
        batch=1 if is_video else BATCH if asked.batch is None else asked.batch,
    )
    _try(encoder, path)
    return encoder


class ScriptedEncoder:
    """A `LatentEncoder` of a TorchScript module, which does what its TOML says or is refused."""

    def __init__(
        self,
        encoder: torch.nn.Module,
        decoder: torch.nn.Module | None,
        settings: ScriptSettings,
        *,
        name: str,
        weights: dict[str, str],
        device: torch.device,
        dtype: str,
        batch: int,
    ) -> None:
        self.name = name
        self.kind: str = settings.kind
        self.rule = settings.rule
        self.stride = settings.stride
        self.is_local = settings.input == "image"
        self.multiple = settings.sides
        self.channels = settings.channels or 1
        self.codebook_size = settings.codebook_size
        self.constants = settings.constants
        self.weights = weights
        self.dtype = dtype
        self._encoder = encoder
        self._decoder = decoder
        self._settings = settings
        self._device = device
        self._batch = batch
        self._code_dtype = torch.int64

    def encode(self, frames: np.ndarray, *, seed: tuple[object, ...] = ()) -> np.ndarray:
        """See `LatentEncoder.encode`.

        Raises:
            EncodeError: also what comes out is of another shape, or no code of the codebook.
        """
        check_frames(self, frames)
        return self._compute(lambda: self._encode_clip(frames))

    def decode(self, latents: np.ndarray) -> np.ndarray | None:
        """See `LatentEncoder.decode`; None where the TOML names no decoder."""
        if self._decoder is None:
            return None
        check_latents(self, latents)
        decoder = self._decoder
        return self._compute(lambda: self._decode_clip(decoder, latents))

    def identity(self) -> dict[str, Any]:
        """See `LatentEncoder.identity`."""
        return {
            "architecture": "torchscript",
            "settings": self._settings.of_latents,
            "weights_sha256": next(iter(self.weights.values())),
            "dtype": self.dtype,
            "device": self._device.type,
            "batch": self._batch,
        }

    def _compute(self, run: Callable[[], np.ndarray]) -> np.ndarray:
        at_once = self._batch if self._settings.input == "image" else None
        return compute(run, name=self.name, device=self._device, batch=at_once)

    def _encode_clip(self, frames: np.ndarray) -> np.ndarray:
        pixels = self._pixels(to_device(frames, self._device))
        made = torch.cat([self._encode(some) for some in self._batches(pixels)])
        num = self.rule.num_latents(len(frames))
        # Once, before anything is asked of it.
        made = (made[:num] if self._settings.input == "image" else made).cpu()
        rows, columns = frames.shape[1] // self.stride[1], frames.shape[2] // self.stride[2]
        expected = (num, rows, columns, self.channels)
        if tuple(made.shape) != expected:
            raise EncodeError(
                f"{self.name}: frames {frames.shape} became {self.kind} {tuple(made.shape)}, must "
                f"be {expected} by its TOML"
            )
        return self._codes(made) if self.kind == "codes" else made.float().numpy()

    def _decode_clip(self, decoder: torch.nn.Module, latents: np.ndarray) -> np.ndarray:
        moved = torch.from_numpy(np.ascontiguousarray(latents)).to(self._device)
        if self.kind == "codes":
            moved = moved[..., 0].to(self._code_dtype)
        else:
            moved = moved.permute(0, 3, 1, 2).to(getattr(torch, self.dtype))
        parts = [self._from_model(_first(decoder(some))) for some in self._batches(moved)]
        low, high = self._settings.pixels
        made = torch.cat(parts)[: self.rule.num_frames(len(latents))]
        levels = (made.float() - low) / (high - low)
        return levels.mul(255).round().clamp(0, 255).to(torch.uint8).cpu().numpy()

    def _batches(self, x: torch.Tensor) -> Iterator[torch.Tensor]:
        """A clip at once, as ``(1, ..., T, H, W)``; or ``(B, ..., H, W)``, the last with zeros."""
        if self._settings.input == "video":
            yield x.transpose(0, 1)[None] if x.ndim == 4 else x[None]
            return
        for start in range(0, len(x), self._batch):
            some = x[start : start + self._batch]
            missing = x.new_zeros((self._batch - len(some), *x.shape[1:]))
            yield torch.cat([some, missing])

    def _encode(self, pixels: torch.Tensor) -> torch.Tensor:
        made = _first(self._encoder(pixels))
        if self.kind == "latents":
            return self._from_model(made)
        self._code_dtype = made.dtype
        return (made[0] if self._settings.input == "video" else made)[..., None]

    def _from_model(self, x: torch.Tensor) -> torch.Tensor:
        """``(1, C, T, H, W)`` or ``(B, C, H, W)`` to ``(N, H, W, C)``."""
        return (x[0].transpose(0, 1) if self._settings.input == "video" else x).movedim(1, -1)

    def _codes(self, made: torch.Tensor) -> np.ndarray:
        codes = made.long()
        if made.is_floating_point() and not torch.equal(codes.to(made.dtype), made):
            raise EncodeError(f"{self.name}: codes are no whole numbers: {made.dtype} loses them")
        low, high = int(codes.min()), int(codes.max())
        if low < 0 or high >= (self.codebook_size or 0):
            raise EncodeError(
                f"{self.name}: codes {low} .. {high}, must be 0 .. codebook_size - 1 = "
                f"{(self.codebook_size or 0) - 1} by its TOML"
            )
        return codes.numpy()

    def _pixels(self, frames: torch.Tensor) -> torch.Tensor:
        """``(N, H, W, 3)`` uint8 to ``(N, 3, H, W)`` of the range in the TOML."""
        low, high = self._settings.pixels
        scaled = frames.permute(0, 3, 1, 2).contiguous().to(torch.float32) / 255
        return (scaled * (high - low) + low).to(getattr(torch, self.dtype))


def _first(made: Any) -> torch.Tensor:
    """Cosmos-Tokenizer's encoders return latents or indices first, and other things after them."""
    first: torch.Tensor = made[0] if isinstance(made, tuple | list) else made
    return first


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise EncodeError(f"{path}: cannot be read ({error.strerror})") from None


def _load(path: Path, content: bytes, device: torch.device, dtype: str) -> torch.nn.Module:
    try:
        with warnings.catch_warnings():
            # torch would rather have torch.export; what was published is TorchScript.
            warnings.simplefilter("ignore", DeprecationWarning)
            load: Any = torch.jit.load
            module: torch.nn.Module = load(io.BytesIO(content), map_location=device)
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise EncodeError(f"{path}: is no whole TorchScript archive ({reason})") from None
    return module.eval().to(device, getattr(torch, dtype))


def _try(encoder: ScriptedEncoder, path: Path) -> None:
    num_frames = encoder.rule.first + encoder.rule.step
    height, width = (2 * side for side in encoder.multiple)
    try:
        encoder.encode(np.zeros((num_frames, height, width, 3), np.uint8))
    except SpacepatchError:
        raise
    except Exception as error:  # whatever a script raises at pixels that it does not take
        reason = str(error).strip().splitlines()[-1] if str(error) else type(error).__name__
        raise EncodeError(
            f"{path}: takes no clip of {num_frames} frames of {height} x {width} in "
            f"{encoder.dtype}, as its TOML says it does ({reason})"
        ) from None
