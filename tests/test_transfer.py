"""A clip goes to the device of its encoder once, as uint8, and what it becomes comes back once.

Shown without any accelerator on PyTorch's `meta` device, whose tensors have no values: whatever
waits for one, or looks at one, before the result is fetched is an error there.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_autoencoders import save_tiny
from tiny_models import image_model, save_parts, save_whole, video_model
from torch.utils._python_dispatch import TorchDispatchMode

from spacepatch.latents import load_encoder
from spacepatch.latents.transfer import to_device, to_host

META = torch.device("meta")


class FetchedError(Exception):
    """The first tensor that was asked for: its shape and dtype."""


class Transfers(TorchDispatchMode):
    """Notes what goes to the device, and ends with what comes back first."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[tuple[tuple[int, ...], torch.dtype]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> torch.Tensor:
        place = (kwargs or {}).get("device")
        if func is torch.ops.aten._to_copy.default and place is not None:
            (moved,) = args
            if moved.device == META and place.type == "cpu":
                raise FetchedError(tuple(moved.shape), moved.dtype)
            if moved.device.type == "cpu" and place == META:
                self.sent.append((tuple(moved.shape), moved.dtype))
        made: torch.Tensor = func(*args, **(kwargs or {}))
        return made


def tae(folder: Path) -> tuple[Any, Callable[[np.ndarray], Any]]:
    encoder: Any = load_encoder(f"tae:{save_parts(folder, *image_model(4))}", batch=3)
    encoder._encoder.to(META, torch.float32)
    return encoder, encoder._encode


def taehv(folder: Path) -> tuple[Any, Callable[[np.ndarray], Any]]:
    models = video_model(16, patch=1, pools=(1, 2, 2), grows=(1, 2, 2))
    path = save_whole(folder / "video.safetensors", *models)
    encoder: Any = load_encoder(f"tae:{path}")
    encoder._encoder.to(META, torch.float32)
    return encoder, encoder._encode


def diffusers_of(name: str, **options: Any) -> Callable[[Path], Any]:
    def make(folder: Path) -> tuple[Any, Callable[[np.ndarray], Any]]:
        pytest.importorskip("diffusers", reason="diffusers is not installed")
        save_tiny(name, folder / name)
        encoder: Any = load_encoder(f"diffusers:{folder / name}", **options)
        encoder._model.to(META)
        return encoder, encoder._encode_clip

    return make


@pytest.mark.parametrize(
    "make",
    [
        tae,
        taehv,
        diffusers_of("AutoencoderKL", batch=4),
        diffusers_of("AutoencoderKL", posterior="sample"),
        diffusers_of("VQModel", batch=4),
        diffusers_of("AutoencoderKLWan"),
    ],
    ids=["tae", "taehv", "images", "sampled images", "codes", "video"],
)
def test_a_clip_is_sent_once_and_fetched_once(make: Callable[[Path], Any], tmp_path: Path) -> None:
    encoder, encode = make(tmp_path)
    encoder._device = META
    num_frames = encoder.rule.first + 8
    rows, columns = (4 * side for side in encoder.multiple)
    frames = np.zeros((num_frames, rows, columns, 3), np.uint8)
    transfers = Transfers()
    with pytest.raises(FetchedError) as fetched, torch.no_grad(), transfers:
        encode(frames)
    assert transfers.sent == [(frames.shape, torch.uint8)]
    channels = encoder.channels * (2 if getattr(encoder, "_posterior", "") == "sample" else 1)
    shape = (
        encoder.rule.num_latents(num_frames),
        rows // encoder.stride[1],
        columns // encoder.stride[2],
        channels,
    )
    assert fetched.value.args == (
        shape,
        torch.int64 if encoder.kind == "codes" else torch.float32,
    )


def test_on_the_cpu_a_clip_is_not_copied() -> None:
    frames = np.arange(2 * 8 * 8 * 3, dtype=np.uint8).reshape(2, 8, 8, 3)
    there = to_device(frames, torch.device("cpu"))
    assert there.dtype == torch.uint8
    assert there.data_ptr() == frames.ctypes.data
    assert np.array_equal(to_host([there[:1], there[1:]], 2), frames)
    assert np.array_equal(to_host([there], 1), frames[:1])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_cuda_device_a_clip_arrives_whole() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (16, 64, 64, 3), dtype=np.uint8)
    there = to_device(frames, torch.device("cuda"))
    assert (there.device.type, there.dtype) == ("cuda", torch.uint8)
    assert np.array_equal(to_host([there[:5], there[5:]], 16), frames)
