"""Every knob of a run, checked, and which fingerprint each is part of."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

from pydantic import ConfigDict, field_validator, model_validator

from spacepatch.config.encoders import EncodeFields
from spacepatch.config.fields import Fingerprint
from spacepatch.config.frames import DecodeFields, SamplingFields, SizeFields
from spacepatch.config.packs import PackFields, RunFields
from spacepatch.config.tokens import TokenFields
from spacepatch.config.values import choices_of, parse_bytes

EXCLUSIVE = (
    ("fps", "every_frame", "num_frames", "stride", "keyframes"),
    (
        "max_tokens_per_frame",
        "pixels",
        "video_pixels",
        "resolution",
        "short_side",
        "long_side",
        "native",
    ),
)
"""Settings of which one at most can be given; a higher layer's choice displaces a lower one's."""

COMPANIONS = {
    "sampler": ("fps", "num_frames"),
    "random_offset": ("fps", "num_frames", "stride"),
    "crop": ("short_side",),
    "buckets": ("resolution",),
    "store_mask": ("mask",),
    "checked": ("store",),
}
"""Settings that mean something only beside one of others, with which a higher layer displaces
them."""


def _tubelet_sizes(layer: dict[str, Any]) -> set[str]:
    return {shape.strip().split("x")[0] for shape in str(layer.get("patch", "")).split(",")} - {""}


CONTRADICTIONS: dict[str, Callable[[Any, dict[str, Any]], bool]] = {
    "packer": lambda packer, layer: bool(layer.get("cut_to_fit")),
    "balance": lambda balance, layer: bool(layer.get("cut_to_fit")),
    "window": lambda window, layer: "packer" in layer or bool(layer.get("cut_to_fit")),
    "cut_to_fit": lambda cut, layer: any(layer.get(key) for key in ("packer", "balance", "drop")),
    "views": lambda views, layer: views == "all" and "," not in str(layer.get("patch", ",")),
    "layout": lambda layout, layer: "t" not in layout and bool(_tubelet_sizes(layer) - {"1"}),
    "crop": lambda crop, layer: layer.get("fit", "stretch") != "stretch",
    "fit": lambda fit, layer: bool(layer.get("crop")),
    "order": lambda order, layer: layer.get("multiple", 0) == 1,
}
"""Settings of a lower layer that give way to what a higher one says instead: (value, layer)."""

CAN_BE_NONE = (
    "drop mask crop buckets random_crop encoder encoder_stride also encode_batch pixel_patch "
    "expect_sha256 balance split sample"
).split()
"""Settings that `none` switches off again."""

LEAST_MEMORY, LEAST_MEMORY_WITH_TORCH = "200MB", "500MB"
"""What a worker takes before it reads anything, and some."""

WORDS = (
    "sampler",
    "fit",
    "kind",
    "posterior",
    "encoder_dtype",
    "latent_dtype",
    "also",
    "resampler",
    "decoder",
    "untagged",
    "hdr",
    "interlaced",
    "on_error",
    "layout",
    "normalize",
    "tail",
    "long",
    "packer",
    "balance",
    "index",
    "executor",
    "probe",
)
"""Settings that take a word of a closed list, see `choices_of`."""


class RunConfig(
    # Reversed: pydantic lists the fields of the last base first.
    RunFields,
    PackFields,
    EncodeFields,
    TokenFields,
    DecodeFields,
    SizeFields,
    SamplingFields,
):
    """The settings of one run; a field's description is its help text."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @field_validator(*WORDS)
    @classmethod
    def _choice(cls, value: str | None, info: Any) -> str | None:
        choices = choices_of(info.field_name)
        if value is not None and value not in choices:
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
        self._check_sampler()
        self._check_size()
        self._check_tokens()
        self._check_memory()
        self._check_executor()
        self._check_store()
        if self.window is not None and self.packer != "first-fit":
            raise ValueError(f"window is for packer first-fit, not {self.packer}")
        if self.cut_to_fit and self.packer != "best-fit-decreasing":
            raise ValueError(f"cut_to_fit packs its own way: leave packer out ({self.packer})")
        if self.cut_to_fit and self.balance is not None:
            raise ValueError("balance exchanges whole segments, cut_to_fit cuts them: give one")
        if self.cut_to_fit and self.drop is not None:
            raise ValueError("cut_to_fit cuts whole grid rows, which drop leaves none of")
        return self

    def _check_memory(self) -> None:
        has_torch = self.resampler.startswith("torch") or self.decoder == "torchcodec"
        has_torch |= self.encoder is not None and not self.encoder.startswith("linear:")
        least = LEAST_MEMORY_WITH_TORCH if has_torch else LEAST_MEMORY
        if parse_bytes(self.worker_memory) < parse_bytes(least):
            torch = " with torch" if has_torch else ""
            raise ValueError(
                f"worker_memory {self.worker_memory} is less than a worker{torch} takes to start: "
                f"give {least} at least"
            )

    def _check_executor(self) -> None:
        if self.executor == "ray":
            if ":" in self.device:
                raise ValueError(
                    f"device {self.device}: Ray gives each task its own GPU: say cuda, and "
                    "gpus_per_task"
                )
            return
        for key in ("address", "cpus_per_task", "gpus_per_task"):
            value = getattr(self, key)
            if value != RunFields.model_fields[key].default:
                raise ValueError(f"{key} {value} is for executor ray, not {self.executor}")

    def _check_store(self) -> None:
        if self.checked and self.store != "refs":
            raise ValueError(f"checked is for store refs, not {self.store}")
        if self.store != "tokens" and self.encoder is not None:
            raise ValueError(
                f"store {self.store} is for pixels: what an encoder makes is small, and not made "
                "again at every load; leave it or the encoder out"
            )
        if self.is_planned_only and (self.drop or "").startswith("static"):
            raise ValueError(
                "drop static looks at pixels, and store refs decodes none: add --checked"
            )

    @property
    def is_planned_only(self) -> bool:
        """Whether shards are made without a decoded frame."""
        return self.store == "refs" and not self.checked

    def _check_sampler(self) -> None:
        by_time = not (self.every_frame or self.keyframes or self.stride)
        if self.sampler != "display" and not by_time:
            raise ValueError(f"sampler {self.sampler} is for fps or num_frames")
        if self.sampler.startswith("qwen") and self.num_frames is not None:
            raise ValueError(f"sampler {self.sampler} is for fps, not num_frames")
        if self.random_offset and self.sampler != "display":
            raise ValueError(f"random_offset is for sampler display, not {self.sampler}")
        if self.random_offset and (self.every_frame or self.keyframes):
            raise ValueError("random_offset is for fps, num_frames or stride")

    def _check_size(self) -> None:
        if self.crop_size is not None and self.short_side is None:
            raise ValueError("crop needs short_side, to which pictures are brought before it")
        if self.crop_size is not None and max(self.crop_size) > (self.short_side or 0):
            raise ValueError(f"crop {self.crop} does not lie in a short_side of {self.short_side}")
        if self.crop_size is not None and self.fit != "stretch":
            raise ValueError(f"crop is one way to meet a frame, fit {self.fit} another: give one")
        if self.buckets is not None and self.resolution is None:
            raise ValueError("buckets need resolution: their area is its square")
        for _, height, width in self.patches:
            unit = height * self.multiple, width * self.multiple
            size = self.crop_size
            if self.encoder is not None:
                continue  # held against its stride when it is known
            if size is not None and (size[0] % unit[0] or size[1] % unit[1]):
                raise ValueError(
                    f"crop {self.crop} is no multiple of {unit[0]}x{unit[1]} pixels: give a crop "
                    "that is, or a patch that divides it"
                )
            if self.video_pixels is not None and unit[0] != unit[1]:
                raise ValueError(f"video_pixels needs square patches, not {height}x{width}")

    def _check_tokens(self) -> None:
        self.check_encoder()
        if self.encoder is not None:
            self._check_encoded()
        if self.views == "all" and len(self.patches) == 1:
            raise ValueError("views all makes one view for each patch of a list; patch has one")
        # With an encoder the default is not known yet.
        is_known = self.encoder is None or "patch" in self.model_fields_set
        for tubelet_size, _, _ in self.patches if is_known else ():
            if "t" not in self.layout.split() and tubelet_size != 1:
                raise ValueError(
                    f"layout {self.layout!r} has no t: patch must be 1xHxW, not {self.patch}"
                )
        if self.multiple % self.merge:
            raise ValueError(
                f"order {self.order!r} needs sides of {self.merge} patches: multiple "
                f"{self.merge}, not {self.multiple}"
            )
        if self.store_mask and self.mask is None:
            raise ValueError("store_mask needs mask: random:0.75, tube:0.9 or multi-block")

    def _check_encoded(self) -> None:
        """What cannot be had of latents and codes."""
        if self.alpha:
            raise ValueError("alpha: encoders take RGB; leave it out, transparency gets background")
        if self.tail == "pad":
            raise ValueError("tail pad: an encoder sees no zeros; repeat or drop with an encoder")
        if (self.drop or "").startswith("static"):
            raise ValueError("drop static looks at pixels; random or tokens with an encoder")
        if self.halo:
            raise ValueError("halo: beyond the frame there is no latent and no code: leave it out")
        if self.also is not None and self.cut_to_fit:
            raise ValueError("cut_to_fit cuts one kind of tokens; leave it or also pixels out")

    @property
    def merge(self) -> int:
        """Patches on a side of a block whose tokens lie side by side."""
        from spacepatch.tubelets import merge_of

        return merge_of(self.order)

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
        if not any(values[key] for key in EXCLUSIVE[0]):
            values["fps"] = "8"
        if self.size_policy[0] == "max-tokens-per-frame":
            values["max_tokens_per_frame"] = self.size_policy[1]
        if self.encoder is None:
            values["kind"] = "pixels"
        elif "patch" not in self.model_fields_set:
            values["patch"] = None  # what the encoder makes decides
        return values


def fingerprint_of(key: str) -> Fingerprint:
    """Which fingerprint a setting is part of."""
    extra = RunConfig.model_fields[key].json_schema_extra
    assert isinstance(extra, dict), key
    return extra["fingerprint"]  # type: ignore[return-value]
