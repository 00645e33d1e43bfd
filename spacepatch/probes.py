"""Probe a source in a worker: what it holds, and who it is."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from spacepatch.data import Source, VideoInfo
from spacepatch.decode import decode_pictures, probe_video
from spacepatch.decode.hollow import Hollow, NeedsPackets, find_hollow
from spacepatch.decode.opening import MAX_PIXELS
from spacepatch.errors import ProbeError, SourceError
from spacepatch.sources import content_id
from spacepatch.workers import beat

MOST_IN_BATCH, BATCH_BYTES = 16, 8_000_000
"""Sources that a worker probes in one go, and their bytes: some 50 ms of work."""
BATCHES_PER_WORKER = 4
"""At least, before sources share one."""
LOOK_AHEAD = 1024
"""Sources that are listed before the first batch is made, if there are as many."""


@dataclass(frozen=True, slots=True)
class Probed:
    """What a probe found."""

    content_id: str
    info: VideoInfo | None
    reason: str = ""
    message: str = ""
    scanned: bool = False
    """All of its packets were read, although its header was asked for."""


@dataclass(frozen=True, slots=True)
class ProbeJob:
    """A source to be probed, and how."""

    source: Source
    stream: str = ""
    """Which video stream, see `choose_stream`."""
    max_pixels: int = MAX_PIXELS
    decode_all: bool = False
    """Decode every frame once: a source with any damage is lost as a whole (`skip-video`)."""
    header: bool = False
    """Read no more than the header and the first bytes of keyframes, where these tell all."""


Batch = list[tuple[int, ProbeJob]]
"""Places of jobs among all, and the jobs."""


def probe_source(job: ProbeJob) -> Probed:
    """Headers, packets and content id of one source; a bad one is data, not an exception."""
    try:
        return _probe(job)
    except Exception as error:
        error.add_note(f"source: {job.source.name}")
        raise


def probe_batch(jobs: Sequence[ProbeJob]) -> list[Probed]:
    """`probe_source` of several small sources: the way to a worker and back costs a part of one."""
    found = []
    for job in jobs:
        beat()
        found.append(probe_source(job))
    return found


def cut_into_batches(
    jobs: Iterable[ProbeJob],
    *,
    workers: int,
    most: int = MOST_IN_BATCH,
    most_bytes: int = BATCH_BYTES,
) -> Iterator[Batch]:
    """Those that go to a worker together: small ones, in order.

    Where there are few, each goes by itself, so that all workers have some; more go together as
    more are known, and of `jobs` no more than the next `LOOK_AHEAD` are in memory.

    Args:
        most, most_bytes: of a batch: sources, and their bytes.
    """
    batch: Batch = []
    num_bytes = 0
    for place, job, known in _numbered(jobs):
        own = most_bytes if job.decode_all else job.source.num_bytes
        full = min(most, max(1, known // (workers * BATCHES_PER_WORKER)))
        if batch and (len(batch) >= full or num_bytes + own > most_bytes):
            yield batch
            batch, num_bytes = [], 0
        batch.append((place, job))
        num_bytes += own
    if batch:
        yield batch


def _numbered(jobs: Iterable[ProbeJob]) -> Iterator[tuple[int, ProbeJob, int]]:
    """Each job with its place, and how many are known to be."""
    ahead: deque[tuple[int, ProbeJob]] = deque()
    known = 0
    for place, job in enumerate(jobs):
        ahead.append((place, job))
        known = place + 1
        if len(ahead) > LOOK_AHEAD:
            yield *ahead.popleft(), known
    while ahead:
        yield *ahead.popleft(), known


def _probe(job: ProbeJob) -> Probed:
    source = job.source
    identity, info = "", None
    try:
        identity = content_id(source.uri, offset=source.member_offset, num_bytes=source.num_bytes)
        if job.header:
            info = _probe_header(job)
        scanned = job.header and info is None
        if info is None:
            info = _probe_video(job, None)
        if job.decode_all:
            _check_all(job, info)
    except SourceError as error:
        return Probed(identity, None, error.reason, str(error))
    except OSError as error:
        return Probed(identity, None, "io", f"cannot be read: {error.strerror}")
    return Probed(identity, info, scanned=scanned)


def _probe_header(job: ProbeJob) -> VideoInfo | None:
    """What the header of a source tells; None where its packets have to be read."""
    source = job.source
    hollow = find_hollow(source.uri, offset=source.member_offset, num_bytes=source.num_bytes)
    if hollow is None:
        return None
    try:
        return _probe_video(job, hollow)
    except NeedsPackets:
        return None


def _probe_video(job: ProbeJob, hollow: Hollow | None) -> VideoInfo:
    source = job.source
    return probe_video(
        source.uri,
        offset=source.member_offset,
        num_bytes=source.num_bytes,
        stream=job.stream,
        max_pixels=job.max_pixels,
        on_packet=beat,
        hollow=hollow,
    )


def _check_all(job: ProbeJob, info: VideoInfo) -> None:
    """Raise at the first sign of damage, with the reason that it would have had as a loss."""
    if info.cut_off:
        raise ProbeError(describe_cut(info), reason="truncated")
    source = job.source
    pictures = decode_pictures(
        source.uri,
        info=info,
        indices=np.arange(len(info.frame_pts)),
        pts=info.frame_pts,
        offset=source.member_offset,
        num_bytes=source.num_bytes,
        on_picture=beat,
        interlaced="keep",
        max_pixels=job.max_pixels,
    )
    count = 0
    for picture in pictures:
        if picture.is_corrupt or picture.index != count:
            message = f"frame {count} is damaged or missing, and on_error is skip-video"
            raise ProbeError(message, reason="corrupt_frames")
        count += 1
    if count < len(info.frame_pts):
        message = f"{count} of {len(info.frame_pts)} frames decode, and on_error is skip-video"
        raise ProbeError(message, reason="truncated")


def describe_cut(info: VideoInfo) -> str:
    """What a cut-off file promised, for its loss."""
    if not info.missing_ticks:
        return "the file ends inside a frame; how much is missing it does not say"
    there = info.stop_pts - int(info.frame_pts[0])
    promised = float((there + info.missing_ticks) * info.time_base)
    return (
        f"the file is cut off: it promises {promised:.3f} s, "
        f"{float(there * info.time_base):.3f} s are there"
    )


def slim(info: VideoInfo) -> VideoInfo:
    """A probe's result without its tables of frames, for the way to a worker."""
    return replace(info, frame_pts=np.empty(0, np.int64), keyframes=np.empty(0, np.int64))
