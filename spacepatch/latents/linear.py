"""The encoder that needs no download: a linear transform of blocks, with or without a quantizer.

Its arithmetic is exact. What it multiplies are multiples of powers of two, large enough for every
sum to fit a float64. So no order of summing, number of threads or kind of processor can change a
bit of a latent, and no two codes are told apart by a rounding.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from spacepatch.errors import ConfigError, EncodeError, SourceError
from spacepatch.extras import needed
from spacepatch.framerules import FrameRule
from spacepatch.latents.checksums import check_sha256
from spacepatch.latents.encoders import (
    CONSTANTS,
    EncoderSettings,
    LatentEncoder,
    check_frames,
    check_latents,
    local_path,
)

LAYOUT = "t p q c"
"""Order of the values of a block."""
MEAN_STEP, BASIS_STEP, CODE_STEP = 2.0**-12, 2.0**-24, 2.0**-8
"""What means, basis and codes are multiples of. A product of a pixel less its mean and the basis is
one of 2**-36; a block's coefficients are at most 255 sqrt(D), so that 53 bits hold every sum up to
D = 264,000. Distances of codes are multiples of 2**-16 of at most 3 (255 sqrt(D))**2."""
VERSION = 1
"""Of the file; in its metadata."""
METADATA = "spacepatch"
"""The only key of the file's metadata: with several, safetensors writes them in any order."""
BLOCKS_AT_ONCE = 4096
DISTANCES_AT_ONCE = 2**22


@dataclass(frozen=True, slots=True)
class LinearCodec:
    """What a codec file holds. A block of D = 3 t p q values has C coefficients, in pixel units."""

    block: tuple[int, int, int]
    """Frames, rows and columns of pixels."""
    mean: np.ndarray
    """``(D,)`` float64, multiples of `MEAN_STEP`."""
    basis: np.ndarray
    """``(D, C)`` float64, multiples of `BASIS_STEP`; columns of length 1, orthogonal."""
    scale: np.ndarray
    """``(C,)`` float64: a latent is its coefficient over this."""
    codebooks: np.ndarray | None = None
    """``(R, K, C)`` float64, multiples of `CODE_STEP`, in pixel units; None: it gives latents."""

    def transform(self, blocks: np.ndarray) -> np.ndarray:
        """``(N, D)`` uint8 to ``(N, C)`` float64 coefficients, exact."""
        made = np.empty((len(blocks), self.basis.shape[1]))
        for part in _parts(len(blocks), BLOCKS_AT_ONCE):
            np.matmul(blocks[part] - self.mean, self.basis, out=made[part])
        return made

    def restore(self, coefficients: np.ndarray) -> np.ndarray:
        """``(N, C)`` coefficients to ``(N, D)`` uint8: the transpose, rounded and cut to 0..255."""
        made = np.empty((len(coefficients), len(self.mean)), np.uint8)
        for part in _parts(len(coefficients), BLOCKS_AT_ONCE):
            values = np.rint(coefficients[part] @ self.basis.T + self.mean)
            made[part] = np.clip(values, 0, 255, out=values)
        return made

    def quantize(self, coefficients: np.ndarray) -> np.ndarray:
        """``(N, C)`` coefficients to ``(N, R)`` int64 codes: each stage's nearest, the first of
        equals, of what the stages before leave."""
        assert self.codebooks is not None, "a codec with a quantizer"
        left = round_to(coefficients, CODE_STEP)
        codes = np.empty((len(left), len(self.codebooks)), np.int64)
        for stage, codebook in enumerate(self.codebooks):
            codes[:, stage] = nearest_codes(left, codebook)
            left -= codebook[codes[:, stage]]
        return codes

    def dequantize(self, codes: np.ndarray) -> np.ndarray:
        """``(N, R)`` codes to ``(N, C)`` float64 coefficients: the sum of their stages."""
        assert self.codebooks is not None, "a codec with a quantizer"
        stages = np.arange(len(self.codebooks))
        return np.asarray(self.codebooks[stages, codes].sum(axis=1))


def round_to(values: np.ndarray, step: float) -> np.ndarray:
    """The nearest multiples of a power of two, in float64."""
    return np.rint(values / step) * step


def nearest_codes(points: np.ndarray, codebook: np.ndarray) -> np.ndarray:
    """``(N,)`` int64: the nearest of ``(K, C)`` `codebook` to each of ``(N, C)`` `points`, both of
    multiples of `CODE_STEP`; the first of equals."""
    # |p - c|^2 less |p|^2, which is the same for every code.
    norms = np.square(codebook).sum(axis=1)
    nearest = np.empty(len(points), np.int64)
    for part in _parts(len(points), max(1, DISTANCES_AT_ONCE // len(codebook))):
        distances = points[part] @ (-2 * codebook.T)
        distances += norms
        nearest[part] = distances.argmin(axis=1)
    return nearest


def _parts(total: int, most: int) -> Iterator[slice]:
    for start in range(0, total, most):
        yield slice(start, min(start + most, total))


# --- blocks ------------------------------------------------------------------------------------


def cut_blocks(frames: np.ndarray, block: tuple[int, int, int]) -> np.ndarray:
    """``(t k) (h p) (w q) c -> t h w (k p q c)``; T, H and W divide by `block`."""
    num_frames, height, width, channels = frames.shape
    k, p, q = block
    grid = num_frames // k, height // p, width // q
    axes = frames.reshape(grid[0], k, grid[1], p, grid[2], q, channels)
    return axes.transpose(0, 2, 4, 1, 3, 5, 6).reshape(*grid, -1)


def join_blocks(blocks: np.ndarray, block: tuple[int, int, int]) -> np.ndarray:
    """The inverse of `cut_blocks`: ``(t, h, w, D)`` to ``(T, H, W, C)``."""
    t, h, w, _ = blocks.shape
    k, p, q = block
    axes = blocks.reshape(t, h, w, k, p, q, -1).transpose(0, 3, 1, 4, 2, 5, 6)
    return axes.reshape(t * k, h * p, w * q, -1)


# --- the encoder -------------------------------------------------------------------------------


class LinearEncoder:
    """A `LatentEncoder`: block by block, so that it takes any number of whole blocks.

    Latents have about unit variance over what the codec was fitted to, and none can be beyond
    `MAX_LATENT`. Codes have a channel for each stage of the quantizer.
    """

    def __init__(self, codec: LinearCodec, *, name: str, weights: dict[str, str]) -> None:
        self.name, self.weights = name, weights
        self._codec = codec
        k, p, q = codec.block
        self.rule = FrameRule(0, k)
        self.stride = (k, p, q)
        self.is_local = True
        self.multiple = (p, q)
        self.kind = "latents"
        self.channels = codec.basis.shape[1]
        self.codebook_size: int | None = None
        if codec.codebooks is not None:
            self.kind = "codes"
            self.channels, self.codebook_size = codec.codebooks.shape[:2]
        self.constants: dict[str, Any] = dict.fromkeys(CONSTANTS)
        if self.kind == "latents":
            # Of about unit variance already.
            self.constants["scaling_factor"] = 1.0
        self.dtype = "float32"

    def encode(self, frames: np.ndarray, *, seed: tuple[object, ...] = ()) -> np.ndarray:
        """As of `LatentEncoder`; nothing is drawn."""
        check_frames(self, frames)
        with suppress(MemoryError):
            return self._encode(frames)
        raise SourceError(
            f"{self.name}: out of memory with a clip of {frames.shape}: raise --worker-memory, "
            "or give fewer or smaller frames (it has no --encode-batch)",
            reason="out_of_memory",
        )

    def _encode(self, frames: np.ndarray) -> np.ndarray:
        codec = self._codec
        rows = []
        # A row of blocks at a time: a clip in float64 is eight times the clip.
        for start in range(0, len(frames), self.stride[0]):
            cells = cut_blocks(frames[start : start + self.stride[0]], codec.block)[0]
            found = codec.transform(cells.reshape(-1, cells.shape[-1]))
            if codec.codebooks is None:
                found = (found / codec.scale).astype(np.float32)
            else:
                found = codec.quantize(found)
            rows.append(found.reshape(*cells.shape[:2], self.channels))
        return np.stack(rows)

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """As of `LatentEncoder`: the transpose, rounded and cut to 0..255.

        Raises:
            EncodeError: another shape, or codes beyond the codebook.
        """
        check_latents(self, latents)
        codec = self._codec
        grid, flat = latents.shape[:3], latents.reshape(-1, self.channels)
        if self.codebook_size is None:
            coefficients = flat.astype(np.float64) * codec.scale
        else:
            least, most = int(latents.min()), int(latents.max())
            if least < 0 or most >= self.codebook_size:
                raise EncodeError(
                    f"{self.name}: codes {least} .. {most}, must be 0 .. {self.codebook_size - 1}"
                )
            coefficients = codec.dequantize(flat.astype(np.int64))
        return join_blocks(codec.restore(coefficients).reshape(*grid, -1), codec.block)

    def identity(self) -> dict[str, Any]:
        """Whatever changes a latent: the file alone, for its arithmetic is exact."""
        return {"kind": "linear", "version": VERSION, "weights": sorted(self.weights.values())}


def load_linear(asked: EncoderSettings) -> LatentEncoder:
    """Load a file that `spacepatch fit` wrote.

    Nothing in the file can run, so `allow_download`, `trust` and `allow_pickle` change nothing.

    Raises:
        ConfigError: no such file, or a device or another setting that it does not have.
        EncodeError: a file that is damaged, no codec, of a newer version, or not that expected.
        MissingDependencyError: safetensors is not installed.
    """
    if asked.device != "cpu":
        raise ConfigError(f"--device {asked.device}: linear encoders run on the cpu; leave it out")
    if asked.dtype != "float32":
        raise ConfigError(f"--encoder-dtype {asked.dtype}: {asked.spec} is exact in float32 only")
    if asked.batch is not None:
        raise ConfigError(
            f"--encode-batch {asked.batch}: {asked.spec} encodes block by block; leave it out"
        )
    if asked.posterior != "mean":
        raise ConfigError(f"--posterior {asked.posterior}: {asked.spec} has none; leave it at mean")
    if asked.tiles:
        raise ConfigError(f"--encode-tiles: {asked.spec} encodes block by block; leave it out")
    path = local_path("linear", asked.where)
    if path.is_dir():
        raise ConfigError(f"--encoder {asked.spec}: is a folder; give the file of spacepatch fit")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise EncodeError(f"{path}: cannot be read ({error.strerror})") from None
    weights = {path.name: hashlib.sha256(content).hexdigest()}
    check_sha256(path.parent, weights, asked.expect_sha256)
    codec = codec_of(content, name=str(path))
    return LinearEncoder(codec, name=f"linear:{path.name}", weights=weights)


# --- the file ----------------------------------------------------------------------------------


def codec_bytes(codec: LinearCodec) -> bytes:
    """The content of a codec file: safetensors, the same bytes for the same codec.

    Raises:
        MissingDependencyError: safetensors is not installed.
    """
    encoder = LinearEncoder(codec, name="", weights={})
    about = {
        "version": VERSION,
        "kind": encoder.kind,
        "rule": str(encoder.rule),
        "stride": encoder.stride,
        "channels": encoder.channels,
        "codebook_size": encoder.codebook_size,
        "layout": LAYOUT,
    }
    tensors = {"mean": codec.mean, "basis": codec.basis, "scale": codec.scale}
    if codec.codebooks is not None:
        tensors["codebooks"] = codec.codebooks
    # Their steps leave at most 24 bits to each: float32 holds them as they are.
    stored = {name: np.ascontiguousarray(tensor, "<f4") for name, tensor in tensors.items()}
    save = needed("safetensors.numpy", "safetensors", by="a codec file").save
    return bytes(save(stored, metadata={METADATA: json.dumps(about, sort_keys=True)}))


def codec_of(content: bytes, *, name: str) -> LinearCodec:
    """The codec of a file's content; `name` is for messages.

    Raises:
        EncodeError: damaged, no codec, or of a newer version.
        MissingDependencyError: safetensors is not installed.
    """
    from_file = needed("safetensors.numpy", "safetensors", by=name)
    try:
        tensors = from_file.load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        about = json.loads(header["__metadata__"][METADATA])
        version = about["version"]
        k, p, q = map(int, about["stride"])
    except Exception as error:  # safetensors has an error of its own, json and the keys theirs
        raise EncodeError(
            f"{name}: is no codec of spacepatch fit, or damaged ({type(error).__name__})"
        ) from None
    if version != VERSION:
        raise EncodeError(
            f"{name}: is of version {version}, this spacepatch reads {VERSION}: install a newer one"
        )
    wide = {key: tensor.astype(np.float64) for key, tensor in tensors.items()}
    try:
        codec = LinearCodec(
            (k, p, q), wide["mean"], wide["basis"], wide["scale"], wide.get("codebooks")
        )
    except KeyError as error:
        raise EncodeError(f"{name}: holds no {error.args[0]}: fit it again") from None
    _check_shapes(codec, name)
    return codec


def _check_shapes(codec: LinearCodec, name: str) -> None:
    depth = 3 * int(np.prod(codec.block))
    channels = codec.basis.shape[-1]
    shapes = {"mean": (depth,), "basis": (depth, channels), "scale": (channels,)}
    for key, shape in shapes.items():
        if getattr(codec, key).shape != shape:
            found = getattr(codec, key).shape
            raise EncodeError(f"{name}: {key} is {found}, must be {shape}: fit it again")
    books = codec.codebooks
    if books is not None and (books.ndim != 3 or books.shape[2] != channels or 0 in books.shape):
        raise EncodeError(
            f"{name}: codebooks are {books.shape}, must be (stages, codes, {channels}): fit again"
        )
    for key in (*shapes, "codebooks"):
        values = getattr(codec, key)
        if values is not None and not np.isfinite(values).all():
            raise EncodeError(f"{name}: {key} holds NaN or Inf: fit it again")
    if not (codec.scale > 0).all():
        raise EncodeError(f"{name}: scale holds values that are not above 0: fit it again")
