"""Latents as an encoder makes them, and as a diffusion model takes them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from spacepatch.tubelets import LAYOUTS

_MARK = "spacepatch_is_scaled"
"""An attribute of tensors that were scaled here: the dtype does not tell where float32 is stored.
Whatever torch makes of such a tensor has it no more."""


@dataclass(frozen=True, slots=True)
class LatentScale:
    """A model takes ``(x - shift) * factor / deviation`` of a latent x."""

    shift: tuple[float, ...]
    factor: tuple[float, ...]
    deviation: tuple[float, ...]
    """Each is one number for all channels, or one for each channel."""


def scale_of_config(constants: Mapping[str, Any], *, channels: int, where: str) -> LatentScale:
    """What the model's own config says, read as the pipelines of diffusers 0.42 read it.

    Stable Diffusion, CogVideoX, HunyuanVideo, Sana: ``x * scaling_factor``. Stable Diffusion 3,
    Flux: ``(x - shift_factor) * scaling_factor``. Wan: ``(x - latents_mean) / latents_std``.
    LTX-Video, Mochi: ``(x - latents_mean) * scaling_factor / latents_std``. What is more than
    this belongs to a sampler, such as the `sigma_data` of Cosmos.

    Args:
        constants: by the names above; None where the config does not say.
        channels: of a latent.
        where: what messages begin with.

    Raises:
        ValueError: the config does not say enough, or contradicts itself; nothing is assumed.
    """
    scaling, shift, mean, std = (
        _numbers(constants, name, channels=channels, where=where)
        for name in ("scaling_factor", "shift_factor", "latents_mean", "latents_std")
    )
    measured = (
        "standardize() brings latents to mean 0 and std 1, as measured over this dataset "
        "(`encoder` in dataset.json)"
    )
    if (mean is None) != (std is None):
        one, other = ("latents_std", "latents_mean")[:: 1 if mean is None else -1]
        raise ValueError(f"{where}: the encoder's config gives {one} without {other}; {measured}")
    if scaling is None and std is None:
        known = "a shift_factor alone" if shift else "no scaling_factor, and no mean and std"
        raise ValueError(
            f"{where}: the encoder's config gives {known}, so what a model takes is not known; "
            f"{measured}"
        )
    if mean is not None and shift is not None and any(shift):
        raise ValueError(
            f"{where}: the encoder's config gives latents_mean and shift_factor, and not which "
            f"is subtracted; {measured}"
        )
    for name, numbers in (("scaling_factor", scaling), ("latents_std", std)):
        if numbers is not None and not all(numbers):
            raise ValueError(f"{where}: {name} of the encoder's config is 0; {measured}")
    return LatentScale(mean or shift or (0.0,), scaling or (1.0,), std or (1.0,))


@dataclass(frozen=True, slots=True)
class LatentSpace:
    """How the latents of a dataset lie in its tokens, and what its dataset.json says of them."""

    where: str
    """What messages begin with."""
    dtype: torch.dtype
    """Of tokens as stored."""
    widths: tuple[int, ...]
    """Of tokens as stored."""
    channels: int
    """Of a latent: without those of its variance."""
    has_variance: bool
    """Tokens hold twice the channels: the means, then the log variances."""
    layout: str
    """A word of `LAYOUTS`."""
    constants: dict[str, Any]
    encoder: dict[str, Any]

    @classmethod
    def of_dataset(cls, document: Mapping[str, Any], *, where: str) -> LatentSpace:
        """That of dataset.json.

        Raises:
            ValueError: its tokens are no latents, or latents that are no longer raw.
        """
        kind, constants = document["kind"], document["constants"]
        if kind != "latents":
            takes = {"pixels": "normalize() takes them", "codes": "take them as tokens.long()"}
            raise ValueError(f"{where}: holds {kind}, no latents: {takes[kind]}")
        if constants["latents_are"] != "raw":
            raise ValueError(f"{where}: its latents are {constants['latents_are']}, not raw")
        has_variance = document["settings"]["posterior"] == "mean_logvar"
        return cls(
            where=where,
            dtype=getattr(torch, document["token_dtype"]),
            widths=tuple(document["token_widths"]),
            channels=constants["channels"] // (1 + has_variance),
            has_variance=has_variance,
            layout=document["settings"]["layout"],
            constants=constants,
            encoder=document["encoder"],
        )

    def config_scale(self) -> LatentScale:
        return scale_of_config(self.constants, channels=self.channels, where=self.where)

    def measured_scale(self) -> LatentScale:
        """That of mean 0 and standard deviation 1, over all that was written."""
        mean, std = self.encoder["mean"], self.encoder["std"]
        if mean is None:
            raise ValueError(f"{self.where}: has no latents, so no mean and std were measured")
        # A channel that never changes becomes 0.
        deviations = tuple(number or 1.0 for number in std[: self.channels])
        return LatentScale(tuple(mean[: self.channels]), (1.0,), deviations)

    def scaled(self, tokens: torch.Tensor, scale: LatentScale) -> torch.Tensor:
        """``(.., D)`` as stored to float32; of means and variances the means, ``(.., D / 2)``."""
        self._check_stored(tokens)
        return self._scale(self._halves(tokens)[0], scale)

    def drawn(
        self, tokens: torch.Tensor, scale: LatentScale, generator: torch.Generator | None
    ) -> torch.Tensor:
        """``(.., D)`` as stored to ``(.., D / 2)`` float32: a draw from each distribution."""
        self._check_stored(tokens)
        if not self.has_variance:
            raise ValueError(
                f"{self.where}: has no variances to draw with: it was made with --posterior "
                f"{self.encoder['identity']['posterior']}, not mean_logvar"
            )
        means, variances = self._halves(tokens)
        noise = torch.randn(means.shape, generator=generator, device=means.device)
        return self._scale(means + torch.exp(0.5 * variances) * noise, scale)

    def unscaled(self, latents: torch.Tensor, scale: LatentScale) -> torch.Tensor:
        """The inverse of `scaled`, ``(.., D)`` of any float to float32 of the same shape."""
        widths = [width // (1 + self.has_variance) for width in self.widths]
        if latents.shape[-1] not in widths or not latents.is_floating_point():
            raise ValueError(
                f"latents are {tuple(latents.shape)} {latents.dtype}, must be floats of "
                f"{_or(widths)} values a token"
            )
        shift, factor, deviation = self._of_channels(scale, latents.device)
        x = self._by_channel(latents.to(torch.float32), self.channels)
        return (x / factor * deviation + shift).reshape(latents.shape)

    def _scale(self, latents: torch.Tensor, scale: LatentScale) -> torch.Tensor:
        shift, factor, deviation = self._of_channels(scale, latents.device)
        x = self._by_channel(latents, self.channels)
        made: torch.Tensor = ((x - shift) * factor / deviation).reshape(latents.shape)
        setattr(made, _MARK, True)
        return made

    def _check_stored(self, tokens: torch.Tensor) -> None:
        if hasattr(tokens, _MARK):
            raise ValueError("tokens are scaled already: give them as they are stored")
        if tokens.dtype != self.dtype:
            raise ValueError(
                f"tokens are {tokens.dtype}: give them as they are stored, {self.dtype}; "
                "they may be scaled already"
            )
        if tokens.shape[-1] not in self.widths:
            raise ValueError(
                f"tokens are {tuple(tokens.shape)}, must be {_or(self.widths)} values each"
            )

    def _halves(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Means and log variances in float32; without variances everything, and nothing."""
        numbers = tokens.to(torch.float32)
        if not self.has_variance:
            return numbers, numbers[..., :0]
        axis = -2 if self._is_channels_first else -1
        means, variances = self._by_channel(numbers, 2 * self.channels).chunk(2, dim=axis)
        return means.flatten(-2), variances.flatten(-2)

    def _by_channel(self, latents: torch.Tensor, channels: int) -> torch.Tensor:
        """``(.., D)`` to ``(.., channels, values)`` or ``(.., values, channels)``."""
        values = latents.shape[-1] // channels
        shape = (channels, values) if self._is_channels_first else (values, channels)
        return latents.reshape(*latents.shape[:-1], *shape)

    def _of_channels(self, scale: LatentScale, device: torch.device) -> list[torch.Tensor]:
        made = [
            torch.tensor(numbers, dtype=torch.float32, device=device)
            for numbers in (scale.shift, scale.factor, scale.deviation)
        ]
        return [numbers[:, None] for numbers in made] if self._is_channels_first else made

    @property
    def _is_channels_first(self) -> bool:
        return LAYOUTS[self.layout][0] == 0


def _numbers(
    constants: Mapping[str, Any], name: str, *, channels: int, where: str
) -> tuple[float, ...] | None:
    value = constants.get(name)
    if value is None:
        return None
    numbers = value if isinstance(value, list) else [value]
    if len(numbers) not in (1, channels):
        raise ValueError(
            f"{where}: {name} of the encoder's config has {len(numbers)} values for {channels} "
            "channels (of Cosmos 1.0 they differ by frame too): scale its latents yourself"
        )
    if not all(isinstance(number, (int, float)) and math.isfinite(number) for number in numbers):
        raise ValueError(f"{where}: {name} of the encoder's config is {value!r}, no number")
    return tuple(map(float, numbers))


def _or(widths: tuple[int, ...] | list[int]) -> str:
    return " or ".join(map(str, widths))
