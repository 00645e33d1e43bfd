"""Preview a dataset: choose segments, decode them, and draw them as the suffix of a file says."""

from __future__ import annotations

import io
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from spacepatch.config import RunConfig
from spacepatch.errors import ConfigError, SpacepatchError
from spacepatch.inspection.decoded import Decoded, DecodedSegment
from spacepatch.inspection.decoding import decode_segments
from spacepatch.inspection.folders import read_finished
from spacepatch.inspection.lookup import row_of_segment, rows_of_pack
from spacepatch.pipeline.folder import check_file
from spacepatch.preview.films import MOST_SIDE, Film, gif_of, write_film
from spacepatch.preview.sheets import draw_segments
from spacepatch.storage import PRIVATE, publish, publish_bytes

SUFFIXES = (".png", ".mp4", ".gif")
MOST_FRAMES = 1000
"""Of one sheet, sources and reconstructions together: what a viewer can take."""
SEGMENTS, SEGMENTS_OF_PACK = 4, 24
"""Segments that are shown where nobody says how many."""
FRAMES, FRAMES_OF_ONE = 6, 48
"""Frames of each on a sheet; and of the one that was named."""
ALL = 2**31


def preview(
    folder: Path,
    *,
    out: Path,
    config: RunConfig,
    roots: Mapping[int, str],
    pack: str | None = None,
    segment: str | None = None,
    num_segments: int | None = None,
    num_frames: int | None = None,
    grid: bool = True,
    overwrite: bool = False,
) -> Decoded:
    """Write a PNG, MP4 or GIF of a pack, of a segment, or of those that `verify --decode` takes.

    Args:
        out: its suffix says what it becomes. A PNG has some frames of each segment; the others
            have all, one segment after the other, at true times.
        config, roots: as of `decode_segments`. Where a source is not at hand, what its tokens
            decode to is shown alone.
        pack, segment: as of `rows_of_pack` and `row_of_segment`; at most one of them.
        num_segments: at most so many; of a pack the first ones.
        num_frames: of each segment, spread over it; of a PNG.
        grid: whether the borders of tokens are drawn.

    Raises:
        ConfigError: `out` is there already, or of another suffix; there is no such pack or
            segment; or as of `decode_segments`.
        SpacepatchError: there is nothing to show.
        OSError: it cannot be written.
    """
    suffix = out.suffix.lower()
    if suffix not in SUFFIXES:
        raise ConfigError(f"{out}: let it end in {', '.join(SUFFIXES)}: that says what it becomes")
    check_file(out)
    if out.exists() and not overwrite:
        raise ConfigError(f"{out}: is there already; give another --out, or --overwrite")
    if num_frames is not None and suffix != ".png":
        raise ConfigError(f"--frames is for .png: {out.name} has all frames")
    chosen, notes = _chosen(folder, pack, segment, num_segments)
    num_chosen = len(chosen) if chosen is not None else num_segments or SEGMENTS
    wanted = num_frames or (FRAMES_OF_ONE if segment is not None else FRAMES)
    if suffix == ".png" and 2 * num_chosen * wanted > MOST_FRAMES:
        raise ConfigError(
            f"{num_chosen} segments of {wanted} frames are too many for one picture, "
            f"{MOST_FRAMES // 2} frames are most"
        )
    decoded = decode_segments(
        folder,
        num_segments=num_chosen,
        config=config,
        roots=roots,
        chosen=chosen,
        make_again=False,
        num_shown=wanted if suffix == ".png" else ALL,
    )
    shown = [segment for segment in decoded.segments if segment.found.shown]
    if not shown:
        why = [segment.problem for segment in decoded.segments if segment.problem]
        raise SpacepatchError(f"{folder}: nothing to show: {(why or decoded.notes)[0]}")
    notes += _write(out, shown, decoded.kind, grid)
    with suppress(OSError):  # in a folder of shards it holds more than the file on its way
        (out.parent / PRIVATE).rmdir()
    return replace(decoded, notes=(*decoded.notes, *notes))


def _chosen(
    folder: Path, pack: str | None, segment: str | None, num_segments: int | None
) -> tuple[list[dict[str, Any]] | None, list[str]]:
    """Rows of segments.parquet, and notes; None: a sample."""
    if pack is None and segment is None:
        return None, []
    if pack is not None and segment is not None:
        raise ConfigError("--pack and --segment: give one of them")
    dataset = read_finished(folder)
    if segment is not None:
        return [row_of_segment(folder, segment)], []
    assert pack is not None
    rows = rows_of_pack(folder, dataset, pack)
    most = num_segments or SEGMENTS_OF_PACK
    if len(rows) <= most:
        return rows, []
    return rows[:most], [f"the first {most} of {len(rows)} segments are shown: --segments says"]


def _write(out: Path, shown: list[DecodedSegment], kind: str, grid: bool) -> list[str]:
    """Returns notes."""
    suffix = out.suffix.lower()
    if suffix == ".png":
        content = io.BytesIO()
        draw_segments(shown, kind, grid=grid).save(content, "PNG")
        publish_bytes(out, content.getvalue())
        return []
    film = Film.of(shown, kind, most_side=MOST_SIDE[suffix[1:]], grid=grid)
    if suffix == ".mp4":
        publish(out, lambda file: write_film(file, film))
        return []
    gif, num_left_out = gif_of(film)
    publish_bytes(out, gif)
    if not num_left_out:
        return []
    return [f"{num_left_out} frames are left out: a gif shows none for less than 0.02 s"]
