"""Problems as they are found: collected, and capped a file, so that one torn tar does not bury
the rest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

Report = Callable[[str], None]
"""Told what is wrong; where is already said."""

MOST_PROBLEMS = 50
"""Shown of one file; then only their number."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is not as the format or the other files say."""

    where: str
    """File in the folder, then pack, segment or source: ``NAME-000000.tar: pack 3``."""
    what: str


class Findings:
    """The problems of one `verify`, in the order in which they were found."""

    def __init__(self) -> None:
        self._found: list[Problem] = []
        self._counts: Counter[str] = Counter()

    def at(self, where: str) -> Report:
        """A `Report` for one place."""
        return partial(self.add, where)

    def add(self, where: str, what: str) -> None:
        file = where.split(":")[0]
        self._counts[file] += 1
        if self._counts[file] <= MOST_PROBLEMS:
            self._found.append(Problem(where, what))

    @property
    def problems(self) -> list[Problem]:
        hidden = [
            Problem(file, f"and {count - MOST_PROBLEMS} more problems")
            for file, count in self._counts.items()
            if count > MOST_PROBLEMS
        ]
        return self._found + hidden
