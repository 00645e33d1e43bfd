"""A segment as the page shows it: what it is, where it is from, what was done to it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

from spacepatch.report.records import ShownSegment, size_of, text_of
from spacepatch.report.thumbnails import Film


def show_segment(row: dict[str, Any], source: dict[str, Any], film: Film, why: str) -> ShownSegment:
    """A segment.

    Args:
        row: of segments.parquet; of a plan what is known of it.
        source: of sources.parquet; what is not known is missing.
        film: its frames.
        why: there are none.
    """
    base = Fraction(row["time_base"])
    start, stop = row["clip_start_pts"] * base, row["clip_stop_pts"] * base
    size, grid = tuple(row["size"]), tuple(row["grid_thw"])
    times = "a still picture" if start == stop else f"{float(start):.2f} to {float(stop):.2f} s"
    view = f" view {row['view']}" if row["view"] else ""
    title = f"{row['source']}, clip {row['clip']}{view}"
    dropped = row["num_tokens"] - row["num_kept"]
    label = f"{title}: {row['num_kept']:,} tokens, {size_of(size)} pixels, {times}"
    return ShownSegment(
        title=title,
        label=label,
        tokens=row["num_kept"],
        size=(size[0], size[1]),
        grid=(grid[0], grid[1], grid[2]),
        facts=tuple(_facts(row, source, times, dropped)),
        frames=film.frames,
        shown_size=film.size,
        without="" if film.frames else why,
    )


def _facts(
    row: dict[str, Any], source: dict[str, Any], times: str, dropped: int
) -> Iterator[tuple[str, str]]:
    """Where the segment is from, and what was done to it."""
    yield "Tokens", f"{row['num_kept']:,}" + f", {dropped:,} dropped or lost" * bool(dropped)
    if row["drop"]:
        yield "Dropped by", row["drop"]
    yield "Grid t × h × w", " × ".join(map(str, row["grid_thw"]))
    patch = " × ".join(map(str, (row["tubelet_size"], *row["patch_size"])))
    yield "Tubelet", patch
    yield "Time", times
    if source.get("display_size"):
        yield "Size", f"{size_of(source['display_size'])} to {size_of(row['size'])}"
    else:
        yield "Size", size_of(row["size"])
    yield "Aspect error", f"{row['aspect_error']:.2%}"
    if row["crop"]:
        yield "Cropped at", text_of(row["crop"])
    if any(row["pad"] or ()):
        yield "Padded", size_of(row["pad"])
    rates = [rate for rate in (row["source_fps"], row["sampled_fps"]) if rate is not None]
    if rates:
        yield "Frames a second", " to ".join(f"{rate:.4g}" for rate in rates)
    counts = [f"{row['valid_frames']:,}"]
    for word in ("padded", "repeated", "corrupt", "damaged"):
        if row.get(f"{word}_frames"):
            counts.append(f"{row[f'{word}_frames']:,} {word}")
    yield "Frames", ", ".join(counts)
    if source.get("codec"):
        yield "Source", f"{source['container']}, {source['codec']}"
    if source.get("rotation"):
        yield "Turned", f"{source['rotation']}° clockwise"
    for label, key in (
        ("Read by", "decoder"),
        ("Times repaired", "pts_repaired"),
        ("Split", "split"),
    ):
        if row.get(key):
            yield label, row[key]
    for key, value in sorted(_extra(row["extra"]).items()):
        yield f"{key} (manifest)", text_of(value)
    if "segment_id" in row:
        yield "Segment id", row["segment_id"]


def _extra(value: Any) -> dict[str, Any]:
    """The manifest's columns: JSON in a table, as they are in a plan."""
    found = json.loads(value or "{}") if isinstance(value, str) else value
    return found if isinstance(found, dict) else {}
