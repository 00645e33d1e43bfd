"""The generations of a plan: the first one, and one for each --append that found something new."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from spacepatch.pipeline.planrows import Find
from spacepatch.shards.tables import ParquetTable

PLAN_FILE = re.compile(r"plan(-(?P<number>\d{6}))?\.(parquet|json)")
"""Names of the files of all generations."""


def plan_name(number: int) -> str:
    """Of the files of a generation, without their endings: `plan`, `plan-000001`."""
    return f"plan-{number:06d}" if number else "plan"


@dataclass(frozen=True, slots=True)
class Addition:
    """What a later generation's JSON says besides what the first one's does."""

    number: int
    """Of the generation."""
    first_task: int = 0
    """The number of its first task: those before are of former generations."""
    first_plan_id: str = ""
    """Of the first generation: its name, receipts and settings are those of all."""
    listed: dict[str, str] = field(default_factory=dict)
    """By planned source_id the one that the SOURCE arguments have, where they differ: of what was
    planned before with another content or other ranges."""
    moved: dict[str, str] = field(default_factory=dict)
    """By listed source_id, new to the plan, the planned one whose content it has."""

    def document(self) -> dict[str, Any]:
        """As it stands in the JSON of a plan."""
        if not self.number:
            return {}
        names = ("number", "first_task", "first_plan_id", "listed", "moved")
        return {"generation": {name: getattr(self, name) for name in names}}

    @classmethod
    def of(cls, document: dict[str, Any]) -> Addition:
        """Of the JSON of a plan."""
        return cls(**document["generation"]) if "generation" in document else FIRST


FIRST = Addition(0)


@dataclass(frozen=True)
class Generation:
    """One plan of those that make up a dataset's."""

    path: Path
    """Its table."""
    addition: Addition
    starts: np.ndarray
    """(n + 1,) int64: the first row of each of its tasks; those of losses follow."""
    num_sources: int
    inputs: str
    """Fingerprint of all that was listed when it was made."""
    num_ignored: int

    @property
    def stop_task(self) -> int:
        """The first task that is of a later one."""
        return self.addition.first_task + len(self.starts) - 1

    @cached_property
    def rows(self) -> ParquetTable:
        return ParquetTable(self.path)


@dataclass(frozen=True, slots=True)
class Identities:
    """Which listed source a planned one is."""

    listed: dict[str, str]
    """By planned id, where they differ, over all generations."""
    places: dict[str, str]
    """By planned id the listed one that has its content now."""
    superseded: frozenset[str]
    """Planned ids of sources that a later generation planned once more."""

    @classmethod
    def of(cls, additions: list[Addition]) -> Identities:
        listed: dict[str, str] = {}
        places: dict[str, str] = {}
        last: dict[str, str] = {}
        superseded: set[str] = set()
        for addition in additions:
            listed |= addition.listed
            places |= {planned: identity for identity, planned in addition.moved.items()}
            last |= addition.moved
            for planned, identity in addition.listed.items():
                superseded.add(last.get(identity, identity))
                last[identity] = planned
        return cls(listed, places, frozenset(superseded))

    def finder(self, find: Find) -> Find:
        """The listed source of a planned id, by `find` of a listed one."""
        if not self.listed and not self.places:
            return find

        return lambda source_id: next(filter(None, map(find, self.names(source_id))), None)

    def listed_id(self, source_id: str) -> str:
        """The listed id that a planned one was made of."""
        return self.listed.get(source_id, source_id)

    def names(self, source_id: str) -> tuple[str, ...]:
        """The listed ids that a planned one may have, the likeliest first."""
        listed = self.listed_id(source_id)
        return (listed, self.places[source_id]) if source_id in self.places else (listed,)
