"""Turn uint8 tokens to the float32 numbers that a model was trained on, bit by bit as its peers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from spacepatch.tubelets import LAYOUTS

if TYPE_CHECKING:
    import torch

HOWS = ("fused", "stepwise")


@dataclass(frozen=True, slots=True)
class Normalization:
    """The constants of dataset.json; ``Normalization(**fields)`` of what is read there."""

    scale: float
    """What a value of 0 to 255 is divided by."""
    offset: float
    """What is subtracted then."""
    mean: tuple[float, float, float]
    """Of R, G and B, subtracted then."""
    std: tuple[float, float, float]
    """Of R, G and B, divided by then."""
    how: str
    """`stepwise`: in this order, each step rounded to float32. `fused`: mean and std times `scale`
    in float32, then (value - mean) / std: transformers' `_fuse_mean_std_and_rescale_factor`."""


_HALF = (0.5, 0.5, 0.5)

NORMALIZATIONS: dict[str, Normalization] = {
    # ToTensor of torchvision, and so timm.
    "unit": Normalization(255.0, 0.0, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "stepwise"),
    # IMAGENET_DEFAULT_MEAN and _STD.
    "imagenet": Normalization(255.0, 0.0, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "fused"),
    # IMAGENET_STANDARD_MEAN and _STD.
    "half": Normalization(255.0, 0.0, _HALF, _HALF, "fused"),
    # OPENAI_CLIP_MEAN and _STD.
    "clip": Normalization(
        255.0,
        0.0,
        (0.48145466, 0.4578275, 0.40821073),
        (0.26862954, 0.26130258, 0.27577711),
        "fused",
    ),
    # VivitImageProcessor: to [-1, 1], and then (its do_normalize is on) to [-3, 1].
    "vivit": Normalization(127.5, 1.0, _HALF, _HALF, "stepwise"),
}
"""The peers' constants: of their processors in transformers 5.23 and timm 1.0.31."""


def normalize_tokens(
    tokens: torch.Tensor, *, constants: Normalization, channels: int, layout: str
) -> torch.Tensor:
    """Normalize flattened tokens, each value by its channel.

    Args:
        tokens: ``(N, D)`` uint8, any device.
        channels: 1 (grey: by the constants of R), 3, or 4 (RGBA: alpha is divided by 255 only).
        layout: a word of `LAYOUTS`: where in a token the channels are.

    Returns:
        ``(N, D)`` float32, bit by bit what the peer's processor makes of the same pixels.
    """
    import torch

    if constants.how not in HOWS:
        raise ValueError(f"how is {constants.how!r}, not one of {', '.join(HOWS)}")
    first, values = LAYOUTS[layout][0] == 0, tokens.shape[1] // channels
    # n (c x), or n (x c).
    shape = (len(tokens), *((channels, values) if first else (values, channels)))

    def of_channels(colours: tuple[float, ...], alpha: float) -> torch.Tensor:
        numbers = [*colours[:channels], *[alpha] * (channels - 3)]
        made = torch.tensor(numbers, dtype=torch.float32, device=tokens.device)
        return made[:, None] if first else made

    scale = of_channels((constants.scale,) * 3, 255.0)
    mean, std = of_channels(constants.mean, 0.0), of_channels(constants.std, 1.0)
    made = tokens.to(torch.float32).view(shape)
    if constants.how == "fused":
        made -= mean * scale
        made /= std * scale
    else:
        made /= scale
        made -= of_channels((constants.offset,) * 3, 0.0)
        made -= mean
        made /= std
    return made.view(tokens.shape)
