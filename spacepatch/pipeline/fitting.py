"""Fit a codec to the user's own videos: sample their blocks, learn from them, write the file."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from spacepatch.arena import Arena
from spacepatch.clipwriter import ClipLoss
from spacepatch.config import RunConfig, fingerprint, load_config
from spacepatch.config.encoders import EncodeFields
from spacepatch.config.settings import CAN_BE_NONE
from spacepatch.data import POLICY_REASONS, ClipSpec, Loss, Source
from spacepatch.errors import ConfigError
from spacepatch.hints import LOOK
from spacepatch.jobs import Job, JobResult, run_job
from spacepatch.latents.fitting import FitReport, check_installed, check_numbers, fit_codec
from spacepatch.latents.linear import LAYOUT, codec_bytes
from spacepatch.listings import Listing
from spacepatch.pipeline.choosing import choose_source, source_loss
from spacepatch.pipeline.folder import check_file
from spacepatch.pipeline.job_settings import token_settings
from spacepatch.pipeline.planning import Progress, probe_sources
from spacepatch.pipeline.whole import list_inputs, make_pool
from spacepatch.probes import Probed, slim
from spacepatch.storage import PRIVATE, publish_bytes
from spacepatch.workers import Fault, WorkerPool

MOST_BLOCK_VALUES = 6144
"""Of a block (8 x 16 x 16 RGB): the covariance has the square of it."""
MOST_SAMPLE_BYTES = 2 * 2**30
DEFAULT_FRAME_PIXELS = 256 * 16 * 16
"""Of a frame where no size is asked for: what 256 tokens of 16 x 16 cover, `tokenize`'s default."""
BLOCK_SETTINGS: dict[str, Any] = {
    key: "none" if field.default is None and key in CAN_BE_NONE else field.default
    for key, field in EncodeFields.model_fields.items()
} | {
    "layout": LAYOUT,
    "kind": "pixels",
    "order": "raster",
    "store_mask": False,
    "halo": 0,
    "views": "1",
    "alpha": False,
    "long": "split",
    "cut_to_fit": False,
}
"""By which a token is a block as it is, whatever else the settings make of tokens."""
SMALLEST_SHARE = 1e-6
"""Rates of dropping have six digits."""


@dataclass(frozen=True, slots=True)
class SampledBlocks:
    """What was taken of the sources."""

    blocks: np.ndarray
    """``(N, D)`` uint8, each ``t h w c`` of one block; in order of the sources."""
    num_sources: int
    """That gave at least one."""
    losses: tuple[Loss, ...]
    lost_sources: tuple[str, ...]
    """Names of those that gave none though they should have."""


@dataclass(frozen=True, slots=True)
class FitSummary:
    """What a fit has to say."""

    report: FitReport
    num_sources: int
    losses: tuple[Loss, ...]
    lost_sources: tuple[str, ...]


def fit(
    arguments: Sequence[str],
    *,
    out: Path,
    config: RunConfig,
    block: str = "4x8x8",
    channels: int = 16,
    codebook: int | None = None,
    residual: int = 1,
    sample_blocks: int = 100_000,
    root: Path | str | None = None,
    overwrite: bool = False,
    on_probed: Progress = lambda done, total: None,
    on_stage: Callable[[str], None] = lambda text: None,
) -> FitSummary:
    """Learn a linear codec, and a vector quantizer on it, from a sample of the sources' blocks.

    The same sources, settings and seed give the same bytes, for any number of workers.

    Args:
        arguments: SOURCE arguments, see `list_sources`.
        out: the codec's file, for ``linear:PATH``.
        config: which frames, of what size, and how they are decoded; what cuts, drops and packs
            tokens is without effect.
        block: frames x height x width in pixels of what becomes one latent.
        channels: of a latent.
        codebook: codes of the quantizer; None: none, the codec gives latents.
        residual: stages of the quantizer, each on what the one before leaves.
        sample_blocks: to learn from, about; every clip gives one at least.
        on_stage: told what begins.

    Raises:
        ConfigError: wrong arguments or settings, or too few blocks for them.
        MissingDependencyError: a package that fitting needs is not installed.
        OSError: `out` cannot be written.
    """
    shape = parse_block(block)
    check_numbers(sample_blocks, shape, channels, codebook, residual)
    check_installed(codebook=codebook is not None)
    check_file(out)
    if out.exists() and not overwrite:
        raise ConfigError(f"{out}: is there already; give another --out, or --overwrite")
    listing = list_inputs(arguments, config, root=root)
    with make_pool(config) as pool:
        sampled = take_blocks(
            listing,
            config=config,
            block=shape,
            num_blocks=sample_blocks,
            pool=pool,
            on_probed=on_probed,
            on_stage=on_stage,
        )
    on_stage(f"fitting to {len(sampled.blocks):,} blocks of {sampled.num_sources:,} sources")
    codec, report = fit_codec(
        sampled.blocks,
        block=shape,
        channels=channels,
        codebook=codebook,
        residual=residual,
        seed=config.seed,
    )
    publish_bytes(out, codec_bytes(codec))
    with suppress(OSError):  # in a folder of shards it holds more than the file on its way
        (out.parent / PRIVATE).rmdir()
    return FitSummary(report, sampled.num_sources, sampled.losses, sampled.lost_sources)


def parse_block(text: str) -> tuple[int, int, int]:
    """``4x8x8`` to (frames, height, width).

    Raises:
        ConfigError: it is no such shape, or too large.
    """
    if not re.fullmatch(r"([1-9]\d{0,3})x([1-9]\d{0,3})x([1-9]\d{0,3})", text):
        raise ConfigError(f"block: {text!r} is not frames x height x width, such as 4x8x8")
    frames, height, width = map(int, text.split("x"))
    values = 3 * frames * height * width
    if values > MOST_BLOCK_VALUES:
        raise ConfigError(f"block: {text} has {values:,} values, {MOST_BLOCK_VALUES:,} are most")
    return frames, height, width


def take_blocks(
    listing: Listing,
    *,
    config: RunConfig,
    block: tuple[int, int, int],
    num_blocks: int,
    pool: WorkerPool,
    on_probed: Progress = lambda done, total: None,
    on_stage: Callable[[str], None] = lambda text: None,
) -> SampledBlocks:
    """Sample blocks that do not overlap, as many of each clip as its share of all of them.

    Which ones depends on the seed and the sources, never on workers.

    Raises:
        ConfigError: the settings leave none.
    """
    found = probe_sources(listing.sources, config, pool, on_probed)
    whole, _ = _choose(_settings_of(config, block, None), listing.sources, found)
    total = sum(clip.num_kept for clip in whole)
    # Kept are at least one of each clip, and at most all.
    share = max(min(num_blocks / max(total, 1), 1.0), SMALLEST_SHARE)
    settings = _settings_of(config, block, f"random:{1 - share:.6f}" if share < 1 else None)
    clips, losses = _choose(settings, listing.sources, found)
    losses += [
        source_loss(source, "list", "unreadable", "no such file") for source in listing.missing
    ]
    width = 3 * block[0] * block[1] * block[2]
    num_bytes = width * sum(clip.num_kept for clip in clips)
    if num_bytes > MOST_SAMPLE_BYTES:
        raise ConfigError(
            f"sample_blocks: {num_bytes // width:,} take {num_bytes / 1e9:.1f} GB, "
            f"{MOST_SAMPLE_BYTES / 1e9:.1f} GB are most: give fewer, or fewer videos (--sample 1%)"
        )
    on_stage(f"sampling {num_bytes // width:,} of {total:,} blocks from {len(clips):,} clips")
    # Its folder is for systems without anonymous memory files.
    with tempfile.TemporaryDirectory() as folder:
        arena = Arena(num_bytes, folder=Path(folder))
        try:
            jobs = _jobs_of(settings, listing.sources, found, clips, arena)
            outcomes = dict(pool.map(run_job, iter(enumerate(jobs))))
            blocks = _gather(jobs, outcomes, arena, width)
        finally:
            arena.close()
    losses += _losses_of(jobs, outcomes)
    return _account(blocks, jobs, outcomes, losses)


def _settings_of(config: RunConfig, block: tuple[int, int, int], drop: str | None) -> RunConfig:
    """The settings by which a block is a token."""
    size = config.max_tokens_per_frame
    if size is None and config.size_policy[0] == "max-tokens-per-frame":
        size = max(1, DEFAULT_FRAME_PIXELS // (block[1] * block[2]))
    return load_config(
        config.model_dump()
        | BLOCK_SETTINGS
        | {
            "patch": "x".join(map(str, block)),
            "max_tokens_per_frame": size,
            "drop": drop,
            "mask": None,
            "pack_length": 2**24,
        }
    )


def _choose(
    config: RunConfig, sources: Sequence[Source], found: Sequence[Probed]
) -> tuple[list[ClipSpec], list[Loss]]:
    """The clips of all sources that could be probed, and what is lost before a decode."""
    # Not of `drop`: which frames are drawn must not depend on how many blocks are taken.
    token = config.part("token")
    token.pop("drop")
    key = fingerprint(token)
    clips: list[ClipSpec] = []
    losses: list[Loss] = []
    for row, (source, probed) in enumerate(zip(sources, found, strict=True)):
        if probed.info is None:
            losses.append(source_loss(source, "probe", probed.reason, probed.message))
            continue
        chosen, ruled_out = choose_source(config, key, row, source, probed.info)
        clips += chosen
        losses += ruled_out
    return clips, losses


def _jobs_of(
    config: RunConfig,
    sources: Sequence[Source],
    found: Sequence[Probed],
    clips: Sequence[ClipSpec],
    arena: Arena,
) -> list[Job]:
    """One for each source, in their order; blocks lie in the arena in the order of `clips`."""
    settings = token_settings(config.effective(), token_dtype="uint8")
    by_source: dict[int, list[ClipSpec]] = {}
    for clip in clips:
        by_source.setdefault(clip.source, []).append(clip)
    jobs = []
    end = 0
    for row, own in by_source.items():
        info = found[row].info
        assert info is not None, "a clip has a probed source"
        offsets = []
        for clip in own:
            offsets.append(end)
            end += clip.num_kept * settings.width_of(clip)
        identity = sources[row].source_id
        jobs.append(
            Job(
                source=sources[row],
                content_id=found[row].content_id,
                info=slim(info),
                clips=tuple(own),
                clip_ids=tuple(f"{config.seed}\0fit\0{identity}\0{clip.clip}" for clip in own),
                offsets=tuple(offsets),
                arena=arena.path,
                settings=settings,
            )
        )
    return jobs


def _gather(
    jobs: Sequence[Job], outcomes: dict[int, JobResult | Fault], arena: Arena, width: int
) -> np.ndarray:
    """``(N, D)`` blocks out of the arena, in the order of the clips, without gaps."""
    parts = [np.empty((0, width), np.uint8)]
    for place, job in enumerate(jobs):
        outcome = outcomes[place]
        if isinstance(outcome, Fault):
            continue
        for offset, made in zip(job.offsets, outcome.clips, strict=True):
            parts.append(arena.tokens(offset, count=made.num_kept, dtype="uint8", width=width))
    return np.concatenate(parts)


def _losses_of(jobs: Sequence[Job], outcomes: dict[int, JobResult | Fault]) -> list[Loss]:
    """What the jobs lost, in the order of the clips."""
    losses = []
    for place, job in enumerate(jobs):
        outcome = outcomes[place]
        for number, clip in enumerate(job.clips):
            if isinstance(outcome, Fault):
                frames = len(clip.frame_pts)
                reports = [ClipLoss(outcome.reason, frames, clip.num_kept, outcome.message)]
            else:
                reports = list(outcome.clips[number].losses)
            losses += [
                replace(
                    source_loss(job.source, report.stage, report.reason, report.message),
                    clip=clip.clip,
                    num_frames=report.num_frames,
                    num_tokens=report.num_tokens,
                )
                for report in reports
            ]
    return losses


def _account(
    blocks: np.ndarray,
    jobs: Sequence[Job],
    outcomes: dict[int, JobResult | Fault],
    losses: Sequence[Loss],
) -> SampledBlocks:
    gave = set()
    for place, job in enumerate(jobs):
        outcome = outcomes[place]
        if isinstance(outcome, JobResult) and any(made.num_kept for made in outcome.clips):
            gave.add(job.source.source_id)
    lost = {
        loss.source_id: loss.source
        for loss in losses
        if loss.source_id not in gave and loss.reason not in POLICY_REASONS
    }
    if not len(blocks):
        first = f" ({losses[0].source}: {losses[0].reason}: {losses[0].message})" if losses else ""
        raise ConfigError(f"no block could be read of these sources{first}; {LOOK}")
    return SampledBlocks(blocks, len(gave), tuple(losses), tuple(lost.values()))
