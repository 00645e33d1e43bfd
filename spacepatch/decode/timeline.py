"""The time of every presentable frame, from the packets: what is wrong, and what is missing."""

from __future__ import annotations

import heapq
import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from spacepatch.decode.opening import raise_unless_damage
from spacepatch.decode.packets import COUNTED, NO_PTS, Packets, Repair
from spacepatch.decode.parts import Size, SizeWatch
from spacepatch.errors import ProbeError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

DISCONTINUOUS = frozenset({"mpegts", "mpeg"})
"""Containers made for broadcasts, whose clock may be set anew at any packet."""
MAX_STEP_SECONDS = 10
"""Between two packets of such a stream: the clock was set, nothing was shown for so long. It is the
`-dts_delta_threshold` of the ffmpeg command. FFmpeg's demuxer takes a step back by more than a
minute for the wrap of a 33-bit clock, and makes it a step of 26.5 hours."""

NOTHING_TO_SHOW = "the video stream holds no frame to show"
MOST_FILLED = 0.1
"""Share of frames without a time up to which the times of the others are kept."""
MOST_HELD_BACK = 16
"""Packets that a decoder holds back at most, to show one that comes later before them (H.264)."""
LEAST_SHARE = 0.75
"""Of a usual step, what a frame without a time takes at least of the step that it divides."""
SHORTEST_GIF_TICKS, GIF_TICKS = 2, 10
"""A GIF's frame of less than 20 ms is shown for 100 ms, as in browsers and in FFmpeg 5."""


@dataclass(frozen=True, slots=True)
class Timeline:
    """When the frames of a stream are shown, in units of its time base."""

    frame_pts: np.ndarray
    """(F,) int64, strictly increasing."""
    stop_pts: int
    """End of the last frame, exclusive."""
    num_packets: int
    repaired: Repair
    """"" where the times are used as they are, else what was wrong with them."""
    keyframes: np.ndarray
    """(K,) int64, increasing: indices of the frames whose packets are flagged as keyframes."""
    sizes: tuple[tuple[int, Size], ...]
    """(presentation index, size) of the frames from which the size is another."""
    num_before_key: int
    """Packets before the first keyframe: what they hold cannot be decoded."""
    cut_off: bool
    """The file ends before its container says so."""
    missing_ticks: int
    """What the container promises beyond `stop_pts`; 0 where a cut-off file does not say."""
    missing_frames: int


def read_timeline(
    container: InputContainer,
    stream: VideoStream,
    *,
    max_pixels: int,
    on_packet: Callable[[], None],
    hollow: bool = False,
) -> Timeline:
    """Scan the packets of a stream; of the pictures, only keyframes with a new header are decoded.

    Args:
        on_packet: called for every packet.
        hollow: of keyframes there is the header alone, of other packets nothing.

    Raises:
        ProbeError: there is nothing to show, or too much.
        NeedsPackets: a hollow keyframe would have to be decoded.
    """
    from av.error import FFmpegError

    assert stream.time_base is not None, "a demuxed stream has a time base"
    name = container.format.name
    max_step = round(MAX_STEP_SECONDS / stream.time_base) if name in DISCONTINUOUS else None
    packets = Packets(name, max_step)
    watch = SizeWatch(stream, max_pixels=max_pixels, hollow=hollow)
    demuxed = container.demux(stream)
    while True:
        try:
            packet = next(demuxed)
        except StopIteration:
            break
        except FFmpegError as error:
            raise_unless_damage(error, ProbeError)
            break
        on_packet()
        if packet.size:
            packets.add(packet, watch)
    if not packets.pts:
        raise ProbeError(NOTHING_TO_SHOW, reason="no_video_stream")
    if _tells_only_order(container, stream, packets):
        packets.repaired = packets.repaired or "unordered"
    step = _ticks(stream.guessed_rate, stream.time_base)
    shown = _order(packets, step, gif=name == "gif")
    counted = shown.repaired in COUNTED
    sizes = tuple(
        (place if counted else int(np.searchsorted(shown.frame_pts, pts)), size)
        for place, pts, size in packets.changes
    )
    cut, ticks, frames = _missing(container, stream, packets, shown.stop_pts)
    return Timeline(
        frame_pts=shown.frame_pts,
        stop_pts=shown.stop_pts,
        num_packets=packets.num_packets,
        repaired=shown.repaired,
        keyframes=np.flatnonzero(shown.is_key),
        sizes=sizes,
        num_before_key=packets.num_before_key,
        cut_off=cut,
        missing_ticks=ticks,
        missing_frames=frames,
    )


class _Shown(NamedTuple):
    """Frames in order of presentation."""

    frame_pts: np.ndarray
    stop_pts: int
    is_key: np.ndarray
    """(F,) bool."""
    repaired: Repair


def _order(packets: Packets, fallback_step: int, *, gif: bool) -> _Shown:
    """Times in order of presentation, the end of the last frame, and what was repaired."""
    # No copies: beside FFmpeg's index of a film of hours they are most of what a probe takes.
    pts = np.frombuffer(packets.pts, np.int64)
    durations = np.frombuffer(packets.durations, np.int64)
    is_key = np.frombuffer(packets.is_key, np.bool_)
    known = pts != NO_PTS
    repaired: Repair = packets.repaired or ("" if known.all() else "missing")
    first = int(pts[known.argmax()]) if known.any() else 0
    if not known.all():
        filled = _fill(pts, known)
        if filled is None:
            return _Shown(*_count_times(first, len(pts), fallback_step), is_key, repaired)
        pts = filled
    if packets.key_pts is not None:
        # Leading pictures of the first keyframe refer to what is not there.
        shown = pts >= packets.key_pts
        shown[packets.second_key :] |= packets.second_key is not None
        if not shown.all():
            packets.breaks = [int(shown[:place].sum()) for place in packets.breaks]
            packets.changes = [
                (int(shown[:place].sum()), time, size) for place, time, size in packets.changes
            ]
            pts, durations, is_key = pts[shown], durations[shown], is_key[shown]
    if not len(pts):
        raise ProbeError(NOTHING_TO_SHOW, reason="no_video_stream")
    if packets.breaks:
        order = _order_of_sections(pts, packets.breaks)
        if order is None:
            return _Shown(*_count_times(first, len(pts), fallback_step), is_key, repaired)
        joined = _join_sections(pts[order], durations[order], packets.breaks, fallback_step)
        return _Shown(*joined, is_key[order], repaired)
    duration = int(durations[pts == pts.max()].max())
    pts, is_key = _sort(pts, is_key)
    if bool((pts[1:] == pts[:-1]).any()):
        repaired = repaired or "repeated"
        moved = _move_repeated(pts)
        if moved is None:
            return _Shown(*_count_times(first, len(pts), fallback_step), is_key, "crowded")
        pts = moved
    if repaired == "unordered" and packets.first_dts is not None:
        pts = pts - (pts[0] - packets.first_dts)  # the first picture is shown as the file begins
    if duration <= 0:
        duration = int(np.median(np.diff(pts))) if len(pts) > 1 else fallback_step
    if gif and not repaired:
        steps = np.diff(pts, append=pts[-1] + duration)
        if bool((steps < SHORTEST_GIF_TICKS).any()):
            ends = pts[0] + np.cumsum(np.where(steps < SHORTEST_GIF_TICKS, GIF_TICKS, steps))
            return _Shown(np.concatenate([pts[:1], ends[:-1]]), int(ends[-1]), is_key, "too_fast")
    return _Shown(pts, int(pts[-1]) + max(1, duration), is_key, repaired)


def _sort(pts: np.ndarray, is_key: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bring both into order of time, in place: the flag travels as the lowest bit."""
    if not -(2**62) < pts.min() <= pts.max() < 2**62:
        order = np.argsort(pts, kind="stable")
        return pts[order], is_key[order]
    pts *= 2
    pts += is_key
    pts.sort()
    is_key = (pts & 1).astype(bool)
    pts >>= 1
    return pts, is_key


def _fill(pts: np.ndarray, known: np.ndarray) -> np.ndarray | None:
    """Times in which the few that are missing lie between the others; None where many are.

    Without reordering that is between the neighbours; else they share the longest steps, of which
    nobody can say which frame is shown there: in order of presentation all the same. At the end,
    where no step is long enough for another frame, they follow the others.
    """
    places, there = np.flatnonzero(~known), np.flatnonzero(known)
    if not known[0] or len(places) > MOST_FILLED * len(pts):
        return None
    ordered = np.sort(pts[known])
    steps = np.diff(ordered)
    step = max(1, int(np.median(steps)))
    filled = pts.copy()
    if bool((np.diff(pts[known]) > 0).all()):
        filled[places] = np.interp(places, there, pts[known]).astype(np.int64)
        num_last = len(pts) - 1 - int(there[-1])
        filled[len(pts) - num_last :] = ordered[-1] + step * np.arange(1, num_last + 1)
        return filled
    num_last = int((places >= len(pts) - MOST_HELD_BACK).sum())
    # Less the length of each share of a step, the step, in how many shares: as a heap.
    longest = np.argsort(-steps, kind="stable")[: len(places)]
    shares = [(-float(steps[place]), int(place), 1) for place in longest]
    behind: list[int] = []
    for _ in places:
        _, place, number = shares[0]
        share = float(steps[place]) / (number + 1)
        if share < LEAST_SHARE * step and len(behind) < num_last:
            behind.append(int(ordered[-1]) + step * (len(behind) + 1))
        else:
            heapq.heapreplace(shares, (-share, place, number + 1))
    between = [
        int(ordered[place] + steps[place] * k // number)
        for _, place, number in shares
        for k in range(1, number)
    ]
    filled[places] = [*sorted(between), *behind]
    return filled


def _order_of_sections(pts: np.ndarray, breaks: list[int]) -> np.ndarray | None:
    """(F,) order of presentation: by time in each section between two jumps of the clock, one
    section after the other. None where a time repeats within a section."""
    order = []
    for first, last in itertools.pairwise((0, *breaks, len(pts))):
        section = first + np.argsort(pts[first:last])
        if bool((np.diff(pts[section]) == 0).any()):
            return None
        order.append(section)
    return np.concatenate(order)


def _join_sections(
    pts: np.ndarray, durations: np.ndarray, breaks: list[int], fallback_step: int
) -> tuple[np.ndarray, int]:
    """Times in which each section, sorted by itself, follows the one before, and their end.

    The first one keeps its times.
    """
    joined: list[np.ndarray] = []
    end = int(pts[0])
    for first, last in itertools.pairwise((0, *breaks, len(pts))):
        if first == last:
            continue
        section = pts[first:last]
        joined.append(section - section[0] + end if joined else section)
        duration = int(durations[last - 1])
        end = int(joined[-1][-1]) + (duration if duration > 0 else fallback_step)
    return np.concatenate(joined), end


def _tells_only_order(container: InputContainer, stream: VideoStream, packets: Packets) -> bool:
    """Whether packets have times that are not those of their pictures.

    AVI tells the order of packets alone. From MPEG-4 FFmpeg reads which ones are shown later; from
    H.264, and from the packed MPEG-4 of DivX, it does not: then a picture comes with the time of
    another, or (FFmpeg 8, H.264) a frame late, and only the order is true.
    """
    context = stream.codec_context
    if container.format.name != "avi" or NO_PTS in packets.pts[:1]:
        return False
    if not context.has_b_frames and (
        context.codec.canonical_name != "h264" or packets.pts[0] == packets.first_dts
    ):
        return False
    return bool((np.diff(np.array(packets.pts, np.int64)) > 0).all())


def _count_times(start: int, num_frames: int, step: int) -> tuple[np.ndarray, int]:
    """Times of frames of which only the order is to be trusted, and their end."""
    pts = start + np.arange(num_frames, dtype=np.int64) * step
    return pts, int(pts[-1]) + step


def _move_repeated(pts: np.ndarray) -> np.ndarray | None:
    """Sorted times with the k-th repetition of a time k ticks later; None where no tick is free."""
    first = np.searchsorted(pts, pts)  # of the frames with the same time
    moved: np.ndarray = pts + np.arange(len(pts)) - first
    return moved if bool((np.diff(moved) > 0).all()) else None


def _ticks(rate: Fraction | None, time_base: Fraction) -> int:
    """Ticks of one frame at `rate`, at least one; 25 frames a second where nothing is known."""
    return max(1, round(1 / ((rate or Fraction(25)) * time_base)))


# --- what a cut-off file promised ----------------------------------------------------------------

ENDS_IN_A_FRAME = frozenset({"mov", "avi", "flv"})
"""Containers that say how long a packet is before it begins: FFmpeg flags the one that is cut."""


def _missing(
    container: InputContainer, stream: VideoStream, packets: Packets, stop: int
) -> tuple[bool, int, int]:
    """Whether the file is cut off, and what it promised beyond `stop`, in ticks and in frames.

    A header alone proves nothing, it is often wrong: an MP4 must list more samples than there are,
    or the file must end inside a frame. Matroska tells the end of each stream.
    """
    assert stream.time_base is not None
    name = container.format.name.split(",")[0]
    step = _ticks(stream.guessed_rate, stream.time_base)
    cut = packets.last_is_cut and name in ENDS_IN_A_FRAME
    frames = stream.frames - packets.num_packets if stream.frames else 0
    start = stream.start_time or 0
    promised = stop
    if name == "mov" and stream.duration is not None and (frames > 0 or cut):
        promised = start + stream.duration
    elif name == "avi" and cut:
        promised = stop + max(0, frames) * step
    elif name == "flv" and cut and container.duration is not None:
        promised = start + round(Fraction(container.duration, 1_000_000) / stream.time_base)
    elif name == "matroska":
        end = _matroska_end(container, stream)
        if end is not None and end / stream.time_base - stop > Fraction(3, 2) * step:
            promised = round(end / stream.time_base)
    ticks = max(0, promised - stop)
    if frames <= 0:
        frames = round(ticks / step)
    # Samples that an edit list hides are listed too: without time for them nothing is missing.
    return cut or 2 * ticks > step, ticks, frames if 2 * ticks > step else 0


def _matroska_end(container: InputContainer, stream: VideoStream) -> Fraction | None:
    """Seconds at which the stream ends by its own tag or, alone in its file, by the file's."""
    tag = re.fullmatch(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)", stream.metadata.get("DURATION", ""))
    if tag is not None:
        return int(tag[1]) * 3600 + int(tag[2]) * 60 + Fraction(tag[3])
    if len(container.streams) == 1 and container.duration is not None:
        return Fraction(container.duration, 1_000_000)
    return None
