"""What is new among the sources of a later run, by their names and contents."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

import numpy as np

from spacepatch.data import ClipRange, Source
from spacepatch.listings import Listing, SourceTable, key_of
from spacepatch.pipeline.generations import Addition, Identities, plan_name
from spacepatch.pipeline.planfile import StoredPlan
from spacepatch.pipeline.planning import Later, forget_parts
from spacepatch.pipeline.planrows import span_of
from spacepatch.pipeline.resuming import GROUP, THREADS, Row
from spacepatch.sources import content_id, next_source_id
from spacepatch.storage import remove


def append_to(
    plan: StoredPlan,
    out: Path,
    listing: Listing,
    make: Callable[..., StoredPlan],
    on_note: Callable[[str], None],
) -> StoredPlan:
    """A plan with one more generation, of what is new among the sources; itself if nothing is.

    Args:
        make: makes it, of a listing and `later` (see `plan_run`).
    """
    changes = find_changes(plan, listing)
    on_note(str(changes))
    number = len(plan.generations)
    additions = [*(generation.addition for generation in plan.generations), changes.addition]
    find = Identities.of(additions).finder(listing.find)
    if len(changes.listing):
        head = replace(plan.head, inputs=listing.inputs(), num_ignored=listing.num_ignored)
        plan = make(changes.listing, later=Later(head, changes.addition))
    else:
        forget_parts(out)
        if (left := out / f"{plan_name(number)}.parquet").exists():
            remove([left])  # of a start that was killed, of what is not there any more
    # What has moved may be wanted by a task that is left.
    return replace(plan, find=find)


@dataclass(frozen=True, slots=True)
class Changes:
    """What a later generation is made of."""

    listing: Listing
    """The sources to plan, under ids that no plan has; of those with further ranges only these."""
    addition: Addition
    num_new: int
    num_changed: int
    num_moved: int
    num_removed: int

    def __str__(self) -> str:
        return (
            f"sources since the last plan: {self.num_new:,} new, {self.num_changed:,} changed, "
            f"{self.num_moved:,} moved, {self.num_removed:,} removed"
        )


def find_changes(plan: StoredPlan, listing: Listing) -> Changes:
    """Hold what is listed against all generations of a plan.

    A source is known where one of its name, with the same content and ranges, is planned, lost or
    not. What could not be read as it was planned, or cannot be now, is held by its size. In memory
    are some 40 bytes a planned source, and those that are not known.
    """
    known = _Known(plan, listing)
    verdicts = np.zeros(len(listing), np.uint8)
    ranges: dict[int, tuple[ClipRange, ...]] = {}
    contents: dict[int, str] = {}
    with ThreadPoolExecutor(THREADS) as threads:
        judge = partial(_judge, known)
        asked = ((source, False) for source in listing.sources)
        left = chain(asked, ((source, True) for source in listing.missing))
        place = 0
        while group := list(islice(left, GROUP)):
            for (source, _), (verdict, found) in zip(group, threads.map(judge, group), strict=True):
                verdicts[place] = verdict
                if verdict == MOVED:
                    contents[place] = str(found)
                elif verdict == CHANGED and len(found) < len(source.ranges):
                    ranges[place] = found
                place += 1
    moved = _moved(plan, known, listing, contents)
    for place in contents:
        verdicts[place] = KNOWN if place in moved else NEW
    naming = _Naming(known.taken, listing)
    border = len(listing.sources)

    def chosen(sources: Iterable[Source], first: int) -> Iterator[Source]:
        for place, source in enumerate(sources, first):
            if verdicts[place] != KNOWN:
                own = ranges.get(place, source.ranges)
                yield naming.name(replace(source, ranges=own))

    new = Listing(
        SourceTable(chosen(listing.sources, 0)),
        listing.num_ignored,
        SourceTable(chosen(listing.missing, border)),
    )
    addition = Addition(
        len(plan.generations),
        plan.generations[-1].stop_task,
        plan.plan_id,
        naming.listed,
        dict(moved.values()),
    )
    found_again = {plan.identities.listed_id(own) for _, own in moved.values()}
    return Changes(
        new,
        addition,
        num_new=int((verdicts == NEW).sum()),
        num_changed=int((verdicts == CHANGED).sum()),
        num_moved=len(moved),
        num_removed=known.num_gone - len(found_again),
    )


KNOWN, NEW, CHANGED, MOVED = range(4)
"""What a listed source is; MOVED until it is certain whose content it has."""


class _Known:
    """What is planned, as sorted arrays of 8-byte keys."""

    def __init__(self, plan: StoredPlan, listing: Listing) -> None:
        self._listed = np.sort(listing.sources.keys)
        keys: dict[str, array[int]] = defaultdict(partial(array, "Q"))
        placed: dict[str, list[str]] = defaultdict(list)
        for generation in plan.generations:
            for identity, planned in generation.addition.moved.items():
                placed[planned].append(identity)
                # Changed later, it is planned beside what it was, as any other.
                keys["taken"].append(key_of(identity))
        for row in planned_rows(plan):
            planned, content = row["source_id"], _content_of(row)
            identity = plan.identities.listed_id(planned)
            spans = json.loads(row["ranges"]) or [WHOLE]
            keys["taken"].append(key_of(planned))
            names = [identity, *placed[planned]] if planned in placed else [identity]
            for name in names:
                keys["names"].append(key_of(name))
                keys["sized"].append(_key(name, row["bytes"]))
                keys["spans"].extend(_key(name, content, *span) for span in spans)
            if not any(map(self.is_listed, names)):
                keys["gone_names"].append(key_of(identity))
                keys["gone_sizes"].append(row["bytes"])
                keys["gone_spans"].extend(_key(content, *span) for span in spans)
        self._keys = {name: np.unique(np.frombuffer(own, np.uint64)) for name, own in keys.items()}

    def is_listed(self, source_id: str) -> bool:
        """Whether a source of that id is there now."""
        return _is_in(self._listed, key_of(source_id))

    @property
    def taken(self) -> np.ndarray:
        """Ids that are planned, or names of what is."""
        return self._of("taken")

    @property
    def num_gone(self) -> int:
        """Names that are planned and listed no more."""
        return len(self._of("gone_names"))

    def has(self, what: str, key: int) -> bool:
        return _is_in(self._of(what), key)

    def _of(self, what: str) -> np.ndarray:
        return self._keys.get(what, np.empty(0, np.uint64))


def planned_rows(plan: StoredPlan) -> Iterator[Row]:
    """Of each source that is planned at least one row: its id, content, bytes and ranges."""
    import pyarrow.compute as pc

    columns = ["source_id", "content_id", "bytes", "ranges"]
    for table in plan.tables(columns):
        yield from table.filter(pc.is_valid(table["ranges"])).to_pylist()


def _judge(known: _Known, asked: tuple[Source, bool]) -> tuple[int, Any]:
    """What a listed source is, and what of its ranges is not known or, MOVED, its content."""
    source, is_missing = asked
    identity, size = source.source_id, source.num_bytes
    is_named = known.has("names", key_of(identity))
    if is_missing:
        return (KNOWN, ()) if is_named else (NEW, ())
    if is_named and not known.has("sized", _key(identity, size)):
        return CHANGED, source.ranges
    if not is_named and not known.has("gone_sizes", size):
        return NEW, ()
    try:
        content = content_id(source.uri, offset=source.member_offset, num_bytes=size)
    except OSError:
        # Of what is planned already nothing would be gained.
        return (KNOWN, ()) if is_named else (NEW, ())
    spans = [span_of(asked) for asked in source.ranges] or [WHOLE]
    if not is_named:
        is_gone = all(known.has("gone_spans", _key(content, *span)) for span in spans)
        return (MOVED, content) if is_gone else (NEW, ())
    contents = content, _content_of({"content_id": "", "bytes": size})
    left = [
        place
        for place, span in enumerate(spans)
        if not any(known.has("spans", _key(identity, each, *span)) for each in contents)
    ]
    if not left:
        return KNOWN, ()
    return CHANGED, tuple(source.ranges[place] for place in left) if source.ranges else ()


def _moved(
    plan: StoredPlan, known: _Known, listing: Listing, contents: dict[int, str]
) -> dict[int, tuple[str, str]]:
    """Which of the listed sources that may have moved did: of each its id and the planned one.

    What is gone moves to one name; another one of the same content is a copy of that.
    """
    wanted = set(contents.values())
    gone: dict[str, dict[str, None]] = defaultdict(dict)
    for row in planned_rows(plan) if wanted else ():
        identity = plan.identities.listed_id(row["source_id"])
        if row["content_id"] in wanted and known.has("gone_names", key_of(identity)):
            gone[row["content_id"]][row["source_id"]] = None
    moved = {}
    for place, content in contents.items():
        if gone[content]:
            planned = next(iter(gone[content]))
            del gone[content][planned]
            moved[place] = listing.sources[place].source_id, planned
    return moved


class _Naming:
    """Gives sources ids that no plan and no other listed source has."""

    def __init__(self, taken: np.ndarray, listing: Listing) -> None:
        self._taken = taken
        self._others = np.sort(np.concatenate([listing.sources.keys, listing.missing.keys]))
        self.listed: dict[str, str] = {}
        """By the id given the listed one, where they differ."""

    def name(self, source: Source) -> Source:
        if not _is_in(self._taken, key_of(source.source_id)):
            return source
        for ordinal in count(1):
            identity = next_source_id(source, ordinal)
            key = key_of(identity)
            is_free = not _is_in(self._taken, key) and not _is_in(self._others, key)
            if is_free and identity not in self.listed:
                break
        self.listed[identity] = source.source_id
        return replace(source, source_id=identity)


WHOLE = (None, None)
"""What is asked for of a source without ranges."""


def _content_of(row: Row) -> str:
    return row["content_id"] or f"{row['bytes']} bytes"


def _key(*parts: object) -> int:
    content = "\0".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big")


def _is_in(ordered: np.ndarray, key: int) -> bool:
    place = int(np.searchsorted(ordered, np.uint64(key)))
    return place < len(ordered) and int(ordered[place]) == key
