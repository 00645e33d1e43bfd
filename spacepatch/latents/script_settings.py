"""The TOML beside a TorchScript encoder: what the archive does not say of itself."""

from __future__ import annotations

import difflib
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from spacepatch.errors import ConfigError
from spacepatch.framerules import FrameRule, parse_rule
from spacepatch.latents.encoders import CONSTANTS

_Count = Annotated[int, Field(strict=True, ge=1)]
_Number = float | list[float] | None


class ScriptSettings(BaseModel):
    """The keys of the TOML."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["latents", "codes"]
    """What comes out, first of all where it is a tuple: `latents` of ``(B, C, T', H', W')``, or
    `codes` of ``(B, T', H', W')``; of images both without T'."""
    frames: str
    """The rule: `1+8k`, `4k`, `any`."""
    stride: tuple[_Count, _Count, _Count]
    """Frames, rows and columns of pixels for each latent."""
    multiple: tuple[_Count, _Count] | None = None
    """Rows and columns that it takes multiples of; by default those of `stride`."""
    channels: _Count | None = None
    """Of latents."""
    codebook_size: _Count | None = None
    """Of codes: they are 0 .. codebook_size - 1."""
    input: Literal["video", "image"] = "video"
    """What goes in: `video`: ``(1, 3, T, H, W)``; `image`: ``(B, 3, H, W)``, each frame alone."""
    pixels: tuple[float, float] = (-1.0, 1.0)
    """What 0 and 255 become."""
    decoder: str | None = None
    """The file beside it that turns latents or codes into pixels."""
    scaling_factor: _Number = None
    shift_factor: _Number = None
    latents_mean: _Number = None
    latents_std: _Number = None

    @model_validator(mode="after")
    def _check(self) -> ScriptSettings:
        rule = parse_rule(self.frames)
        if rule.step != self.stride[0]:
            raise ValueError(f"stride begins with {self.stride[0]}, but frames is {self.frames!r}")
        if self.input == "image" and rule != FrameRule(0, 1):
            raise ValueError(f"frames is {self.frames!r}, must be 'any' with input 'image'")
        given, other = ("channels", "codebook_size")[:: 1 if self.kind == "latents" else -1]
        if getattr(self, given) is None or getattr(self, other) is not None:
            raise ValueError(f"kind {self.kind!r} needs {given}, and no {other}")
        if any(size % side for size, side in zip(self.sides, self.stride[1:], strict=True)):
            raise ValueError(f"multiple {self.sides} is none of stride {self.stride[1:]}")
        if self.pixels[0] == self.pixels[1]:
            raise ValueError(f"pixels are both {self.pixels[0]}")
        if self.decoder is not None and Path(self.decoder).name != self.decoder:
            raise ValueError(f"decoder is {self.decoder!r}, must be the name of a file beside it")
        return self

    @property
    def rule(self) -> FrameRule:
        return parse_rule(self.frames)

    @property
    def sides(self) -> tuple[int, int]:
        return self.stride[1:] if self.multiple is None else self.multiple

    @property
    def constants(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in CONSTANTS}

    @property
    def of_latents(self) -> dict[str, Any]:
        """What changes a latent, as JSON."""
        return self.model_dump(mode="json", exclude={"decoder", *CONSTANTS})


def read_settings(path: Path) -> ScriptSettings:
    """Read and check the TOML.

    Raises:
        ConfigError: it is missing, no TOML, or a key is unknown, missing or wrong.
    """
    if not path.is_file():
        raise ConfigError(
            f"{path}: missing; write there what the script does: kind, frames, stride, and "
            "channels or codebook_size"
        )
    try:
        written = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: is no TOML ({error})") from None
    try:
        return ScriptSettings(**written)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            near = difflib.get_close_matches(key, ScriptSettings.model_fields, 1, 0.4)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ConfigError(f"{path}: no such key {key}{hint}") from None
        if first["type"] == "missing":
            raise ConfigError(f"{path}: {key} is missing") from None
        reason = first["msg"].removeprefix("Value error, ")
        where = f"{key} is {first['input']!r}: " if key else ""
        raise ConfigError(f"{path}: {where}{reason}") from None
