"""What a plan says of its sources, gathered from its tasks one after the other."""

from __future__ import annotations

import json
from array import array
from collections import Counter
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from spacepatch.listings import key_of

if TYPE_CHECKING:
    import pyarrow as pa

COLUMNS = (
    "split source source_root source_id content_id info num_selected clip clip_start_pts"
    " clip_stop_pts frame_pts size sampled_fps grid_thw num_kept"
).split()

Row = dict[str, Any]


@dataclass(slots=True)
class _Source:
    """What is known of a source so far."""

    row: Row
    """The last one of the plan that it has."""
    frames: int = 0
    tokens: int = 0
    clips: list[tuple[int, int, int, int, int]] = field(default_factory=list)
    """(number, start, stop, grid rows, tokens a row) of each."""
    losses: list[dict[str, str]] = field(default_factory=list)


class SourceSurvey:
    """Sums over sources; of those that it does not list it forgets all but 8 bytes, once all of
    their clips have passed."""

    def __init__(self, *, is_listed: bool) -> None:
        self._is_listed = is_listed
        self._open: dict[str, _Source] = {}
        """By id, those that are listed, or have clips in tasks to come."""
        self._contents = array("Q")
        self.seconds = 0.0
        """Of all sources that could be probed."""
        self.spans: Counter[tuple[int, int]] = Counter()
        """(rows, tokens a row) of each stretch of video before it was cut to fit a pack."""
        self._last_lost = ""

    def add(self, rows: pa.Table) -> None:
        """Take the rows of a task."""
        for row in rows.select(COLUMNS).to_pylist():
            identity = row["source_id"]
            source = self._open.get(identity)
            if source is None:
                source = self._open[identity] = _Source(row)
            source.row = row
            source.frames += len(row["frame_pts"])
            source.tokens += row["num_kept"]
            num_rows, height, width = row["grid_thw"]
            span = row["clip_start_pts"], row["clip_stop_pts"], num_rows, height * width
            source.clips.append((row["clip"], *span))
            if source.frames == row["num_selected"]:
                self._close(source)
                if not self._is_listed:
                    del self._open[identity]

    def add_loss(self, row: Row) -> None:
        """Take what is known to be lost of a source; its losses follow each other."""
        identity = row["source_id"]
        if not row["num_selected"] and identity != self._last_lost:
            self._close(_Source(row))
        self._last_lost = identity
        if self._is_listed:
            source = self._open.setdefault(identity, _Source(row))
            source.losses.append({"reason": row["reason"], "message": row["message"]})

    def repeated(self) -> frozenset[int]:
        """Keys of contents that more than one source has."""
        keys = np.sort(np.frombuffer(self._contents, np.uint64))
        return frozenset(keys[1:][keys[1:] == keys[:-1]].tolist())

    def rows(self) -> list[dict[str, Any]] | None:
        """One a source, sorted by argument and name; None: they are not listed."""
        if not self._is_listed:
            return None
        ordered = sorted(
            self._open.values(),
            key=lambda source: (
                source.row["source_root"],
                source.row["source"].encode(),
                source.row["source_id"],
            ),
        )
        return [_described(source) for source in ordered]

    def _close(self, source: _Source) -> None:
        """Nothing more comes of it."""
        if source.row["content_id"]:
            self._contents.append(key_of(source.row["content_id"]))
        if source.row["info"]:
            self.seconds += json.loads(source.row["info"])["duration_seconds"]
        rows, before = 0, None
        for clip in sorted(source.clips):
            if before is not None and before[2] != clip[1]:
                self.spans[rows, before[4]] += 1
                rows = 0
            rows, before = rows + clip[3], clip
        if before is not None:
            self.spans[rows, before[4]] += 1


def _described(source: _Source) -> dict[str, Any]:
    row = source.row
    info = json.loads(row["info"]) if row["info"] else None
    seconds = info["duration_seconds"] if info else 0.0
    num_frames = info["num_frames"] if info else 0
    rate = row.get("sampled_fps")
    return {
        "source": row["source"],
        "split": row["split"],
        "display_size": info["parts"][0]["display_size"] if info else None,
        "size": row["size"] if source.clips else None,
        "seconds": seconds,
        "source_fps": num_frames / seconds if seconds else None,
        "sampled_fps": float(Fraction(rate)) if rate else None,
        "source_frames": num_frames,
        "frames": source.frames,
        "clips": len(source.clips),
        "tokens": source.tokens,
        "losses": source.losses,
    }
