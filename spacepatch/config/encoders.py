"""The settings of an encoder: which one, how it computes, and how its latents are stored."""

from __future__ import annotations

import re
from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator

from spacepatch.config.fields import setting


class EncodeFields(BaseModel):
    """What is cut into tokens, and by which model it is made."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    encoder: str | None = setting(
        None,
        "token",
        "Model that turns frames to latents or codes before they are cut: diffusers:FOLDER, "
        "tae:FOLDER, linear:FILE (made by spacepatch fit), torchscript:FILE.",
    )
    kind: str | None = setting(
        None,
        "token",
        "What is cut into tokens: pixels, latents or codes. Default: what the encoder makes.",
    )
    encoder_stride: str | None = setting(
        None,
        "run",
        "Stride that the settings were made for (frames x height x width of pixels a latent): a "
        "note tells of an encoder of another. Presets set it.",
    )
    posterior: str = setting(
        "mean",
        "token",
        "Of an encoder that gives a distribution: mean, sample (seeded by segment), or mean_logvar "
        "(both, twice the channels).",
    )
    encoder_dtype: str = setting(
        "float32", "token", "What the encoder computes in: float32, bfloat16 or float16."
    )
    encode_batch: int | None = setting(
        None,
        "token",
        "Frames that an image encoder takes at once; recorded, for it changes the last bits. "
        "Default: the encoder's own.",
        ge=1,
        le=4096,
    )
    encode_tiles: bool = setting(
        False,
        "token",
        "Encode large frames in tiles, as diffusers does it: less memory, other latents.",
    )
    latent_dtype: str = setting(
        "float16", "token", "What latents are stored in: float16, float32 or bfloat16."
    )
    also: str | None = setting(
        None,
        "token",
        "pixels: store the pixel tokens of the same clips beside their latents or codes.",
    )
    pixel_patch: str | None = setting(
        None,
        "layout",
        "Tubelet of these pixel tokens in pixels, such as 1x16x16. Default: what another token "
        "covers (of one frame, where the encoder's first latent covers one).",
    )
    device: str = setting(
        "cpu",
        "run",
        "Where the encoder computes: cpu, cuda or cuda:1. Its type, not its number, is a part of "
        "what the encoder is.",
    )
    allow_download: bool = setting(
        False, "run", "Let diffusers:OWNER/MODEL ask a hub for weights; else only folders are read."
    )
    trust_encoder: bool = setting(
        False, "run", "Run the code in a TorchScript archive; without it none is loaded."
    )
    allow_pickle_weights: bool = setting(
        False, "run", "Read pickled weights too (as weights only); else only safetensors."
    )
    expect_sha256: str | None = setting(
        None, "run", "sha256 of the weight files, with commas; others are refused."
    )

    @field_validator("pixel_patch", "encoder_stride")
    @classmethod
    def _pixel_tubelet(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[1-9]\d{0,3}(x[1-9]\d{0,3}){2}", value):
            raise ValueError("not frames x height x width, such as 1x16x16")
        return value

    @field_validator("device")
    @classmethod
    def _known_device(cls, value: str) -> str:
        if not re.fullmatch(r"cpu|cuda(:\d{1,3})?", value):
            raise ValueError("not cpu, cuda or cuda:1")
        return value

    @field_validator("expect_sha256")
    @classmethod
    def _hashes(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[0-9a-fA-F]{64}(,[0-9a-fA-F]{64})*", value):
            raise ValueError("not sha256 of 64 hex digits, with commas between them")
        return None if value is None else value.lower()

    def check_encoder(self) -> None:
        """Raise a ValueError for settings that need an encoder, or contradict one."""
        if self.encoder is not None:
            if self.kind == "pixels":
                raise ValueError("encoder is for kind latents or codes, not pixels")
            if self.pixel_patch is not None and self.also is None:
                raise ValueError("pixel_patch is for also pixels")
            return
        if self.kind not in (None, "pixels"):
            raise ValueError(
                f"kind {self.kind} needs --encoder KIND:WHERE: the model whose {self.kind} to cut"
                + (f", of stride {self.encoder_stride}" if self.encoder_stride else "")
                + " (docs/encoders.md)"
            )
        for key, field in EncodeFields.model_fields.items():
            value: Any = getattr(self, key)
            if key not in ("encoder", "kind", "encoder_stride") and value != field.default:
                raise ValueError(f"{key} {value} is for an encoder: give --encoder too")

    @property
    def pixel_tubelet(self) -> tuple[int, int, int] | None:
        """(frames, height, width) of the pixel tokens, where they are said."""
        if self.pixel_patch is None:
            return None
        frames, height, width = map(int, self.pixel_patch.split("x"))
        return frames, height, width
