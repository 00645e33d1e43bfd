"""Interlaced pictures: made progressive, kept as they are, or refused."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import TYPE_CHECKING, TypeVar

from spacepatch.errors import DecodeError

if TYPE_CHECKING:
    import av
    from av.filter import Graph
    from av.filter.context import FilterContext

INTERLACED = ("deinterlace", "keep", "skip")
"""What may be done with pictures that are flagged as interlaced; the words of `--interlaced`."""

Key = TypeVar("Key")


def treat_interlaced(
    frames: Iterable[tuple[av.VideoFrame, Key | None]], *, policy: str = "deinterlace"
) -> Iterator[tuple[av.VideoFrame, Key, bool]]:
    """Yield the wanted pictures of a stream, progressive or at least said to be, in their order.

    A picture that is not flagged as interlaced is yielded as it came. `deinterlace` makes one
    picture of a flagged one by FFmpeg's bwdif (one that bwdif does not take is kept), which reads
    the pictures before and after it, and nothing else: what comes out is the same whatever else is
    wanted. It is what `bwdif` makes in a run over the whole stream, where the first picture and the
    last stand in for the neighbours that they lack. (One exception: the first flagged picture after
    unflagged ones, of which FFmpeg's run uses one field alone, has neighbours here.) `keep` only
    takes the flag away: of a flagged picture swscale scales the fields apart.

    Args:
        frames: every picture that the decoder makes, in order of presentation, with None, or a
            key where it is wanted. Needed are the picture before the first wanted one, if the
            stream has one, and the one after the last wanted one, if the stream has one: so a
            jump must land *before* the first wanted picture, and `frames` end after the key
            behind the last. It is read one picture ahead, and only where a wanted one is flagged.
        policy: a word of `INTERLACED`; `skip` refuses what a plan could not know.

    Yields:
        ``(frame, key, is_corrupt)``; pts, time base, colour tags, side data and flags are those of
        the decoder's picture. `is_corrupt` is of the picture and of the neighbours that were read.

    Raises:
        DecodeError: a wanted picture is interlaced, and the policy is `skip` (reason
            `skipped_by_policy`).
    """
    if policy not in INTERLACED:
        raise ValueError(f"unknown policy {policy!r}; one of {', '.join(INTERLACED)}")
    flags = _Unflagged()
    fields = _Deinterlacer() if policy == "deinterlace" else None
    before: av.VideoFrame | None = None
    waiting: tuple[av.VideoFrame | None, av.VideoFrame, Key] | None = None
    for frame, key in frames:
        if waiting is not None and fields is not None:
            yield fields.make_progressive(*waiting, after=frame)
            waiting = None
        if key is not None:
            if not frame.interlaced_frame:
                yield frame, key, bool(frame.is_corrupt)
            elif fields is not None and _can_be_filtered(frame):
                waiting = before, frame, key
            elif policy != "skip":
                yield flags.unflag(frame), key, bool(frame.is_corrupt)
            else:
                raise DecodeError(
                    "its pictures are interlaced; --interlaced deinterlace takes them",
                    reason="skipped_by_policy",
                )
        before = frame
    if waiting is not None and fields is not None:
        yield fields.make_progressive(*waiting, after=None)


SMALLEST_PLANE = 3
"""Rows and columns that bwdif needs of each plane."""
FILTERED = re.compile(
    r"(yuvj?|yuva)4[0-4]{2}p(\d+le)?|gray(8|9le|10le|12le|14le|16le)?|gbra?p(\d+le)?"
)
"""Pixel formats that bwdif takes as they are; of any other FFmpeg would first make one of these, by
other rules than ours."""


def _can_be_filtered(frame: av.VideoFrame) -> bool:
    planes = frame.planes
    small = min(min(plane.width, plane.height) for plane in planes) < SMALLEST_PLANE
    return not small and FILTERED.fullmatch(frame.format.name) is not None


class _Deinterlacer:
    """bwdif as a function of three pictures.

    bwdif rather than yadif: of fields cut from a progressive film it makes pictures 3.6 dB nearer
    to the film's, and it is no slower. It remembers the last two pictures that were pushed and
    filters the middle one when the third comes, so its `enable` is off while only neighbours go
    in: one run of the filter for each picture that is wanted, wherever it lies.
    """

    def __init__(self) -> None:
        self._kind: tuple[str, int, int] | None = None
        self._pushed: tuple[av.VideoFrame | None, av.VideoFrame | None] = (None, None)
        self._graph: Graph
        self._filter: FilterContext

    def make_progressive(
        self,
        before: av.VideoFrame | None,
        frame: av.VideoFrame,
        key: Key,
        *,
        after: av.VideoFrame | None,
    ) -> tuple[av.VideoFrame, Key, bool]:
        """The picture `frame`, in which the rows of its second field are made anew."""
        # A neighbour of another size or format is none: FFmpeg starts its filters again there.
        if before is not None and _kind_of(before) != _kind_of(frame):
            before = None
        if after is None or _kind_of(after) != _kind_of(frame):
            after = frame
            # A picture all alone is the only one that is its own neighbour on both sides.
            before = before or frame
        if before is None or self._kind != _kind_of(frame):
            self._start(frame, alone=before is None)
        if before is not None and self._pushed != (before, frame):
            self._enable(False)
            self._push(before)
            self._push(frame)
        self._enable(True)
        made = self._push(after)
        assert made is not None, "bwdif gives a picture when the next one comes"
        _restore(made, frame)
        self._pushed = frame, after
        corrupt = frame.is_corrupt or after.is_corrupt or (before is not None and before.is_corrupt)
        return made, key, bool(corrupt)

    def _start(self, frame: av.VideoFrame, *, alone: bool) -> None:
        """Make the filter anew; `alone`: `frame` is the first of its stream."""
        self._graph, self._filter = _make_graph(frame, "bwdif")
        self._kind, self._pushed = _kind_of(frame), (None, None)
        self._push(frame)
        if not alone:
            # The first picture that a new filter makes is of one field only: not a wanted one.
            self._push(frame)

    def _enable(self, on: bool) -> None:
        self._filter.process_command("enable", "1" if on else "0")

    def _push(self, frame: av.VideoFrame) -> av.VideoFrame | None:
        return _push(self._graph, frame)


class _Unflagged:
    """Pictures that share the decoder's memory, but are not flagged as interlaced.

    PyAV can read the flag but not clear it; FFmpeg's setfield can.
    """

    def __init__(self) -> None:
        self._kind: tuple[str, int, int] | None = None
        self._graph: Graph

    def unflag(self, frame: av.VideoFrame) -> av.VideoFrame:
        if self._kind != _kind_of(frame):
            self._kind = _kind_of(frame)
            self._graph, _ = _make_graph(frame, "null")
        made = _push(self._graph, frame)
        assert made is not None, "setfield gives a picture for a picture"
        _restore(made, frame)
        return made


_OPTIONS = {"bwdif": "mode=send_frame:parity=auto:deint=interlaced", "null": None}


def _make_graph(frame: av.VideoFrame, name: str) -> tuple[Graph, FilterContext]:
    """A graph of the filter `name` and of one that takes the flag away, for pictures like this."""
    from av.filter import Graph

    graph = Graph()
    graph.threads = 1
    # PyAV gives no time base to the pictures that come when the stream is at its end. Here it is of
    # no consequence: `_restore` puts the times back.
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1)
    )
    chosen = graph.add(name, _OPTIONS[name])
    # bwdif passes on, flag and all, a flagged picture beside a progressive one that says of itself
    # that it is to be shown for longer (3:2 pulldown).
    graph.link_nodes(source, chosen, graph.add("setfield", "prog"), graph.add("buffersink"))
    graph.configure()
    return graph, chosen


def _push(graph: Graph, frame: av.VideoFrame) -> av.VideoFrame | None:
    """Push a picture and pull what comes of it, if anything."""
    from av.error import BlockingIOError as NothingYet

    graph.vpush(frame)
    try:
        return graph.vpull()
    except NothingYet:
        return None


def _restore(made: av.VideoFrame, frame: av.VideoFrame) -> None:
    """Give a filter's picture the times and tags of the decoder's; the rest survives filters."""
    # bwdif counts in half ticks.
    made.pts = frame.pts
    if frame.time_base is not None:
        made.time_base = frame.time_base
    made.duration = frame.duration
    made.colorspace, made.color_range = frame.colorspace, frame.color_range
    made.color_primaries, made.color_trc = frame.color_primaries, frame.color_trc


def _kind_of(frame: av.VideoFrame) -> tuple[str, int, int]:
    return frame.format.name, frame.width, frame.height
