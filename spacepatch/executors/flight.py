"""Work under way on a Ray cluster: submitted as there is room, begun again where it was lost."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from spacepatch.errors import MissingDependencyError, WorkerError
from spacepatch.executors.connection import first_line

WAIT_SECONDS = 1.0
"""How often the driver looks which nodes there are."""
LEAST_AHEAD, AHEAD = 4, 0.5
"""Tasks submitted beyond those that can run, so that no node waits for the driver, and a cluster
that grows by demand sees some: this many, or this part of them."""
MOST_STARTS = 5
"""Of a task whose node or worker is lost, until it is taken to be what kills them."""

Key = TypeVar("Key")
Order = TypeVar("Order")
Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Needs:
    """What a task takes."""

    cpus: int
    gpus: float

    def __str__(self) -> str:
        gpus = f" and {self.gpus:g} GPU" if self.gpus else ""
        return f"{self.cpus} CPU{gpus}"

    def fits(self, resources: dict[str, float]) -> int:
        """Tasks that a node of these resources can run at once."""
        number = int(resources.get("CPU", 0.0) // self.cpus)
        if self.gpus:
            number = min(number, int(resources.get("GPU", 0.0) / self.gpus + 1e-6))
        return number


def num_slots(ray: Any, needs: Needs) -> tuple[int, int]:
    """Tasks that the nodes of this moment can run at once, and how many nodes there are."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    return sum(needs.fits(node["Resources"]) for node in nodes), len(nodes)


@dataclass(slots=True)
class _Started(Generic[Key, Order]):
    key: Key
    order: Order
    starts: int = 0


@dataclass(slots=True)
class Flight(Generic[Key, Order, Answer]):
    """Orders, each of which `function` carries out in a task of Ray's."""

    ray: Any
    function: Callable[[Order], Answer]
    needs: Needs
    patience: float
    """Seconds without a node that a task fits on."""
    things: str
    """What the orders are for, in the plural."""
    name: Callable[[Key], str]
    """The same, of one."""
    on_note: Callable[[str], None]
    _running: dict[Any, _Started[Key, Order]] = field(default_factory=dict)
    """By Ray's reference."""
    _lost: deque[_Started[Key, Order]] = field(default_factory=deque)
    _roomless_since: float | None = None

    def land(self, orders: Iterator[tuple[Key, Order]]) -> Generator[tuple[Key, Answer]]:
        """Take orders as the cluster has room for them; what each is answered with, as it ends.

        Raises:
            WorkerError: no node has had room for a task for too long, or one lost its node or
                worker too often.
            Exception: what a task raised; errors of ours are never tried again.
        """
        remote = self.ray.remote(num_cpus=self.needs.cpus, num_gpus=self.needs.gpus, max_retries=0)(
            self.function
        )
        waiting = True
        while waiting or self._lost or self._running:
            room = self._room()
            while len(self._running) < room and (waiting or self._lost):
                if self._lost:
                    started = self._lost.popleft()
                elif (ordered := next(orders, None)) is None:
                    waiting = False
                    continue
                else:
                    started = _Started(*ordered)
                started.starts += 1
                self._running[remote.remote(started.order)] = started
            if self._running:
                yield from self._landed()

    def _landed(self) -> Iterator[tuple[Key, Answer]]:
        """Those that have ended, or that end within a second."""
        ready, _ = self.ray.wait(list(self._running), timeout=WAIT_SECONDS)
        if ready:  # and whatever else is
            number = len(self._running)
            ready, _ = self.ray.wait(list(self._running), num_returns=number, timeout=0)
        lost = 0
        for reference in ready:
            started = self._running.pop(reference)
            answer = self._answer(reference, started)
            if answer is None:
                self._lost.append(started)
                lost += 1
            else:
                yield started.key, answer
        if lost:
            self.on_note(f"{self.things} that lost their node or its worker are done again: {lost}")

    def _room(self) -> int:
        """How many tasks may be under way: those that the nodes of now can run, and some ahead."""
        slots, nodes = num_slots(self.ray, self.needs)
        if slots:
            self._roomless_since = None
        elif self._roomless_since is None:
            self._roomless_since = time.monotonic()
            self.on_note(
                f"none of the {nodes} nodes of the cluster has {self.needs}: waiting "
                f"{self.patience:g} s for one that has"
            )
        elif time.monotonic() - self._roomless_since > self.patience:
            raise WorkerError(
                f"none of the {nodes} nodes of the Ray cluster has {self.needs}, which a task "
                "takes: add such a node, or give another --cpus-per-task or --gpus-per-task; what "
                "is done is kept"
            )
        return slots + max(LEAST_AHEAD, int(slots * AHEAD))

    def _answer(self, reference: Any, started: _Started[Key, Order]) -> Answer | None:
        """What a task that ended says; None where it was lost with its node or worker."""
        errors = self.ray.exceptions
        try:
            answer: Answer = self.ray.get(reference)
        except errors.RayTaskError as error:
            raise _ours(error) from None
        except (
            errors.WorkerCrashedError,
            errors.NodeDiedError,
            errors.ObjectLostError,
            errors.OutOfMemoryError,
        ) as error:
            if started.starts < MOST_STARTS:
                return None
            raise WorkerError(
                f"{self.name(started.key)}: its node or worker was lost {MOST_STARTS} times "
                f"({type(error).__name__}): see Ray's logs; where memory is short, give more "
                "--cpus-per-task, or a smaller --shard-size or --worker-memory"
            ) from None
        except errors.RayError as error:
            raise WorkerError(f"Ray: {type(error).__name__}: {first_line(error)}") from None
        return answer


def _ours(error: Any) -> BaseException:
    """What a task raised, as it raised it."""
    cause = error.cause
    if isinstance(cause, ModuleNotFoundError) or "No module named 'spacepatch" in str(error):
        return MissingDependencyError(
            f"a node of the cluster: {first_line(cause)}: install the same spacepatch, with the "
            "same extras, on every node"
        )
    if isinstance(cause, Exception):
        return cause
    return WorkerError(f"Ray: a task was stopped by others: {first_line(cause)}")
