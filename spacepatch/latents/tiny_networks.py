"""The networks of the tiny autoencoders: a list of words, and the weights that fit them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812

Memory = dict[int, torch.Tensor]
"""The last frame that each layer with a memory saw, by the layer's number."""

_NUM_GROUPS = 4
_NUMBERED = re.compile(r"(0|[1-9][0-9]*)\.(.+)")


class Mismatch(Exception):
    """A key is missing, is of no layer, or has another shape than the network needs."""


@dataclass(frozen=True, slots=True)
class _Layer:
    number: int
    """Its place, and what its keys begin with."""
    word: str
    weights: dict[str, torch.Tensor]
    """By key, without the number."""
    stride: int
    """Frames that `pool` makes one of, or that `grow` makes of one."""

    def conv(self, x: torch.Tensor, name: str = "", *, stride: int = 1) -> torch.Tensor:
        """Convolve, keeping H and W but for the stride."""
        weight = self.weights[f"{name}weight"]
        bias = self.weights.get(f"{name}bias")
        return F.conv2d(x, weight, bias, stride, padding=weight.shape[-1] // 2)

    def three(self, x: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        """ReLU(three convolutions of `x` + `after`), in place where nothing else looks."""
        x = self.conv(x, "conv.0.").relu_()
        x = self.conv(x, "conv.2.").relu_()
        return self.conv(x, "conv.4.").add_(after).relu_()


class TinyNetwork:
    """Layers in order, each one of these words.

    `conv`: 3 x 3; `plain`: without bias; `halve`: without bias, every second row and column;
    `double`: each row and column twice; `clamp`: 3 tanh(x / 3); `relu`;
    `block`: ReLU(three convolutions of x + x), with a pooled branch added to x first where the keys
    have one; `memory`: a block whose convolutions also see the frame before, zeros before the
    first; `pool`: 1 x 1 over the channels of several frames, which become one; `grow`: 1 x 1 to the
    channels of several frames, each of which becomes one.
    """

    def __init__(
        self, words: str, weights: Mapping[str, torch.Tensor], *, in_channels: int
    ) -> None:
        """Take the widths and strides from the shapes in `weights`, keys as `3.conv.0.weight`.

        Raises:
            Mismatch: the keys or shapes are not those of `words`.
        """
        self.num_layers = len(words.split())
        numbered: dict[int, dict[str, torch.Tensor]] = {}
        for key, tensor in weights.items():
            match = _NUMBERED.fullmatch(key)
            if match is None or int(match[1]) >= self.num_layers:
                raise Mismatch(f"{key} is of no layer")
            numbered.setdefault(int(match[1]), {})[match[2]] = tensor
        self.layers: list[_Layer] = []
        channels = in_channels
        for number, word in enumerate(words.split()):
            layer = _take_layer(number, word, numbered.get(number, {}), channels)
            self.layers.append(layer)
            if word in ("conv", "plain", "halve"):
                channels = layer.weights["weight"].shape[0]
        self.out_channels = channels

    def to(self, device: torch.device, dtype: torch.dtype) -> TinyNetwork:
        """Move the weights (they are stored in half precision), in place."""
        for layer in self.layers:
            for name, tensor in layer.weights.items():
                # A fifth faster on a CPU than channels first.
                order = torch.channels_last if tensor.ndim == 4 else torch.preserve_format
                layer.weights[name] = tensor.to(device, dtype, memory_format=order)
        return self

    def __call__(self, x: torch.Tensor, memory: Memory | None = None) -> torch.Tensor:
        """``(N, C, H, W)`` to the same of other sizes.

        Args:
            memory: where the words have a `memory`: N are the next frames of one clip, and what
                earlier calls left here goes on. Empty at the start of a clip.
        """
        memory = {} if memory is None else memory
        for layer in self.layers:
            x = _LAYERS[layer.word](layer, x, memory)
        return x


def _take_layer(number: int, word: str, weights: dict[str, torch.Tensor], channels: int) -> _Layer:
    def shape_of(name: str) -> tuple[int, ...]:
        if name not in weights:
            raise Mismatch(f"{number}.{name} is missing")
        return tuple(weights[name].shape)

    def side(name: str, axis: int) -> int:
        """0, which no layer takes, where there are fewer axes."""
        return (*shape_of(name), 0, 0)[axis]

    stride, shapes = 1, dict[str, tuple[int, ...]]()
    if word in ("conv", "plain", "halve"):
        width = side("weight", 0)
        shapes["weight"] = (width, channels, 3, 3)
        if word == "conv":
            shapes["bias"] = (width,)
    elif word in ("block", "memory"):
        first = channels * (2 if word == "memory" else 1)
        for place, width in ((0, first), (2, channels), (4, channels)):
            shapes[f"conv.{place}.weight"] = (channels, width, 3, 3)
            shapes[f"conv.{place}.bias"] = (channels,)
        if word == "block" and any(name.startswith("pool.") for name in weights):
            # Rounded down to what GroupNorm can part.
            inner = side("pool.0.weight", 0) // _NUM_GROUPS * _NUM_GROUPS
            shapes["pool.0.weight"] = (inner, channels, 1, 1)
            shapes["pool.1.weight"] = shapes["pool.1.bias"] = (inner,)
            shapes["pool.3.weight"] = (channels, inner, 1, 1)
    elif word == "pool":
        stride = side("conv.weight", 1) // channels
        shapes["conv.weight"] = (channels, channels * stride, 1, 1)
    elif word == "grow":
        stride = side("conv.weight", 0) // channels
        shapes["conv.weight"] = (channels * stride, channels, 1, 1)
    for name, shape in shapes.items():
        if shape_of(name) != shape or 0 in shape:
            raise Mismatch(f"{number}.{name} is {shape_of(name)}, must be {shape}")
    for name in weights:
        if name not in shapes:
            raise Mismatch(f"{number}.{name} is of no layer")
    return _Layer(number, word, weights, stride)


def _block(layer: _Layer, x: torch.Tensor, memory: Memory) -> torch.Tensor:
    if "pool.0.weight" in layer.weights:
        scale, shift = layer.weights["pool.1.weight"], layer.weights["pool.1.bias"]
        inner = F.group_norm(layer.conv(x, "pool.0."), _NUM_GROUPS, scale, shift)
        x = layer.conv(inner.relu_(), "pool.3.").add_(x)
    return layer.three(x, x)


def _memory(layer: _Layer, x: torch.Tensor, memory: Memory) -> torch.Tensor:
    last = memory.get(layer.number, torch.zeros_like(x[:1]))
    memory[layer.number] = x[-1:]
    before = torch.cat([last, x[:-1]])
    return layer.three(torch.cat([x, before], dim=1), x)


def _pool(layer: _Layer, x: torch.Tensor, memory: Memory) -> torch.Tensor:
    # (n s) c h w -> n (s c) h w
    return layer.conv(x.reshape(-1, layer.stride * x.shape[1], *x.shape[2:]), "conv.")


def _grow(layer: _Layer, x: torch.Tensor, memory: Memory) -> torch.Tensor:
    # n (s c) h w -> (n s) c h w
    return layer.conv(x, "conv.").reshape(-1, *x.shape[1:])


_LAYERS: dict[str, Callable[[_Layer, torch.Tensor, Memory], torch.Tensor]] = {
    "conv": lambda layer, x, memory: layer.conv(x),
    "plain": lambda layer, x, memory: layer.conv(x),
    "halve": lambda layer, x, memory: layer.conv(x, stride=2),
    "double": lambda layer, x, memory: F.interpolate(x, scale_factor=2, mode="nearest"),
    "clamp": lambda layer, x, memory: 3 * torch.tanh(x / 3),
    "relu": lambda layer, x, memory: torch.relu(x),
    "block": _block,
    "memory": _memory,
    "pool": _pool,
    "grow": _grow,
}
