"""Describe a dataset, an unfinished run or one shard: totals, fill, histograms, losses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from spacepatch.bounds import bound_packs
from spacepatch.errors import ShardError
from spacepatch.inspection.counting import (
    Counted,
    bins_of,
    colours_of,
    fill_of,
    lengths,
    numbers,
)
from spacepatch.inspection.encoders import describe_encoder
from spacepatch.inspection.folders import (
    PLAN_DOCUMENT,
    listed_stems,
    locate,
    plan_batches,
    read_batches,
    read_document,
)
from spacepatch.inspection.packs import read_npy
from spacepatch.inspection.pixels import PIXEL_SEGMENTS
from spacepatch.inspection.receipts import read_sound_receipt
from spacepatch.packing import lower_bound
from spacepatch.shards import DATASET, ShardReader, receipt_path, shard_stem
from spacepatch.shards.receipts import missing_files
from spacepatch.storage import open_folder
from spacepatch.tubelets import token_width

SIZES = 10
"""Frame sizes shown, the most common first."""


def summarize(path: str | Path, *, thorough: bool = False) -> dict[str, Any]:
    """Describe what lies at `path`, in numbers from the tables and receipts alone.

    Args:
        path: an output folder, finished or not; or the tar or receipt of one shard, of which
            nothing but its own four files is read.
        thorough: prove the best lower bound of packs there is, however long it takes.

    Returns:
        JSON-able, the same keys in the same order for every kind; None where it cannot be known
        (settings and environment are not in a shard alone).

        - ``kind``: dataset or shard. ``finished``: whether everything that was planned is there.
        - ``name``, ``plan_id``, ``format_version``
        - ``tasks``: ``planned`` and ``done``.
        - ``totals``: ``sources``, ``sources_with_segments``, ``segments``, ``tokens``, ``packs``,
          ``lower_bound`` (tokens / pack length), ``fill``, ``shards``, ``bytes``,
          ``frames_selected`` (of the tasks that are done), ``frames_written``, ``frames_lost``.
        - ``lower_bound``: the best one of packs, see `LowerBound`: ``packs``, ``by``.
        - ``attention``: how evenly its cost is spread over packs, see `PackCounts.attention`.
        - ``tokens``: what a token is: ``kind``, ``store``, ``members``, ``token_dtype``,
          ``token_widths`` (the widest first), ``pack_length``, ``layout``, ``order``, ``halo``,
          ``tail``.
        - ``encoder``: None of pixels; else ``name``, ``kind``, ``rule``, ``stride``, ``channels``,
          ``codebook_size``, ``dtype``, ``posterior``, ``device`` (None where it makes no
          difference), ``is_local``, ``weights`` (sha256 by name), ``constants``, and of each
          channel of latents the ``mean`` and ``std`` of what was written.
        - ``pixels``: of the pixel tokens beside those of an encoder ``tubelet``, ``token_width``,
          ``tokens``, ``pack_length`` (the most in a pack); None where there are none.
        - ``patches``: a row a patch: ``tubelet_size``, ``patch_size`` (h, w), ``segments``; with
          an encoder in its cells.
        - ``decoders``: a row a decoder: ``decoder``, ``segments``.
        - ``views``: how many different ones there are.
        - ``drop``: ``policy`` (of a shard alone its first word; None: nothing was dropped),
          ``kept_tokens`` and ``dropped_tokens``, without those of lost frames.
        - ``sizes``: ``distinct``, and the ``most_common`` as ``size`` (h, w) and ``segments``.
        - ``sampled_fps``: ``min`` and ``max``; None where every frame is taken.
        - ``colour``: a row a combination of ``matrix``, ``range``, ``tagged``, with ``sources``.
        - ``aspect_error``: ``mean`` and ``max`` over the segments.
        - ``splits``: by name ``sources_with_segments``, ``segments``, ``tokens``, ``packs``,
          ``shards``, ``bytes``, ``frames_written``, ``fill``; empty without ``--split``.
        - ``shards``: a row a shard: ``name``, ``split``, ``packs``, ``segments``, ``tokens``,
          ``bytes``, ``fill``, ``token_widths`` ([width, packs], as they lie in it).
        - ``histograms``: of the segments, see `HISTOGRAMS`; each a list of bins with ``range`` (for
          people), ``from``, ``to`` (exclusive, None: open) and ``count``, which sum to the number
          of segments.
        - ``losses``: a row a reason: ``reason``, ``retryable``, ``rows``, ``frames``, ``tokens``
          and ``examples`` with ``source``, ``clip``, ``stage``, ``message``.
        - ``settings``, ``fingerprints``, ``environment``

    Raises:
        ShardError: there is nothing of ours, or a file is missing or damaged.
    """
    located = locate(open_folder(path))
    if located.stem is not None:
        return _summarize_shard(located.folder, located.stem, thorough)
    if (located.folder / DATASET).is_file():
        return _summarize_dataset(located.folder, thorough)
    return _summarize_unfinished(located.folder, thorough)


def _summarize_dataset(folder: Path, thorough: bool) -> dict[str, Any]:
    document = read_document(
        folder / DATASET,
        required="plan_id name settings store pack_length shards".split(),
    )
    counted = Counted()
    stems = listed_stems(document)
    if len(stems) != len(document["shards"]):
        raise ShardError(f"{folder / DATASET}: damaged (shards); look with spacepatch verify")
    for stem in stems:
        counted.add_shard(stem, read_sound_receipt(receipt_path(folder, stem)))
    counted.add_segments(folder / "segments.parquet", with_sources=False)
    selected = counted.add_sources(folder / "sources.parquet")
    columns = "source clip stage reason num_frames num_tokens message".split()
    for batch in read_batches(folder / "losses.parquet", columns):
        counted.add_losses(batch.to_pylist())
    has_plan = (folder / PLAN_DOCUMENT).is_file()
    done = _num_tasks(folder, document) if has_plan else len(document["shards"])
    return _summary(
        counted,
        thorough=thorough,
        document=document,
        kind="dataset",
        name=document["name"],
        tasks=(done, done),
        frames_selected=selected,
        store=document["store"],
    )


def _num_tasks(folder: Path, document: dict[str, Any]) -> int:
    """A task that lost everything has no shard, so only the plan knows how many there were."""
    highest = -1
    for batch in plan_batches(folder, document, ["task"]):
        highest = max(highest, int(numbers(batch, "task").max(initial=-1)))
    return highest + 1


def _summarize_unfinished(folder: Path, thorough: bool) -> dict[str, Any]:
    document = read_document(
        folder / PLAN_DOCUMENT, required="plan_id name settings layout".split()
    )
    splits: dict[int, str] = {}
    sources: set[str] = set()
    frames: Counter[int] = Counter()
    columns = ["task", "split", "source_id", "frame_pts", "num_frames_lost"]
    for batch in plan_batches(folder, document, columns):
        tasks = numbers(batch, "task")
        splits.update(zip(tasks.tolist(), batch.column("split").to_pylist(), strict=True))
        sources.update(batch.column("source_id").unique().to_pylist())
        counts = lengths(batch.column("frame_pts")) + numbers(batch, "num_frames_lost")
        for task in np.unique(tasks).tolist():
            frames[task] += int(counts[tasks == task].sum())
    splits.pop(-1, None)

    counted = Counted()
    counted.add_losses(_planned_losses(folder, document))
    observed: dict[str, tuple[str, str, str]] = {}
    selected = frames[-1]
    done = 0
    for number, split in sorted(splits.items()):
        stem = shard_stem(document["name"], split, number)
        try:
            receipt = read_sound_receipt(receipt_path(folder, stem))
        except ShardError:
            continue
        if receipt.plan_id != document["plan_id"] or missing_files(folder, receipt):
            continue
        done += 1
        selected += frames[number]
        counted.add_shard(stem, receipt)
        counted.add_losses(receipt.losses)
        observed |= colours_of(receipt)
        if receipt.packs:
            counted.add_segments(folder / f"{stem}.segments.parquet", with_sources=True)
    counted.num_sources = len(sources)
    counted.colours.update(observed.values())
    return _summary(
        counted,
        thorough=thorough,
        document=document,
        kind="dataset",
        finished=False,
        name=document["name"],
        tasks=(len(splits), done),
        frames_selected=selected,
        store=document["layout"]["store"],
    )


def _planned_losses(folder: Path, document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    columns = "task source stage reason num_frames_lost message".split()
    for batch in plan_batches(folder, document, columns):
        for row in batch.to_pylist():
            if row["task"] < 0:
                yield row | {"clip": None, "num_frames": row["num_frames_lost"], "num_tokens": 0}


def _summarize_shard(folder: Path, stem: str, thorough: bool) -> dict[str, Any]:
    receipt = read_sound_receipt(receipt_path(folder, stem))
    absent = missing_files(folder, receipt)
    if absent:
        raise ShardError(
            f"{folder / absent[0]}: missing or of another size than its receipt says; copy the "
            "four files of a shard together, or look with spacepatch verify"
        )
    counted = Counted()
    counted.add_shard(stem, receipt)
    counted.add_losses(receipt.losses)
    counted.colours.update(colours_of(receipt).values())
    store = tubelet = None
    if receipt.packs:
        counted.add_segments(folder / f"{stem}.segments.parquet", with_sources=True)
        with ShardReader(folder / f"{stem}.tar", receipt=receipt) as reader:
            store = reader.document(0)["store"]
            tubelet = _tubelet(reader)
    lost = {row["source_id"] for row in receipt.losses}
    counted.num_sources = len(lost.union(*counted.source_ids.values()))
    ending = shard_stem("", receipt.split, receipt.task)
    return _summary(
        counted,
        thorough=thorough,
        document={"plan_id": receipt.plan_id, "format_version": receipt.format_version},
        kind="shard",
        name=stem.removesuffix(ending),
        tasks=(1, 1),
        frames_selected=None,
        store=store,
        tubelet=tubelet,
    )


def _summary(
    counted: Counted,
    *,
    thorough: bool,
    document: dict[str, Any],
    kind: str,
    name: str,
    tasks: tuple[int, int],
    frames_selected: int | None,
    store: str | None,
    finished: bool = True,
    tubelet: list[int] | None = None,
) -> dict[str, Any]:
    """`tubelet` is that of the pixel tokens of a shard alone."""
    first = counted.first
    tokens = sum(shard["tokens"] for shard in counted.shards)
    packs = sum(shard["packs"] for shard in counted.shards)
    pack_length = first.pack_length if first else document.get("layout", document)["pack_length"]
    settings = document.get("settings") or {}
    losses = sorted(counted.losses.values(), key=lambda entry: (-entry["rows"], entry["reason"]))
    num_segments = counted.num_segments
    splits = counted.split_counts()
    with_segments = sum(count["sources_with_segments"] for count in splits.values())
    return {
        "kind": kind,
        "finished": finished,
        "name": name,
        "plan_id": document["plan_id"],
        "format_version": document["format_version"],
        "tasks": {"planned": tasks[0], "done": tasks[1]},
        "totals": {
            "sources": counted.num_sources,
            "sources_with_segments": with_segments,
            "segments": num_segments,
            "tokens": tokens,
            "packs": packs,
            "lower_bound": lower_bound(tokens, pack_length=pack_length),
            "fill": fill_of(tokens, packs, pack_length),
            "shards": len(counted.shards),
            "bytes": sum(shard["bytes"] for shard in counted.shards),
            "frames_selected": frames_selected,
            "frames_written": counted.frames_written,
            "frames_lost": sum(entry["frames"] for entry in losses),
        },
        "lower_bound": bound_packs(
            counted.packed.lengths,
            pack_length=pack_length,
            max_segments=settings.get("max_segments"),
            packs=packs,
            thorough=thorough,
        ).to_json(),
        "attention": counted.packed.attention(),
        "tokens": {
            "kind": settings.get("kind") or ((first and first.encoder) or {}).get("kind"),
            "store": store,
            "members": first.members if first else None,
            "token_dtype": first.token_dtype if first else None,
            "token_widths": sorted(counted.token_widths, reverse=True),
            "pack_length": pack_length,
            **counted.common,
        },
        "encoder": _encoder(counted, document.get("encoder"), name),
        "pixels": _pixels(counted, document, tubelet),
        "patches": [
            {"tubelet_size": shape[0], "patch_size": list(shape[1:]), "segments": count}
            for shape, count in _most_common(counted.patches)
        ],
        "decoders": [
            {"decoder": decoder, "segments": count}
            for decoder, count in _most_common(counted.decoders)
        ],
        "views": len(counted.views),
        "drop": {
            "policy": settings.get("drop", ", ".join(sorted(counted.drops)) or None),
            "kept_tokens": tokens,
            "dropped_tokens": counted.dropped_tokens,
        },
        "sizes": {
            "distinct": len(counted.sizes),
            "most_common": [
                {"size": list(size), "segments": count}
                for size, count in _most_common(counted.sizes)[:SIZES]
            ],
        },
        "sampled_fps": dict(zip(("min", "max"), counted.fps or (None, None), strict=True)),
        "colour": [
            {"matrix": colour[0], "range": colour[1], "tagged": colour[2], "sources": count}
            for colour, count in sorted(
                counted.colours.items(), key=lambda item: tuple(map(str, item[0]))
            )
        ],
        "aspect_error": {
            "mean": counted.aspect_error_sum / num_segments if num_segments else 0.0,
            "max": counted.aspect_error_max,
        },
        "splits": _splits(splits, pack_length),
        "shards": counted.shards,
        "histograms": {key: bins_of(key, counts) for key, counts in counted.counts.items()},
        "losses": losses,
        "settings": document.get("settings"),
        "fingerprints": document.get("fingerprints"),
        "environment": document.get("environment"),
    }


def _encoder(counted: Counted, facts: Any, name: str) -> dict[str, Any] | None:
    """What is known of the encoder: of a shard alone what its receipt says."""
    values = facts or (counted.first.encoder if counted.first is not None else None)
    try:
        return describe_encoder(values, counted.channel_sums)
    except ValueError as error:
        raise ShardError(f"{name}: damaged ({error}); look with spacepatch verify") from None


def _pixels(
    counted: Counted, document: dict[str, Any], tubelet: list[int] | None
) -> dict[str, Any] | None:
    tubelet = (
        tubelet
        or (document.get("pixels") or {}).get("tubelet")
        or document.get("layout", {}).get("pixel_tubelet")
    )
    if tubelet is None:
        return None
    return {
        "tubelet": tubelet,
        "token_width": token_width(tubelet[0], (tubelet[1], tubelet[2])),
        "tokens": counted.pixel_tokens,
        "pack_length": counted.pack_pixel_tokens,
    }


def _tubelet(reader: ShardReader) -> list[int] | None:
    """Of the pixel tokens in a shard."""
    if PIXEL_SEGMENTS not in reader.receipt.members:
        return None
    try:
        table = read_npy(bytes(reader.member(0, PIXEL_SEGMENTS)))
        return [int(side) for side in table[0, 5:8]]
    except (ValueError, IndexError):
        raise ShardError(
            f"{reader.path}: {PIXEL_SEGMENTS} is damaged; look with spacepatch verify"
        ) from None


def _most_common(counts: Counter[Any]) -> list[tuple[Any, int]]:
    """Those that occur most often first, ties in order."""
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _splits(splits: dict[str, Counter[str]], pack_length: int) -> dict[str, Any]:
    if not any(splits):
        return {}
    keys = "sources_with_segments segments tokens packs shards bytes frames_written".split()
    return {
        split: {
            **{key: count[key] for key in keys},
            "fill": fill_of(count["tokens"], count["packs"], pack_length),
        }
        for split, count in splits.items()
    }
