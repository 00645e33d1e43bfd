"""Finish a run: receipts become the merged tables and dataset.json, written last of all."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spacepatch.data import POLICY_REASONS, RETRYABLE_REASONS, EncoderFacts, Loss
from spacepatch.errors import ShardError
from spacepatch.normalization import NORMALIZATIONS
from spacepatch.packing import lower_bound
from spacepatch.pipeline.encoded import encoder_of_dataset
from spacepatch.pipeline.plan import Plan, PlannedTask
from spacepatch.pipeline.planfile import StoredPlan
from spacepatch.pipeline.sourcerows import records_of_losses, records_of_task, source_rows
from spacepatch.shards import (
    DATASET,
    FORMAT_VERSION,
    LOSSES,
    SEGMENTS,
    SOURCES,
    TABLES,
    ShardReceipt,
    read_receipt,
    receipt_path,
    shard_stem,
)
from spacepatch.shards.tables import batches_of, read_arrow, write_batches
from spacepatch.storage import publish_bytes, remove, scratch_folder

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, slots=True)
class RunSummary:
    """How a run ended."""

    totals: dict[str, Any]
    losses: tuple[Loss, ...]
    lost_sources: tuple[str, ...]
    """Names of sources of which nothing is in the shards, though the settings asked for it."""
    other_tokens: int | None = None
    """Of tokens that were made again, the segments whose checksum is not the one that they had."""


def finish_run(folder: Path, plan: StoredPlan) -> RunSummary:
    """Merge the receipts. Idempotent: interrupted anywhere, it is simply done again.

    Raises:
        ShardError: a task has no receipt, or a table of a shard is damaged.
    """
    plans = [generation.path.name for generation in plan.generations]
    if listed_plans(folder) not in ([], plans):
        # Of fewer generations: it is not that of the tables that come now.
        remove([folder / DATASET])
    merged = _Merged(folder, plan, losses=list(plan.losses()))
    rows = source_rows(merged.records(), plan.head.settings, scratch_folder(folder))
    tables = {
        "sources.parquet": write_batches(
            folder / "sources.parquet", SOURCES, batches_of(SOURCES, map(merged.counted, rows))
        )
    }
    # What follows knows the receipts: the rows of the sources have gone through all of them.
    tables["segments.parquet"] = write_batches(
        folder / "segments.parquet",
        SEGMENTS,
        (read_arrow(folder / f"{shard['name']}.segments.parquet") for shard in merged.shards),
    )
    losses = batches_of(LOSSES, map(_loss_row, merged.losses))
    tables["losses.parquet"] = write_batches(folder / "losses.parquet", LOSSES, losses)
    document = {
        "format_version": FORMAT_VERSION,
        "plans": plans,
        "tables": tables,
        "shards": merged.shards,
        **_of_plan(plan.head),
        **merged.document(),
    }
    text = json.dumps(document, sort_keys=True, indent=1, ensure_ascii=False)
    publish_bytes(folder / DATASET, text.encode() + b"\n")
    lost = tuple(merged.lost_sources)
    return RunSummary(document["totals"], tuple(merged.losses), lost)


@dataclass(slots=True)
class _Merged:
    """What all tasks come to; of their tables one at a time is in memory."""

    folder: Path
    plan: StoredPlan
    losses: list[Loss]
    shards: list[dict[str, Any]] = field(default_factory=list)
    lost_sources: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    channel_sums: list[Any] = field(default_factory=list)
    pack_pixel_tokens: int = 0
    reasons: dict[str, set[str]] = field(default_factory=dict)
    """By source, why some of it is lost."""

    def records(self) -> Iterator[pa.Table]:
        """Read one receipt after the other; what each says of its sources."""
        for task in self.plan.tasks:
            receipt = _receipt(self.folder, self.plan, task)
            stem = shard_stem(self.plan.name, task.split, task.number)
            self._add(stem, receipt)
            path = self.folder / f"{stem}.segments.parquet"
            columns = ["source_id", "valid_frames", "num_kept"]
            segments = read_arrow(path, columns) if receipt.packs else None
            yield records_of_task(self.plan.rows(task), segments, receipt)
        yield from records_of_losses(self.plan)
        for loss in self.losses:
            self.reasons.setdefault(loss.source_id, set()).add(loss.reason)

    def _add(self, stem: str, receipt: ShardReceipt) -> None:
        self.losses += map(_loss, receipt.losses)
        self.channel_sums.append(receipt.channel_sums)
        self.pack_pixel_tokens = max(self.pack_pixel_tokens, receipt.pack_pixel_tokens)
        self.counts["pixel_tokens"] += receipt.pixel_tokens
        if not receipt.packs:
            return
        shard = {
            "name": stem,
            "split": receipt.split,
            "packs": receipt.packs,
            "segments": receipt.segments,
            "tokens": receipt.tokens,
            "bytes": receipt.num_bytes,
            "token_widths": widths_of(receipt),
        }
        self.shards.append(shard)
        self.counts.update({name: shard[name] for name in TOTALLED})

    def counted(self, row: dict[str, Any]) -> dict[str, Any]:
        """A row of the sources, once it is taken into account."""
        self.counts.update({name: row[name] for name in FRAMES})
        self.counts["declined"] += bool(row.get("declined"))
        self.counts["sources_with_segments"] += bool(row["num_segments"])
        if not row["num_segments"] and self.reasons.get(row["source_id"], set()) - POLICY_REASONS:
            self.lost_sources.append(row["source"])
        return row

    def document(self) -> dict[str, Any]:
        """What dataset.json says of all tasks."""
        head, counts = self.plan.head, self.counts
        encoder = head.encoder
        capacity = counts["packs"] * head.layout.pack_length
        lower = lower_bound(counts["tokens"], pack_length=head.layout.pack_length)
        return {
            "encoder": None if encoder is None else encoder_of_dataset(encoder, self.channel_sums),
            "pixels": pixels_of(head, counts["pixel_tokens"], self.pack_pixel_tokens),
            "totals": {
                **{name: counts[name] for name in (*TOTALLED, *FRAMES)},
                **{name: counts[name] for name in ("declined", "sources_with_segments")},
                "sources": self.plan.num_sources,
                "ignored": head.num_ignored,
                "clips": self.plan.num_clips,
                "planned_tokens": self.plan.num_tokens,
                "lower_bound": lower,
                "fill": counts["tokens"] / capacity if capacity else 0.0,
                "shards": len(self.shards),
                "losses": dict(sorted(Counter(loss.reason for loss in self.losses).items())),
            },
        }


TOTALLED = ("packs", "segments", "tokens", "bytes")
"""Of shards, added up in the totals."""
FRAMES = ("frames_selected", "frames_written", "frames_lost")


def _of_plan(head: Plan) -> dict[str, Any]:
    """What dataset.json repeats of the plan."""
    layout = head.layout
    return {
        "plan_id": head.plan_id,
        "name": head.name,
        "settings": head.settings,
        "fingerprints": head.fingerprints,
        "environment": head.environment,
        "kind": head.settings["kind"],
        "store": layout.store,
        "members": layout.members,
        "token_dtype": layout.token_dtype,
        "token_width": layout.token_width,
        "token_widths": list(layout.token_widths),
        "position_dtype": layout.position_dtype,
        "pack_length": layout.pack_length,
        "constants": constants_of(head.settings, head.encoder),
    }


def finished_losses(
    folder: Path, plan: StoredPlan, tasks: Iterable[PlannedTask]
) -> Iterator[tuple[PlannedTask, list[Loss]]]:
    """Of each task, which has its receipt, its losses."""
    for task in tasks:
        yield task, list(map(_loss, _receipt(folder, plan, task).losses))


def listed_plans(folder: Path) -> list[str]:
    """The tables of the generations that dataset.json is of; empty where there is none."""
    try:
        document = json.loads((folder / DATASET).read_text(encoding="utf-8"))
        return [str(name) for name in document["plans"]]
    except FileNotFoundError:
        return []
    except (ValueError, TypeError, KeyError) as error:
        raise ShardError(f"{folder / DATASET}: damaged ({error!r})") from None


def finished(folder: Path, plan: StoredPlan) -> RunSummary | None:
    """What was written where all generations are finished, without their losses; None: they are
    not."""
    if len(listed_plans(folder)) < len(plan.generations):
        return None
    document = json.loads((folder / DATASET).read_text(encoding="utf-8"))
    return RunSummary(document["totals"], (), ())


def unfinish_for(folder: Path, plan: StoredPlan, tasks: Iterable[PlannedTask]) -> None:
    """`unfinish` before tasks are done again that dataset.json has; one of former generations
    stays while tasks of a new one are done."""
    count = len(listed_plans(folder))
    stop = plan.generations[count - 1].stop_task if count else 0
    if any(task.number < stop for task in tasks):
        unfinish(folder)


def unfinish(folder: Path) -> None:
    """Take away dataset.json and the merged tables: nobody reads a dataset that is being mended."""
    remove([folder / DATASET, *(folder / name for name in TABLES)])


def forget_retryable(folder: Path, plan: StoredPlan) -> None:
    """Take back what jobs lost for environmental reasons, so that it is done again."""
    again = []
    for task in plan.tasks:
        path = receipt_path(folder, shard_stem(plan.name, task.split, task.number))
        if path.exists() and any(
            row["reason"] in RETRYABLE_REASONS for row in read_receipt(path).losses
        ):
            again.append(task)
    if again:
        unfinish_for(folder, plan, again)
        stems = [shard_stem(plan.name, task.split, task.number) for task in again]
        remove([receipt_path(folder, stem) for stem in stems])


def _receipt(folder: Path, plan: StoredPlan, task: PlannedTask) -> ShardReceipt:
    path = receipt_path(folder, shard_stem(plan.name, task.split, task.number))
    receipt = read_receipt(path)
    if receipt.task_id != task.task_id:
        raise ShardError(f"{path}: is of another plan; start again with --overwrite")
    return receipt


def constants_of(settings: dict[str, Any], encoder: EncoderFacts | None = None) -> dict[str, Any]:
    """What turns stored values into what a model takes: the loader applies it."""
    if encoder is None:
        return {"scale": 255, "channels": 4 if settings["alpha"] else 3, **_normalize_of(settings)}
    if encoder.kind == "codes":
        return {"channels": encoder.channels, "codebook_size": encoder.codebook_size}
    # Of the model's own config, whatever it does not say is None.
    return {"channels": encoder.channels, "latents_are": "raw", **encoder.constants}


def _normalize_of(settings: dict[str, Any]) -> dict[str, Any]:
    name = settings["normalize"]
    return {"normalize": {"name": name, **asdict(NORMALIZATIONS[name])}}


def pixels_of(head: Plan, num_tokens: int, most_in_pack: int) -> dict[str, Any] | None:
    """What dataset.json says of the pixel tokens beside those of an encoder; None: there are none.

    Args:
        num_tokens: of them, in all.
        most_in_pack: what the most of them in a pack come to: what a loader pads to.
    """
    layout = head.layout
    if layout.pixel_tubelet is None:
        return None
    return {
        "tubelet": list(layout.pixel_tubelet),
        "token_width": layout.pixel_width,
        "tokens": num_tokens,
        "pack_length": most_in_pack,
        **_normalize_of(head.settings),
    }


def widths_of(receipt: ShardReceipt) -> list[list[int]]:
    """[token width, packs] of a shard, in the order that its packs lie in."""
    return [
        [width, len(list(packs))] for width, packs in itertools.groupby(receipt.pack_token_widths)
    ]


def _loss(row: dict[str, Any]) -> Loss:
    return Loss(**{key: row[key] for key in Loss.__dataclass_fields__ if key in row})


def _loss_row(loss: Loss) -> dict[str, Any]:
    return {name: getattr(loss, name) for name in LOSSES}
