"""Make a plan: probe, choose clips, order them, cut them into tasks."""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from spacepatch.config import RunConfig, fingerprint
from spacepatch.data import ClipSpec, EncoderFacts, Loss, Source, Task
from spacepatch.drop import static_threshold
from spacepatch.environment import environment
from spacepatch.latentwriter import pixel_clip
from spacepatch.pipeline.choosing import choose_source, source_loss
from spacepatch.pipeline.encoders import pixel_tubelet_of
from spacepatch.pipeline.placement import Lengths, Placement, cut_into_tasks
from spacepatch.pipeline.planfile import Plan, PlannedSource, inputs_fingerprint
from spacepatch.probes import Probed, ProbeJob, cut_into_batches, probe_batch, slim
from spacepatch.remote import is_url
from spacepatch.shards import Layout
from spacepatch.sources import Listing
from spacepatch.token_dtypes import code_dtype
from spacepatch.tubelets import token_width
from spacepatch.workers import Fault, WorkerPool

SMALL_TOKEN_BYTES = 64
"""From here up an index of its own is cheap beside the token (index auto)."""

RUNS_PER_SHARD = 8
"""From this part of a shard on, a run of consecutive clips of one source ends where that is cheap,
so that a long video spreads over several shards."""
LONGEST_RUN = 2
"""And at this part of a shard at the latest."""
MOST_DECODED_AGAIN = 1 / 32
"""Of the frames of a run: what the next one, which begins at a keyframe, may decode once more."""


Progress = Callable[[int, int], None]
"""Told (done, total) after each source."""


def plan_run(
    config: RunConfig,
    listing: Listing,
    *,
    pool: WorkerPool,
    on_probed: Progress,
    facts: EncoderFacts | None = None,
) -> Plan:
    """Probe the sources, choose their clips, order them and cut them into tasks.

    Args:
        facts: of the encoder, with which `config` was settled; None: pixels are cut.

    Raises:
        ConfigError: the settings fit no plan.
    """
    found = _probe_each(listing.sources, config, pool, on_probed)
    return plan_probed(config, listing, found, facts=facts)


def plan_probed(
    config: RunConfig,
    listing: Listing,
    found: Iterable[tuple[int, Probed]],
    *,
    facts: EncoderFacts | None = None,
) -> Plan:
    """The rest of `plan_run`, of what was found in each row of the sources, in any order."""
    prints = fingerprints_of(config, facts)
    sources: list[PlannedSource] = []
    losses: list[Loss] = [
        source_loss(source, "list", "unreadable", "no such file") for source in listing.missing
    ]
    clips: list[ClipSpec] = []
    made: dict[int, tuple[PlannedSource, list[ClipSpec], list[Loss]]] = {}
    num_scanned = 0
    for row, probed in found:
        # At once, so that the frame tables of all sources are never in memory together.
        source = listing.sources[row]
        num_scanned += probed.scanned
        made[row] = _plan_source(config, prints["token"], row, source, probed, facts)
    for row in range(len(listing.sources)):
        planned, chosen, ruled_out = made.pop(row)
        sources.append(planned)
        clips += chosen
        losses += ruled_out
    for source in listing.missing:
        sources.append(PlannedSource(source, "", None, 0, 0.0))

    layout = layout_of(config, clips, facts)
    placement = Placement.of(config)
    tasks = _make_tasks(config, prints["token"], sources, clips, layout, placement)
    return Plan(
        plan_id="",
        name="",
        settings=config.part("token", "layout", "selection", "seed"),
        fingerprints=prints,
        environment=environment_of(config),
        layout=layout,
        placement=placement,
        sources=tuple(sources),
        tasks=tuple(tasks),
        losses=tuple(losses),
        num_ignored=listing.num_ignored,
        inputs=inputs_fingerprint(listing),
        encoder=facts,
        num_scanned=num_scanned
        if any(_asks_header(source, config) for source in listing.sources)
        else None,
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
    jobs = [probe_job(source, config) for source in sources]
    on_probed(0, len(jobs))
    done = 0
    batches = list(cut_into_batches(jobs, workers=pool.workers))
    while batches:
        alone: list[list[int]] = []
        asked = ((rows, [jobs[row] for row in rows]) for rows in batches)
        for rows, outcome in pool.map(probe_batch, asked):
            if isinstance(outcome, Fault) and len(rows) > 1:
                # One of them crashed or hangs: each goes by itself, so that it costs no other.
                alone += [[row] for row in rows]
                continue
            if isinstance(outcome, Fault):
                outcome = [Probed("", None, outcome.reason, outcome.message)]
            done += len(rows)
            yield from zip(rows, outcome, strict=True)
            on_probed(done, len(jobs))
        batches = alone


def probe_job(source: Source, config: RunConfig) -> ProbeJob:
    """What a worker is told to probe."""
    return ProbeJob(
        source,
        stream=config.stream or "",
        max_pixels=config.max_pixels,
        decode_all=config.on_error == "skip-video",
        header=_asks_header(source, config),
    )


def _asks_header(source: Source, config: RunConfig) -> bool:
    """Whether its header alone is to be read: skip-video decodes all in any case."""
    word = config.probe or ("header" if is_url(source.uri) else "packets")
    return word == "header" and config.on_error != "skip-video"


def _plan_source(
    config: RunConfig,
    token_fingerprint: str,
    row: int,
    source: Source,
    found: Probed,
    facts: EncoderFacts | None,
) -> tuple[PlannedSource, list[ClipSpec], list[Loss]]:
    planned = _planned(source, found)
    if found.info is None:
        return planned, [], [source_loss(source, "probe", found.reason, found.message)]
    return planned, *choose_source(config, token_fingerprint, row, source, found.info, facts)


def _planned(source: Source, found: Probed) -> PlannedSource:
    if found.info is None:
        return PlannedSource(source, found.content_id, None, 0, 0.0)
    info = found.info
    ticks = 0 if info.still else info.stop_pts - int(info.frame_pts[0])
    return PlannedSource(
        source, found.content_id, slim(info), len(info.frame_pts), float(ticks * info.time_base)
    )


def layout_of(
    config: RunConfig, clips: Sequence[ClipSpec], facts: EncoderFacts | None = None
) -> Layout:
    """What every pack of this run has in common."""
    channels = config.channels if facts is None else facts.channels
    dtype = "uint8"
    if facts is not None:
        size = facts.codebook_size
        dtype = config.latent_dtype if size is None else code_dtype(size)
    widths = tuple(
        token_width(tubelet_size, (height, width), channels, config.halo)
        for tubelet_size, height, width in config.patches
    )
    largest = max((max(clip.grid_thw) for clip in clips), default=0)
    layout = Layout(
        pack_length=config.pack_length,
        token_dtype=dtype,
        token_widths=tuple(sorted(set(widths), reverse=True)),
        index=config.index,
        position_dtype="int16" if largest < 2**15 else "int32",
        order=config.order,
        channels=channels,
        halo=config.halo,
        run_lengths=static_threshold(config.drop) is not None,
        visible=config.store_mask,
        pixel_tubelet=pixel_tubelet_of(config, facts),
    )
    if layout.index != "auto":
        return layout
    index = "full" if layout.content_bytes(min(widths)) >= SMALL_TOKEN_BYTES else "compact"
    return replace(layout, index=index)


def fingerprints_of(config: RunConfig, facts: EncoderFacts | None = None) -> dict[str, str]:
    """What makes the tokens, what lays them out, and with which libraries."""
    return {
        **content_fingerprints(config.part("token"), config.part("layout"), facts),
        "environment": fingerprint(environment_of(config)),
    }


def content_fingerprints(
    token: dict[str, Any], layout: dict[str, Any], facts: EncoderFacts | None
) -> dict[str, str]:
    """The fingerprints `token` and `layout`, of the settings that are parts of them."""
    layout = {"store": "tokens", **layout}
    if facts is not None:
        # Whatever its file or folder is called; its constants say how tokens are to be read.
        token = token | {"encoder": facts.identity}
        layout["constants"] = facts.constants
    return {"token": fingerprint(token), "layout": fingerprint(layout)}


def environment_of(config: RunConfig) -> dict[str, str]:
    """`environment` of the libraries that these settings use."""
    kind = (config.encoder or "").partition(":")[0]
    return environment(config.resampler, config.decoder, kind, config.packer)


# --- order and tasks ---------------------------------------------------------------------------


def _make_tasks(
    config: RunConfig,
    token_fingerprint: str,
    sources: Sequence[PlannedSource],
    clips: Sequence[ClipSpec],
    layout: Layout,
    placement: Placement,
) -> list[Task]:
    """Tasks of runs in a seeded order, by their planned lengths."""
    lengths = Lengths.of(clips, layout)
    # Losses take whole grid rows; dropping leaves any number of tokens of a row.
    rows = lengths.cells if config.drop is None else np.ones(len(clips), np.int64)
    placement.check(lengths, rows)

    def order(run: Sequence[ClipSpec]) -> tuple[str, bytes]:
        source = sources[run[0].source].source
        content = f"{config.seed}\0{token_fingerprint}\0{source.source_id}\0{run[0].clip}"
        return source.split, hashlib.blake2b(content.encode(), digest_size=16).digest()

    runs = sorted(cut_runs(clips, config, layout, decodes=True), key=order)
    return make_tasks(
        runs,
        config,
        sources,
        layout,
        placement,
        lengths_of=lambda run: Lengths.of(run, layout),
    )


def cut_runs(
    clips: Sequence[ClipSpec], config: RunConfig, layout: Layout, *, decodes: bool
) -> list[list[ClipSpec]]:
    """Consecutive clips of one source, of which several make a shard.

    Args:
        decodes: whether frames are to be decoded for them, so that not every border is cheap.
    """
    pack_bytes, capacity = _shard_room(clips, config, layout)
    least, most = (max(pack_bytes, capacity // part) for part in (RUNS_PER_SHARD, LONGEST_RUN))
    return list(_runs(clips, least, most if decodes else least, layout))


def make_tasks(
    runs: Sequence[Sequence[ClipSpec]],
    config: RunConfig,
    sources: Sequence[PlannedSource],
    layout: Layout,
    placement: Placement,
    *,
    lengths_of: Callable[[Sequence[ClipSpec]], Lengths],
) -> list[Task]:
    """Cut runs, in this order, into tasks of one split each, whose packs come out nearly full.

    Args:
        lengths_of: of the segments of a run: those that are planned, or those that there are.
    """
    clips = [clip for run in runs for clip in run]
    beside = _pixel_bytes_a_token(clips, layout)
    _, capacity = _shard_room(clips, config, layout)
    tasks: list[Task] = []
    by_split: dict[str, list[Sequence[ClipSpec]]] = defaultdict(list)
    for run in runs:
        by_split[sources[run[0].source].source.split].append(run)
    for split, own in by_split.items():
        borders = cut_into_tasks(
            [lengths_of(run) for run in own],
            placement=placement,
            token_bytes=lambda width: layout.token_bytes(width) + beside,
            capacity=capacity,
        )
        for first, last in borders:
            content = tuple(clip for run in own[first:last] for clip in run)
            tasks.append(Task(len(tasks), split, "", content))
    return tasks


def _shard_room(clips: Sequence[ClipSpec], config: RunConfig, layout: Layout) -> tuple[int, int]:
    """Bytes of a full pack, and of as many as a shard holds."""
    beside = _pixel_bytes_a_token(clips, layout)
    pack_bytes = (layout.token_bytes(max(layout.token_widths)) + beside) * layout.pack_length
    return pack_bytes, max(1, config.shard_bytes // pack_bytes) * pack_bytes


def _pixel_bytes_a_token(clips: Sequence[ClipSpec], layout: Layout) -> int:
    """Bytes of the pixel tokens beside a token, on average: a pack has no other share of them."""
    num_tokens = sum(clip.num_kept for clip in clips)
    if layout.pixel_tubelet is None or not num_tokens:
        return 0
    return math.ceil(sum(pixel_bytes(clip, layout) for clip in clips) / num_tokens)


def clip_bytes(clip: ClipSpec, layout: Layout) -> int:
    """Bytes that a clip takes in a shard."""
    own = clip.num_kept * layout.token_bytes(layout.width_of(clip))
    return own + pixel_bytes(clip, layout)


def pixel_bytes(clip: ClipSpec, layout: Layout) -> int:
    """Bytes of its pixel tokens, where there are such beside those of an encoder."""
    if layout.pixel_tubelet is None:
        return 0
    return pixel_clip(clip, layout.pixel_tubelet).num_kept * layout.pixel_width


def _runs(
    clips: Sequence[ClipSpec], least_bytes: int, most_bytes: int, layout: Layout
) -> Iterator[list[ClipSpec]]:
    """Consecutive clips of one source, cut beyond `least_bytes` where little has to be decoded
    twice for it, and at `most_bytes` (unless one clip has more) in any case."""
    run: list[ClipSpec] = []
    num_bytes = last = 0
    for clip in clips:
        own = clip_bytes(clip, layout)
        if run and (
            clip.source != run[0].source
            or num_bytes + own > most_bytes
            or (
                num_bytes + own > least_bytes
                and _is_cheap(int(run[0].frame_indices[0]), last, clip)
            )
        ):
            yield run
            run, num_bytes, last = [], 0, 0
        run.append(clip)
        num_bytes += own
        last = max(last, int(clip.frame_indices[-1]))
    if run:
        yield run


def _is_cheap(first: int, last: int, clip: ClipSpec) -> bool:
    """Whether a run of the frames [first, last] may end before `clip`."""
    key = int(clip.keyframes[0, 0]) if len(clip.keyframes) else 0
    return last + 1 - key <= MOST_DECODED_AGAIN * (last + 1 - first)
