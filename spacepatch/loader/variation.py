"""What is drawn anew each epoch of segments whose tokens are made as they are loaded: the crop, the
resolution, the rate, the patch and the drop, within the tokens that were planned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from pydantic import ValidationError

from spacepatch.config import EXCLUSIVE, RunConfig
from spacepatch.config.frames import SizeFields
from spacepatch.data import ClipSpec, Fit, VideoInfo
from spacepatch.errors import SourceError
from spacepatch.loader.varied_clips import planned_drop, resampled, vary_clip
from spacepatch.pipeline.choosing import fit_of, view_rules_of
from spacepatch.pipeline.encoders import frame_unit
from spacepatch.randomness import Draws
from spacepatch.resize import fit_frame
from spacepatch.tubelets import token_width
from spacepatch.views import View

Patch = tuple[int, int, int]
"""(frames, height, width)."""


@dataclass(frozen=True, slots=True)
class Variation:
    """What differs from epoch to epoch: each is a setting of `tokenize` in its spelling, say
    ``uniform:128..256``, that is drawn by (seed, epoch, segment id); None: as it was planned.

    Args:
        random_crop: a crop of this share of the picture's area, at a place that is drawn too.
        resolution: R, for frames of R * R pixels at native aspect ratio.
        fps: samples a second, among the planned ones: at each time the last that is not after it.
        patch: a list of tubelets, of which each pack draws one: a pack holds tokens of one width.
        drop: in the place of the planned drop; not ``static``.
    """

    random_crop: str | None = None
    resolution: str | None = None
    fps: str | None = None
    patch: str | None = None
    drop: str | None = None

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            if value is not None:
                spelled = getattr(_checked({name: value}), name)
                object.__setattr__(self, name, spelled)
        if (self.drop or "").startswith("static"):
            raise ValueError(
                f"vary: drop {self.drop!r}: how many tokens stand still is not known before they "
                "are made, so no budget would hold: give random or tokens"
            )

    @classmethod
    def of(cls, given: Variation | Mapping[str, Any] | None) -> Variation | None:
        """None where nothing is to vary.

        Raises:
            ValueError: there is no such key, or no such value of it.
        """
        if not isinstance(given, Variation):
            unknown = sorted(set(given or {}) - set(cls.__dataclass_fields__))
            if unknown:
                raise ValueError(
                    f"vary: {', '.join(unknown)}: it takes {', '.join(cls.__dataclass_fields__)}"
                )
            given = cls(**(given or {}))
        return given if given.settings else None

    @property
    def settings(self) -> dict[str, str]:
        """Those that are given."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, slots=True)
class DrawnPatches:
    """Which patch each pack has in an epoch: by the name of its shard and its number there, so that
    nothing needs to be read for it."""

    seed: int
    patches: tuple[Patch, ...]
    widths: tuple[int, ...]
    """Values of a token of each."""

    def of_shard(self, shard: str, num_packs: int, epoch: int) -> np.ndarray:
        """``(num_packs,)`` int64, of the first packs of a shard: which of `patches`."""
        drawn = Draws(self.seed, epoch, shard, "patch").uniforms(num_packs)
        return (drawn * len(self.patches)).astype(np.int64)


class Varying:
    """A variation over the settings of a dataset: which clip each segment is in an epoch."""

    def __init__(self, variation: Variation, settings: Mapping[str, Any], *, seed: int) -> None:
        """Args:
            settings: of the dataset, as in dataset.json.
            seed: of all that is drawn.

        Raises:
            ValueError: it contradicts them.
        """
        self._given, self._seed = variation.settings, seed
        if str(settings["drop"]).startswith("static"):
            raise ValueError(
                "vary: the dataset drops static tubelets: how many tokens of a varied segment stay "
                "is not known before they are made, so no budget would hold"
            )
        self._config = _varied(self._given, settings)
        rules = view_rules_of(self._config)
        self._rules = replace(rules, patches=rules.patches[:1])
        self._counts_samples = settings["fps"] is not None or settings["num_frames"] is not None
        self.patches: DrawnPatches | None = None
        """None: those of the plan."""
        if "patch" in self._given:
            channels, halo = 4 if settings["alpha"] else 3, self._config.halo
            widths = [token_width(t, (h, w), channels, halo) for t, h, w in self._config.patches]
            self.patches = DrawnPatches(seed, self._config.patches, tuple(widths))

    def patch_of(self, shard: str, number: int, epoch: int) -> Patch | None:
        """Of a pack, by its number in its shard; None: the one that it was planned with."""
        if self.patches is None:
            return None
        drawn = self.patches.of_shard(shard, number + 1, epoch)[number]
        return self.patches.patches[int(drawn)]

    def clip(
        self,
        clip: ClipSpec,
        segment: Mapping[str, Any],
        info: VideoInfo,
        *,
        epoch: int,
        patch: Patch | None,
    ) -> ClipSpec:
        """What a segment is made of in an epoch.

        Args:
            clip: as planned.
            segment: what pack.json says of it: segment_id, num_kept.
            patch: of its pack.
        """
        (view,) = self._rules.draw(self._seed, epoch, segment["segment_id"])
        frames, height, width = patch or (clip.tubelet_size, *clip.patch_size)
        view = replace(view, tubelet_size=frames, patch_size=(height, width))
        if "fps" in self._given:
            clip = resampled(
                clip,
                view.value,
                info.time_base,
                least=frames if self._config.tail == "drop" else 1,
                counts_samples=self._counts_samples,
            )
        fit = None
        if self._given.keys() & {"random_crop", "resolution", "patch"}:
            picture = info.part_at(int(clip.frame_indices[0])).display_size
            fit = self._fit(clip, picture, view)
        return vary_clip(
            clip,
            tubelet_size=frames,
            patch_size=(height, width),
            fit=fit,
            unit=frame_unit(self._config, (height, width), None),
            drop=view.drop if "drop" in self._given else planned_drop(clip.drop),
            tail=self._config.tail,
            budget=segment["num_kept"],
        )

    def clip_id(self, planned: str, segment: Mapping[str, Any], epoch: int) -> str:
        """What says which tokens are dropped."""
        if "drop" not in self._given:
            return planned
        return "\0".join((str(self._seed), str(epoch), segment["segment_id"]))

    def _fit(self, clip: ClipSpec, picture: tuple[int, int], view: View) -> Fit:
        try:
            return fit_of(self._config, picture, view, len(clip.frame_pts))
        except SourceError:
            # Such as at most 1000 pixels in patches of 64 x 64: about as large as it was planned.
            unit = frame_unit(self._config, view.patch_size, None)
            area = clip.size[0] * clip.size[1] // (unit[0] * unit[1])
            return fit_frame(
                picture,
                patch=unit,
                policy="max-tokens-per-frame",
                value=max(1, area),
                share=view.share,
                place=view.place,
            )


def _varied(given: Mapping[str, str], settings: Mapping[str, Any]) -> RunConfig:
    """The settings that segments are made by; a ValueError where they cannot be."""
    kept = ("patch", "halo", "tail", "drop", "layout", "order", *SizeFields.model_fields)
    values = {name: settings[name] for name in kept} | dict(given)
    if "resolution" in given:
        others = [*(name for name in EXCLUSIVE[1] if name != "resolution"), "crop"]
        values = {name: value for name, value in values.items() if name not in others}
    config = _checked(values)
    least = min(frames for frames, _, _ in _checked({"patch": settings["patch"]}).patches)
    for frames, _, _ in config.patches:
        if config.tail == "drop" and "patch" in given and frames > least:
            raise ValueError(
                f"vary: patch {given['patch']!r}: with tail drop a segment may have no more than "
                f"the {least} frames of a planned tubelet, and {frames} would leave nothing of it"
            )
    return config


def _checked(values: Mapping[str, Any]) -> RunConfig:
    try:
        return RunConfig(**values)
    except ValidationError as error:
        problem = error.errors()[0]
        message = problem["msg"].removeprefix("Value error, ")
        name = f"{problem['loc'][0]} {problem['input']!r}: " if problem["loc"] else ""
        raise ValueError(f"vary: {name}{message}") from None
