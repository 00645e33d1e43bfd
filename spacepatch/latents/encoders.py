"""What every encoder can do, and how `KIND:WHERE` becomes one."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from spacepatch.errors import ConfigError, EncodeError, MissingDependencyError
from spacepatch.framerules import FrameRule

MAX_LATENT = 1000.0
"""Latents beyond +-MAX_LATENT are no latents (`nonfinite_latent`): raw latents have a standard
deviation of 1 / scaling_factor, which is below 8 in the models of diffusers."""

DTYPES = ("float32", "bfloat16", "float16")
"""What an encoder may compute in."""

POSTERIORS = ("mean", "sample", "mean_logvar")
"""What is kept of a distribution of latents."""

CONSTANTS = ("scaling_factor", "shift_factor", "latents_mean", "latents_std")
"""By these names a model's own config says how a diffusion model takes its latents."""


class LatentEncoder(Protocol):
    """A model that turns the frames of one clip into latents or codes."""

    name: str
    """KIND and the last part of WHERE, `tae:taef2`: never a path."""
    kind: str
    """`latents` or `codes`."""
    rule: FrameRule
    """The numbers of frames that it takes."""
    stride: tuple[int, int, int]
    """Frames, rows and columns of pixels for each latent cell."""
    is_local: bool
    """Whether a latent is made of the frames that it stands for (`rule.sources`) and of no others:
    a frame that is lost then takes its own latent with it, and otherwise any number of them."""
    multiple: tuple[int, int]
    """Rows and columns of frames are multiples of these (at least those of `stride`)."""
    channels: int
    """Of a latent cell; 1 for codes."""
    codebook_size: int | None
    """Codes are 0 .. codebook_size - 1; None for latents."""
    constants: dict[str, Any]
    """`CONSTANTS` of the model's own config; None where it has none."""
    weights: dict[str, str]
    """sha256 of each weight file, by its name."""
    dtype: str
    """One of `DTYPES`."""

    def encode(self, frames: np.ndarray, *, seed: tuple[object, ...] = ()) -> np.ndarray:
        """Encode one clip.

        Args:
            frames: ``(T, H, W, 3)`` uint8; T fits `rule`, H and W divide by `multiple`.
            seed: the key of the draws of a `sample` posterior; others draw nothing.

        Returns:
            ``(T', H', W', C)`` float32, never scaled or shifted; or codes ``(T', H', W', 1)``
            int64. Not checked for NaN or `MAX_LATENT`.

        Raises:
            EncodeError: frames of another shape or dtype.
            SourceError: `out_of_memory`: of this clip only, the next is as if it had not been.
        """
        ...

    def decode(self, latents: np.ndarray) -> np.ndarray | None:
        """Turn what `encode` returned into frames, ``(T, H, W, 3)`` uint8; None if it cannot."""
        ...

    def identity(self) -> dict[str, Any]:
        """Whatever changes a latent, as JSON: no names of files, nothing of the decoder."""
        ...


@dataclass(frozen=True, slots=True)
class EncoderSettings:
    """Which encoder, and how it is to compute."""

    spec: str
    """``KIND:WHERE``; never written to disk."""
    device: str = "cpu"
    """`cpu`, `cuda` or `cuda:1`."""
    dtype: str = "float32"
    """One of `DTYPES`."""
    batch: int | None = None
    """How much is encoded at once; None: what the kind does by default."""
    posterior: str = "mean"
    """One of `POSTERIORS`."""
    tiles: bool = False
    """Whether frames larger than the model's own tiles are encoded in these, blended at their
    seams: less memory, and other latents."""
    allow_download: bool = False
    """Whether a hub may be asked for weights."""
    trust: bool = False
    """Whether a file that can run code may."""
    allow_pickle: bool = False
    """Whether pickled weights may be read (as weights only)."""
    expect_sha256: Sequence[str] = ()
    """Of every weight file, in any order; empty: of none."""

    @property
    def kind(self) -> str:
        return self.spec.partition(":")[0]

    @property
    def where(self) -> str:
        return self.spec.partition(":")[2]


def load_encoder(spec: str, **more: Any) -> LatentEncoder:
    """`load_asked` for a KIND:WHERE and, by their names, other fields of `EncoderSettings`."""
    return load_asked(EncoderSettings(spec, **more))


def load_asked(asked: EncoderSettings) -> LatentEncoder:
    """Load the encoder that `--encoder KIND:WHERE` names.

    Raises:
        ConfigError: no such kind or place, or a setting that this kind does not have.
        EncodeError: weights that are damaged, incomplete, of another model, or not those expected.
        MissingDependencyError: a package is missing; the message says what to install.
    """
    spec, kind = asked.spec, asked.kind
    if kind not in ENCODERS:
        near = difflib.get_close_matches(kind, ENCODERS, 1, 0.4)
        hint = f"; did you mean {near[0]}?" if near else ""
        if Path(spec).expanduser().exists():
            hint = f"; give KIND:WHERE, as in {_kind_of(Path(spec))}:{spec}"
        raise ConfigError(
            f"--encoder {spec}: no kind of encoder {kind!r}, there are {', '.join(ENCODERS)}{hint}"
        )
    if not asked.where:
        raise ConfigError(f"--encoder {spec}: does not say where it is, as in {kind}:PATH")
    _check_word("--encoder-dtype", asked.dtype, DTYPES)
    _check_word("--posterior", asked.posterior, POSTERIORS)
    if asked.batch is not None and asked.batch < 1:
        raise ConfigError(f"--encode-batch {asked.batch}: is below 1")
    return ENCODERS[kind](asked)


def _kind_of(path: Path) -> str:
    """What a path that was given without its kind is, near enough for a hint."""
    if path.is_dir():
        return "diffusers" if (path / "config.json").is_file() else "tae"
    return "torchscript" if path.suffix in (".jit", ".pt") else "linear"


def local_path(kind: str, where: str) -> Path:
    """`where` as a folder or file that is there.

    Raises:
        ConfigError: it is not.
    """
    path = Path(where).expanduser()
    if not path.exists():
        raise ConfigError(f"--encoder {kind}:{where}: no such folder or file")
    return path


def check_frames(encoder: LatentEncoder, frames: np.ndarray) -> None:
    """Raise an EncodeError for frames that `encoder.encode` does not take."""
    got = f"{encoder.name}: frames are {frames.shape} {frames.dtype}"
    if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8:
        raise EncodeError(f"{got}, must be (T, H, W, 3) uint8")
    if not encoder.rule.fits(len(frames)):
        raise EncodeError(f"{got}: {len(frames)} frames do not fit the rule {encoder.rule}")
    if (
        0 in frames.shape
        or frames.shape[1] % encoder.multiple[0]
        or (frames.shape[2] % encoder.multiple[1])
    ):
        rows, columns = encoder.multiple
        raise EncodeError(f"{got}: H and W must be multiples of {rows} and {columns}")


def check_latents(encoder: LatentEncoder, latents: np.ndarray) -> None:
    """Raise an EncodeError for latents that `encoder.encode` cannot have made."""
    if latents.ndim != 4 or latents.shape[3] != encoder.channels or 0 in latents.shape:
        raise EncodeError(
            f"{encoder.name}: latents are {latents.shape}, must be (T', H', W', {encoder.channels})"
        )


def _check_word(flag: str, word: str, words: Sequence[str]) -> None:
    if word not in words:
        near = difflib.get_close_matches(word, words, 1, 0.3)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"{flag} {word!r}: is none of {', '.join(words)}{hint}")


def _loader(module: str, function: str) -> Callable[[EncoderSettings], LatentEncoder]:
    """A function of a module that is imported when it is called: only then is torch needed."""

    def load(asked: EncoderSettings) -> LatentEncoder:
        try:
            found = importlib.import_module(f"spacepatch.latents.{module}")
        except ModuleNotFoundError as error:
            if error.name != "torch":
                raise
            raise MissingDependencyError(
                f"--encoder {asked.spec}: needs torch, which is not installed: pip install torch "
                "--index-url https://download.pytorch.org/whl/cpu (or its CUDA build)"
            ) from None
        encoder: LatentEncoder = getattr(found, function)(asked)
        return encoder

    return load


ENCODERS: dict[str, Callable[[EncoderSettings], LatentEncoder]] = {
    "diffusers": _loader("diffusion", "load_diffusers"),
    "torchscript": _loader("scripted", "load_torchscript"),
    "tae": _loader("tae", "load_tae"),
    "linear": _loader("linear", "load_linear"),
}
"""Kinds of encoders, each with its loader."""
