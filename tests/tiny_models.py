"""Tiny autoencoders of random weights, as modules in float64: what the tests hold ours against."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

Frames = list[torch.Tensor]
"""Of one clip, each ``(1, C, H, W)``."""


def conv(inner: int, outer: int, **kwargs) -> nn.Conv2d:
    return nn.Conv2d(inner, outer, 3, padding=1, **kwargs)


def narrow(inner: int, outer: int) -> nn.Conv2d:
    return nn.Conv2d(inner, outer, 1, bias=False)


class Clamp(nn.Module):
    def forward(self, x):
        return torch.tanh(x / 3) * 3


class Residual(nn.Module):
    """ReLU(three convolutions + x); with the frame before, or with a pooled branch."""

    def __init__(self, width: int, *, pooled: bool = False, memory: bool = False) -> None:
        super().__init__()
        self.memory = memory
        self.conv = nn.Sequential(
            conv(width * (1 + memory), width),
            nn.ReLU(),
            conv(width, width),
            nn.ReLU(),
            conv(width, width),
        )
        if pooled:
            wide = 4 * width
            self.pool = nn.Sequential(
                narrow(width, wide), nn.GroupNorm(4, wide), nn.ReLU(), narrow(wide, width)
            )

    def forward(self, x, *before):
        if hasattr(self, "pool"):
            x = x + self.pool(x)
        return torch.relu(self.conv(torch.cat([x, *before], dim=1)) + x)


class Pool(nn.Module):
    """`stride` frames side by side in the channels become one."""

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.stride, self.conv = stride, narrow(width * stride, width)


class Grow(nn.Module):
    """One frame becomes `stride`, side by side in the channels."""

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.stride, self.conv = stride, narrow(width, width * stride)


def run_frames(layers: nn.Sequential, frames: Frames) -> Frames:
    """Layer by layer, and in each frame by frame."""
    for layer in layers:
        if isinstance(layer, Residual) and layer.memory:
            befores = [torch.zeros_like(frames[0]), *frames[:-1]]
            frames = [layer(x, before) for x, before in zip(frames, befores, strict=True)]
        elif isinstance(layer, Pool):
            starts = range(0, len(frames), layer.stride)
            groups = [frames[start : start + layer.stride] for start in starts]
            frames = [layer.conv(torch.cat(group, dim=1)) for group in groups]
        elif isinstance(layer, Grow):
            frames = [one for x in frames for one in layer.conv(x).chunk(layer.stride, dim=1)]
        else:
            frames = [layer(x) for x in frames]
    return frames


def image_model(channels: int, *, width: int = 8, pooled: bool = False, seed: int = 0):
    """Encoder and decoder: ../shared/weights/taef2/README.md in words."""
    halvings, doublings = [], []
    for level in range(3):
        last = pooled and level == 2
        halvings += [
            conv(width, width, stride=2, bias=False),
            *(Residual(width, pooled=last) for _ in range(3)),
        ]
        doublings += [
            *(Residual(width, pooled=pooled and level == 0) for _ in range(3)),
            nn.Upsample(scale_factor=2),
            conv(width, width, bias=False),
        ]
    encoder = nn.Sequential(conv(3, width), Residual(width), *halvings, conv(width, channels))
    first = [Clamp(), conv(channels, width), nn.ReLU()]
    decoder = nn.Sequential(*first, *doublings, Residual(width), conv(width, 3))
    return _random(encoder, seed), _random(decoder, seed + 1)


def video_model(channels: int, *, patch: int, pools, grows, width: int = 8, seed: int = 0):
    """Encoder and decoder, of the facts in `spacepatch.latents.taehv`."""
    pixels, halvings, doublings = 3 * patch**2, [], []
    for stride in pools:
        halvings += [
            Pool(width, stride),
            conv(width, width, stride=2, bias=False),
            *(Residual(width, memory=True) for _ in range(3)),
        ]
    widths = [4 * width, 2 * width, width, width]
    for level, stride in enumerate(grows):
        doublings += [
            *(Residual(widths[level], memory=True) for _ in range(3)),
            nn.Upsample(scale_factor=2),
            Grow(widths[level], stride),
            conv(widths[level], widths[level + 1], bias=False),
        ]
    encoder = nn.Sequential(conv(pixels, width), nn.ReLU(), *halvings, conv(width, channels))
    first = [Clamp(), conv(channels, widths[0]), nn.ReLU()]
    decoder = nn.Sequential(*first, *doublings, nn.ReLU(), conv(width, pixels))
    return _random(encoder, seed), _random(decoder, seed + 1)


def save(tensors: dict[str, torch.Tensor], path: Path) -> Path:
    """As safetensors, float32."""
    from safetensors.torch import save_file

    path.parent.mkdir(exist_ok=True)
    save_file({key: tensor.float().contiguous() for key, tensor in tensors.items()}, path)
    return path


def save_parts(folder: Path, encoder: nn.Module, decoder: nn.Module) -> Path:
    """A file for each part, keys as the authors of TAESD write them."""
    save(encoder.state_dict(), folder / "encoder.safetensors")
    save(decoder.state_dict(), folder / "decoder.safetensors")
    return folder


def save_whole(path: Path, encoder: nn.Module, decoder: nn.Module) -> Path:
    """One file, keys as the authors of TAEHV write them."""
    parts = {"encoder": encoder, "decoder": decoder}
    return save(
        {
            f"{name}.{key}": t
            for name, part in parts.items()
            for key, t in part.state_dict().items()
        },
        path,
    )


def _random(module: nn.Module, seed: int) -> nn.Module:
    """Weights that keep the size of what they multiply, float32 values in a float64 module."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in module.named_parameters():
        fan_in = tensor[0].numel() if tensor.ndim > 1 else 1
        scale = fan_in**-0.5 if tensor.ndim > 1 else 0.1
        # The scale of a GroupNorm lies around 1.
        middle = 1.0 if name.endswith("pool.1.weight") else 0.0
        drawn = torch.randn(tensor.shape, generator=generator) * scale + middle
        tensor.data = drawn.double()
    return module.requires_grad_(False).double()
