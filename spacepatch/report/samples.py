"""A few packs of a dataset, always the same ones, with the frames of their segments."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

from spacepatch.errors import ShardError
from spacepatch.inspection.folders import read_batches
from spacepatch.randomness import Draws
from spacepatch.report.provenance import show_segment
from spacepatch.report.records import ShownPack
from spacepatch.report.thumbnails import Film, draw_pixels
from spacepatch.shards import SEGMENTS, ShardReader
from spacepatch.wording import counted

PACKS = 10
"""Sampled."""
MOST_SEGMENTS, MOST_OF_PACK = 1200, 300
"""Shown: of all packs together, and of one of them."""
MOST_FRAMES, FRAMES = 420, 6
"""Thumbnails: of all segments together, and of one of them."""
MOST_BYTES = 2_500_000
"""Of thumbnails."""

SOURCE_COLUMNS = ["source_id", "display_size", "container", "codec", "rotation"]


@dataclass(frozen=True, slots=True)
class Sampled:
    """A pack that was drawn."""

    stem: str
    number: int
    rows: list[dict[str, Any]]
    """Of segments.parquet, in the order of the pack."""


def choose_packs(shards: Sequence[dict[str, Any]], *, key: str) -> list[tuple[str, int]]:
    """(shard, pack), one of each of `PACKS` equal parts of all packs.

    Args:
        shards: rows of `summarize`.
        key: what the draws depend on.
    """
    ends = list(accumulate(shard["packs"] for shard in shards))
    total = ends[-1] if ends else 0
    wanted = min(PACKS, total)
    draws = Draws(key, "report", wanted)
    borders = [part * total // wanted for part in range(wanted + 1)] if wanted else []
    chosen = []
    place = 0
    for first, stop in pairwise(borders):
        number = first + draws.integer(stop - first)
        while ends[place] <= number:
            place += 1
        chosen.append((shards[place]["name"], number - ends[place] + shards[place]["packs"]))
    return chosen


def read_packs(folder: Path, chosen: Sequence[tuple[str, int]]) -> list[Sampled]:
    """Their segments, as long as there is room for them on the page."""
    import pyarrow.compute as compute

    found: list[Sampled] = []
    shown = 0
    for stem, number in chosen:
        rows: list[dict[str, Any]] = []
        for batch in read_batches(folder / f"{stem}.segments.parquet", list(SEGMENTS)):
            rows += batch.filter(compute.equal(batch.column("pack"), number)).to_pylist()
        shown += min(len(rows), MOST_OF_PACK)
        if found and shown > MOST_SEGMENTS:
            break
        found.append(Sampled(stem, number, sorted(rows, key=lambda row: int(row["offset"]))))
    return found


def read_sources(table: Path, packs: Sequence[Sampled]) -> dict[str, dict[str, Any]]:
    """By source_id, what sources.parquet says of the sources of these packs."""
    wanted = {row["source_id"] for pack in packs for row in pack.rows}
    found = {}
    for batch in read_batches(table, SOURCE_COLUMNS):
        names = batch.column("source_id").to_pylist()
        for place in (place for place, name in enumerate(names) if name in wanted):
            found[names[place]] = batch.slice(place, 1).to_pylist()[0]
    return found


def show_packs(
    folder: Path,
    packs: Sequence[Sampled],
    sources: dict[str, dict[str, Any]],
    *,
    pack_length: int,
    films: dict[str, Film] | None = None,
    without: str = "",
) -> tuple[ShownPack, ...]:
    """The packs as the page shows them.

    Args:
        sources: as of `read_sources`.
        films: by segment_id, frames; None: pixel tokens, of which the shards have them.
        without: why a segment is not among `films`.
    """
    num_segments = sum(min(len(pack.rows), MOST_OF_PACK) for pack in packs)
    each = max(1, min(FRAMES, MOST_FRAMES // max(num_segments, 1)))
    shown = []
    frames = num_bytes = 0
    for pack in packs:
        segments = []
        for row, film, why in _films(folder, pack, each, films, without):
            is_full = frames + len(film.frames) > MOST_FRAMES or num_bytes > MOST_BYTES
            if is_full and film.frames:
                film, why = Film(()), "No frames of this one: the page is kept small."
            frames += len(film.frames)
            num_bytes += film.num_bytes
            segments.append(show_segment(row, sources.get(row["source_id"], {}), film, why))
        tokens = sum(row["num_kept"] for row in pack.rows)
        fill = tokens / pack_length
        caption = f"{tokens:,} tokens, {counted(len(pack.rows), 'segment')}, {fill:.1%} full"
        if len(pack.rows) > MOST_OF_PACK:
            caption += f"; the first {MOST_OF_PACK} can be opened"
        shown.append(
            ShownPack(
                name=f"{pack.stem}.tar, pack {pack.number}",
                caption=caption,
                segments=tuple(segments),
                unshown=sum(row["num_kept"] for row in pack.rows[MOST_OF_PACK:]),
                room=max(0, pack_length - tokens),
            )
        )
    return tuple(shown)


def _films(
    folder: Path, pack: Sampled, each: int, films: dict[str, Film] | None, without: str
) -> Iterator[tuple[dict[str, Any], Film, str]]:
    """Of each segment its row, its frames, and why there are none."""
    rows = pack.rows[:MOST_OF_PACK]
    if films is not None:
        for row in rows:
            yield row, films.get(row["segment_id"], Film(())), without
        return
    try:
        with ShardReader(folder / f"{pack.stem}.tar") as reader:
            members = reader.read(pack.number)
            if len(members.segments) != len(pack.rows):
                raise ShardError("its table and its pack do not agree; run spacepatch verify")
            for number, row in enumerate(rows):
                yield row, draw_pixels(members, number, row, most=each), ""
            del members
    except ShardError as error:
        for row in rows:
            yield row, Film(()), f"No frames: {error}"
