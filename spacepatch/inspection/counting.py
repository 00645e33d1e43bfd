"""Count what tables and receipts say: numbers in flat memory, whatever the size of a table."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from spacepatch.data import RETRYABLE_REASONS
from spacepatch.inspection.encoders import known_encoder
from spacepatch.inspection.folders import read_batches
from spacepatch.inspection.packed import PLACE_COLUMNS, PackCounts
from spacepatch.pipeline.finishing import widths_of
from spacepatch.shards import ShardReceipt

HISTOGRAMS: dict[str, tuple[float, ...]] = {
    "tokens": (0, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536),
    "duration_seconds": (0, 0.5, 1, 2, 4, 8, 15, 30, 60, 120, 300, 600),
    "aspect_ratio": (0, 0.5, 0.65, 0.9, 1.1, 1.45, 1.65, 1.95, 2.6),
    "source_fps": (0, 5, 10, 15, 20, 23.5, 24.5, 25.5, 29.5, 30.5, 47.5, 50.5, 59.5, 60.5, 120.5),
    "sampled_fps": (0, 0.5, 1, 2, 4, 8, 12, 16, 24, 30, 60),
}
"""Where the bins begin; each ends where the next begins, the last one never. The bins of
`aspect_ratio` (w / h) hold 9:16, 2:3 and 3:4, 1:1, 4:3, 3:2, 16:9, 21:9 one each; those of
`source_fps` hold 24, 25, 30, 50 and 60 with their 1000/1001 cousins."""

NO_VALUE = {"source_fps": "no duration", "sampled_fps": "every frame"}
"""What a segment without a value is counted as: a still picture, or a clip of all its frames."""

VALUE_COLUMNS = (
    "num_kept clip_start_pts clip_stop_pts time_base size source_fps sampled_fps".split()
)
"""Of segments.parquet, what `values_of` needs."""

SEGMENT_COLUMNS = (
    "source_id split view grid_thw num_kept clip_start_pts clip_stop_pts time_base size "
    "tubelet_size patch_size source_fps sampled_fps valid_frames corrupt_frames aspect_error drop "
    "decoder shard pack"
).split()

COMMON_COLUMNS = "layout order halo tail".split()  # the same for every segment

EXAMPLES = 3
"""Sources shown of each reason of loss."""


@dataclass(slots=True)
class Counted:
    """What has been seen so far."""

    num_sources: int = 0
    shards: list[dict[str, Any]] = field(default_factory=list)
    first: ShardReceipt | None = None
    common: dict[str, Any] = field(default_factory=lambda: dict.fromkeys(COMMON_COLUMNS))
    counts: dict[str, np.ndarray] = field(
        default_factory=lambda: {
            name: np.zeros(len(edges) + 1, np.int64) for name, edges in HISTOGRAMS.items()
        }
    )
    """Of each histogram: its bins, then the segments without a value."""
    num_segments: int = 0
    token_widths: set[int] = field(default_factory=set)
    patches: Counter[tuple[int, ...]] = field(default_factory=Counter)
    """Segments of each (frames, height, width)."""
    decoders: Counter[str] = field(default_factory=Counter)
    """Segments that each has read."""
    views: set[int] = field(default_factory=set)
    drops: set[str] = field(default_factory=set)
    """First words of the column `drop`."""
    dropped_tokens: int = 0
    """Of grid rows that are there."""
    frames_written: int = 0
    aspect_error_sum: float = 0.0
    aspect_error_max: float = 0.0
    channel_sums: list[list[list[float]] | None] = field(default_factory=list)
    """Of each shard."""
    pixel_tokens: int = 0
    pack_pixel_tokens: int = 0
    """The most of them in a pack."""
    packed: PackCounts = field(default_factory=PackCounts)
    fps: list[float] = field(default_factory=list)
    """Smallest and largest."""
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    colours: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    """Sources of each matrix, range, tagged."""
    losses: dict[str, dict[str, Any]] = field(default_factory=dict)
    splits: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    source_ids: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    """By split, the sources with segments: where no sources.parquet has counted them."""

    def add_shard(self, stem: str, receipt: ShardReceipt) -> None:
        self.first = self.first or receipt
        if not receipt.packs:
            return
        self.packed.add_shard(receipt)
        self.channel_sums.append(receipt.channel_sums)
        self.pixel_tokens += receipt.pixel_tokens
        self.pack_pixel_tokens = max(self.pack_pixel_tokens, receipt.pack_pixel_tokens)
        entry = {
            "packs": receipt.packs,
            "segments": receipt.segments,
            "tokens": receipt.tokens,
            "bytes": receipt.num_bytes,
        }
        self.token_widths.update(receipt.pack_token_widths)
        fill = fill_of(receipt.tokens, receipt.packs, receipt.pack_length)
        widths = widths_of(receipt)
        self.shards.append(
            {"name": stem, "split": receipt.split, **entry, "fill": fill, "token_widths": widths}
        )
        self.splits[receipt.split].update(entry | {"shards": 1})

    def add_sources(self, table: Path) -> int:
        """Count a dataset's sources.

        Returns:
            The frames selected of all of them.
        """
        selected = 0
        names = "colour_matrix colour_range colour_tagged".split()
        columns = ["split", "num_segments", "frames_selected", *names]
        for batch in read_batches(table, columns):
            self.num_sources += len(batch)
            selected += int(numbers(batch, "frames_selected").sum())
            kept = batch.filter(batch.column("num_segments").fill_null(0).cast("bool"))
            for split in kept.column("split").to_pylist():
                self.splits[split]["sources_with_segments"] += 1
            self.colours.update(
                zip(*(kept.column(name).to_pylist() for name in names), strict=True)
            )
        return selected

    def add_losses(self, rows: Iterable[dict[str, Any]]) -> None:
        for row in rows:
            reason = row["reason"]
            entry = self.losses.setdefault(
                reason,
                {
                    "reason": reason,
                    "retryable": reason in RETRYABLE_REASONS,
                    "rows": 0,
                    "frames": 0,
                    "tokens": 0,
                    "examples": [],
                },
            )
            entry["rows"] += 1
            entry["frames"] += row["num_frames"]
            entry["tokens"] += row["num_tokens"]
            if len(entry["examples"]) < EXAMPLES:
                shown = ("source", "clip", "stage", "message")
                entry["examples"].append({key: row[key] for key in shown})

    def add_segments(self, table: Path, *, with_sources: bool) -> None:
        """Count the segments of a dataset or of one shard.

        Args:
            with_sources: remember their sources too, for there is no sources.parquet.
        """
        if not self.num_segments:
            for batch in read_batches(table, COMMON_COLUMNS):
                self.common = batch.slice(0, 1).to_pylist()[0]
                break
        for batch in read_batches(table, SEGMENT_COLUMNS):
            self._add_batch(batch)
            if with_sources:
                columns = (batch.column(name).to_pylist() for name in ("split", "source_id"))
                for split, source_id in zip(*columns, strict=True):
                    self.source_ids[split].add(source_id)

    def _add_batch(self, batch: Any) -> None:
        self.num_segments += len(batch)
        valid = numbers(batch, "valid_frames")
        self.frames_written += int(valid.sum())
        self.packed.add_segments(*(numbers(batch, name) for name in PLACE_COLUMNS))
        self._add_tokens(batch)
        errors = numbers(batch, "aspect_error")
        self.aspect_error_sum += float(errors.sum())
        self.aspect_error_max = max(self.aspect_error_max, float(errors.max(initial=0.0)))
        sizes = batch.column("size").flatten().to_numpy().reshape(-1, 2)
        for size, count in zip(*np.unique(sizes, axis=0, return_counts=True), strict=True):
            self.sizes[(int(size[0]), int(size[1]))] += int(count)
        values = values_of(batch)
        sampled = values["sampled_fps"]
        rates = [*self.fps, *np.unique(sampled[~np.isnan(sampled)]).tolist()]
        self.fps = [min(rates), max(rates)] if rates else []
        for name, column in values.items():
            self.counts[name] += count_bins(column, HISTOGRAMS[name])
        splits = batch.column("split").dictionary_encode()
        for place, split in enumerate(splits.dictionary.to_pylist()):
            frames = valid[splits.indices.to_numpy() == place].sum()
            self.splits[split]["frames_written"] += int(frames)

    def _add_tokens(self, batch: Any) -> None:
        """What the tokens of some segments are, and how many are not kept."""
        tubelets = numbers(batch, "tubelet_size")
        shapes = np.column_stack(
            [tubelets, batch.column("patch_size").flatten().to_numpy().reshape(-1, 2)]
        )
        self.patches.update(map(tuple, shapes.tolist()))
        # References that nobody has checked were read by none.
        self.decoders.update(filter(None, batch.column("decoder").to_pylist()))
        self.views.update(batch.column("view").unique().to_pylist())
        drops = batch.column("drop").unique().to_pylist()
        self.drops.update(drop.split(" ")[0] for drop in drops if drop)
        grids = batch.column("grid_thw").flatten().to_numpy().reshape(-1, 3).astype(np.int64)
        encoder = known_encoder(self.first.encoder) if self.first is not None else None
        step = 1 if encoder is None else encoder.lattice.rule.step
        lost_rows = -(-numbers(batch, "corrupt_frames") // (tubelets * step))
        there = (grids[:, 0] - lost_rows) * grids[:, 1] * grids[:, 2]
        self.dropped_tokens += int((there - numbers(batch, "num_kept")).sum())

    def split_counts(self) -> dict[str, Counter[str]]:
        """By split, everything that is counted; without splits there is one, named ""."""
        for split, source_ids in self.source_ids.items():
            self.splits[split]["sources_with_segments"] = len(source_ids)
        return dict(sorted(self.splits.items()))


def values_of(batch: Any) -> dict[str, np.ndarray]:
    """What the histograms are of: for each of `HISTOGRAMS` a number a segment, as ``(n,)`` float64;
    NaN where there is none.

    Args:
        batch: of segments.parquet, with `VALUE_COLUMNS` at least.
    """
    ticks = numbers(batch, "clip_stop_pts") - numbers(batch, "clip_start_pts")
    encoded = batch.column("time_base").dictionary_encode()
    bases = np.array([float(Fraction(text)) for text in encoded.dictionary.to_pylist()])
    sizes = batch.column("size").flatten().to_numpy().reshape(-1, 2)
    return {
        "tokens": numbers(batch, "num_kept").astype(np.float64),
        "duration_seconds": ticks * bases[encoded.indices.to_numpy()],
        "aspect_ratio": sizes[:, 1] / sizes[:, 0],
        "source_fps": numbers(batch, "source_fps"),
        "sampled_fps": numbers(batch, "sampled_fps"),
    }


def numbers(batch: Any, column: str) -> np.ndarray:
    """A column as numpy; without a value: NaN of a float, 0 of an integer."""
    import pyarrow as pa

    values = batch.column(column)
    if not pa.types.is_floating(values.type):
        values = values.fill_null(0)
    return values.to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]


def lengths(lists: Any) -> np.ndarray:
    """Entries of each list of a column."""
    import pyarrow.compute as compute

    lengths = compute.list_value_length(lists).fill_null(0)
    return lengths.to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]


def count_bins(values: np.ndarray, edges: tuple[float, ...]) -> np.ndarray:
    """Values in each bin, then those that are NaN: the counts sum to ``len(values)``."""
    known = values[~np.isnan(values)]
    bins = np.maximum(np.searchsorted(edges, known, side="right") - 1, 0)
    counts = np.bincount(bins, minlength=len(edges) + 1)
    counts[-1] = len(values) - len(known)
    return counts


def bins_of(name: str, counts: np.ndarray) -> list[dict[str, Any]]:
    """A histogram as it is shown."""
    edges = HISTOGRAMS[name]
    bins: list[dict[str, Any]] = [
        {"range": f"{low:g} to {high:g}", "from": low, "to": high} for low, high in pairwise(edges)
    ]
    bins.append({"range": f"{edges[-1]:g} and more", "from": edges[-1], "to": None})
    if name in NO_VALUE or counts[-1]:
        bins.append({"range": NO_VALUE.get(name, "unknown"), "from": None, "to": None})
    return [{**entry, "count": int(count)} for entry, count in zip(bins, counts, strict=False)]


def fill_of(tokens: int, packs: int, pack_length: int) -> float:
    """Share of the packs that tokens fill."""
    return tokens / (packs * pack_length) if packs else 0.0


def colours_of(receipt: ShardReceipt) -> dict[str, tuple[str, str, str]]:
    """By source_id, what its pictures say."""
    return {
        source_id: (str(seen.get("matrix")), str(seen.get("range")), str(seen.get("tagged")))
        for source_id, seen in receipt.observed.items()
    }
