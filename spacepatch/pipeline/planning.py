"""Make a plan: probe, choose clips, order them, cut them into tasks."""

from __future__ import annotations

import math
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from spacepatch.config import RunConfig, fingerprint
from spacepatch.data import EncoderFacts, Source
from spacepatch.errors import ConfigError
from spacepatch.executors.probing import probe_each
from spacepatch.listings import Listing
from spacepatch.pipeline.choosing import choose_source, source_loss, view_rules_of
from spacepatch.pipeline.generations import FIRST, Addition
from spacepatch.pipeline.parts import (
    Part,
    PartFiles,
    Row,
    clips_among,
    cut_into_parts,
    losses_among,
)
from spacepatch.pipeline.placement import Placement
from spacepatch.pipeline.plan import Plan, PlannedSource
from spacepatch.pipeline.planfile import StoredPlan, open_plan
from spacepatch.pipeline.planhead import environment_of, fingerprints_of, layout_of
from spacepatch.pipeline.planrows import clip_rows, loss_rows
from spacepatch.pipeline.planwriting import write_plan_rows
from spacepatch.pipeline.runs import (
    ShardRoom,
    cut_runs,
    cut_tasks,
    lengths_of_rows,
    pixel_bytes,
    run_key,
)
from spacepatch.pipeline.sorting import KEY, in_order
from spacepatch.probes import Probed, ProbeJob
from spacepatch.remote import is_url
from spacepatch.shards import PLAN, Layout
from spacepatch.shards.tables import batches_of
from spacepatch.storage import PRIVATE, remove_folder, scratch_folder
from spacepatch.workers import WorkerPool

if TYPE_CHECKING:
    import pyarrow as pa

Progress = Callable[[int, int], None]
"""Told (done, total) after each source."""

Probe = Callable[[Iterable[ProbeJob]], Iterator[tuple[int, Probed]]]
"""As of `Executor.probe`."""

PARTS = "planning"
"""Folder of the parts that are probed already, beside locks and logs."""


def plan_run(
    config: RunConfig,
    listing: Listing,
    *,
    probe: Probe,
    on_probed: Progress,
    facts: EncoderFacts | None = None,
    out: Path | None = None,
    on_note: Callable[[str], None] = lambda note: None,
    later: Later | None = None,
) -> StoredPlan:
    """Probe the sources, choose their clips, order them and cut them into tasks.

    What is in memory is a part of the sources, and a bucket of the clips, however many there are.

    Args:
        facts: of the encoder, with which `config` was settled; None: pixels are cut.
        out: where the plan is made durable, and where a later call goes on with what this one has
            probed; None: nowhere, it is gone with what is returned.
        later: to make a later generation of the plan in `out`, of `listing` alone.

    Raises:
        ConfigError: the settings fit no plan.
        OSError: `out`, or the folder for temporary files, has no room.
    """
    keeper = _Keeper() if out is None else None
    folder = out if keeper is None else keeper.folder
    assert folder is not None, "one of the two"
    planner = _Planner(config, facts, PartFiles(folder / PRIVATE / PARTS))
    names = planner.probe(listing, probe, on_probed)
    if planner.num_scanned:
        on_note(
            f"the headers of {planner.num_scanned} of {len(listing.sources)} sources do not tell "
            "enough: their packets were read"
        )
    planner.write(folder, listing, names, later)
    forget_parts(folder)
    return replace(
        open_plan(folder, listing.find),
        num_scanned=planner.num_scanned if planner.asks_headers else None,
        keeper=keeper,
    )


@dataclass(frozen=True, slots=True)
class Later:
    """What a later generation has of those before it, and of all that is listed."""

    head: Plan
    """Of the first one, with the inputs of the whole listing."""
    addition: Addition


class _Keeper:
    """A temporary folder that is gone with this, or with the process."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="spacepatch-plan-"))
        weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)


def forget_parts(out: Path) -> None:
    """Remove what was kept while the plan was being made: it is whole."""
    remove_folder(out / PRIVATE / PARTS)


class _Planner:
    """The way of sources into a plan, by the settings of a run."""

    def __init__(self, config: RunConfig, facts: EncoderFacts | None, files: PartFiles) -> None:
        self.config, self.facts, self.files = config, facts, files
        self.prints = fingerprints_of(config, facts)
        self.num_scanned = 0
        """Sources whose packets were read although headers were asked for."""
        self.asks_headers = False
        """Whether of any source that was probed the header alone was asked for."""
        self._rules = view_rules_of(config)
        # Near enough to cut runs by, before all sizes are known.
        self._layout = layout_of(config, 0, facts)

    def probe(self, listing: Listing, probe: Probe, on_probed: Progress) -> list[str]:
        """Probe what no former start has kept; the names of all parts, in order."""
        total = len(listing.sources)
        settings = fingerprint(
            {
                "prints": self.prints,
                "seed": self.config.seed,
                "probe": [self.config.stream, self.config.max_pixels, self.config.probe],
                "shard": self.config.shard_bytes,
            }
        )
        names: list[str] = []
        waiting: dict[int, tuple[Part, int]] = {}
        """By the place of a job, its part and its place in that."""
        done = number = 0

        def jobs() -> Iterator[ProbeJob]:
            nonlocal done, number
            for part in cut_into_parts(listing.sources, settings=settings):
                names.append(part.name)
                if self.files.has(part.name):
                    done += len(part.sources)
                    on_probed(done, total)
                    continue
                for place, source in enumerate(part.sources):
                    waiting[number] = part, place
                    number += 1
                    job = probe_job(source, self.config)
                    self.asks_headers |= job.header
                    yield job

        on_probed(0, total)
        for job, found in probe(jobs()):
            part, place = waiting.pop(job)
            # At once, so that no more than a few frame tables are in memory together.
            part.rows[place] = list(self._rows(part.sources[place], found))
            self.num_scanned += found.scanned
            if part.is_whole:
                self.files.write(part)
            done += 1
            on_probed(done, total)
        return names

    def _rows(self, source: Source, found: Probed) -> Iterator[Row]:
        """What the plan says of a source that was probed: its clips, by runs, and its losses."""
        planned = _planned(source, found)
        if found.info is None:
            loss = source_loss(source, "probe", found.reason, found.message)
            yield from loss_rows(planned, [loss])
            return
        token = self.prints["token"]
        clips, losses = choose_source(
            self.config, token, 0, source, found.info, self.facts, self._rules
        )
        planned = replace(planned, num_selected=sum(len(clip.frame_pts) for clip in clips))
        for run in cut_runs(clips, self.config, self._layout, decodes=True):
            key = run_key(self.config, token, source, run)
            for clip, row in zip(run, clip_rows(planned, run), strict=True):
                yield row | {KEY: key, "pixel_bytes": pixel_bytes(clip, self._layout)}
        yield from loss_rows(planned, losses)

    def write(
        self, folder: Path, listing: Listing, names: Sequence[str], later: Later | None
    ) -> None:
        """Order what was found, cut it into tasks and make that durable."""
        survey = _Survey(self._layout, drops=self.config.drop is not None)
        for name in names:
            survey.add(name, self.files.read(name, _Survey.COLUMNS))
        layout = layout_of(self.config, survey.largest, self.facts)
        if later is not None:
            layout = _layout_of_first(later.head.layout, layout, survey)
        placement = Placement.of(self.config)
        placement.check(survey.units)
        room = ShardRoom.of(
            self.config, layout, pixels=survey.pixel_bytes, num_tokens=survey.num_tokens
        )
        head = Plan(
            plan_id="",
            name="",
            settings=self.config.part("token", "layout", "selection", "seed"),
            fingerprints=self.prints,
            environment=environment_of(self.config),
            layout=layout,
            placement=placement,
            num_ignored=listing.num_ignored,
            inputs=listing.inputs(),
            encoder=self.facts,
        )
        if later is not None:
            head = later.head
        clips = (rows for name in names if len(rows := clips_among(self.files.read(name))))
        write_plan_rows(
            folder,
            head,
            cut_tasks(in_order(clips, scratch_folder(folder)), room, placement),
            self._losses(listing, survey.lossy),
            num_sources=len(listing),
            addition=FIRST if later is None else later.addition,
        )

    def _losses(self, listing: Listing, lossy: Iterable[str]) -> Iterator[pa.Table]:
        missing = (
            row
            for source in listing.missing
            for row in loss_rows(
                PlannedSource(source, "", None, 0, 0.0),
                [source_loss(source, "list", "unreadable", "no such file")],
            )
        )
        yield from batches_of(PLAN, missing)
        for name in lossy:
            yield losses_among(self.files.read(name))


def _layout_of_first(first: Layout, own: Layout, survey: _Survey) -> Layout:
    """The layout of a later generation: that of the first one, if its positions fit."""
    if first.position_dtype == "int16" and own.position_dtype != "int16":
        raise ConfigError(
            f"{survey.largest_of}: {survey.largest:,} cells along an axis need positions of "
            f"{own.position_dtype}, this dataset has {first.position_dtype}; leave it out, or give "
            "another --out"
        )
    return first


class _Survey:
    """What of all clips has to be known before they are cut into tasks."""

    COLUMNS = tuple("source reason grid_thw tubelet_size patch_size num_kept pixel_bytes".split())

    def __init__(self, layout: Layout, *, drops: bool) -> None:
        self._layout, self._drops = layout, drops
        self.largest = 0
        """The most cells along an axis of any grid."""
        self.largest_of = ""
        """A source that has them."""
        self.num_tokens = self.pixel_bytes = 0
        self.units: dict[int, int] = {}
        """By width, what the kept tokens of each are a multiple of, whatever is lost."""
        self.lossy: list[str] = []
        """Names of parts that have losses."""

    def add(self, name: str, rows: pa.Table) -> None:
        import pyarrow.compute as pc

        clips = clips_among(rows)
        if len(clips) < len(rows):
            self.lossy.append(name)
        if not len(clips):
            return
        grids = np.asarray(pc.list_flatten(clips["grid_thw"]))
        place = int(grids.argmax())
        if grids[place] > self.largest:
            self.largest = int(grids[place])
            self.largest_of = clips["source"][place // 3].as_py()
        self.num_tokens += pc.sum(clips["num_kept"]).as_py()
        self.pixel_bytes += pc.sum(clips["pixel_bytes"]).as_py()
        lengths = lengths_of_rows(clips, self._layout)
        # Losses take whole grid rows; dropping leaves any number of tokens of a row.
        divisors = np.ones(len(clips), np.int64) if self._drops else lengths.cells
        for width, unit in lengths.units(divisors).items():
            self.units[width] = math.gcd(self.units.get(width, 0), unit)


def probe_sources(
    sources: Sequence[Source],
    config: RunConfig,
    pool: WorkerPool,
    on_probed: Progress = lambda done, total: None,
) -> list[Probed]:
    """Probe side by side, in killable workers; results in the order of `sources`."""
    found = dict(_probe_each(sources, config, partial(probe_each, pool=pool), on_probed))
    return [found[row] for row in range(len(sources))]


def _probe_each(
    sources: Sequence[Source], config: RunConfig, probe: Probe, on_probed: Progress
) -> Iterator[tuple[int, Probed]]:
    """(row, result) of each source, in the order that they end in."""
    on_probed(0, len(sources))
    jobs = (probe_job(source, config) for source in sources)
    for done, found in enumerate(probe(jobs), 1):
        yield found
        on_probed(done, len(sources))


def probe_job(source: Source, config: RunConfig) -> ProbeJob:
    """What a worker is told to probe."""
    return ProbeJob(
        source,
        stream=config.stream or "",
        max_pixels=config.max_pixels,
        decode_all=config.on_error == "skip-video",
        header=_asks_header(source, config),
    )


def _planned(source: Source, found: Probed) -> PlannedSource:
    if found.info is None:
        return PlannedSource(source, found.content_id, None, 0, 0.0)
    info = found.info
    ticks = 0 if info.still else info.stop_pts - int(info.frame_pts[0])
    seconds = float(ticks * info.time_base)
    return PlannedSource(source, found.content_id, info, len(info.frame_pts), seconds)


def _asks_header(source: Source, config: RunConfig) -> bool:
    """Whether its header alone is to be read: skip-video decodes all in any case."""
    word = config.probe or ("header" if is_url(source.uri) else "packets")
    return word == "header" and config.on_error != "skip-video"
