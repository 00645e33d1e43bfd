"""Where the time goes: a stopwatch that runs only while somebody looks, as `spacepatch bench` does.

Stages may lie in each other: the time belongs to the innermost one, so that those of all stages add
up to the whole. While nobody looks, a stage costs a comparison.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import TracebackType
from typing import TypeVar

T = TypeVar("T")

OTHER = "other"
"""What no stage took: messages, memory, content ids."""


class Stopwatch:
    """Seconds of each stage since it was started, in the thread that started it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        """By stage, of the thread that looks; their sum is the whole."""
        self.beside: dict[str, float] = defaultdict(float)
        """By stage, of the other threads."""
        self.counts: Counter[str] = Counter()
        """Items of `timed` and calls of `counted`, by their names."""
        self.thread = threading.get_ident()
        self._stage, self._since = OTHER, time.perf_counter()

    def switch(self, stage: str) -> str:
        """Go on with a stage; the one before is returned."""
        before, now = self._stage, time.perf_counter()
        self.seconds[before] += now - self._since
        self._stage, self._since = stage, now
        return before


_watch: Stopwatch | None = None
_NOTHING = nullcontext()


@contextmanager
def looking() -> Iterator[Stopwatch]:
    """Measure the stages of what runs in this block."""
    global _watch
    _watch = watch = Stopwatch()
    try:
        yield watch
    finally:
        _watch = None
        watch.switch(OTHER)


def is_looked_at() -> bool:
    """Whether somebody measures."""
    return _watch is not None


def stage(name: str) -> AbstractContextManager[None]:
    """The time of this block is that of a stage."""
    return _NOTHING if _watch is None else _Stage(_watch, name)


def timed(name: str, items: Iterator[T]) -> Iterator[T]:
    """The same items; the time in which each of them is made is that of a stage."""
    return items if _watch is None else _timed(_watch, name, items)


def counted(name: str, function: Callable[[], None]) -> Callable[[], None]:
    """The same function, whose calls are counted."""
    watch = _watch
    if watch is None:
        return function

    def call() -> None:
        watch.counts[name] += 1
        function()

    return call


def _timed(watch: Stopwatch, name: str, items: Iterator[T]) -> Iterator[T]:
    while True:
        with _Stage(watch, name):
            try:
                item = next(items)
            except StopIteration:
                return
        watch.counts[name] += 1
        yield item


class _Stage(AbstractContextManager[None]):
    def __init__(self, watch: Stopwatch, name: str) -> None:
        self._watch, self._name = watch, name
        self._before, self._since = OTHER, 0.0

    def __enter__(self) -> None:
        if threading.get_ident() == self._watch.thread:
            self._before = self._watch.switch(self._name)
        else:
            self._since = time.perf_counter()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if threading.get_ident() == self._watch.thread:
            self._watch.switch(self._before)
        else:
            self._watch.beside[self._name] += time.perf_counter() - self._since
