"""What a page is made of: every text in it is plain, and becomes markup in `page` alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

NUMBER = re.compile(r"[-+]?[\d,.]+( ?(%|[kMGT]B))?|–")

Cell = str | int | float | None


@dataclass(frozen=True, slots=True)
class Table:
    """Rows for people."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    title: str = ""
    is_folded: bool = False
    """Whether it is opened by its title."""

    @property
    def are_numbers(self) -> tuple[bool, ...]:
        """Of each column but the first, which says what its row is, whether it has nothing else."""
        columns = zip(*self.rows, strict=True)
        found = [all(map(NUMBER.fullmatch, column)) for column in columns]
        return (False, *found[1:]) if found else (False,) * len(self.columns)

    @classmethod
    def of(
        cls,
        columns: Sequence[str],
        rows: Iterable[Sequence[Cell]],
        *,
        title: str = "",
        is_folded: bool = False,
    ) -> Table:
        """A table whose cells are written out, see `text_of`."""
        written = tuple(tuple(map(text_of, row)) for row in rows)
        return cls(tuple(columns), written, title, is_folded)


@dataclass(frozen=True, slots=True)
class Chart:
    """A picture of a table."""

    title: str
    svg: str
    """Made by `charts`, whose library has escaped what it shows."""
    says: str
    """What there is to see, in a sentence, for those who do not see it."""
    table: Table
    note: str = ""
    is_wide: bool = False


@dataclass(frozen=True, slots=True)
class ShownSegment:
    """A segment of a sampled pack."""

    title: str
    label: str
    """What it is, in a line: read out where its bar has the focus."""
    tokens: int
    size: tuple[int, int]
    """(h, w) of its frames."""
    grid: tuple[int, int, int]
    facts: tuple[tuple[str, str], ...]
    frames: tuple[dict[str, str], ...] = ()
    """Each with `image` (a data URI), `alt` and `caption`."""
    shown_size: tuple[int, int] = (0, 0)
    """(h, w) of those, in pixels."""
    without: str = ""
    """Why there are none."""

    @property
    def shape(self) -> str:
        """Of its frames, as the style sheet names it."""
        height, width = self.size
        if 0.9 * height <= width <= 1.1 * height:
            return "square"
        return "landscape" if width > height else "portrait"

    def to_json(self) -> dict[str, Any]:
        """What the page needs to show it."""
        keys = ("title", "grid", "facts", "frames", "shown_size", "without")
        return {key: getattr(self, key) for key in keys}


@dataclass(frozen=True, slots=True)
class ShownPack:
    """A sampled pack."""

    name: str
    caption: str
    segments: tuple[ShownSegment, ...]
    unshown: int
    """Tokens of segments that are not among these."""
    room: int
    """Tokens that it has room for still."""


@dataclass(frozen=True, slots=True)
class Tile:
    """A figure at the top."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a page; what it lacks is left out."""

    key: str
    title: str
    texts: tuple[str, ...] = ()
    facts: tuple[tuple[str, str], ...] = ()
    charts: tuple[Chart, ...] = ()
    tables: tuple[Table, ...] = ()
    packs: tuple[ShownPack, ...] | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """A whole report."""

    what: str
    """The kind of report."""
    title: str
    lead: str
    tiles: tuple[Tile, ...]
    sections: tuple[Section, ...]
    notes: tuple[str, ...] = ()
    """What is unfinished or missing, and what to do."""
    footer: str = ""
    figures: dict[str, Any] = field(default_factory=dict)
    """For programs: JSON-able, in the page as it is."""

    @property
    def packs(self) -> tuple[ShownPack, ...]:
        """All that are shown."""
        return tuple(pack for section in self.sections for pack in section.packs or ())


def text_of(cell: object) -> str:
    """A value as people read it."""
    if cell is None:
        return "–"
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, int):
        return f"{cell:,}"
    if isinstance(cell, float):
        return f"{cell:,.4g}"
    return str(cell)


def size_of(size: Sequence[int] | None) -> str:
    """(h, w) as people write it."""
    return "–" if not size else f"{size[1]} × {size[0]}"


def span_of(seconds: float) -> str:
    """A length of time in the unit that suits it."""
    for unit, word in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:,.1f} {word}"
    return f"{seconds:,.1f} seconds"


def short_of(count: float) -> str:
    """A large number, rounded: 364,257 is 364 k."""
    for unit, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if count >= unit:
            return f"{count / unit:,.2f} {letter}"
    return f"{count:,.0f}"
