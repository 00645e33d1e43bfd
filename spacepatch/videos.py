"""Write frames as MP4, at their own times."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from fractions import Fraction
from itertools import pairwise
from typing import IO, Any, cast

import numpy as np

MOST_TICKS = 2**31 - 1
"""A second, of a track of MP4."""
COMMON_TICKS = 90_000
"""A second, where times have no common tick that a track can have: off by 1/180,000 s at most."""
STILL_SECONDS = Fraction(1)
"""How long a single frame is shown: it has no next one."""
BT709 = 1
"""The code of BT.709 as matrix, primaries and transfer."""


def frame_times(pts: Sequence[int], time_base: Fraction) -> list[Fraction]:
    """When each frame of a segment begins, from 0, and when the last one ends.

    The last frame is shown as long as the median frame. Frames of one and the same time (a rate
    above the source's repeats frames) share the time to the next one evenly.

    Args:
        pts: non-decreasing, in units of `time_base`.

    Returns:
        n + 1 increasing times in seconds.
    """
    times = [(entry - pts[0]) * time_base for entry in pts]
    steps = sorted(after - before for before, after in pairwise(times))
    longer = [step for step in steps if step > 0]
    last = longer[(len(longer) - 1) // 2] if longer else STILL_SECONDS
    times.append(times[-1] + last)
    start = 0
    for stop in range(1, len(times)):
        if times[stop] > times[start]:
            step = (times[stop] - times[start]) / (stop - start)
            times[start:stop] = [times[start] + k * step for k in range(stop - start)]
            start = stop
    return times


def write_mp4(
    file: IO[bytes], frames: Iterable[np.ndarray], *, times: Sequence[Fraction], lossless: bool
) -> None:
    """Write frames as one H.264 track; the same frames give the same bytes.

    Args:
        file: can be sought in.
        frames: ``(H, W, 3)`` uint8, all of one size.
        times: when each begins, increasing from 0, and when the last one ends, in seconds.
        lossless: RGB as it is (High 4:4:4 Predictive, which ffmpeg, VLC and mpv play). Else 4:2:0
            of BT.709, which everything plays; odd sizes then get one more row or column.
    """
    import av

    ticks = math.lcm(*(time.denominator for time in times))
    ticks = ticks if ticks <= MOST_TICKS else COMMON_TICKS
    starts: list[int] = []
    for time in times:
        starts.append(max(round(time * ticks), starts[-1] + 1 if starts else 0))
    with av.open(file, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        stream: Any = None
        lasting: dict[int, int] = {}
        for number, frame in enumerate(frames):
            picture = _picture_of(frame, lossless)
            if stream is None:
                stream = _add_stream(container, picture, ticks, lossless)
            picture.pts, picture.time_base = starts[number], Fraction(1, ticks)
            lasting[starts[number]] = starts[number + 1] - starts[number]
            _mux(container, stream.encode(picture), lasting)
        if stream is not None:
            _mux(container, stream.encode(None), lasting)


def _mux(container: Any, packets: Iterable[Any], lasting: dict[int, int]) -> None:
    """The encoder does not say how long the last frame lasts."""
    for packet in packets:
        packet.duration = lasting.pop(packet.pts)
        container.mux(packet)


def _add_stream(container: Any, picture: Any, ticks: int, lossless: bool) -> Any:
    stream = container.add_stream("libx264rgb" if lossless else "libx264", rate=30)
    stream.width, stream.height, stream.pix_fmt = (
        picture.width,
        picture.height,
        picture.format.name,
    )
    stream.time_base = stream.codec_context.time_base = Fraction(1, ticks)
    # One thread, and no frame that waits for a later one: the same bytes on every machine, and
    # times as they are given. x264's mbtree reads memory that nobody wrote (what was in it before
    # moved a few bits, see MALLOC_PERTURB_).
    stream.thread_count = 1
    quality = {"qp": "0", "preset": "veryfast"} if lossless else {"crf": "18", "preset": "medium"}
    stream.options = quality | {"bf": "0", "x264-params": "threads=1:mbtree=0"}
    if not lossless:
        context = stream.codec_context
        context.color_primaries = context.color_trc = context.colorspace = BT709
        context.color_range = 1  # limited
    return stream


def _picture_of(frame: np.ndarray, lossless: bool) -> Any:
    import av

    if lossless:
        return av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
    odd = frame.shape[0] % 2, frame.shape[1] % 2
    padded = np.pad(frame, ((0, odd[0]), (0, odd[1]), (0, 0)), mode="edge")
    picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(padded), format="rgb24")
    return cast(Any, picture).reformat(
        format="yuv420p",
        dst_colorspace=BT709,
        dst_color_range="MPEG",
        interpolation="BICUBIC",
        threads=1,
    )
