"""Make tokens again that a dataset does not hold: its tasks are run where its sources lie now."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from spacepatch.balancing import Spread
from spacepatch.config import RunConfig
from spacepatch.data import Source, Task
from spacepatch.errors import ConfigError, SegmentError, ShardError
from spacepatch.pipeline.finishing import RunSummary
from spacepatch.pipeline.placement import Piece, Placed
from spacepatch.pipeline.plan import AnyTask, Plan
from spacepatch.pipeline.planfile import StoredPlan
from spacepatch.pipeline.planhead import environment_of
from spacepatch.pipeline.rewriting import changed_plan, receipt_of, rewrite
from spacepatch.pipeline.running import run_tasks
from spacepatch.pipeline.segments import Made
from spacepatch.pipeline.stored import check_files, check_table
from spacepatch.pipeline.whole import Watch, make_pool
from spacepatch.remote import is_url
from spacepatch.shards import receipt_path, shard_stem
from spacepatch.shards.tables import read_table
from spacepatch.source_roots import SourceRoots
from spacepatch.storage import remove

ON_MISMATCH = ("error", "warn")


@dataclass(frozen=True, slots=True)
class Restoring:
    """How tokens are made again."""

    roots: Mapping[int, str] = field(default_factory=dict)
    """Where the sources lie, see `SourceRoots`."""
    config: RunConfig = field(default_factory=RunConfig)
    """What workers may take, and whether web servers may be asked."""
    on_mismatch: str = "error"
    """Where tokens are not those of `tokens_crc32c`, as with another FFmpeg: ``error``, or ``warn``
    and take them."""
    retry_lost: bool = False
    """Do shards again that lost something to timeout, crash, out_of_memory or io."""
    watch: Watch = field(default_factory=Watch)

    def __post_init__(self) -> None:
        if self.on_mismatch not in ON_MISMATCH:
            words = ", ".join(ON_MISMATCH)
            raise ConfigError(f"on_mismatch: must be one of {words}, not {self.on_mismatch}")


def restore(
    folder: Path,
    out: Path,
    before: Plan,
    config: RunConfig,
    restoring: Restoring,
    *,
    overwrite: bool,
) -> RunSummary:
    """Run the tasks of a finished dataset with the settings `config`: what is written is, byte by
    byte, what `tokenize` would have written with them and the libraries that are here.

    A source that is missing, changed or damaged is a loss, as of `tokenize`.

    Raises:
        ConfigError: nobody says where the sources lie.
        SegmentError: a source gives other tokens than their checksum says; its shard is made again
            by the next start.
        ResumeError: `out` holds something else.
        OSError: `out` cannot be written; resumable.
    """
    places = SourceRoots(restoring.roots, allow_network=restoring.config.allow_network)
    _check_roots(folder, before, places)
    watch, versions = restoring.watch, environment_of(config)
    for name, now in versions.items():
        was = before.environment.get(name)
        if was != now:
            watch.on_note(f"made with {name} {was}, here is {now}: the last bits may differ")
    checksums = _Checksums(folder, before, out, restoring.on_mismatch)
    placing = None
    if before.settings.get("repacked") or before.settings.get("recut"):
        # Its packs are not those that its settings make of its clips.
        placing = partial(_as_stored, folder, before)

    with make_pool(restoring.config) as pool:

        def write_tasks(stored: StoredPlan, plan: Plan, tasks: Sequence[Task]) -> Iterator[object]:
            pending = [stored.tasks[task.number] for task in tasks]
            watch.on_start(stored, pending)
            reports = run_tasks(
                _Located(stored, places),
                pending,
                folder=out,
                pool=pool,
                placing=placing,
                on_job=watch.on_job,
                on_decoded=pool.retire,
            )
            with closing(reports):
                for report in reports:
                    checksums.check(plan, plan.tasks[report.number])
                    watch.on_task(report)
                    yield report

        summary = rewrite(
            folder,
            out,
            changed_plan(before, config, before.tasks, versions),
            overwrite=overwrite,
            is_outdated=checksums.is_outdated,
            write_tasks=write_tasks,
            on_shard=lambda done, total: None,
            retry_lost=restoring.retry_lost,
        )
    return replace(summary, other_tokens=checksums.num_others)


# --- sources -----------------------------------------------------------------------------------


def _check_roots(folder: Path, before: Plan, places: SourceRoots) -> None:
    """Raise a `ConfigError` where nobody said where the sources lie."""
    store = before.settings["store"]
    holds = "holds references" if store == "refs" else f"store {store} holds no exact tokens"
    for clip in (clip for task in before.tasks for clip in task.clips):
        source = before.sources[clip.source].source
        if source.source_root not in places:
            raise ConfigError(
                f"{folder}: {holds}, so that tokens are made again: say where the sources of "
                f"SOURCE argument {source.source_root} lie ({source.name} is one): --source-root "
                f"{source.source_root}=DIR"
            )


@dataclass(frozen=True, slots=True)
class _Located:
    """A plan whose sources are where they lie now."""

    plan: StoredPlan
    places: SourceRoots

    @property
    def plan_id(self) -> str:
        return self.plan.plan_id

    @property
    def name(self) -> str:
        return self.plan.name

    @property
    def environment(self) -> dict[str, str]:
        return self.plan.environment

    def part(self, task: AnyTask) -> Plan:
        """The plan of one task alone."""
        plan = self.plan.part(task)
        sources = [replace(each, source=self._find(each.source)) for each in plan.sources]
        return replace(plan, sources=tuple(sources))

    def _find(self, source: Source) -> Source:
        """Where it is not to be found, its job finds nothing either, and says so."""
        place = self.places.place_of(source)
        nowhere = (
            f"{place.rstrip('/')}/{source.name}" if is_url(place) else f"{place}/{source.name}"
        )
        return self.places.find(source) or replace(source, uri=nowhere)


# --- checksums ---------------------------------------------------------------------------------


@dataclass(slots=True)
class _Checksums:
    """Holds the tokens that are made against those that were."""

    folder: Path
    before: Plan
    out: Path
    on_mismatch: str
    num_others: int = 0
    """Segments with other tokens."""

    def is_outdated(self, plan: Plan, task: Task) -> bool:
        """Whether a shard of a former start has other tokens, which must not be."""
        others = self._others(plan, task)
        if self.on_mismatch == "warn":
            self.num_others += len(others)
        return bool(others) and self.on_mismatch == "error"

    def check(self, plan: Plan, task: Task) -> None:
        """Raises a SegmentError, and takes the receipt back."""
        others = self._others(plan, task)
        if not others:
            return
        self.num_others += len(others)
        if self.on_mismatch == "warn":
            return
        remove([receipt_path(self.out, shard_stem(plan.name, task.split, task.number))])
        first, identity = others[0]["source"], others[0]["segment_id"]
        more = f" (and {len(others) - 1} more of its shard)" if len(others) > 1 else ""
        raise SegmentError(
            f"{first}: segment {identity}{more}: gives other tokens than tokens_crc32c says: the "
            "file is another one, or the libraries are (see environment in dataset.json, and "
            "spacepatch doctor): restore them, or take these with --on-mismatch warn",
            source=first,
            segment_id=identity,
            reason="other_tokens",
        )

    def _others(self, plan: Plan, task: Task) -> list[dict[str, Any]]:
        """Rows of segments whose checksum is another one than it was."""
        known = {
            row["segment_id"]: row["tokens_crc32c"]
            for row in _rows_of(self.folder, self.before, self.before.tasks[task.number])
            if row["tokens_crc32c"] is not None
        }
        if not known:
            return []
        return [
            row
            for row in _rows_of(self.out, plan, task)
            if known.get(row["segment_id"], row["tokens_crc32c"]) != row["tokens_crc32c"]
        ]


def _rows_of(folder: Path, plan: Plan, task: Task) -> list[dict[str, Any]]:
    """What the table of a shard says of its segments: which, where, of what."""
    receipt = receipt_of(folder, plan, task)
    check_files(folder, receipt)
    if not receipt.packs:
        return []
    stem = shard_stem(plan.name, task.split, task.number)
    return read_table(check_table(folder, stem, receipt), COLUMNS)


COLUMNS = [
    *("segment_id", "source", "source_id", "clip", "view", "clip_start_pts", "grid_thw"),
    *("num_kept", "pack", "tokens_crc32c"),
]


# --- packs that were made of packs -------------------------------------------------------------


def _as_stored(folder: Path, before: Plan, plan: Plan, made: Sequence[Made]) -> Placed:
    """The packs of a dataset that was repacked or cut into other patches: those that it has.

    Raises:
        ShardError: a source gives more than what was packed, for which there is no place.
    """
    old = before.tasks[plan.tasks[0].number]
    items = {_key(plan, clip): number for number, clip in enumerate(made)}
    rows = _rows_of(folder, before, old)
    parts = Counter((row["source_id"], row["clip"], row["view"]) for row in rows)
    left = {number: clip.num_kept for number, clip in enumerate(made)}
    packs: dict[int, list[Piece]] = defaultdict(list)
    for row in rows:
        key = row["source_id"], row["clip"], row["view"]
        item = items.get(key)
        if item is None:
            continue
        left[item] -= row["num_kept"]
        if parts[key] == 1:
            packs[row["pack"]].append((item, 0, None))
            continue
        clip, start = made[item], row["clip_start_pts"]
        low = 0 if start == clip.spec.start_pts else int(np.searchsorted(clip.spec.row_pts, start))
        borders = np.searchsorted(clip.tokens.rows, [low, low + row["grid_thw"][0]])
        first, last = borders.tolist()
        if first < last:
            packs[row["pack"]].append((item, first, last))
    for item, tokens in left.items():
        if tokens > 0:
            name = plan.sources[made[item].spec.source].source.name
            raise ShardError(
                f"{name} clip {made[item].spec.clip}: gives {tokens} tokens more than were packed, "
                "and packs that were made of packs have no place for them: convert the dataset "
                "that they were made of, or tokenize again"
            )
    spread = receipt_of(folder, before, old).unbalanced
    return Placed(
        [packs[number] for number in sorted(packs)], None if spread is None else Spread(*spread)
    )


def _key(plan: Plan, clip: Made) -> tuple[str, int, int]:
    return plan.sources[clip.spec.source].source.source_id, clip.spec.clip, clip.spec.view
