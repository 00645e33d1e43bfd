"""Every knob of a run, checked, and which fingerprint each is part of."""

from __future__ import annotations

import difflib
import re
from fractions import Fraction
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from spacepatch.config.values import choices_of, parse_bytes, parse_colour

Fingerprint = Literal["token", "layout", "selection", "seed", "run"]

EXCLUSIVE = (
    ("fps", "every_frame", "num_frames"),
    ("max_tokens_per_frame", "pixels", "short_side", "long_side", "native"),
)
"""Settings of which one at most can be given; a higher layer's choice displaces a lower one's."""

WORDS = (
    "resampler",
    "decoder",
    "untagged",
    "hdr",
    "interlaced",
    "on_error",
    "layout",
    "tail",
    "long",
    "packer",
    "index",
)
"""Settings that take a word of a closed list, see `choices_of`."""

STREAM = r"(?:v:)?\d{1,4}"
"""FFmpeg's index of a stream (2), or that among the video streams (v:1)."""
SHARD_NAME = r"[0-9A-Za-z_-]{1,32}"
MAX_NAME = 32
"""Characters in a shard name: with split and numbers, keys stay within 80."""


def _setting(default: Any, fingerprint: Fingerprint, description: str, **more: Any) -> Any:
    return Field(
        default, description=description, json_schema_extra={"fingerprint": fingerprint}, **more
    )


class RunConfig(BaseModel):
    """The settings of one run; a field's description is its help text."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fps: str | None = _setting(
        None,
        "token",
        "Samples a second (8, 29.97, 30000/1001): the frame on display at each sample time. "
        "Default 8. More sees faster motion and costs tokens in proportion.",
    )
    every_frame: bool = _setting(False, "token", "Take every frame instead of sampling by time.")
    num_frames: int | None = _setting(
        None,
        "token",
        "Sample this many frames at equal distances from each clip.",
        ge=1,
        le=1_000_000,
    )
    clip_seconds: str | None = _setting(
        None, "token", "Cut each video into windows of this length; default: the whole video."
    )
    clip_stride: str | None = _setting(
        None, "token", "Seconds from one window's start to the next; default: clip_seconds."
    )
    min_seconds: str = _setting("0", "token", "Skip clips shorter than this (counted, too_short).")

    max_tokens_per_frame: int | None = _setting(
        None,
        "token",
        "Largest frame at native aspect ratio with at most this many patches. Default 256.",
        ge=1,
    )
    pixels: str | None = _setting(
        None, "token", "MIN..MAX pixels a frame, at native aspect ratio (Qwen's smart_resize)."
    )
    short_side: int | None = _setting(None, "token", "Pixels of the shorter side.", ge=1)
    long_side: int | None = _setting(None, "token", "Pixels of the longer side.", ge=1)
    native: bool = _setting(
        False, "token", "No scaling: sides only round to the nearest multiple of the patch."
    )
    upscale: bool = _setting(
        False, "token", "Allow enlarging; without it only rounding up to a patch multiple is."
    )
    resampler: str = _setting(
        "bicubic",
        "token",
        "bicubic or area (swscale), torch-bicubic or torch-bilinear (a peer's exact pixels).",
    )

    decoder: str = _setting(
        "pyav", "token", "pyav, decord or torchcodec; what one declines, pyav reads (recorded)."
    )
    trust_input: bool = _setting(
        False,
        "token",
        "Give decord and torchcodec files of any kind: no list of allowed containers guards them.",
    )
    stream: str | None = _setting(
        None,
        "token",
        "Video stream: FFmpeg's index (2), or that among the video streams (v:1). Default: the "
        "one that the ffmpeg program takes.",
    )
    untagged: str = _setting(
        "bt601",
        "token",
        "Colour matrix of files that name none: bt601 (as ffmpeg), bt709, or auto (bt709 from 720 "
        "lines up).",
    )
    hdr: str = _setting(
        "tonemap", "token", "PQ and HLG video: tonemap to BT.709, skip (counted), or raw numbers."
    )
    interlaced: str = _setting(
        "deinterlace",
        "token",
        "Pictures flagged as interlaced: deinterlace (bwdif), keep as they are, or skip (counted).",
    )
    background: str = _setting(
        "000000", "token", "Colour behind transparent pictures, RRGGBB in hex digits."
    )
    alpha: bool = _setting(
        False, "token", "Keep alpha as a fourth channel (RGBA tokens), instead of a background."
    )
    allow_corrupt: bool = _setting(
        False, "token", "Keep frames that the decoder flags as damaged; else their grid row goes."
    )
    on_error: str = _setting(
        "keep-prefix",
        "token",
        "A damaged or cut-off video: keep-prefix keeps what decodes, skip-video drops all of it "
        "(each video is decoded once more, while planning).",
    )
    max_pixels: int = _setting(
        8192 * 4320,
        "token",
        "Pixels of a picture above which a file is refused (too_large) before it is decoded.",
        ge=1,
        le=2**30,
    )

    patch: str = _setting(
        "2x16x16", "token", "Tubelet: frames x height x width in pixels, such as 2x16x16."
    )
    layout: str = _setting(
        "c t p q", "token", "Order of the values inside a token: 'c t p q' is Conv3d's."
    )
    tail: str = _setting(
        "repeat", "token", "Frames that fill no whole tubelet: repeat the last, pad zeros, drop."
    )

    pack_length: int = _setting(
        8192,
        "layout",
        "Tokens in a pack. Longer packs fill better and cost more attention.",
        ge=1,
        le=2**24,
    )
    long: str = _setting(
        "split", "layout", "Clips longer than a pack: split by time, skip (counted) or error."
    )
    packer: str = _setting(
        "best-fit-decreasing",
        "layout",
        "next-fit, first-fit, first-fit-decreasing or best-fit-decreasing.",
    )
    window: int | None = _setting(
        None, "layout", "Open packs of first-fit (NaViT's way); default: no limit.", ge=1
    )
    max_segments: int | None = _setting(None, "layout", "Segments in a pack at most.", ge=1)
    cut_to_fit: bool = _setting(
        False, "layout", "Let the packer cut segments between grid rows to fill packs."
    )
    shard_size: str = _setting(
        "256MB", "layout", "Size of a shard at most (64MB, 1GiB); a task holds one in memory."
    )
    index: str = _setting(
        "auto",
        "layout",
        "full stores ids and positions for each token, compact rebuilds them; auto: full from 64 "
        "bytes a token up.",
    )
    name: str | None = _setting(
        None, "layout", "Name of the shards; default: 8 hex digits of the plan's id."
    )

    seed: int = _setting(0, "seed", "Seed of every random choice.", ge=0)
    sample: str | None = _setting(
        None, "selection", "Take only this many sources (100), or this share (1%), seeded."
    )
    limit: int | None = _setting(None, "selection", "Take only the first N sources.", ge=1)
    split: str | None = _setting(
        None, "selection", "Split by source, seeded: train=0.98,val=0.02. A shard holds one."
    )

    workers: int | None = _setting(
        None, "run", "Worker processes; default: one a core (cgroup limits respected).", ge=1
    )
    timeout: float = _setting(
        60.0, "run", "Seconds without a new frame until a video is given up.", gt=0, le=1e9
    )
    worker_memory: str = _setting(
        "4GB", "run", "Memory that a worker may take; a video that needs more is lost (retryable)."
    )
    max_losses: str | None = _setting(
        None, "run", "Stop once more than N (or P%) of the sources are lost; resumable."
    )

    @field_validator("fps", "clip_seconds", "clip_stride", "min_seconds", mode="before")
    @classmethod
    def _rational(cls, value: Any, info: Any) -> Any:
        if value is None:
            return None
        try:
            rational = Fraction(str(value))
        except (ValueError, ZeroDivisionError):
            raise ValueError("not a number, such as 8, 29.97 or 30000/1001") from None
        if rational < 0 or (rational == 0 and info.field_name != "min_seconds"):
            raise ValueError("must be above 0")
        # One spelling a value, so that 8, 8.0 and 16/2 have one fingerprint.
        return str(rational)

    @field_validator("patch")
    @classmethod
    def _patch_shape(cls, value: str) -> str:
        match = re.fullmatch(r"([1-9]\d{0,3})x([1-9]\d{0,3})x([1-9]\d{0,3})", value)
        if match is None:
            raise ValueError("not frames x height x width, such as 2x16x16")
        return value

    @field_validator("pixels")
    @classmethod
    def _pixel_range(cls, value: str | None) -> str | None:
        if value is None:
            return None
        match = re.fullmatch(r"(\d+)\.\.(\d+)", value)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise ValueError("not MIN..MAX pixels, such as 100352..602112")
        return f"{int(match[1])}..{int(match[2])}"

    @field_validator("name")
    @classmethod
    def _shard_name(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(SHARD_NAME, value):
            raise ValueError(f"must be 1 to {MAX_NAME} of 0-9 A-Z a-z _ -")
        return value

    @field_validator("sample", "max_losses", "split", mode="before")
    @classmethod
    def _share(cls, value: Any, info: Any) -> str | None:
        from spacepatch.selection import parse_share, parse_split

        if value is not None and info.field_name == "split":
            parse_split(str(value))
        elif value is not None:
            parse_share(info.field_name, str(value), 0)
        return None if value is None else str(value)

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

    @field_validator("shard_size", "worker_memory", mode="before")
    @classmethod
    def _size(cls, value: Any) -> str:
        parse_bytes(str(value))
        return str(value)

    @field_validator(*WORDS)
    @classmethod
    def _choice(cls, value: str, info: Any) -> str:
        choices = choices_of(info.field_name)
        if value not in choices:
            near = difflib.get_close_matches(value, choices, 1, 0.3)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"must be one of {', '.join(choices)}{hint}")
        return value

    @model_validator(mode="after")
    def _possible(self) -> RunConfig:
        for group in EXCLUSIVE:
            given = [key for key in group if getattr(self, key)]
            if len(given) > 1:
                raise ValueError(f"{' and '.join(given)} exclude each other: give one of them")
        if self.clip_stride is not None and self.clip_seconds is None:
            raise ValueError("clip_stride needs clip_seconds")
        if "t" not in self.layout.split() and self.tubelet_size != 1:
            raise ValueError(
                f"layout {self.layout!r} has no t: patch must be 1xHxW, not {self.patch}"
            )
        if self.window is not None and self.packer != "first-fit":
            raise ValueError(f"window is for packer first-fit, not {self.packer}")
        if self.cut_to_fit and self.packer != "best-fit-decreasing":
            raise ValueError(f"cut_to_fit packs its own way: leave packer out ({self.packer})")
        return self

    @property
    def tubelet_size(self) -> int:
        """Frames in a token."""
        return int(self.patch.split("x")[0])

    @property
    def patch_size(self) -> tuple[int, int]:
        """(h, w) in pixels."""
        _, height, width = self.patch.split("x")
        return int(height), int(width)

    @property
    def channels(self) -> int:
        """Of a frame: RGB, or RGBA with `alpha`."""
        return 4 if self.alpha else 3

    @property
    def sampler(self) -> tuple[str, Fraction]:
        """The word of `SAMPLERS` and its value."""
        if self.every_frame:
            return "every-frame", Fraction(0)
        if self.num_frames is not None:
            return "num-frames", Fraction(self.num_frames)
        return "fps", Fraction(self.fps or "8")

    @property
    def size_policy(self) -> tuple[str, Any]:
        """The word of `SIZE_POLICIES` and its value."""
        if self.pixels is not None:
            low, high = self.pixels.split("..")
            return "pixels", (int(low), int(high))
        if self.short_side is not None:
            return "short-side", self.short_side
        if self.long_side is not None:
            return "long-side", self.long_side
        if self.native:
            return "native", None
        return "max-tokens-per-frame", self.max_tokens_per_frame or 256

    @property
    def shard_bytes(self) -> int:
        return parse_bytes(self.shard_size)

    def part(self, *fingerprints: Fingerprint) -> dict[str, Any]:
        """The effective settings that belong to these fingerprints."""
        return {
            key: value
            for key, value in self.effective().items()
            if fingerprint_of(key) in fingerprints
        }

    def effective(self) -> dict[str, Any]:
        """All settings, with the defaults of the exclusive groups filled in."""
        values = self.model_dump()
        if self.sampler[0] == "fps":
            values["fps"] = str(self.sampler[1])
        if self.size_policy[0] == "max-tokens-per-frame":
            values["max_tokens_per_frame"] = self.size_policy[1]
        return values


def fingerprint_of(key: str) -> Fingerprint:
    """Which fingerprint a setting is part of."""
    extra = RunConfig.model_fields[key].json_schema_extra
    assert isinstance(extra, dict), key
    return extra["fingerprint"]  # type: ignore[return-value]
