"""Pictures of a source through decord, for short clips; what it must not read is declined."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from spacepatch.data import Picture
from spacepatch.decode.full_size import make_reference, wrap_pictures
from spacepatch.decode.request import Request
from spacepatch.errors import Declined

MAX_BYTES = 512 * 1024**2
"""RGB of a whole video above which it is declined: decord decodes ahead on a thread of its own,
without a limit, so that the video may be in memory as a whole anyway."""
ANY_REPAIR = 1e-9
"""Share of frames that decord may replace by their neighbours: not one."""


def decode(request: Request) -> Iterator[Picture]:
    """`spacepatch.decode.decode_pictures` by decord, as upright RGB.

    The whole video is decoded before the first picture: damage anywhere in it makes decord
    decline.

    Raises:
        Declined: before the first picture: decord must not or cannot read this source.
    """
    info, indices = request.info, request.indices
    if not len(indices):
        return
    height, width = info.coded_size
    if height * width * 3 * info.num_packets > MAX_BYTES:
        raise Declined(
            f"more than {MAX_BYTES // 1024**2} MB of pictures: decord may hold them all at once"
        )
    reference = make_reference(request)
    if not reference.is_best_stream:
        raise Declined("decord opens only the stream that FFmpeg prefers")
    reader = _open(request.uri)
    _check_times(reader, reference.frame_pts * float(info.time_base), float(info.time_base))
    frames = _read(reader, set(indices.tolist()), request.on_picture)
    yield from wrap_pictures(iter(frames), request=request, reference=reference, name="decord")


def _open(uri: str) -> Any:
    """A `decord.VideoReader`; it opens the stream that FFmpeg prefers."""
    try:
        import decord
    except (ImportError, OSError):
        raise Declined("decord does not import: its wheels are for x86-64 only") from None
    decord.logging.set_level(decord.logging.QUIET)
    try:
        return decord.VideoReader(uri, num_threads=1, fault_tol=ANY_REPAIR)
    except (decord.DECORDError, RuntimeError, AssertionError):
        raise Declined("decord cannot open it") from None


def _check_times(reader: Any, seconds: np.ndarray, tick: float) -> None:
    """Raise `Declined` unless decord counts the same frames at the same times.

    Its times are float32 and begin at 0 with the stream, so that they are compared from the first
    frame on, as closely as float32 tells them apart.
    """
    if len(reader) != len(seconds):
        raise Declined(f"decord counts {len(reader)} frames of {len(seconds)}")
    found = reader.get_frame_timestamp(range(len(reader)))[:, 0]
    length = float(seconds[-1] - seconds[0])
    tolerance = tick / 2 + 2 * float(np.spacing(np.float32(length)))
    if len(seconds) > 1 and tolerance >= np.diff(seconds).min():
        raise Declined("its frames are closer than decord tells times apart")
    relative = found.astype(np.float64) - float(found[0])
    if np.abs(relative - (seconds - seconds[0])).max() > tolerance:
        raise Declined("decord has other times for its frames")


def _read(reader: Any, wanted: set[int], on_picture: Callable[[], None]) -> list[np.ndarray]:
    """The wanted frames, in one pass from the start to the end of the file: it never seeks.

    Its thread reports a broken packet when it gets there, which may be while any earlier frame is
    taken. Only at the end is it certain that there was none.
    """
    import decord

    frames: list[np.ndarray] = []
    try:
        for position in range(len(reader)):
            # Its `skip_frames` would save the conversion, and skips wrong numbers of frames.
            frame = reader.next()
            on_picture()
            if position in wanted:
                frames.append(frame.asnumpy())
    except (decord.DECORDError, decord.DECORDLimitReachedError, StopIteration):
        raise Declined("decord finds damage in it") from None
    return frames
