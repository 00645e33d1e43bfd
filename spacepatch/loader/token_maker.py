"""Tokens that are made as they are loaded: which sources are decoded when, where, and what of it is
remembered."""

from __future__ import annotations

import os
import tempfile
import weakref
from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from torch.utils.data import get_worker_info

from spacepatch.arena import Arena, Arenas
from spacepatch.clipwriter import ClipTokens, TokenSettings
from spacepatch.config import parse_bytes
from spacepatch.data import Source
from spacepatch.errors import ConfigError, SegmentError
from spacepatch.jobs import Job, JobResult, arena_bytes, run_job, tokens_of
from spacepatch.loader.decoding import Decoding, MadeTokens, Outcome, Wanted
from spacepatch.source_roots import SourceRoots
from spacepatch.workers import Fault, WorkerPool

ALIGNMENT = 8
"""Bytes that the tokens of a clip begin at multiples of."""


class TokenMaker:
    """Tokens by segment, of sources that are each decoded once for all that is wanted together."""

    def __init__(self, decoding: Decoding, settings: TokenSettings, roots: SourceRoots) -> None:
        self._decoding, self._settings, self._roots = decoding, settings, roots
        self._places: dict[str, Source] = {}
        """By source id, where it was found."""
        self._capacity = parse_bytes(decoding.decode_cache)
        self._cache = _Cache(self._capacity)
        self._groups: dict[tuple[str, ...], _Group] = {}
        """By key, what one pass over its source makes; of what is not made yet."""
        self._queue: deque[_Group] = deque()
        """Those that no process has begun."""
        self._workers: _Workers | None = None

    def expect(self, wanted: Iterable[Wanted]) -> None:
        """All of these will be asked for, about in this order: those of one source are made in one
        pass, if they are asked for soon after each other: what half of the cache holds."""
        by_source: dict[str, _Group] = {}
        total = 0
        for one in wanted:
            if one.key in self._groups or self._cache.expect(one.key):
                continue
            size = arena_bytes(self._settings, one.clip)
            total += size
            if total > self._capacity // 2:
                # What is made long before it is asked for would push out what is asked for before.
                by_source.clear()
                total = size
            group = by_source.get(one.planned.source.source_id)
            if group is None:
                group = by_source[one.planned.source.source_id] = _Group()
                self._queue.append(group)
            group.wanted.append(one)
            group.num_bytes += size
            self._groups[one.key] = group
        self._begin()

    def make(self, one: Wanted) -> Outcome:
        """Its tokens, or why there are none."""
        found = self._cache.take(one.key)
        if found is not None:
            self._begin()
            return found
        self.expect([one])
        group = self._groups[one.key]
        if group in self._queue:
            job = self._job(group)
            if self._decoding.decoder_workers and isinstance(job, Job):
                self._start(group, job)
            else:
                outcomes = _decode_here(group, job) if isinstance(job, Job) else _same(group, job)
                self._queue.remove(group)  # not before: whoever is interrupted may ask again
                return self._keep(group, outcomes, one)[0]
        while True:
            assert self._workers is not None, "somebody is at it"
            asked = self._keep(*self._workers.next_finished(), one)
            self._begin()
            if asked:
                return asked[0]

    def forget_errors(self) -> None:
        """Those that nobody was told of yet: what is asked for after an error is made anew."""
        self._cache.forget_errors()

    def close(self) -> None:
        """End the processes that decode."""
        if self._workers is not None:
            self._workers.close()
            self._workers = None

    def _keep(self, group: _Group, outcomes: Sequence[Outcome], asked: Wanted) -> list[Outcome]:
        """Remember what was made; what was asked for, where it is among it."""
        found: list[Outcome] = []
        for one, outcome in zip(group.wanted, outcomes, strict=True):
            del self._groups[one.key]
            self._cache.put(one.key, outcome)
            if isinstance(outcome, SegmentError):
                self._places.pop(one.planned.source.source_id, None)
            if one.key == asked.key:
                self._cache.take(one.key)
                found.append(outcome)
        return found

    def _begin(self) -> None:
        """Have as much made ahead as may be kept."""
        while self._decoding.decoder_workers and self._queue:
            ahead = self._cache.waiting_bytes + self._queue[0].num_bytes
            if self._workers is not None:
                ahead += self._workers.running_bytes
                if not self._workers.has_room or ahead > self._capacity:
                    return
            job = self._job(self._queue[0])
            if isinstance(job, SegmentError):
                return  # until it is asked for
            self._start(self._queue[0], job)

    def _start(self, group: _Group, job: Job) -> None:
        if self._workers is None:
            if get_worker_info() is not None:
                raise ConfigError(
                    "decoder_workers: a worker of a DataLoader decodes itself; take num_workers=0 "
                    "with them, or decoder_workers=0"
                )
            self._workers = _Workers(self._decoding)
        self._queue.remove(group)
        self._workers.start(group, job)

    def _job(self, group: _Group) -> Job | SegmentError:
        """What one pass over a source makes; an error where it is not to be found."""
        one = group.wanted[0]
        planned, info = one.planned, one.planned.info
        assert info is not None, "a clip has a probed source"
        source = planned.source
        if source.source_root not in self._roots:
            return one.error(
                "missing",
                f"nobody said where SOURCE argument {source.source_root} lies: give "
                "source_root=, the folder that its name is relative to",
            )
        found = self._places.get(source.source_id)
        if found is None:
            place = self._roots.place_of(source)
            try:
                found = self._roots.find(source)
            except ConfigError as error:  # of a place that was there at the beginning
                return one.error("io", f"cannot be looked for in {place}: {error}")
            if found is None:
                restore = "restore it, or give source_root="
                return one.error("missing", f"not found in {place}: {restore}")
            self._places[source.source_id] = found
        offsets, end = [], 0
        for each in group.wanted:
            offsets.append(end)
            end += -(-arena_bytes(self._settings, each.clip) // ALIGNMENT) * ALIGNMENT
        return Job(
            source=found,
            content_id=planned.content_id,
            info=info,
            clips=tuple(each.clip for each in group.wanted),
            clip_ids=tuple(each.clip_id for each in group.wanted),
            offsets=tuple(offsets),
            arena="",
            settings=self._settings,
        )


@dataclass(slots=True, eq=False)
class _Group:
    """Segments of one source that are made in one pass."""

    wanted: list[Wanted] = field(default_factory=list)
    num_bytes: int = 0


def _decode_here(group: _Group, job: Job) -> list[Outcome]:
    made: list[Outcome] = []
    for one, (tokens, clip) in zip(group.wanted, tokens_of(job), strict=True):
        # Not a part of memory for all that was planned, which would stay with it.
        own = tokens if clip.num_kept == one.clip.num_kept else tokens.copy()
        made.append(_outcome(one, own, clip))
    return made


def _same(group: _Group, error: SegmentError) -> list[Outcome]:
    """The error of the first one, of all."""
    message = str(error).split(": ", 2)[-1]
    return [one.error(error.reason, message) for one in group.wanted]


def _outcome(one: Wanted, tokens: np.ndarray, clip: ClipTokens) -> Outcome:
    """Of a clip whose source was opened."""
    whole = [loss for loss in clip.losses if loss.num_tokens]
    if not clip.num_kept and whole:
        loss = whole[0]
        way_out = ": restore it, or tokenize again" if loss.reason == "source_changed" else ""
        return one.error(loss.reason, f"{loss.reason}: {loss.message}{way_out}")
    return MadeTokens(tokens, clip)


class _Workers:
    """Processes that decode, each of which can be killed. They end with this object."""

    def __init__(self, decoding: Decoding) -> None:
        self._pool = WorkerPool(
            workers=decoding.decoder_workers,
            timeout=decoding.decode_timeout,
            worker_memory=parse_bytes(decoding.decode_memory),
        )
        self._end = weakref.finalize(self, _retire, self._pool, os.getpid())
        self._arenas = Arenas(Path(tempfile.gettempdir()))
        self._most_bytes = parse_bytes(decoding.decode_cache)
        self._running: dict[int, tuple[_Group, Job, Arena]] = {}
        self._started = 0
        self._done: deque[tuple[_Group, list[Outcome]]] = deque()
        """What ended while others waited for room."""

    @property
    def has_room(self) -> bool:
        return self._pool.has_room

    @property
    def running_bytes(self) -> int:
        """Of the tokens that are being made."""
        return sum(group.num_bytes for group, _, _ in self._running.values())

    def start(self, group: _Group, job: Job) -> None:
        """Waits for no other, as each takes its turn in the pool."""
        last = job.offsets[-1] + arena_bytes(job.settings, job.clips[-1])
        arena = self._arenas.take(last)
        self._started += 1
        self._running[self._started] = group, job, arena
        while not self._pool.has_room:
            self._done.append(self._next())
        self._pool.submit(self._started, run_job, replace(job, arena=arena.path))

    def next_finished(self) -> tuple[_Group, list[Outcome]]:
        """Wait for any."""
        return self._done.popleft() if self._done else self._next()

    def _next(self) -> tuple[_Group, list[Outcome]]:
        finished = self._pool.next_finished()
        assert finished is not None, "nobody wakes it"
        number, outcome = finished
        group, job, arena = self._running.pop(number)
        made: list[Outcome] = []
        if isinstance(outcome, Fault):
            message = f"{outcome.reason}: {_in_our_words(outcome.message)}"
            made += [one.error(outcome.reason, message) for one in group.wanted]
        else:
            made += _copied(group, job, arena, outcome)
        if arena.num_bytes > self._most_bytes // self._pool.capacity:
            arena.close()  # if all that serve were as large, they would be more than the cache
        else:
            self._arenas.give_back(arena)
        return group, made

    def close(self) -> None:
        self._end()
        for _, _, arena in self._running.values():
            arena.close()
        self._arenas.close()


def _retire(pool: WorkerPool, process: int) -> None:
    """End the workers of a process; one that was forked from it has only been told of them."""
    if os.getpid() == process:
        pool.retire()


def _in_our_words(message: str) -> str:
    """What the pool says of the options of a command, said of those of `Decoding`."""
    for option, own in (
        ("--timeout", "decode_timeout"),
        ("--worker-memory", "decode_memory"),
        ("--workers", "decoder_workers"),
    ):
        message = message.replace(option, own)
    return message


def _copied(group: _Group, job: Job, arena: Arena, result: JobResult) -> list[Outcome]:
    """Out of the arena, which serves another job."""
    made: list[Outcome] = []
    for one, offset, clip in zip(group.wanted, job.offsets, result.clips, strict=True):
        width, dtype = job.settings.width_of(one.clip), job.settings.storage
        tokens = arena.tokens(offset, count=clip.num_kept, dtype=dtype, width=width).copy()
        made.append(_outcome(one, tokens, clip))
    return made


class _Cache:
    """What was made, up to so many bytes: what was handed out already goes first."""

    def __init__(self, capacity: int) -> None:
        self._capacity, self._held = capacity, 0
        self._waiting: OrderedDict[tuple[str, ...], Outcome] = OrderedDict()
        self._given: OrderedDict[tuple[str, ...], Outcome] = OrderedDict()

    @property
    def waiting_bytes(self) -> int:
        """Of what was made and not handed out yet."""
        return sum(map(_size_of, self._waiting.values()))

    def expect(self, key: tuple[str, ...]) -> bool:
        """Whether it is there; it stays until it is asked for, if there is room."""
        if key in self._given:
            self._waiting[key] = self._given.pop(key)
        return key in self._waiting

    def take(self, key: tuple[str, ...]) -> Outcome | None:
        """It, or None where it is not there."""
        found = self._waiting.pop(key, None) or self._given.pop(key, None)
        if found is not None and not isinstance(found, SegmentError):
            self._given[key] = found
            self._shrink(key)
        elif found is not None:
            self._held -= _size_of(found)  # a source may come back
        return found

    def put(self, key: tuple[str, ...], outcome: Outcome) -> None:
        """It is handed out at least once, however large it is, before another one is put."""
        self._waiting[key] = outcome
        self._held += _size_of(outcome)
        self._shrink(key)

    def forget_errors(self) -> None:
        for key in [key for key, one in self._waiting.items() if isinstance(one, SegmentError)]:
            self._held -= _size_of(self._waiting.pop(key))

    def _shrink(self, newest: tuple[str, ...]) -> None:
        for held in (self._given, self._waiting):
            for key in list(held):
                if self._held <= self._capacity:
                    return
                if key != newest:
                    self._held -= _size_of(held.pop(key))


def _size_of(outcome: Outcome) -> int:
    return outcome.tokens.nbytes if isinstance(outcome, MadeTokens) else 0
