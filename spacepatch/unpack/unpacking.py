"""Unpack a finished dataset: a folder of frames a segment, and a table that says what they are."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spacepatch.config import RunConfig
from spacepatch.data import EncoderFacts
from spacepatch.errors import ConfigError, ResumeError, ShardError
from spacepatch.inspection.folders import read_finished
from spacepatch.inspection.given_encoder import given_encoder
from spacepatch.inspection.lookup import Rows, packs_of, row_of_segment, rows_of_pack
from spacepatch.pipeline.whole import make_pool
from spacepatch.shards import shard_stem
from spacepatch.shards.tables import batches_of, write_batches
from spacepatch.storage import PRIVATE, lock, publish_bytes, publish_folder, sweep_temporary
from spacepatch.unpack.files import FORMATS
from spacepatch.unpack.packs import COLUMNS, FACTS, PackRequest, unpack_pack
from spacepatch.workers import Fault

WISH = "unpack.json"
"""What the folder is to hold; it is written first, and an interrupted run goes on by it."""
TABLE = "unpacked.parquet"
"""One row a segment, in the order of the dataset; written last."""


@dataclass(frozen=True, slots=True)
class Unpacked:
    """What was written, of what is there now."""

    num_segments: int
    num_frames: int
    num_exact: int
    """Segments whose files hold the very frames that were cut into tokens."""
    num_gaps: int
    """Segments of which tokens are missing."""
    lost_frames: int
    """Frames of which no token is there: no file."""
    padded_frames: int
    """That fill the last grid rows: no files."""


def unpack(
    folder: Path,
    *,
    out: Path,
    config: RunConfig,
    file_format: str = "png",
    pack: str | None = None,
    segment: str | None = None,
    on_pack: Callable[[int, int], None] = lambda done, total: None,
) -> Unpacked:
    """Write the frames of every segment, or of those of a pack, or of one.

    Packs are read one at a time by each worker. Where pixel tokens lie beside those of an encoder,
    they are unpacked, unless an encoder is given.

    Args:
        folder: a finished dataset.
        out: a new or empty folder, or one in which the same call was interrupted.
        config: where the encoder is and how it computes, and what workers may take.
        file_format: one of `FORMATS`.
        pack, segment: as of `rows_of_pack` and `row_of_segment`; at most one of them.
        on_pack: told (done, total) after each pack.

    Raises:
        ConfigError: an unknown format, pack or segment, or no encoder where one is needed.
        ResumeError: `out` holds something else.
        ShardError: `folder` is no finished dataset; or packs of it are damaged, after all others
            were unpacked.
        EncodeError: the encoder is not that of the dataset.
        OSError: it cannot be written.
    """
    if file_format not in FORMATS:
        raise ConfigError(f"--format {file_format}: is none of {', '.join(FORMATS)}")
    dataset = read_finished(folder)
    if dataset.get("store") == "refs":
        raise ShardError(
            f"{folder}: holds references, no tokens: spacepatch convert --store tokens "
            "--source-root DIR --out NEW makes these, then unpack NEW"
        )
    facts = None if dataset["encoder"] is None else EncoderFacts.from_json(dataset["encoder"])
    uses_pixels = dataset.get("pixels") is not None and config.encoder is None
    has_alpha = dataset["settings"]["alpha"] and (facts is None or uses_pixels)
    if has_alpha and file_format != "png":
        raise ConfigError(f"--format {file_format}: has no alpha, as these frames have: give png")
    wish = {
        "plan_id": dataset["plan_id"],
        "format": file_format,
        "of": "pixels" if facts is None or uses_pixels else facts.kind,
        "pack": pack,
        "segment": segment,
    }
    chosen = _chosen(folder, dataset, pack, segment)
    _check_out(out, wish)

    def packs() -> Iterator[tuple[str, int, Rows]]:
        yield from packs_of(folder, dataset) if chosen is None else [chosen]

    total = 1 if chosen is not None else sum(entry["packs"] for entry in dataset["shards"])
    with make_pool(config) as pool, ExitStack() as owned:
        encoder = None if uses_pixels else given_encoder(facts, dataset["settings"], config, pool)
        owned.enter_context(lock(out))
        _check_out(out, wish)  # again: it is ours only now
        sweep_temporary(out)
        publish_bytes(out / WISH, _bytes_of(wish))
        requests = (
            PackRequest(
                tar=folder / f"{stem}.tar",
                pack=number,
                rows=rows,
                format=file_format,
                uses_pixels=uses_pixels,
                facts=facts,
                encoder=encoder,
            )
            for stem, number, rows in _missing(folder, out, packs())
        )
        problems = {}
        work = pool.map(unpack_pack, ((f"{it.tar.stem}-{it.pack:06d}", it) for it in requests))
        for done, (key, made) in enumerate(work, 1):
            if isinstance(made, Fault):
                made = f"{made.reason}: {made.message}"
            if isinstance(made, str):
                problems[key] = made
            else:
                for segment_id, files in made.items():
                    publish_folder(out / segment_id, files)
            on_pack(done, total)
        if problems:
            first = min(problems)
            raise ShardError(
                f"{len(problems)} of {total} packs cannot be unpacked, {first} is the first: "
                f"{problems[first]}. The others are: mend those, and run the same command again"
            )
        return _write_table(out, packs())


def _missing(
    folder: Path, out: Path, packs: Iterator[tuple[str, int, Rows]]
) -> Iterator[tuple[str, int, Rows]]:
    """The packs with those of their segments that have no folder yet."""
    for stem, number, rows in packs:
        for row in rows:
            if not re.fullmatch(r"[0-9a-f]{32}", row["segment_id"]):
                raise ShardError(f"{folder}: segments.parquet has a segment {row['segment_id']!r}")
        left = [row for row in rows if not (out / row["segment_id"]).exists()]
        if left:
            yield stem, number, left


def _chosen(
    folder: Path, dataset: dict[str, Any], pack: str | None, segment: str | None
) -> tuple[str, int, Rows] | None:
    """The one pack that is wanted, with those of its segments that are; None: all packs."""
    if pack is not None and segment is not None:
        raise ConfigError("--pack and --segment: give one of them")
    if pack is not None:
        rows = rows_of_pack(folder, dataset, pack)
    elif segment is not None:
        rows = [row_of_segment(folder, segment)]
    else:
        return None
    first = rows[0]
    stem = shard_stem(dataset["name"], first["split"], first["shard"])
    return stem, first["pack"], rows


def _bytes_of(wish: dict[str, Any]) -> bytes:
    return (json.dumps(wish, sort_keys=True, indent=1) + "\n").encode()


def _check_out(out: Path, wish: dict[str, Any]) -> None:
    """Refuse a folder in which anything is but the beginning of the same.

    Raises:
        ConfigError: it is a file.
        ResumeError: it holds something else.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out}: is a file; --out takes a folder")
    names = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
    if WISH in names and (out / WISH).read_bytes() != _bytes_of(wish):
        raise ResumeError(
            f"{out}: holds what another spacepatch unpack wrote ({WISH} says what); give a new or "
            "empty folder to --out"
        )
    foreign = [name for name in names if name != PRIVATE]
    if WISH not in names and foreign:
        raise ResumeError(
            f"{out}: is not empty ({', '.join(foreign[:3])}{', ...' * (len(foreign) > 3)}); give a "
            "new or empty folder to --out"
        )


def _write_table(out: Path, packs: Iterator[tuple[str, int, Rows]]) -> Unpacked:
    """Gather what each folder says of itself."""
    counts = dict.fromkeys(Unpacked.__dataclass_fields__, 0)

    def rows() -> Iterator[dict[str, Any]]:
        for _, _, own in packs:
            for row in own:
                found = json.loads((out / row["segment_id"] / FACTS).read_text())
                counts["num_segments"] += 1
                counts["num_frames"] += len(found["frame_pts"]) - len(found["lost_frames"])
                counts["num_exact"] += found["is_exact"]
                counts["num_gaps"] += found["num_kept"] < found["num_tokens"]
                counts["lost_frames"] += len(found["lost_frames"])
                counts["padded_frames"] += found["padded_frames"]
                yield found

    write_batches(out / TABLE, COLUMNS, batches_of(COLUMNS, rows()))
    return Unpacked(**counts)
