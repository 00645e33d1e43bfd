"""The plan on disk: written once and durably, read by every later start and every rank."""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spacepatch.config import fingerprint
from spacepatch.data import EncoderFacts, Loss, Source, Task
from spacepatch.errors import ShardError
from spacepatch.framerules import PIXELS
from spacepatch.pipeline.generations import Addition, Generation, Identities, plan_name
from spacepatch.pipeline.placement import Placement
from spacepatch.pipeline.plan import AnyTask, Plan, PlannedTask
from spacepatch.pipeline.planrows import Find, RowReader, read_loss
from spacepatch.shards import Layout, check_version

if TYPE_CHECKING:
    import pyarrow as pa


def read_plan_document(folder: Path, number: int = 0) -> dict[str, Any]:
    """plan.json of an output folder, or that of a later generation; errors as of `open_plan`."""
    path = folder / f"{plan_name(number)}.json"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ShardError(f"{folder}: no {path.name}: not an output folder of spacepatch") from None
    except ValueError as error:
        raise ShardError(f"{path}: damaged ({error})") from None
    check_version(document, str(path))
    return document  # type: ignore[no-any-return]


def _nowhere(source_id: str) -> Source | None:
    return None


def count_generations(folder: Path) -> int:
    """Of the plan of an output folder, those that are valid: whose JSON is there."""
    number = 0
    while (folder / f"{plan_name(number)}.json").is_file():
        number += 1
    return number


def read_plan(folder: Path, find: Find = _nowhere, *, generations: int | None = None) -> Plan:
    """All of the plan of an output folder, in memory; see `open_plan`."""
    return open_plan(folder, find, generations=generations).whole()


def open_plan(folder: Path, find: Find = _nowhere, *, generations: int | None = None) -> StoredPlan:
    """The plan of an output folder, of which rows are read when they are wanted.

    Args:
        find: the source of an id, as listed now; without it the plan's sources lie nowhere.
        generations: how many of them to open, from the first on; None: all.

    Raises:
        ShardError: it is missing, damaged or of a newer version.
    """
    document = read_plan_document(folder)
    if "tasks" not in document:
        raise ShardError(f"{folder}: its plan is of an older spacepatch; use --overwrite")
    found = document.get("encoder")
    head = Plan(
        plan_id=document["plan_id"],
        name=document["name"],
        settings=document["settings"],
        fingerprints=document["fingerprints"],
        environment=document["environment"],
        layout=_read_layout(document["layout"]),
        placement=Placement(**document["placement"]),
        num_ignored=document["num_ignored"],
        inputs=document["inputs"],
        encoder=None if found is None else EncoderFacts.from_json(found),
    )
    tasks: list[PlannedTask] = []
    opened: list[Generation] = []
    count = count_generations(folder) if generations is None else generations
    for number in range(max(1, count)):
        if number:
            document = read_plan_document(folder, number)
        opened.append(_open_generation(folder, number, document, head, len(tasks)))
        tasks += _read_tasks(document["tasks"], head, len(tasks))
    # What is listed now is what the last one was made of.
    head = replace(head, num_ignored=opened[-1].num_ignored, inputs=opened[-1].inputs)
    identities = Identities.of([generation.addition for generation in opened])
    return StoredPlan(tuple(opened), head, tuple(tasks), identities, identities.finder(find))


def _open_generation(
    folder: Path, number: int, document: dict[str, Any], head: Plan, first_task: int
) -> Generation:
    path = folder / f"{plan_name(number)}.parquet"
    try:
        with path.open("rb") as file:
            actual = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise ShardError(f"{path}: missing; start again with --overwrite") from None
    if actual != document["plan_sha256"]:
        raise ShardError(f"{path}: is not the file that {path.stem}.json names; use --overwrite")
    addition = Addition.of(document)
    begun = (addition.number, addition.first_task, addition.first_plan_id)
    if number and begun != (number, first_task, head.plan_id):
        raise ShardError(
            f"{path.with_suffix('.json')}: is of another dataset, or of another generation of this "
            "one; restore the file that was there"
        )
    counts = document["tasks"]["num_clips"]
    return Generation(
        path,
        addition,
        np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]),
        num_sources=document["num_sources"],
        inputs=document["inputs"],
        num_ignored=document["num_ignored"],
    )


def _read_tasks(columns: dict[str, Any], head: Plan, first: int) -> list[PlannedTask]:
    return [
        PlannedTask(
            number=number + first,
            split=split,
            task_id=fingerprint({"fingerprints": head.fingerprints, "rows": digest}),
            num_clips=columns["num_clips"][number],
            num_jobs=columns["num_jobs"][number],
            num_frames=columns["num_frames"][number],
            num_tokens=columns["num_tokens"][number],
        )
        for number, (split, digest) in enumerate(
            zip(columns["split"], columns["rows_digest"], strict=True)
        )
    ]


@dataclass(frozen=True)
class StoredPlan:
    """A plan on disk; of its rows those of one task at a time need to be in memory."""

    generations: tuple[Generation, ...]
    """The files that it lies in; at least one."""
    head: Plan
    """All but its rows: as the first generation has it, with the inputs of the last one."""
    tasks: tuple[PlannedTask, ...]
    """All of them, or those of a rank."""
    identities: Identities
    find: Find
    """The source of a planned id, as listed now."""
    num_scanned: int | None = None
    """Sources whose packets were read although headers were asked for; not on disk, where the same
    bytes lie either way. None: nobody asked, or the plan was made by a former start."""
    keeper: object = field(default=None, repr=False)
    """What keeps its folder, where that is a temporary one."""

    @property
    def plan_id(self) -> str:
        return self.head.plan_id

    @property
    def name(self) -> str:
        return self.head.name

    @property
    def environment(self) -> dict[str, str]:
        return self.head.environment

    @property
    def is_whole(self) -> bool:
        """Whether it has all tasks."""
        return len(self.tasks) == self.generations[-1].stop_task

    @property
    def num_sources(self) -> int:
        """Of the whole plan."""
        return sum(generation.num_sources for generation in self.generations)

    @property
    def num_clips(self) -> int:
        return sum(task.num_clips for task in self.tasks)

    @property
    def num_tokens(self) -> int:
        """As of `Plan`."""
        return sum(task.num_tokens for task in self.tasks)

    def part(self, task: AnyTask) -> Plan:
        """The plan of one task alone."""
        return self.parts([task])

    def parts(self, tasks: Iterable[AnyTask]) -> Plan:
        """The plan of some tasks."""
        return self._read(tasks, self._reader())

    def whole(self) -> Plan:
        """All of it, in memory."""
        reader = self._reader()
        plan = self._read(self.tasks, reader)
        losses = []
        for row in self.loss_rows():
            reader.source(row)
            losses.append(read_loss(row))
        return replace(plan, sources=tuple(reader.sources), losses=tuple(losses))

    def tables(self, columns: Collection[str]) -> Iterator[pa.Table]:
        """Some columns of all rows, a row group at a time: of each generation those of tasks, and
        then losses."""
        for generation in self.generations:
            yield from generation.rows.groups(columns)

    def losses(self) -> Iterator[Loss]:
        """What is known to be lost before decoding."""
        return map(read_loss, self.loss_rows())

    def rows(self, task: AnyTask) -> pa.Table:
        """The rows of a task."""
        firsts = [generation.addition.first_task for generation in self.generations]
        generation = self.generations[bisect_right(firsts, task.number) - 1]
        place = task.number - generation.addition.first_task
        return generation.rows.between(*generation.starts[place : place + 2].tolist())

    def loss_rows(self) -> Iterator[dict[str, Any]]:
        """Of what is known to be lost before decoding."""
        for generation in self.generations:
            yield from generation.rows.rows_from(int(generation.starts[-1]))

    def _read(self, wanted: Iterable[AnyTask], reader: RowReader) -> Plan:
        tasks = []
        for task in wanted:
            clips = tuple(reader.clip(row) for row in self.rows(task).to_pylist())
            tasks.append(Task(task.number, task.split, task.task_id, clips))
        return replace(self.head, sources=tuple(reader.sources), tasks=tuple(tasks))

    def _reader(self) -> RowReader:
        encoder = self.head.encoder
        return RowReader(PIXELS if encoder is None else encoder.lattice, self.find)


def _read_layout(values: dict[str, Any]) -> Layout:
    tubelet = values.get("pixel_tubelet")
    tuples = {"token_widths": tuple(values["token_widths"])}
    return Layout(**(values | tuples | {"pixel_tubelet": tubelet and tuple(tubelet)}))
