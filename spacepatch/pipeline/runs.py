"""Runs and tasks: consecutive clips of one source, and as many runs as make a shard."""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from spacepatch.config import RunConfig
from spacepatch.data import ClipSpec, Source, Task
from spacepatch.latentwriter import pixel_clip
from spacepatch.pipeline.placement import Lengths, Placement, cut_into_tasks
from spacepatch.pipeline.plan import PlannedSource
from spacepatch.pipeline.sorting import KEY
from spacepatch.shards import Layout
from spacepatch.tubelets import token_width

if TYPE_CHECKING:
    import pyarrow as pa

RUNS_PER_SHARD = 8
"""From this part of a shard on, a run of consecutive clips of one source ends where that is cheap,
so that a long video spreads over several shards."""
LONGEST_RUN = 2
"""And at this part of a shard at the latest."""
MOST_DECODED_AGAIN = 1 / 32
"""Of the frames of a run: what the next one, which begins at a keyframe, may decode once more."""


def cut_runs(
    clips: Sequence[ClipSpec], config: RunConfig, layout: Layout, *, decodes: bool
) -> list[list[ClipSpec]]:
    """Consecutive clips of one source, of which several make a shard.

    Args:
        decodes: whether frames are to be decoded for them, so that not every border is cheap.
    """
    pixels = sum(pixel_bytes(clip, layout) for clip in clips)
    pack_bytes = _pack_bytes(layout, _each(pixels, sum(clip.num_kept for clip in clips)))
    capacity = _capacity(config, pack_bytes)
    least, most = (max(pack_bytes, capacity // part) for part in (RUNS_PER_SHARD, LONGEST_RUN))
    return list(_runs(clips, least, most if decodes else least, layout))


def make_tasks(
    runs: Sequence[Sequence[ClipSpec]],
    config: RunConfig,
    sources: Sequence[PlannedSource],
    layout: Layout,
    placement: Placement,
    *,
    lengths_of: Callable[[Sequence[ClipSpec]], Lengths],
) -> list[Task]:
    """Cut runs, in this order, into tasks of one split each, whose packs come out nearly full.

    Args:
        lengths_of: of the segments of a run: those that are planned, or those that there are.
    """
    clips = [clip for run in runs for clip in run]
    room = ShardRoom.of(
        config,
        layout,
        pixels=sum(pixel_bytes(clip, layout) for clip in clips),
        num_tokens=sum(clip.num_kept for clip in clips),
    )
    tasks: list[Task] = []
    by_split: dict[str, list[Sequence[ClipSpec]]] = defaultdict(list)
    for run in runs:
        by_split[sources[run[0].source].source.split].append(run)
    for split, own in by_split.items():
        lengths = [lengths_of(run) for run in own]
        starts = np.cumsum([0, *(run.tokens.size for run in lengths)])
        for first, last in room.cut(Lengths.join(lengths), starts, placement):
            content = tuple(clip for run in own[first:last] for clip in run)
            tasks.append(Task(len(tasks), split, "", content))
    return tasks


def run_key(
    config: RunConfig, token_fingerprint: str, source: Source, run: list[ClipSpec]
) -> bytes:
    """What runs are ordered by: the split, and drawn for the seed, what makes the tokens, the
    source and the first clip."""
    content = f"{config.seed}\0{token_fingerprint}\0{source.source_id}\0{run[0].clip}"
    digest = hashlib.blake2b(content.encode(), digest_size=16).digest()
    return source.split.encode() + b"\0" + digest


def cut_tasks(
    tables: Iterable[pa.Table], room: ShardRoom, placement: Placement
) -> Iterator[pa.Table]:
    """`make_tasks` for the rows of clips that come in order, and need not be in memory together.

    Args:
        tables: rows of the plan with the `run_key` of each.

    Yields:
        The rows of each task.
    """
    import pyarrow as pa

    held: pa.Table | None = None
    for table in tables:
        for split in _splits(table):
            if held is not None and held["split"][0] != split["split"][0]:
                yield from _tasks_of(held, room, placement, is_end=True)[0]
                held = None
            held = split if held is None else pa.concat_tables([held, split])
            tasks, held = _tasks_of(held, room, placement, is_end=False)
            yield from tasks
    if held is not None:
        yield from _tasks_of(held, room, placement, is_end=True)[0]


def _splits(table: pa.Table) -> Iterator[pa.Table]:
    """The rows of each split, which follow each other."""
    codes = table["split"].combine_chunks().dictionary_encode().indices.to_numpy()
    first = 0
    for stop in (*(np.flatnonzero(np.diff(codes)) + 1).tolist(), len(table)):
        yield table[first:stop]
        first = stop


def _tasks_of(
    table: pa.Table, room: ShardRoom, placement: Placement, *, is_end: bool
) -> tuple[list[pa.Table], pa.Table | None]:
    """The tasks that are certain, whatever follows, and the rows that are left."""
    import pyarrow.compute as pc

    keys = table[KEY]
    changes = np.flatnonzero(pc.not_equal(keys[1:], keys[:-1]).to_numpy()) + 1
    # The last run may go on: it has to be seen whole.
    starts = np.array([0, *changes.tolist(), *([len(table)] if is_end else [])])
    if len(starts) == 1:
        return [], table
    lengths = lengths_of_rows(table[: starts[-1]], room.layout)
    tasks, first = [], 0
    for begin, end in room.cut(lengths, starts, placement, is_end=is_end):
        tasks.append(table[starts[begin] : starts[end]])
        first = int(starts[end])
    return tasks, table[first:] if first < len(table) else None


def lengths_of_rows(table: pa.Table, layout: Layout) -> Lengths:
    """Of clips as they stand in the rows of a plan."""
    grids = _matrix(table, "grid_thw", 3)
    shapes = np.column_stack([table["tubelet_size"].to_numpy(), _matrix(table, "patch_size", 2)])
    distinct, which = np.unique(shapes, axis=0, return_inverse=True)
    widths = [
        token_width(tubelet, (height, width), layout.channels, layout.halo)
        for tubelet, height, width in distinct.tolist()
    ]
    return Lengths(
        table["num_kept"].to_numpy().astype(np.int64),
        grids[:, 1].astype(np.int64) * grids[:, 2],
        np.array(widths, np.int64)[which.reshape(-1)],
    )


def _matrix(table: pa.Table, name: str, columns: int) -> np.ndarray:
    """A column of lists of one length."""
    import pyarrow.compute as pc

    return np.asarray(pc.list_flatten(table[name])).reshape(-1, columns)


@dataclass(frozen=True, slots=True)
class ShardRoom:
    """What a shard holds."""

    layout: Layout
    beside: int
    """Bytes of pixels beside a token, see `Layout.pixel_tubelet`."""
    capacity: int
    """Bytes."""

    @classmethod
    def of(cls, config: RunConfig, layout: Layout, *, pixels: int, num_tokens: int) -> ShardRoom:
        """Of a run with so many bytes of pixels beside so many tokens."""
        beside = _each(pixels, num_tokens)
        return cls(layout, beside, _capacity(config, _pack_bytes(layout, beside)))

    def cut(
        self, lengths: Lengths, starts: np.ndarray, placement: Placement, *, is_end: bool = True
    ) -> list[tuple[int, int]]:
        """`cut_into_tasks`."""
        return cut_into_tasks(
            lengths,
            starts,
            placement=placement,
            token_bytes=lambda width: self.layout.token_bytes(width) + self.beside,
            capacity=self.capacity,
            is_end=is_end,
        )


def _pack_bytes(layout: Layout, beside: int) -> int:
    """Of a full pack of the widest tokens, with so many bytes of pixels beside each."""
    return (layout.token_bytes(max(layout.token_widths)) + beside) * layout.pack_length


def _capacity(config: RunConfig, pack_bytes: int) -> int:
    """Bytes of as many full packs as a shard holds."""
    return max(1, config.shard_bytes // pack_bytes) * pack_bytes


def _each(pixels: int, num_tokens: int) -> int:
    """Bytes of the pixel tokens beside a token, on average: a pack has no other share of them."""
    return math.ceil(pixels / num_tokens) if num_tokens else 0


def clip_bytes(clip: ClipSpec, layout: Layout) -> int:
    """Bytes that a clip takes in a shard."""
    own = clip.num_kept * layout.token_bytes(layout.width_of(clip))
    return own + pixel_bytes(clip, layout)


def pixel_bytes(clip: ClipSpec, layout: Layout) -> int:
    """Bytes of its pixel tokens, where there are such beside those of an encoder."""
    if layout.pixel_tubelet is None:
        return 0
    return pixel_clip(clip, layout.pixel_tubelet).num_kept * layout.pixel_width


def _runs(
    clips: Sequence[ClipSpec], least_bytes: int, most_bytes: int, layout: Layout
) -> Iterator[list[ClipSpec]]:
    """Consecutive clips of one source, cut beyond `least_bytes` where little has to be decoded
    twice for it, and at `most_bytes` (unless one clip has more) in any case."""
    run: list[ClipSpec] = []
    num_bytes = last = 0
    for clip in clips:
        own = clip_bytes(clip, layout)
        if run and (
            clip.source != run[0].source
            or num_bytes + own > most_bytes
            or (
                num_bytes + own > least_bytes
                and _is_cheap(int(run[0].frame_indices[0]), last, clip)
            )
        ):
            yield run
            run, num_bytes, last = [], 0, 0
        run.append(clip)
        num_bytes += own
        last = max(last, int(clip.frame_indices[-1]))
    if run:
        yield run


def _is_cheap(first: int, last: int, clip: ClipSpec) -> bool:
    """Whether a run of the frames [first, last] may end before `clip`."""
    key = int(clip.keyframes[0, 0]) if len(clip.keyframes) else 0
    return last + 1 - key <= MOST_DECODED_AGAIN * (last + 1 - first)
