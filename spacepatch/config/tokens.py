"""The settings that make tokens of frames, and how their values are laid out."""

from __future__ import annotations

import re
from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator

from spacepatch.config.fields import setting

MOST_PATCHES = 64
"""In a list; FlexiViT has ten."""
MOST_VIEWS = 256

Patch = tuple[int, int, int]
"""(frames, height, width)."""


class TokenFields(BaseModel):
    """What a token is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    patch: str = setting(
        "2x16x16",
        "token",
        "Tubelet: frames x height x width in pixels, such as 2x16x16. Of a list (1x32x32,1x16x16) "
        "each clip draws one, as FlexiViT does; see views. With an encoder in cells of latents "
        "(default 1x2x2) or codes (1x1x1).",
    )
    halo: int = setting(
        0,
        "token",
        "A token also covers this many pixels around its patch, zeros beyond the frame (ViTGAN).",
        ge=0,
        le=512,
    )
    views: str = setting(
        "1",
        "token",
        "Variants of each clip, each with draws of its own (resolution, fps, patch, crop, offset, "
        "drop); all: one for each patch of the list.",
    )
    tail: str = setting(
        "repeat", "token", "Frames that fill no whole tubelet: repeat the last, pad zeros, drop."
    )
    drop: str | None = setting(
        None,
        "token",
        "Keep fewer tokens: random:0.5 (or a distribution of the rate: random:beta:0.5,0.9), "
        "random:length:0.2..0.6:64..1024 (grows with the length), tokens:256, or static:0.1 "
        "(unchanged since the tubelet before: run-length tokenization).",
    )
    recut: str | None = setting(
        None,
        "token",
        "Set by spacepatch convert --patch alone: the patch and pack_length that were tokenized.",
        pattern=r"^[0-9x,]+@[0-9]+$",
    )

    layout: str = setting(
        "c t p q", "layout", "Order of the values inside a token: 'c t p q' is Conv3d's."
    )
    order: str = setting(
        "raster",
        "layout",
        "Order of a frame's tokens: raster, or 'merge 2 x 2' (blocks side by side, as Qwen).",
    )
    mask: str | None = setting(
        None,
        "layout",
        "What a masked-prediction model sees of each segment: random:0.75 (MAE), tube:0.9 "
        "(VideoMAE), multi-block (V-JEPA). Every token is stored; the loader makes the mask.",
    )
    store_mask: bool = setting(
        False, "layout", "Store the mask with the tokens (visible.npy) instead."
    )
    normalize: str = setting(
        "unit",
        "layout",
        "Constants that the loader applies to stored pixels of 0..255: unit (/255), imagenet, half "
        "(mean and std 0.5), clip, vivit.",
    )

    @field_validator("patch")
    @classmethod
    def _patch_shapes(cls, value: str) -> str:
        shapes = [shape.strip() for shape in value.split(",")]
        for shape in shapes:
            if not re.fullmatch(r"([1-9]\d{0,3})x([1-9]\d{0,3})x([1-9]\d{0,3})", shape):
                raise ValueError("not frames x height x width, such as 2x16x16")
        if len(set(shapes)) < len(shapes):
            raise ValueError("names a patch twice")
        if len(shapes) > MOST_PATCHES:
            raise ValueError(f"has {len(shapes)} patches, {MOST_PATCHES} are the most")
        return ",".join(shapes)

    @field_validator("views", mode="before")
    @classmethod
    def _num_views(cls, value: Any) -> str:
        text = str(value)
        if text == "all":
            return text
        if not re.fullmatch(r"[0-9]{1,3}", text) or not 1 <= int(text) <= MOST_VIEWS:
            raise ValueError(f"not a number from 1 to {MOST_VIEWS}, or all")
        return str(int(text))

    @field_validator("drop", mode="before")
    @classmethod
    def _drop(cls, value: Any) -> str | None:
        from spacepatch.drop import parse_drop

        return None if value is None else str(parse_drop(str(value)))

    @field_validator("mask", mode="before")
    @classmethod
    def _mask(cls, value: Any) -> str | None:
        from spacepatch.visible import parse_mask

        return None if value is None else str(parse_mask(str(value)))

    @field_validator("order")
    @classmethod
    def _order(cls, value: str) -> str:
        from spacepatch.tubelets import merge_of

        merge = merge_of(value)
        return "raster" if merge == 1 else f"merge {merge} x {merge}"

    @property
    def patches(self) -> tuple[Patch, ...]:
        """Each (frames, height, width)."""
        shapes = (shape.split("x") for shape in self.patch.split(","))
        return tuple((int(t), int(p), int(q)) for t, p, q in shapes)

    @property
    def num_views(self) -> int:
        return len(self.patches) if self.views == "all" else int(self.views)
