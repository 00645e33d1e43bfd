"""Make a plan: probe, choose clips, order them, cut them into tasks. No picture is decoded."""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np

from spacepatch.clips import choose_clips
from spacepatch.config import RunConfig, fingerprint
from spacepatch.data import ClipSpec, Loss, Source, Task, VideoInfo
from spacepatch.environment import environment
from spacepatch.errors import ConfigError, SourceError
from spacepatch.pipeline.placement import Placement, cut_into_tasks
from spacepatch.pipeline.planfile import Plan, PlannedSource, inputs_fingerprint
from spacepatch.probes import Probed, ProbeJob, describe_cut, probe_source, slim
from spacepatch.resize import fit_size
from spacepatch.shards import Layout
from spacepatch.sources import Listing
from spacepatch.tubelets import token_width
from spacepatch.workers import Fault, WorkerPool

SMALL_TOKEN_BYTES = 64
"""From here up an index of its own is cheap beside the token (index auto)."""

RUNS_PER_SHARD = 8
"""A run of consecutive clips of one source is at most this part of a shard, so that a long video
spreads over several."""


Progress = Callable[[int, int], None]
"""Told (done, total) after each source."""


def plan_run(config: RunConfig, listing: Listing, *, pool: WorkerPool, on_probed: Progress) -> Plan:
    """Probe the sources, choose their clips, order them and cut them into tasks.

    Raises:
        ConfigError: the settings fit no plan.
    """
    sources: list[PlannedSource] = []
    losses: list[Loss] = [
        _source_loss(source, "list", "unreadable", "no such file") for source in listing.missing
    ]
    clips: list[ClipSpec] = []
    made: dict[int, tuple[PlannedSource, list[ClipSpec], list[Loss]]] = {}
    for row, found in _probe_each(listing.sources, config, pool, on_probed):
        # At once, so that the frame tables of all sources are never in memory together.
        made[row] = _plan_source(config, row, listing.sources[row], found)
    for row in range(len(listing.sources)):
        planned, chosen, ruled_out = made.pop(row)
        sources.append(planned)
        clips += chosen
        losses += ruled_out
    for source in listing.missing:
        sources.append(PlannedSource(source, "", None, 0, 0.0))

    layout = layout_of(config, clips)
    placement = Placement.of(config)
    prints = fingerprints_of(config)
    tasks = _make_tasks(config, prints["token"], sources, clips, layout, placement)
    return Plan(
        plan_id="",
        name="",
        settings=config.part("token", "layout", "selection", "seed"),
        fingerprints=prints,
        environment=environment(config.resampler, config.decoder),
        layout=layout,
        placement=placement,
        sources=tuple(sources),
        tasks=tuple(tasks),
        losses=tuple(losses),
        num_ignored=listing.num_ignored,
        inputs=inputs_fingerprint(listing),
    )


def probe_sources(
    sources: Sequence[Source],
    config: RunConfig,
    pool: WorkerPool,
    on_probed: Progress = lambda done, total: None,
) -> list[Probed]:
    """Probe side by side, in killable workers; results in the order of `sources`."""
    found = dict(_probe_each(sources, config, pool, on_probed))
    return [found[row] for row in range(len(sources))]


def _probe_each(
    sources: Sequence[Source], config: RunConfig, pool: WorkerPool, on_probed: Progress
) -> Iterator[tuple[int, Probed]]:
    """(row, result) of each source, in the order that they end in."""
    jobs = (
        ProbeJob(
            source,
            stream=config.stream or "",
            max_pixels=config.max_pixels,
            decode_all=config.on_error == "skip-video",
        )
        for source in sources
    )
    on_probed(0, len(sources))
    for done, (row, outcome) in enumerate(pool.map(probe_source, enumerate(jobs)), 1):
        if isinstance(outcome, Fault):
            outcome = Probed("", None, outcome.reason, outcome.message)
        yield row, outcome
        on_probed(done, len(sources))


def _plan_source(
    config: RunConfig, row: int, source: Source, found: Probed
) -> tuple[PlannedSource, list[ClipSpec], list[Loss]]:
    planned = _planned(source, found)
    if found.info is None:
        return planned, [], [_source_loss(source, "probe", found.reason, found.message)]
    return planned, *_choose(config, row, source, found.info)


def _planned(source: Source, found: Probed) -> PlannedSource:
    if found.info is None:
        return PlannedSource(source, found.content_id, None, 0, 0.0)
    info = found.info
    ticks = 0 if info.still else info.stop_pts - int(info.frame_pts[0])
    return PlannedSource(
        source, found.content_id, slim(info), len(info.frame_pts), float(ticks * info.time_base)
    )


def _source_loss(source: Source, stage: str, reason: str, message: str) -> Loss:
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


def _choose(
    config: RunConfig, row: int, source: Source, info: VideoInfo
) -> tuple[list[ClipSpec], list[Loss]]:
    policy, value = config.size_policy
    sampler, sampler_value = config.sampler
    try:
        sizes = tuple(
            fit_size(
                part.display_size,
                patch=config.patch_size,
                policy=policy,
                value=value,
                upscale=config.upscale,
            )
            for part in info.parts
        )
    except SourceError as error:
        return [], [_source_loss(source, "resize", error.reason, str(error))]
    try:
        clips, ruled_out = choose_clips(
            info,
            source=row,
            ranges=source.ranges,
            sampler=sampler,
            sampler_value=sampler_value,
            sizes=sizes,
            tubelet_size=config.tubelet_size,
            patch_size=config.patch_size,
            tail=config.tail,
            pack_length=config.pack_length,
            clip_seconds=Fraction(config.clip_seconds) if config.clip_seconds else None,
            clip_stride=Fraction(config.clip_stride) if config.clip_stride else None,
            min_seconds=Fraction(config.min_seconds),
            long=config.long,
        )
    except SourceError as error:
        return [], [_source_loss(source, "list", error.reason, str(error))]
    except ConfigError as error:
        raise ConfigError(f"{source.name}: {error}") from None
    skipped = _skipped(config, info)
    if skipped:
        loss = _source_loss(source, "list", "skipped_by_policy", skipped)
        return [], [replace(loss, num_frames=sum(len(clip.frame_pts) for clip in clips))]
    if config.cut_to_fit:
        clips = _tell_apart(clips)
    losses = [
        replace(_source_loss(source, "list", loss.reason, loss.message), num_frames=loss.num_frames)
        for loss in ruled_out
    ]
    if info.cut_off:
        cut = _source_loss(source, "probe", "truncated", describe_cut(info))
        losses.append(replace(cut, num_frames=_missing_samples(config, source, info)))
    return clips, losses


def _skipped(config: RunConfig, info: VideoInfo) -> str:
    """Why the settings leave out this source, from its header; empty where they do not."""
    if info.hdr and config.hdr == "skip":
        return f"HDR video ({info.hdr}), and hdr is skip"
    if info.interlaced in ("tff", "bff") and config.interlaced == "skip":
        return f"interlaced video ({info.interlaced}), and interlaced is skip"
    return ""


def _missing_samples(config: RunConfig, source: Source, info: VideoInfo) -> int:
    """Frames that would have been selected from the missing end of a cut-off file, about."""
    sampler, value = config.sampler
    if source.ranges or sampler == "num-frames":
        return 0
    if sampler == "every-frame":
        return info.missing_frames
    return math.floor(info.missing_ticks * info.time_base * value)


def _tell_apart(clips: list[ClipSpec]) -> list[ClipSpec]:
    """Give clips that overlap views of their own: pieces that a cut makes of two of them could
    cover the same interval, and would have the same segment id."""
    apart: list[ClipSpec] = []
    for clip in clips:
        taken = {
            other.view
            for other in apart
            if other.start_pts < clip.stop_pts and clip.start_pts < other.stop_pts
        }
        view = next(n for n in range(len(taken) + 1) if n not in taken)
        apart.append(replace(clip, view=view))
    return apart


def layout_of(config: RunConfig, clips: Sequence[ClipSpec]) -> Layout:
    """What every pack of this run has in common."""
    width = token_width(config.tubelet_size, config.patch_size, config.channels)
    index = config.index
    if index == "auto":
        index = "full" if width >= SMALL_TOKEN_BYTES else "compact"
    largest = max((max(clip.grid_thw) for clip in clips), default=0)
    return Layout(
        pack_length=config.pack_length,
        token_dtype="uint8",
        token_width=width,
        tubelet_size=config.tubelet_size,
        patch_size=config.patch_size,
        index=index,
        position_dtype="int16" if largest < 2**15 else "int32",
    )


def fingerprints_of(config: RunConfig) -> dict[str, str]:
    """What makes the tokens, what lays them out, and with which libraries."""
    return {
        "token": fingerprint({"kind": "pixels", **config.part("token")}),
        "layout": fingerprint({"store": "tokens", **config.part("layout")}),
        "environment": fingerprint(environment(config.resampler, config.decoder)),
    }


# --- order and tasks ---------------------------------------------------------------------------


def _make_tasks(
    config: RunConfig,
    token_fingerprint: str,
    sources: Sequence[PlannedSource],
    clips: Sequence[ClipSpec],
    layout: Layout,
    placement: Placement,
) -> list[Task]:
    packs_per_shard = max(1, config.shard_bytes // (layout.token_bytes * layout.pack_length))
    run_tokens = max(layout.pack_length, packs_per_shard * layout.pack_length // RUNS_PER_SHARD)
    by_split: dict[str, list[list[ClipSpec]]] = defaultdict(list)
    for run in _runs(clips, run_tokens):
        by_split[sources[run[0].source].source.split].append(run)
    tasks: list[Task] = []
    for split in sorted(by_split):

        def order(run: list[ClipSpec]) -> bytes:
            identity = sources[run[0].source].source.source_id
            content = f"{config.seed}\0{token_fingerprint}\0{identity}\0{run[0].clip}"
            return hashlib.blake2b(content.encode(), digest_size=16).digest()

        runs = sorted(by_split[split], key=order)
        borders = cut_into_tasks(
            [np.array([clip.num_tokens for clip in run]) for run in runs],
            [np.array([clip.grid_thw[1] * clip.grid_thw[2] for clip in run]) for run in runs],
            placement=placement,
            packs_per_shard=packs_per_shard,
        )
        for first, last in borders:
            content = tuple(clip for run in runs[first:last] for clip in run)
            tasks.append(Task(len(tasks), split, "", content))
    return tasks


def _runs(clips: Sequence[ClipSpec], most_tokens: int) -> Iterator[list[ClipSpec]]:
    """Consecutive clips of one source, of at most `most_tokens` unless one clip has more."""
    run: list[ClipSpec] = []
    tokens = 0
    for clip in clips:
        if run and (clip.source != run[0].source or tokens + clip.num_tokens > most_tokens):
            yield run
            run, tokens = [], 0
        run.append(clip)
        tokens += clip.num_tokens
    if run:
        yield run
