"""Read the tensors of a weight file."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import torch

from spacepatch.errors import ConfigError, EncodeError, MissingDependencyError

PICKLED = (".pth", ".pt", ".bin", ".ckpt")
"""Names of pickled weights end so."""
_PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def read_weights(path: Path, *, allow_pickle: bool) -> tuple[dict[str, torch.Tensor], str]:
    """Read every tensor of a safetensors file (or, where allowed, of a pickled state dict).

    Returns:
        The tensors by name, on the CPU, as stored; and the sha256 of the very bytes they came from.

    Raises:
        ConfigError: it is a pickle, and `allow_pickle` is off.
        EncodeError: it cannot be read, or holds NaN or Inf.
        MissingDependencyError: safetensors is not installed.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise EncodeError(f"{path}: cannot be read ({error.strerror})") from None
    if content.startswith(b"version https://git-lfs"):
        raise EncodeError(f"{path}: is a pointer to a file in Git LFS; run git lfs pull there")
    if content.startswith(_PICKLE_STARTS):
        if not allow_pickle:
            raise ConfigError(
                f"{path}: is a pickle, which can run code: convert it to safetensors, "
                "or give --allow-pickle-weights"
            )
        tensors = _unpickle(path, content)
    else:
        tensors = _load_safetensors(path, content)
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor.float()).all()):
            raise EncodeError(f"{path}: {name} holds NaN or Inf: damaged; download it again")
    return tensors, hashlib.sha256(content).hexdigest()


def _load_safetensors(path: Path, content: bytes) -> dict[str, torch.Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load
    except ImportError:
        raise MissingDependencyError(
            "safetensors is not installed: pip install safetensors"
        ) from None
    try:
        tensors: dict[str, torch.Tensor] = load(content)
    except (SafetensorError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise EncodeError(
            f"{path}: is no whole safetensors file ({reason}); download it again"
        ) from None
    return tensors


def _unpickle(path: Path, content: bytes) -> dict[str, torch.Tensor]:
    try:
        loaded = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever its unpickler meets
        raise EncodeError(
            f"{path}: cannot be read as weights only ({type(error).__name__})"
        ) from None
    if not isinstance(loaded, dict) or not all(
        isinstance(tensor, torch.Tensor) for tensor in loaded.values()
    ):
        raise EncodeError(f"{path}: is no state dict: tensors by name")
    return {str(name): tensor for name, tensor in loaded.items()}
