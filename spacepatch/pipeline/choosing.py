"""The clips of one source as the settings ask for them, and what they rule out."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

from spacepatch.clips import ClipLoss, choose_clips
from spacepatch.config import RunConfig
from spacepatch.data import ClipRange, ClipSpec, EncoderFacts, Fit, Loss, Source, VideoInfo
from spacepatch.distributions import parse_distribution
from spacepatch.drop import parse_drop
from spacepatch.errors import ConfigError, SourceError
from spacepatch.pipeline.encoders import frame_unit, lattice_of
from spacepatch.probes import describe_cut
from spacepatch.resize import fit_frame
from spacepatch.sampling import OF_EACH_CLIP
from spacepatch.views import View, ViewRules


def view_rules_of(config: RunConfig) -> ViewRules:
    """What the views of every clip are drawn from."""
    policy, value = config.size_policy
    return ViewRules(
        num_views=config.num_views,
        value=parse_distribution(config.sampling()[1]),
        random_offset=config.random_offset,
        patches=config.patches,
        each_patch=config.views == "all",
        size_value=parse_distribution(value) if policy == "resolution" else value,
        share=None if config.random_crop is None else parse_distribution(config.random_crop),
        drop=None if config.drop is None else parse_drop(config.drop),
    )


def fit_of(
    config: RunConfig,
    size: tuple[int, int],
    view: View,
    num_frames: int,
    facts: EncoderFacts | None = None,
) -> Fit:
    """The frame of a picture of (h, w) pixels.

    Raises:
        SourceError: there is none (reason `resize_impossible`).
    """
    row_frames = view.tubelet_size * lattice_of(facts).rule.step
    return fit_frame(
        size,
        patch=frame_unit(config, view.patch_size, facts),
        policy=config.size_policy[0],
        value=view.size_value,
        upscale=config.upscale,
        fit=config.fit,
        crop=config.crop_size,
        buckets=config.bucket_ratios,
        share=view.share,
        place=view.place,
        # A single picture fills a tubelet by its tail policy, and has the size of one.
        num_frames=max(num_frames, row_frames),
        tubelet_size=row_frames,
    )


def choose_source(
    config: RunConfig,
    token_fingerprint: str,
    row: int,
    source: Source,
    info: VideoInfo,
    facts: EncoderFacts | None = None,
    rules: ViewRules | None = None,
) -> tuple[list[ClipSpec], list[Loss]]:
    """The clips of a source that was probed.

    Args:
        row: of the source in the plan.
        facts: of the encoder; None: pixels are cut.
        rules: those of the settings, for who chooses from many sources.

    Raises:
        ConfigError: long is error, and a clip does not fit a pack.
    """
    rules = rules or view_rules_of(config)
    try:
        clips, ruled_out = clips_of(
            config,
            info,
            row=row,
            ranges=source.ranges,
            key=(config.seed, token_fingerprint, source.source_id),
            rules=rules,
            facts=facts,
        )
    except SourceError as error:
        return [], [source_loss(source, "list", error.reason, str(error))]
    except ConfigError as error:
        raise ConfigError(f"{source.name}: {error}") from None
    skipped = _skipped(config, info)
    if skipped:
        loss = source_loss(source, "list", "skipped_by_policy", skipped)
        return [], [replace(loss, num_frames=sum(len(clip.frame_pts) for clip in clips))]
    if config.cut_to_fit:
        clips = _tell_apart(clips, rules.num_views)
    losses = [
        replace(
            source_loss(source, loss.stage, loss.reason, loss.message), num_frames=loss.num_frames
        )
        for loss in ruled_out
    ]
    if source.metadata_lost:
        losses.append(source_loss(source, "list", "metadata", source.metadata_lost))
    if info.cut_off:
        cut = source_loss(source, "probe", "truncated", describe_cut(info))
        losses.append(replace(cut, num_frames=_missing_samples(config, source, info)))
    return clips, losses


def clips_of(
    config: RunConfig,
    info: VideoInfo,
    *,
    row: int,
    ranges: tuple[ClipRange, ...],
    key: tuple[object, ...],
    rules: ViewRules,
    facts: EncoderFacts | None = None,
) -> tuple[list[ClipSpec], list[ClipLoss]]:
    """`choose_clips` by the settings; `key` is what the draws of this source are keyed by."""
    sampler = config.sampling()[0]
    return choose_clips(
        info,
        source=row,
        ranges=ranges,
        sampler=sampler,
        views=lambda window: rules.draw(*key, window),
        one_grid=rules.is_one_rate and sampler not in OF_EACH_CLIP,
        fit=lambda size, view, num_frames: fit_of(config, size, view, num_frames, facts),
        tail=config.tail,
        pack_length=config.pack_length,
        clip_seconds=Fraction(config.clip_seconds) if config.clip_seconds else None,
        clip_stride=Fraction(config.clip_stride) if config.clip_stride else None,
        min_seconds=Fraction(config.min_seconds),
        long=config.long,
        lattice=lattice_of(facts),
    )


def source_loss(source: Source, stage: str, reason: str, message: str) -> Loss:
    """The loss of a source before any of its frames is decoded."""
    return Loss(
        source=source.name,
        source_id=source.source_id,
        clip=None,
        stage=stage,
        reason=reason,
        num_frames=0,
        num_tokens=0,
        message=message,
        split=source.split,
        source_root=source.source_root,
    )


def _skipped(config: RunConfig, info: VideoInfo) -> str:
    """Why the settings leave out this source, from its header; empty where they do not."""
    if info.hdr and config.hdr == "skip":
        return f"HDR video ({info.hdr}), and hdr is skip"
    if info.interlaced in ("tff", "bff") and config.interlaced == "skip":
        return f"interlaced video ({info.interlaced}), and interlaced is skip"
    return ""


def _missing_samples(config: RunConfig, source: Source, info: VideoInfo) -> int:
    """Frames that would have been selected from the missing end of a cut-off file, about."""
    sampler, value = config.sampling()
    has_limits = any((x.start_seconds, x.stop_seconds) != (None, None) for x in source.ranges)
    if has_limits or sampler.endswith("num-frames") or sampler == "keyframes":
        return 0
    if sampler == "every-frame":
        return info.missing_frames * config.num_views
    rates = parse_distribution(value)
    middle = (rates.lowest + rates.highest) / 2
    if sampler == "stride":
        return math.floor(info.missing_frames / middle) * config.num_views
    return math.floor(info.missing_ticks * info.time_base * middle) * config.num_views


def _tell_apart(clips: Sequence[ClipSpec], num_views: int) -> list[ClipSpec]:
    """Give clips that overlap views of their own: pieces that a cut makes of two of them could
    cover the same interval, and would have the same segment id."""
    apart = list(clips)
    open_until: dict[int, int] = {}
    """By view, where the last clip of it ends."""
    for place in sorted(range(len(clips)), key=lambda place: (clips[place].start_pts, place)):
        clip = clips[place]
        free = itertools.count(clip.view % num_views, num_views)
        view = next(n for n in free if open_until.get(n, clip.start_pts) <= clip.start_pts)
        open_until[view] = clip.stop_pts
        apart[place] = replace(clip, view=view)
    return apart
