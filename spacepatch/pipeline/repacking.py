"""Pack the segments of a dataset anew, without decoding anything."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spacepatch.config import RunConfig, load_config
from spacepatch.config.stores import floor_of
from spacepatch.data import ClipSpec, Task
from spacepatch.environment import environment
from spacepatch.errors import ConfigError
from spacepatch.limits import available_cores, most_open_files
from spacepatch.packers import NEEDS_SCIPY, check_packer
from spacepatch.pipeline.finishing import RunSummary
from spacepatch.pipeline.placement import Lengths, Placement
from spacepatch.pipeline.plan import Plan
from spacepatch.pipeline.planfile import StoredPlan
from spacepatch.pipeline.planhead import largest_side, layout_of
from spacepatch.pipeline.publishing import publish_task
from spacepatch.pipeline.rewriting import Progress, changed_plan, read_finished, rewrite
from spacepatch.pipeline.runs import cut_runs, make_tasks
from spacepatch.pipeline.stored import (
    check_files,
    check_table,
    contents_of,
    copied,
    reference_of,
)
from spacepatch.shards import (
    Layout,
    SegmentContent,
    ShardReader,
    ShardReceipt,
    read_receipt,
    receipt_path,
    shard_stem,
)
from spacepatch.shards.tables import read_table
from spacepatch.storage import is_on_store, open_folder

Key = tuple[str, int]
"""(source_id, clip): views of a window are clips with numbers of their own."""


def repack(
    folder: str | Path,
    *,
    out: str | Path,
    pack_length: int | None = None,
    packer: str | None = None,
    max_segments: int | None = None,
    window: int | None = None,
    balance: str | None = None,
    shard_size: str | None = None,
    name: str | None = None,
    overwrite: bool = False,
    on_shard: Progress = lambda done, total: None,
) -> RunSummary:
    """Write the segments of a dataset in other packs; what is not given stays as it is.

    Segments stay what they are: those that were cut for the old pack length are not joined, and
    none is cut. Sources keep their order over the shards, so that each old shard is read once, or
    twice at a border. Memory is that of the plans, the receipts, a record of each segment of the
    dataset (some 400 bytes), and one new shard's positions and rows of tables. Tokens are mapped,
    but for those of more old shards than may be open at once (`_most_open`): these are copied.

    Args:
        folder, out: on local disk, or URLs on an object store.
        max_segments: 0: as many as fit.
        balance: a word of `BALANCES`, or ``none``.
        name: of the shards; by default 8 hex digits of the new plan's id.

    Raises:
        ShardError: `folder` is no finished dataset, or damaged.
        ConfigError: it cannot be packed so: a segment is longer than a pack, for example.
        ResumeError: `out` holds something else.
        MissingDependencyError: the packer needs scipy.
    """
    folder, out = open_folder(folder), open_folder(out, writes=True)
    before = read_finished(folder)
    given = {
        "pack_length": pack_length,
        "packer": packer,
        "max_segments": max_segments,
        "window": window,
        "balance": balance,
        "shard_size": shard_size,
    }
    config = _settings(before, given, name)
    check_packer(config.packer)
    stored = _Stored.of(folder, before)
    stored.check_fits(before, config.pack_length)

    def write_tasks(_: StoredPlan, plan: Plan, tasks: Sequence[Task]) -> Iterator[Task]:
        for task in tasks:
            _write_task(folder, out, plan, task, stored)
            yield task

    return rewrite(
        folder,
        out,
        _plan(before, config, stored),
        overwrite=overwrite,
        is_outdated=lambda plan, task: _is_outdated(out, plan, task, stored),
        write_tasks=write_tasks,
        on_shard=on_shard,
    )


def _settings(plan: Plan, given: dict[str, Any], name: str | None) -> RunConfig:
    store = plan.settings.get("store", "tokens")
    if floor_of(store) is not None:
        raise ConfigError(
            f"store {store}: its tokens are not exact, and each time they are stored so they would "
            "be less: repack what it was made of, or spacepatch convert --store refs first"
        )
    changed = {key: value for key, value in given.items() if value is not None}
    if not changed:
        raise ConfigError(
            "nothing to pack otherwise: give --pack-length, --packer, --max-segments, --window, "
            "--balance or --shard-size"
        )
    settings = plan.settings | changed
    if settings.get("max_segments") == 0:
        settings["max_segments"] = None
    if "packer" in changed and "window" not in changed:
        settings["window"] = None
    cut_for = settings.get("repacked") or f"{plan.settings['pack_length']}"
    if settings["cut_to_fit"]:
        cut_for += " cut_to_fit"
        settings["cut_to_fit"] = False
    # Packed for the length that its clips were chosen for, it has settings that tokenize gives.
    settings["repacked"] = None if cut_for == str(settings["pack_length"]) else cut_for
    settings["name"] = name
    return load_config({key: value for key, value in settings.items() if value is not None})


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a segment lies."""

    task: int
    """Of the old plan."""
    row: int
    """Of the shard's table."""
    start_pts: int
    num_kept: int


@dataclass(frozen=True, slots=True)
class _Stored:
    """What there is of each clip."""

    places: dict[Key, list[_Place]]
    """Its segments, in order of time."""
    losses: dict[Key, list[dict[str, Any]]]
    observed: dict[str, dict[str, Any]]
    """By source_id."""
    shards: dict[int, tuple[str, ShardReceipt]]
    """By old task, the stem and receipt of its shard."""

    @classmethod
    def of(cls, folder: Path, plan: Plan) -> _Stored:
        """Read all receipts, and of each shard's table what is needed to pack."""
        found = cls(defaultdict(list), defaultdict(list), {}, {})
        columns = ["source_id", "clip", "clip_start_pts", "num_kept"]
        for task in plan.tasks:
            stem = shard_stem(plan.name, task.split, task.number)
            receipt = read_receipt(receipt_path(folder, stem))
            found.shards[task.number] = stem, receipt
            check_files(folder, receipt)
            for row in receipt.losses:
                found.losses[row["source_id"], row["clip"]].append(row)
            for identity, seen in receipt.observed.items():
                found.observed[identity] = {**seen, **found.observed.get(identity, {})}
            if not receipt.packs:
                continue
            table = check_table(folder, stem, receipt)
            for number, row in enumerate(read_table(table, columns)):
                place = _Place(task.number, number, row["clip_start_pts"], row["num_kept"])
                found.places[row["source_id"], row["clip"]].append(place)
        for places in found.places.values():
            places.sort(key=lambda place: place.start_pts)
        return found

    def check_fits(self, plan: Plan, pack_length: int) -> None:
        """Refuse packs that are too short for a segment."""
        longest = max(
            ((place.num_kept, key) for key, own in self.places.items() for place in own),
            default=(0, ("", 0)),
        )
        if longest[0] > pack_length:
            tokens, (identity, clip) = longest
            names = {entry.source.source_id: entry.source.name for entry in plan.sources}
            raise ConfigError(
                f"pack_length {pack_length}: {names[identity]} clip {clip} has a segment of "
                f"{tokens} tokens, which repack does not cut: give --pack-length {tokens} or "
                f"more, or tokenize again with --pack-length {pack_length}"
            )

    def of_clips(self, plan: Plan, clips: Sequence[ClipSpec]) -> list[tuple[ClipSpec, _Place]]:
        """The segments of some clips, in the order of both."""
        return [(clip, place) for clip in clips for place in self.places.get(_key(plan, clip), ())]

    def lengths(self, plan: Plan, clips: Sequence[ClipSpec]) -> Lengths:
        """Of the segments of some clips."""
        segments = self.of_clips(plan, clips)
        return Lengths(
            np.array([place.num_kept for _, place in segments], np.int64),
            np.array([clip.cells for clip, _ in segments], np.int64),
            np.array([plan.layout.width_of(clip) for clip, _ in segments], np.int64),
        )

    def lost(self, plan: Plan, task: Task) -> list[dict[str, Any]]:
        """The losses of a new task."""
        return [loss for clip in task.clips for loss in self.losses.get(_key(plan, clip), ())]

    def seen(self, plan: Plan, task: Task) -> dict[str, dict[str, Any]]:
        """What the pictures of a new task's sources told."""
        own = {plan.sources[clip.source].source.source_id for clip in task.clips}
        return {identity: self.observed[identity] for identity in sorted(own & {*self.observed})}


def _key(plan: Plan, clip: ClipSpec) -> Key:
    return plan.sources[clip.source].source.source_id, clip.clip


def _plan(before: Plan, config: RunConfig, stored: _Stored) -> Plan:
    """The plan of the new dataset: the same clips in the same order, in tasks of new packs.

    As of `tokenize`, it is made of what was planned, not of what there is: what comes back with
    `--retry-lost` moves no border.
    """
    clips = [clip for task in before.tasks for clip in task.clips]
    layout = layout_of(config, largest_side(clips), before.encoder)
    placement = Placement.of(config)
    planned = _planned_lengths(clips, layout)
    lengths = Lengths.join([planned, stored.lengths(before, clips)])
    placement.check(lengths.units(lengths.tokens))
    versions = {key: value for key, value in before.environment.items() if key != "scipy"}
    if config.packer in NEEDS_SCIPY:
        versions["scipy"] = environment(packer=config.packer)["scipy"]
    tasks = make_tasks(
        cut_runs(clips, config, layout, decodes=False),
        config,
        before.sources,
        layout,
        placement,
        lengths_of=lambda run: _planned_lengths(run, layout),
    )
    return changed_plan(before, config, tasks, versions)


def _planned_lengths(clips: Sequence[ClipSpec], layout: Layout) -> Lengths:
    """`Lengths.of`, a clip that is longer than a pack in parts of whole grid rows, where a row fits
    one: tokens may have been dropped, or segments cut to fit, so that what there is of it fits."""
    whole = Lengths.of(clips, layout)
    most = layout.pack_length // whole.cells * whole.cells
    most[most == 0] = layout.pack_length
    times = -(-whole.tokens // most)
    tokens = np.repeat(most, times)
    # The last part of each has the rest.
    tokens[np.cumsum(times) - 1] = whole.tokens - (times - 1) * most
    return Lengths(tokens, np.repeat(whole.cells, times), np.repeat(whole.widths, times))


def _is_outdated(out: Path, plan: Plan, task: Task, stored: _Stored) -> bool:
    """Whether a shard was made before one that it comes from was mended (`--retry-lost`)."""
    made = read_receipt(receipt_path(out, shard_stem(plan.name, task.split, task.number)))
    tokens = stored.lengths(plan, task.clips).tokens
    found = (made.segments, made.tokens, made.losses, made.observed)
    there = (len(tokens), int(tokens.sum()), stored.lost(plan, task), stored.seen(plan, task))
    return found != there


def _write_task(folder: Path, out: Path, plan: Plan, task: Task, stored: _Stored) -> None:
    """One shard, with its receipt."""
    segments = stored.of_clips(plan, task.clips)
    placed = plan.placement.place(stored.lengths(plan, task.clips))
    with ExitStack() as stack:
        contents = _gather(folder, [place for _, place in segments], stored, stack)
        publish_task(
            out,
            plan,
            task,
            [[contents[item] for item, _, _ in pack] for pack in placed.packs],
            losses=stored.lost(plan, task),
            observed=stored.seen(plan, task),
            unbalanced=placed.unbalanced,
            threads=available_cores(),
        )


def _gather(
    folder: Path, places: Sequence[_Place], stored: _Stored, stack: ExitStack
) -> list[SegmentContent]:
    """The segments at some places, in their order, as they lie in the old shards.

    Args:
        stack: closes the shards that stay open.
    """
    wanted: dict[int, dict[int, int]] = defaultdict(dict)
    for number, place in enumerate(places):
        wanted[place.task][place.row] = number
    contents: dict[int, SegmentContent] = {}
    most_open = _most_open()
    for number, (task, numbers) in enumerate(wanted.items()):
        stem, receipt = stored.shards[task]
        reader = ShardReader(folder / f"{stem}.tar", receipt=receipt)
        table = folder / f"{stem}.segments.parquet"
        if number < most_open and not is_on_store(folder):
            contents |= _read(stack.enter_context(reader), table, numbers)
        else:
            with reader:
                found = _read(reader, table, numbers)
                contents |= {key: copied(found.pop(key)) for key in list(found)}
    return [contents[number] for number in range(len(places))]


def _most_open() -> int:
    """Old shards that are mapped at a time: a map keeps its file open."""
    return min(MOST_OPEN, most_open_files() // 4)


MOST_OPEN = 4096
"""Maps of a process are counted too: Linux has 65,530."""


def _read(reader: ShardReader, table: Path, numbers: dict[int, int]) -> dict[int, SegmentContent]:
    """Segments of one shard.

    Args:
        numbers: by row of its table, what the segment is called in what is returned.
    """
    contents: dict[int, SegmentContent] = {}
    packs: dict[int, list[tuple[int, dict[str, Any]]]] = defaultdict(list)
    for row_number, row in enumerate(read_table(table)):
        packs[row["pack"]].append((row_number, row))
    for pack, rows in packs.items():
        if not any(row_number in numbers for row_number, _ in rows):
            continue
        own = [row for _, row in rows]
        if reader.receipt.store == "refs":
            width = reader.references(pack).width
            made = [reference_of(row, width, reader.receipt.token_dtype) for row in own]
        else:
            made = contents_of(reader.read(pack), own)
        for (row_number, _), content in zip(rows, made, strict=True):
            if row_number in numbers:
                contents[numbers[row_number]] = content
    return contents
