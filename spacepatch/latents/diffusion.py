"""Autoencoders of diffusers, from a folder with config.json and weights: `diffusers:FOLDER`."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spacepatch.errors import ConfigError, EncodeError, MissingDependencyError, SpacepatchError
from spacepatch.latents.autoencoders import AUTOENCODERS, Facts, Unsupported
from spacepatch.latents.checksums import check_sha256
from spacepatch.latents.diffusers_files import CONFIG, find_folder, find_weights, read_config
from spacepatch.latents.encoders import (
    CONSTANTS,
    EncoderSettings,
    LatentEncoder,
    check_frames,
    check_latents,
)
from spacepatch.latents.exactness import T, compute, find_device
from spacepatch.latents.posteriors import take_posterior
from spacepatch.latents.tiling import TILED, turn_on_tiles
from spacepatch.latents.transfer import to_device, to_host
from spacepatch.latents.weight_files import read_weights

BATCH = 8
"""Frames at once by default, of models of images."""

_OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""How diffusers named the parts of an attention until 2023: many weight files still do."""
_OLD_NAME = re.compile(rf"(?<=\.)({'|'.join(_OLD_NAMES)})(?=\.(weight|bias)$)")

_CHUNKING = ("use_tiling", "use_slicing", "use_framewise_encoding", "use_framewise_decoding")
"""Switches of diffusers' models. Tiles are blended at their seams, which makes other latents; in
time AutoencoderKLHunyuanVideo does it unasked, with clips of more than 16 frames."""


def load_diffusers(asked: EncoderSettings) -> LatentEncoder:
    """Load an autoencoder of a class in `AUTOENCODERS`, from its folder or from a hub.

    Its first use is a clip of zeros, so that a model that does not do what its config says is
    known before any video is decoded. `trust` changes nothing: nothing here can run.

    WHERE is the folder, or (with `allow_download`) the id of a model on a hub, with the folder in
    it where there is one: `OWNER/MODEL/vae`. `batch` are frames of models of images; those of video
    take a clip at once.

    Raises:
        ConfigError: no such folder, an unknown class, or a setting that the model does not have.
        EncodeError: weights that are damaged, of another model, or not those expected.
        MissingDependencyError: diffusers is not installed, or is too old for the class.
    """
    place = find_device(asked.device)
    folder = find_folder(asked.where, allow_download=asked.allow_download)
    written = read_config(folder)
    name = written.get("_class_name")
    if name not in AUTOENCODERS:
        near = difflib.get_close_matches(str(name), AUTOENCODERS, 1, 0.4)
        hint = f"; the nearest is {near[0]}" if near else ""
        raise ConfigError(
            f"{folder / CONFIG}: _class_name is {name!r}, none of the {len(AUTOENCODERS)} "
            f"autoencoder classes that can be read here{hint}"
        )
    model = _build(name, written, folder)
    try:
        facts = AUTOENCODERS[name](model.config)
    except Unsupported as error:
        raise ConfigError(f"{folder / CONFIG}: {name} with this config: {error}") from None
    if facts.output != "gaussian" and asked.posterior != "mean":
        raise ConfigError(
            f"--posterior {asked.posterior}: {name} has no posterior; leave it at mean"
        )
    if facts.is_video and asked.batch not in (None, 1):
        raise ConfigError(
            f"--encode-batch {asked.batch}: {name} encodes a clip at once; leave it out"
        )
    tile_sizes = turn_on_tiles(model, facts) if asked.tiles else None
    tensors: dict[str, torch.Tensor] = {}
    weights: dict[str, str] = {}
    for path in find_weights(folder, allow_pickle=asked.allow_pickle):
        some, weights[path.name] = read_weights(path, allow_pickle=asked.allow_pickle)
        tensors |= some
    check_sha256(folder, weights, asked.expect_sha256)
    _fill(model, tensors, folder)
    # A path is no name: it would tell where the weights lie.
    is_local = Path(asked.where).expanduser().is_dir()
    encoder = DiffusersEncoder(
        model,
        facts,
        name=f"diffusers:{folder.resolve().name}" if is_local else asked.spec,
        weights=weights,
        constants=_constants(written, tensors),
        device=place,
        dtype=asked.dtype,
        batch=1 if facts.is_video else BATCH if asked.batch is None else asked.batch,
        posterior=asked.posterior,
        tile_sizes=tile_sizes,
    )
    _try(encoder, folder)
    return encoder


class DiffusersEncoder:
    """A `LatentEncoder` of one model of diffusers. Latents are as its `encode` returns them."""

    def __init__(
        self,
        model: Any,
        facts: Facts,
        *,
        name: str,
        weights: dict[str, str],
        constants: dict[str, Any],
        device: torch.device,
        dtype: str,
        batch: int,
        posterior: str,
        tile_sizes: dict[str, float] | None,
    ) -> None:
        self.name = name
        self.kind = "codes" if facts.output == "vectors" else "latents"
        self.rule = facts.rule
        self.stride = facts.stride
        self.is_local = not facts.is_video
        self.multiple = facts.stride[1:]
        self.channels = facts.channels * (2 if posterior == "mean_logvar" else 1)
        self.codebook_size = facts.codebook_size
        self.constants = constants
        self.weights = weights
        self.dtype = dtype
        self._facts = facts
        self._device = device
        self._batch = batch
        self._posterior = posterior
        self._tile_sizes = tile_sizes
        # Not the model's own `to`, which warns of parts to be kept in float32 even if it has none.
        self._model = torch.nn.Module.to(model, device, getattr(torch, dtype))
        if self.kind == "codes":
            # Which code is nearest is decided by digits that half precision does not have.
            model.quantize.to(torch.float32)

    def encode(self, frames: np.ndarray, *, seed: tuple[object, ...] = ()) -> np.ndarray:
        """See `LatentEncoder.encode`."""
        check_frames(self, frames)
        made = self._compute(lambda: self._encode_clip(frames))
        self._check_made(frames, made)
        if self._posterior == "mean":
            return made
        mean, log_variance = np.split(made, 2, axis=-1)
        return take_posterior(mean, log_variance, posterior=self._posterior, seed=seed)

    def decode(self, latents: np.ndarray) -> np.ndarray | None:
        """See `LatentEncoder.decode`. Of a mean and its variance, the mean."""
        check_latents(self, latents)
        return self._compute(lambda: self._decode_clip(latents))

    def identity(self) -> dict[str, Any]:
        """See `LatentEncoder.identity`."""
        config = {key: value for key, value in self._model.config.items() if key[0] != "_"}
        return {
            "architecture": f"diffusers.{type(self._model).__name__}",
            "config": json.loads(json.dumps(config, sort_keys=True)),
            "weights_sha256": sorted(self.weights.values()),
            "dtype": self.dtype,
            "device": self._device.type,
            "batch": self._batch,
            "posterior": self._posterior,
            "tiles": self._tile_sizes is not None,
            "tile_sizes": self._tile_sizes,
        }

    def _encode_clip(self, frames: np.ndarray) -> np.ndarray:
        """As `_encode`, of all frames."""
        moved = to_device(frames, self._device)
        if self._facts.is_video:
            return to_host([self._encode(self._pixels(moved).transpose(0, 1)[None])])
        starts = range(0, len(frames), self._batch)
        batches = (self._pixels(moved[start : start + self._batch]) for start in starts)
        made = [self._encode(_padded(some, self._batch)) for some in batches]
        return to_host(made, len(frames))

    def _decode_clip(self, latents: np.ndarray) -> np.ndarray:
        # Some decoders add noise. What they return is looked at, not stored: any seed will do.
        devices = [self._device] if self._device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(0)
            if self._facts.is_video:
                num_frames = self.rule.num_frames(len(latents))
                z = self._latents(latents).transpose(0, 1)[None]
                extra = self._timestep()
                # CogVideoX makes all frames of the first latent too, where their number is even.
                made = self._model.decode(z, *extra).sample[0, :, -num_frames:].transpose(0, 1)
            elif type(self._model).__name__ == "AutoencoderKLTemporalDecoder":
                made = self._model.decode(self._latents(latents), num_frames=len(latents)).sample
            else:
                starts = range(0, len(latents), self._batch)
                made = torch.cat(
                    [self._decode_images(latents[start : start + self._batch]) for start in starts]
                )
        levels: torch.Tensor = made.float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)
        return levels.permute(0, 2, 3, 1).contiguous().cpu().numpy()

    def _encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """The mean, ``(T, H, W, C)`` float32, and, where the posterior takes it, the log variance
        behind it, ``(T, H, W, 2 C)``; latents; or codes, int64."""
        if self._facts.output == "vectors":
            vectors = self._model.encode(pixels).latents.float()
            codes = self._model.quantize(vectors)[2][2]
            numbered: torch.Tensor = codes.reshape(len(pixels), *vectors.shape[2:], 1)
            return numbered
        made = self._model.encode(pixels, return_dict=False)[0]
        if self._facts.output == "gaussian":
            if self._posterior == "mean":
                return _from_channels(made.mean)
            return torch.cat([_from_channels(made.mean), _from_channels(made.logvar)], -1)
        # AutoencoderKLCosmos wraps its latents in a distribution that has no variance.
        return _from_channels(made if isinstance(made, torch.Tensor) else made.mode())

    def _decode_images(self, latents: np.ndarray) -> torch.Tensor:
        if self.kind == "latents":
            z = _padded(self._latents(latents), self._batch)
            return self._model.decode(z).sample[: len(latents)]  # type: ignore[no-any-return]
        codes = _padded(torch.from_numpy(latents[..., 0]).to(self._device), self._batch)
        vectors = self._model.quantize.get_codebook_entry(
            codes.flatten(), (*codes.shape, self._model.quantize.vq_embed_dim)
        ).to(getattr(torch, self.dtype))
        # Not `decode`: with `lookup_from_codebook` it would look them up again.
        deeper = self._model.post_quant_conv(vectors)
        spatial = vectors if self._model.config.norm_type == "spatial" else None
        made: torch.Tensor = self._model.decoder(deeper, spatial)
        return made[: len(latents)]

    def _pixels(self, frames: torch.Tensor) -> torch.Tensor:
        """``(N, H, W, 3)`` uint8 to ``(N, 3, H, W)`` of -1 to 1, as VaeImageProcessor does."""
        scaled = frames.permute(0, 3, 1, 2).contiguous().to(torch.float32) / 255
        return (2 * scaled - 1).to(getattr(torch, self.dtype))

    def _latents(self, latents: np.ndarray) -> torch.Tensor:
        """``(N, H, W, C)`` float32 to ``(N, C, H, W)``, without the variances."""
        moved = torch.from_numpy(np.ascontiguousarray(latents[..., : self._facts.channels]))
        cast = moved.to(self._device, getattr(torch, self.dtype))
        return cast.permute(0, 3, 1, 2).contiguous()

    def _timestep(self) -> tuple[torch.Tensor, ...]:
        """Zero, for the decoders of LTX-Video that also take away the noise of a last step."""
        if not self._model.config.get("timestep_conditioning"):
            return ()
        return (torch.zeros(1, device=self._device, dtype=getattr(torch, self.dtype)),)

    def _compute(self, run: Callable[[], T]) -> T:
        # AutoencoderKLMagvit keeps what it saw last, after an error too: the next clip would
        # continue the one that failed.
        if hasattr(self._model, "_clear_conv_cache"):
            self._model._clear_conv_cache()
        return compute(
            run,
            name=self.name,
            device=self._device,
            batch=None if self._facts.is_video else self._batch,
            tiles=self._tile_sizes is None and type(self._model).__name__ in TILED,
        )

    def _check_made(self, frames: np.ndarray, made: np.ndarray) -> None:
        height, width = frames.shape[1] // self.multiple[0], frames.shape[2] // self.multiple[1]
        channels = self._facts.channels * (2 if self._posterior != "mean" else 1)
        expected = (self.rule.num_latents(len(frames)), height, width, channels)
        if made.shape != expected:
            raise EncodeError(
                f"{self.name}: frames {frames.shape} became latents {made.shape}, must be "
                f"{expected}: its config does not say what the model does"
            )


def _build(name: str, config: dict[str, Any], folder: Path) -> Any:
    try:
        import diffusers

        kind = getattr(diffusers, name, None)
    except (ImportError, RuntimeError) as error:
        # diffusers turns the ImportError of a lazy import into a RuntimeError.
        reason = f"{error}".splitlines()[0] if f"{error}" else type(error).__name__
        missing = isinstance(error, ModuleNotFoundError) and error.name == "diffusers"
        state = "is not installed" if missing else f"cannot be imported ({reason})"
        raise MissingDependencyError(
            f"diffusers {state}: pip install 'spacepatch[diffusers]'"
        ) from None
    if kind is None:
        raise MissingDependencyError(
            f"diffusers {diffusers.__version__} has no {name}: pip install -U diffusers"
        )
    try:
        # Building draws weights that are then replaced: not from the draws of others.
        with torch.random.fork_rng(devices=[]):
            model = kind.from_config(config)
    except Exception as error:  # whatever a class raises at arguments that it does not take
        raise EncodeError(
            f"{folder / CONFIG}: {name} cannot be built of it ({type(error).__name__}: {error})"
        ) from None
    for switch in _CHUNKING:
        if hasattr(model, switch):
            setattr(model, switch, False)
    return model.eval().requires_grad_(False)


def _fill(model: torch.nn.Module, tensors: dict[str, torch.Tensor], folder: Path) -> None:
    """Load every tensor, each in its place: a part left as it was drawn would encode too."""
    expected = model.state_dict()
    found = {
        name if name in expected else _OLD_NAME.sub(lambda old: _OLD_NAMES[old[1]], name): tensor
        for name, tensor in tensors.items()
    }
    wrong = [f"{name} is missing" for name in expected if name not in found]
    wrong += [f"{name} is none of its parts" for name in found if name not in expected]
    wrong += [
        f"{name} is {tuple(found[name].shape)}, must be {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in found and found[name].shape != tensor.shape
    ]
    if wrong:
        raise EncodeError(
            f"{folder}: its weights are not those of its {CONFIG}: {wrong[0]}"
            + (f" (and {len(wrong) - 1} more)" if wrong[1:] else "")
        )
    model.load_state_dict(found)


def _constants(written: dict[str, Any], tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Those written beside the weights or (AutoencoderKLLTXVideo's) among them; never those that
    the class would assume: they are of the model that it was first made for."""
    found = {name: written.get(name) for name in CONSTANTS}
    for name in CONSTANTS:
        if found[name] is None and name in tensors:
            found[name] = tensors[name].tolist()
    return found


def _try(encoder: DiffusersEncoder, folder: Path) -> None:
    num_frames = encoder.rule.first + encoder.rule.step
    # Two latents a side: some paddings are not possible with one.
    height, width = (2 * side for side in encoder.multiple)
    try:
        encoder.encode(np.zeros((num_frames, height, width, 3), np.uint8), seed=("try",))
    except SpacepatchError:
        raise
    except Exception as error:  # whatever a model raises at pixels that it does not take
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise EncodeError(f"{folder}: the model takes no clip of RGB frames ({reason})") from None


def _padded(x: torch.Tensor, batch: int) -> torch.Tensor:
    """Zeros up to `batch`: a kernel may sum in another order for another number of frames."""
    missing = x.new_zeros((batch - len(x), *x.shape[1:]))
    return torch.cat([x, missing]) if len(missing) else x


def _from_channels(x: torch.Tensor) -> torch.Tensor:
    """``(N, C, H, W)``, or ``(1, C, T, H, W)``, to ``(N, H, W, C)`` float32."""
    if x.ndim == 5:
        x = x[0].transpose(0, 1)
    return x.float().permute(0, 2, 3, 1).contiguous()
