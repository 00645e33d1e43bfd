"""The settings that make frames: which ones, of what size, and how they are decoded."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator

from spacepatch.config.fields import (
    parse_range,
    setting,
    spell_distribution,
    spell_range,
    spell_rational,
)
from spacepatch.config.values import parse_colour

STREAM = r"(?:v:)?\d{1,4}"
"""FFmpeg's index of a stream (2), or that among the video streams (v:1)."""
LARGEST_SIDE = 2**15
SMALLEST_CROP = Fraction(1, 100)


class SamplingFields(BaseModel):
    """Which frames."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fps: str | None = setting(
        None,
        "token",
        "Samples a second (8, 29.97, 30000/1001): the frame on display at each sample time. "
        "Default 8. More sees faster motion and costs tokens in proportion. 2,4,8 or uniform:2..8 "
        "draws one for each clip.",
    )
    every_frame: bool = setting(False, "token", "Take every frame instead of sampling by time.")
    num_frames: int | None = setting(
        None,
        "token",
        "Sample this many frames at equal distances from each clip.",
        ge=1,
        le=1_000_000,
    )
    stride: int | None = setting(
        None, "token", "Take every Nth frame, whatever its time.", ge=1, le=1_000_000
    )
    keyframes: bool = setting(False, "token", "Take the keyframes: the scene at a glance, cheap.")
    sampler: str = setting(
        "display",
        "token",
        "Rule by which fps or num_frames pick frames: display (on display at each time), nearest "
        "(in time), or a peer's rule of indices, which needs a constant frame rate to be true.",
    )
    random_offset: bool = setting(
        False, "token", "Shift the sample times of each clip by a seeded part of their distance."
    )
    clip_seconds: str | None = setting(
        None, "token", "Cut each video into windows of this length; default: the whole video."
    )
    clip_stride: str | None = setting(
        None, "token", "Seconds from one window's start to the next; default: clip_seconds."
    )
    min_seconds: str = setting("0", "token", "Skip clips shorter than this (counted, too_short).")

    @field_validator("clip_seconds", "clip_stride", "min_seconds", mode="before")
    @classmethod
    def _rational(cls, value: Any, info: Any) -> Any:
        return spell_rational(value, may_be_zero=info.field_name == "min_seconds")

    @field_validator("fps", mode="before")
    @classmethod
    def _rate(cls, value: Any) -> Any:
        return spell_distribution(value, above=0)

    def sampling(self) -> tuple[str, str]:
        """The word of `SAMPLERS`, and the distribution of its value."""
        peer = "" if self.sampler == "display" else self.sampler
        if self.every_frame:
            return "every-frame", "0"
        if self.keyframes:
            return "keyframes", "0"
        if self.stride is not None:
            return "stride", str(self.stride)
        if self.num_frames is not None:
            return f"{peer}-num-frames" if peer else "num-frames", str(self.num_frames)
        # Qwen's rules are by rate alone: their words need no ending.
        by_rate = {"": "fps", "qwen2-vl": "qwen2-vl", "qwen3-vl": "qwen3-vl"}
        return by_rate.get(peer, f"{peer}-fps"), self.fps or "8"


class SizeFields(BaseModel):
    """How large."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_tokens_per_frame: int | None = setting(
        None,
        "token",
        "Largest frame at native aspect ratio with at most this many patches. Default 256.",
        ge=1,
    )
    pixels: str | None = setting(
        None, "token", "MIN..MAX pixels a frame, at native aspect ratio (Qwen2-VL's smart_resize)."
    )
    video_pixels: str | None = setting(
        None,
        "token",
        "MIN..MAX pixels of all frames of a clip together, enlarged too (Qwen3-VL's smart_resize).",
    )
    resolution: str | None = setting(
        None,
        "token",
        "R: frames of R*R pixels at native aspect ratio. uniform:64..256 draws R for each clip, "
        "truncnormal:-0.5,1:64..384 as NaViT does (with :area, linearly in R*R).",
    )
    short_side: int | None = setting(None, "token", "Pixels of the shorter side.", ge=1)
    long_side: int | None = setting(None, "token", "Pixels of the longer side.", ge=1)
    native: bool = setting(
        False, "token", "No scaling: sides only round to the nearest multiple of the patch."
    )
    upscale: bool = setting(
        False, "token", "Allow enlarging; without it only rounding up to a patch multiple is."
    )
    multiple: int = setting(
        1, "token", "Sides are multiples of this many patches (Qwen merges 2 x 2).", ge=1, le=64
    )
    fit: str = setting(
        "stretch",
        "token",
        "How a picture meets a frame of another shape: stretch, crop what hangs over (centre), or "
        "pad with zeros (bottom, right).",
    )
    crop: str | None = setting(
        None,
        "token",
        "HxW: crop this from the centre after bringing the short side to short_side.",
    )
    buckets: str | None = setting(
        None,
        "token",
        "Aspect ratios w:h, such as 16:9,4:3,1:1: with resolution, frames take the nearest one.",
    )
    random_crop: str | None = setting(
        None,
        "token",
        "A seeded crop of this share of the picture's area, at native aspect ratio: 0.5, or "
        "uniform:0.3..1 to draw it for each clip.",
    )
    resampler: str = setting(
        "bicubic",
        "token",
        "bicubic or area (swscale); torch-bicubic, torch-bilinear or pillow-bilinear (a peer's "
        "exact pixels).",
    )

    @field_validator("pixels", "video_pixels")
    @classmethod
    def _pixel_range(cls, value: str | None) -> str | None:
        return spell_range(value)

    @field_validator("resolution", mode="before")
    @classmethod
    def _side(cls, value: Any) -> Any:
        return spell_distribution(value, above=0, most=Fraction(LARGEST_SIDE))

    @field_validator("random_crop", mode="before")
    @classmethod
    def _share_of_area(cls, value: Any) -> Any:
        # The whole picture is scaled with its crop: at 1 %, ten times a side.
        return spell_distribution(value, least=SMALLEST_CROP, most=Fraction(1))

    @field_validator("crop")
    @classmethod
    def _crop_size(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[1-9]\d{0,4}x[1-9]\d{0,4}", value):
            raise ValueError("not height x width in pixels, such as 224x224")
        return value

    @field_validator("buckets")
    @classmethod
    def _ratios(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(
            r"[1-9]\d{0,3}:[1-9]\d{0,3}(,[1-9]\d{0,3}:[1-9]\d{0,3})*", value
        ):
            raise ValueError("not aspect ratios w:h, such as 16:9,4:3,1:1,3:4,9:16")
        return value

    @property
    def size_policy(self) -> tuple[str, Any]:
        """The word of `SIZE_POLICIES` and its value; of `resolution`, its distribution."""
        if self.pixels is not None:
            return "pixels", parse_range(self.pixels)
        if self.video_pixels is not None:
            return "video-pixels", parse_range(self.video_pixels)
        if self.resolution is not None:
            return "resolution", self.resolution
        if self.short_side is not None:
            return "short-side", self.short_side
        if self.long_side is not None:
            return "long-side", self.long_side
        if self.native:
            return "native", None
        return "max-tokens-per-frame", self.max_tokens_per_frame or 256

    @property
    def crop_size(self) -> tuple[int, int] | None:
        """(h, w) in pixels."""
        if self.crop is None:
            return None
        height, width = self.crop.split("x")
        return int(height), int(width)

    @property
    def bucket_ratios(self) -> tuple[tuple[int, int], ...]:
        """(h, w) of each; empty: native aspect ratio."""
        ratios = (ratio.split(":") for ratio in (self.buckets or "").split(",") if ratio)
        return tuple((int(height), int(width)) for width, height in ratios)


class DecodeFields(BaseModel):
    """How files are read."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    decoder: str = setting(
        "pyav", "token", "pyav, decord or torchcodec; what one declines, pyav reads (recorded)."
    )
    trust_input: bool = setting(
        False,
        "token",
        "Give decord and torchcodec files of any kind: no list of allowed containers guards them.",
    )
    stream: str | None = setting(
        None,
        "token",
        "Video stream: FFmpeg's index (2), or that among the video streams (v:1). Default: the "
        "one that the ffmpeg program takes.",
    )
    untagged: str = setting(
        "bt601",
        "token",
        "Colour matrix of files that name none: bt601 (as ffmpeg), bt709, or auto (bt709 from 720 "
        "lines up).",
    )
    hdr: str = setting(
        "tonemap", "token", "PQ and HLG video: tonemap to BT.709, skip (counted), or raw numbers."
    )
    interlaced: str = setting(
        "deinterlace",
        "token",
        "Pictures flagged as interlaced: deinterlace (bwdif), keep as they are, or skip (counted).",
    )
    background: str = setting(
        "000000", "token", "Colour behind transparent pictures, RRGGBB in hex digits."
    )
    alpha: bool = setting(
        False, "token", "Keep alpha as a fourth channel (RGBA tokens), instead of a background."
    )
    allow_corrupt: bool = setting(
        False, "token", "Keep frames that the decoder flags as damaged; else their grid row goes."
    )
    on_error: str = setting(
        "keep-prefix",
        "token",
        "A damaged or cut-off video: keep-prefix keeps what decodes, skip-video drops all of it "
        "(each video is decoded once more, while planning).",
    )
    max_pixels: int = setting(
        8192 * 4320,
        "token",
        "Pixels of a picture above which a file is refused (too_large) before it is decoded.",
        ge=1,
        le=2**30,
    )

    @field_validator("stream", mode="before")
    @classmethod
    def _stream(cls, value: Any) -> str | None:
        if value is not None and not re.fullmatch(STREAM, str(value)):
            raise ValueError("not the index of a stream, such as 2 or v:1")
        return None if value is None else str(value)

    @field_validator("background")
    @classmethod
    def _colour(cls, value: str) -> str:
        # One spelling a value, so that #FFFFFF and ffffff have one fingerprint.
        return "".join(f"{part:02x}" for part in parse_colour(value))

    @property
    def channels(self) -> int:
        """Of a frame: RGB, or RGBA with `alpha`."""
        return 4 if self.alpha else 3
