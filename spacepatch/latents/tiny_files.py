"""Find the weight files of a tiny autoencoder, and read them as its encoder and its decoder."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from spacepatch.errors import ConfigError, EncodeError
from spacepatch.latents.checksums import check_sha256
from spacepatch.latents.encoders import CONSTANTS
from spacepatch.latents.weight_files import PICKLED, read_weights

_PART = re.compile(r"(encoder|decoder)\.(?:layers\.)?(.+)")
_NAMED = re.compile(r"(?:^|[_.-])(encoder|decoder)(?=[_.-])")
"""In a file's name; an autoencoder is neither."""
_NUMBERED = re.compile(r"([0-9]+)\.(.+)")


@dataclass(frozen=True, slots=True)
class Parts:
    """What the files of one autoencoder hold."""

    name: str
    """Of the folder, or of the file without `_encoder` and its ending."""
    path: Path
    """Of the file that the encoder is in, for messages."""
    encoder: dict[str, torch.Tensor]
    """Numbered as the authors number the layers: `0.weight`."""
    decoder: dict[str, torch.Tensor] | None
    weights: dict[str, str]
    """sha256 by file name."""
    encoder_sha256: str
    """Of the file that the encoder is in."""
    constants: dict[str, Any]
    """`CONSTANTS` of the config.json beside them."""


def find_parts(path: Path, *, allow_pickle: bool) -> tuple[str, list[Path]]:
    """The autoencoder's name, and its one file, or the encoder's and (where there is one) the
    decoder's.

    Raises:
        ConfigError: there is none, or more than one could be meant.
    """
    if path.is_file():
        files = [path]
        match = _NAMED.search(path.name)
        if match is not None and match[1] == "encoder":
            before, after = path.name[: match.start(1)], path.name[match.end(1) :]
            sibling = path.with_name(f"{before}decoder{after}")
            if sibling.is_file():
                files.append(sibling)
        stem = _NAMED.sub("", path.name).removesuffix(path.suffix)
        return stem or path.resolve().parent.name, files
    name = path.resolve().name
    found = sorted(path.glob("*.safetensors"))
    pickles = sorted(file for file in path.iterdir() if file.suffix in PICKLED)
    if not found and pickles:
        if not allow_pickle:
            raise ConfigError(
                f"{path}: its weights are pickles ({pickles[0].name}), which can run code: "
                "convert them to safetensors, or give --allow-pickle-weights"
            )
        found = pickles
    if not found:
        raise ConfigError(f"{path}: holds no *.safetensors; give the folder of the weights")
    encoders = [file for file in found if _part_of(file) == "encoder"]
    decoders = [file for file in found if _part_of(file) == "decoder"]
    if len(encoders) == 1 and len(decoders) <= 1:
        return name, encoders + decoders
    if len(found) == 1:
        return name, found
    raise ConfigError(
        f"{path}: holds {len(found)} weight files ({', '.join(file.name for file in found[:4])}"
        f"{', ...' if len(found) > 4 else ''}); name the one to read, as in tae:{found[0]}"
    )


def read_parts(
    name: str, files: list[Path], *, allow_pickle: bool, expect_sha256: Sequence[str]
) -> Parts:
    """Read them.

    Raises:
        ConfigError: one is a pickle, and `allow_pickle` is off.
        EncodeError: one cannot be read, or is not the one expected; or there is no encoder in them.
    """
    parts: dict[str, dict[str, torch.Tensor]] = {}
    weights: dict[str, str] = {}
    contents = []
    for file in files:
        tensors, weights[file.name] = read_weights(file, allow_pickle=allow_pickle)
        contents.append(tensors)
    # Before a look at what is inside: a damaged file should be called that.
    check_sha256(files[0].parent, weights, expect_sha256)
    for file, tensors in zip(files, contents, strict=True):
        for key, tensor in tensors.items():
            part, inner = _place(key, file, tensors)
            if not part:
                raise EncodeError(
                    f"{file}: {key} is no key of a tiny autoencoder: is this another model?"
                )
            parts.setdefault(part, {})[inner] = tensor
    if "encoder" not in parts:
        raise EncodeError(
            f"{files[0]}: holds a decoder only; give the encoder, or a folder of both"
        )
    return Parts(
        name=name,
        path=files[0],
        encoder=parts["encoder"],
        decoder=parts.get("decoder"),
        weights=weights,
        encoder_sha256=weights[files[0].name],
        constants=_read_constants(files[0].parent / "config.json"),
    )


def _part_of(file: Path) -> str:
    """`encoder`, `decoder` or, of a file of both, nothing: as its name says."""
    match = _NAMED.search(file.name)
    return match[1] if match else ""


def _place(key: str, file: Path, tensors: dict[str, torch.Tensor]) -> tuple[str, str]:
    """Which part a key belongs to (or none), and what the authors call it there."""
    match = _PART.fullmatch(key)
    part, inner = (match[1], match[2]) if match else ("", key)
    numbered = _NUMBERED.fullmatch(inner)
    if numbered is None:
        return "", key
    if key.startswith("decoder.layers."):
        # diffusers clamps outside of its list of layers.
        inner = f"{int(numbered[1]) + 1}.{numbered[2]}"
    if match is None:
        # The decoder's first layer clamps, and has no weights.
        part = _part_of(file) or ("encoder" if "0.weight" in tensors else "decoder")
    return part, inner


def _read_constants(path: Path) -> dict[str, Any]:
    """`CONSTANTS` of the config.json of an AutoencoderTiny.

    Latents of the authors' own files are in the space of the diffusion model already: a scaling
    factor of 1. A config beside them is that of the large autoencoder, and would scale them twice.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        config = {}
    except (OSError, ValueError) as error:
        raise EncodeError(f"{path}: cannot be read as JSON ({type(error).__name__})") from None
    if not isinstance(config, dict):
        raise EncodeError(f"{path}: is no JSON object")
    if config.get("_class_name") != "AutoencoderTiny":
        config = {"scaling_factor": 1.0}
    return {name: config.get(name) for name in CONSTANTS}
