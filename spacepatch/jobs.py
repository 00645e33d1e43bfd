"""Make the tokens of a source's clips in one task: what a worker does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from spacepatch.arena import ArenaSlice
from spacepatch.data import ClipSpec, Picture, Source, VideoInfo
from spacepatch.decode import choose_decoder
from spacepatch.decode.opening import MAX_PIXELS
from spacepatch.errors import Declined, DecodeError, SourceError
from spacepatch.resize import colour_of, hdr_of, make_frame
from spacepatch.sources import content_id
from spacepatch.tubelets import grid_shape, write_frame
from spacepatch.workers import beat

BACKENDS = frozenset({"decord", "torchcodec"})
"""Decoders that give full-size RGB, and of damage no more than an error."""
UNTAGGED_MATRIX = "smpte170m"
"""What they take YUV without a matrix for."""


@dataclass(frozen=True, slots=True)
class TokenSettings:
    """What makes tokens out of pictures: plain values, so that a worker needs no config."""

    tubelet_size: int
    patch_size: tuple[int, int]
    layout: str
    tail: str
    resampler: str
    decoder: str = "pyav"
    trust_input: bool = False
    max_pixels: int = MAX_PIXELS
    interlaced: str = "deinterlace"
    untagged: str = "bt601"
    hdr: str = "tonemap"
    background: tuple[int, int, int] = (0, 0, 0)
    alpha: bool = False
    allow_corrupt: bool = False
    token_dtype: str = "uint8"
    token_width: int = 0


@dataclass(frozen=True, slots=True)
class Job:
    """The clips of one source in one task: the unit of CPU work, of time limit, of crash."""

    source: Source
    content_id: str
    info: VideoInfo
    """As probed, without its `frame_pts`: the clips have those that are wanted."""
    clips: tuple[ClipSpec, ...]
    offsets: tuple[int, ...]
    """Where each clip's tokens start in the arena, in tokens."""
    arena: str
    """Path that opens the task's arena."""
    settings: TokenSettings


@dataclass(frozen=True, slots=True)
class ClipTokens:
    """What became of one clip."""

    grid_t: int
    """Rows that its frames fill, kept or not; 0: nothing of it could be had."""
    rows: np.ndarray
    """(R,) int32: the rows whose tokens lie in the arena, one after the other."""
    num_frames: int
    """Selected frames that the rows cover, kept or not."""
    padded_frames: int
    losses: tuple[tuple[str, int, int, str], ...]
    """(reason, frames, tokens, message), all of stage decode."""
    damaged: np.ndarray = field(default_factory=lambda: np.empty(0, np.int32))
    """(n,) int32: the samples whose frames are flagged, and kept all the same."""
    decoder: str = ""
    """Which one read it; two, where the first could not read on."""


@dataclass(frozen=True, slots=True)
class JobResult:
    """What a job made: small, because the tokens are in the arena."""

    clips: tuple[ClipTokens, ...]
    observed: dict[str, Any]
    """What only a picture tells: rotation, mirrored, colour, and how it was read."""


def run_job(job: Job) -> JobResult:
    """Decode one source once, for all of its clips in the task, into the arena."""
    settings = job.settings
    depth = settings.token_width * np.dtype(settings.token_dtype).itemsize
    first = min(job.offsets)
    last = max(
        offset + clip.num_tokens for offset, clip in zip(job.offsets, job.clips, strict=True)
    )
    window = ArenaSlice(job.arena, offset=first * depth, num_bytes=(last - first) * depth)
    try:
        arena = window.tokens(dtype=settings.token_dtype, width=settings.token_width)
        writers = [
            ClipWriter(clip, arena[offset - first : offset - first + clip.num_tokens], settings)
            for offset, clip in zip(job.offsets, job.clips, strict=True)
        ]
        try:
            observed = _fill(job, writers)
        except Exception as error:
            error.add_note(f"source: {job.source.name}")
            raise
        results = tuple(writer.finish() for writer in writers)
        del arena, writers
    finally:
        window.close()
    # Without a picture there is nothing to say of its source.
    return JobResult(results, observed if "rotation" in observed else {})


def tokens_of(job: Job) -> Iterator[tuple[np.ndarray, ClipTokens]]:
    """The tokens of a job's clips in memory of our own: what a task puts into its arena."""
    writers = [
        ClipWriter(
            clip,
            np.empty((clip.num_tokens, job.settings.token_width), job.settings.token_dtype),
            job.settings,
        )
        for clip in job.clips
    ]
    _fill(job, writers)
    for writer in writers:
        result = writer.finish()
        cells = writer.cells
        yield writer.tokens[: len(result.rows) * cells], result


def _fill(job: Job, writers: list[ClipWriter]) -> dict[str, Any]:
    """Hand every wanted picture to the clips that want it. A failure ends the pictures."""
    from av.error import FFmpegError

    observed: dict[str, Any] = {}
    source, settings = job.source, job.settings
    try:
        now = content_id(source.uri, offset=source.member_offset, num_bytes=source.num_bytes)
        if now != job.content_id:
            raise SourceError("the file is not the one that was planned", reason="source_changed")
        indices, first = np.unique(
            np.concatenate([clip.frame_indices for clip in job.clips]), return_index=True
        )
        pts = np.concatenate([clip.frame_pts for clip in job.clips])[first]
        for picture in _pictures(job, indices, pts, observed):
            _observe(job, picture, observed)
            if settings.hdr == "skip" and hdr_of(picture.frame):
                message = "its pictures are HDR though its header is not, and hdr is skip"
                raise DecodeError(message, reason="skipped_by_policy")
            frames: dict[tuple[int, int], np.ndarray] = {}
            for writer in writers:
                if writer.wants(picture.index):
                    size = writer.clip.size
                    if size not in frames:
                        frames[size] = make_frame(
                            picture,
                            size=size,
                            resampler=settings.resampler,
                            untagged=settings.untagged,
                            hdr="raw" if settings.hdr == "skip" else settings.hdr,
                            background=settings.background,
                            alpha=settings.alpha,
                        )
                    writer.add(picture, frames[size], observed["decoder"])
    except SourceError as error:
        for writer in writers:
            writer.stop(error.reason, str(error))
    except FFmpegError as error:
        reason = "out_of_memory" if isinstance(error, MemoryError) else "unreadable"
        for writer in writers:
            writer.stop(reason, f"FFmpeg: {type(error).__name__}")
    except OSError as error:
        for writer in writers:
            writer.stop("io", f"cannot be read: {error.strerror}")
    return observed


def _pictures(
    job: Job, indices: np.ndarray, pts: np.ndarray, observed: dict[str, Any]
) -> Iterator[Picture]:
    """The pictures from the decoder that was asked for, and from PyAV what that cannot give."""
    source, settings = job.source, job.settings

    def decode(word: str, indices: np.ndarray, pts: np.ndarray) -> Iterator[Picture]:
        observed["decoder"], decoder = choose_decoder(job.info, word)
        return decoder(
            source.uri,
            info=job.info,
            indices=indices,
            pts=pts,
            offset=source.member_offset,
            num_bytes=source.num_bytes,
            on_picture=beat,
            interlaced=settings.interlaced,
            max_pixels=settings.max_pixels,
            trust_input=settings.trust_input,
            untagged=settings.untagged,
        )

    position = 0
    try:
        for picture in decode(settings.decoder, indices, pts):
            position = int(np.searchsorted(indices, picture.index, side="right"))
            yield picture
        return
    except Declined as declined:
        observed["declined"] = f"{settings.decoder}: {declined}"
    except DecodeError as error:
        if observed["decoder"] not in BACKENDS:
            raise
        observed["declined"] = f"{settings.decoder}: {error}"
    yield from decode("pyav", indices[position:], pts[position:])


def _observe(job: Job, picture: Picture, observed: dict[str, Any]) -> None:
    """Note what a picture shows of its source; the first one speaks for its colour."""
    settings, info = job.settings, job.info
    if picture.was_interlaced:
        observed["fields"] = "kept" if settings.interlaced == "keep" else "deinterlaced"
    if "rotation" in observed:
        return
    if observed["decoder"] in BACKENDS:
        # Upright RGB already: by the header, to which it was held before the first picture.
        observed.update(
            rotation=info.rotation,
            mirrored=False,
            matrix=info.colour["matrix"] or UNTAGGED_MATRIX,
            range=info.colour["range"] or "tv",
            tagged="tagged" if info.colour["matrix"] else "assumed",
        )
        return
    colour = colour_of(picture.frame, untagged=settings.untagged)
    observed.update(
        rotation=picture.rotation,
        mirrored=picture.mirrored,
        matrix=colour.matrix,
        range=colour.range,
        tagged=colour.matrix_from,
    )


class ClipWriter:
    """Puts the frames of one clip into tokens as they come, a grid row after the other."""

    def __init__(self, clip: ClipSpec, tokens: np.ndarray, settings: TokenSettings) -> None:
        self.clip, self.tokens, self._settings = clip, tokens, settings
        _, height, width = clip.grid_thw
        self.cells = height * width
        self._samples = clip.frame_indices
        self._next = 0
        """The first sample that no picture has filled or passed."""
        self._kept: list[int] = []
        self._bad: set[int] = set()
        """Rows that a flagged or missing frame touches."""
        self._decoders: list[str] = []
        self._damaged: list[int] = []
        """Samples whose frames are flagged, and kept."""
        self._frame: np.ndarray | None = None
        self._reason: tuple[str, str] | None = None

    def wants(self, index: int) -> bool:
        """Whether a sample still to come takes this presentation index."""
        place = np.searchsorted(self._samples[self._next :], index) + self._next
        return bool(place < len(self._samples) and self._samples[place] == index)

    def add(self, picture: Picture, frame: np.ndarray, decoder: str) -> None:
        """Fill the samples that take this picture; samples passed over had none."""
        if decoder not in self._decoders:
            self._decoders.append(decoder)
        size = self._settings.tubelet_size
        while self._next < len(self._samples) and self._samples[self._next] < picture.index:
            self._bad.add(self._next // size)
            self._advance()
        while self._next < len(self._samples) and self._samples[self._next] == picture.index:
            if picture.is_corrupt and self._settings.allow_corrupt:
                self._damaged.append(self._next)
            elif picture.is_corrupt:
                self._bad.add(self._next // size)
            self._put(frame, self._next % size)
            self._advance()
        self._frame = frame

    def stop(self, reason: str, message: str) -> None:
        """No more pictures will come, and why."""
        self._reason = self._reason or (reason, message)

    def finish(self) -> ClipTokens:
        """Settle the last row by the tail policy, and account for every selected frame."""
        settings, size = self._settings, self._settings.tubelet_size
        count, planned = self._next, len(self._samples)
        losses: list[tuple[str, int, int, str]] = []
        grid_t = grid_shape(
            count,
            self.clip.size,
            tubelet_size=size,
            patch_size=settings.patch_size,
            tail=settings.tail,
        )[0]
        if count < planned:
            default = ("truncated", "the pictures end before the plan does")
            if count == 0:
                default = ("fewer_frames_than_planned", "no planned picture could be decoded")
            reason, message = self._reason or default
            tokens = (self.clip.grid_thw[0] - grid_t) * self.cells
            losses.append((reason, planned - count, tokens, message))
        padded = max(0, grid_t * size - count)
        if padded:
            assert self._frame is not None, "a row was begun"
            last = self._frame if settings.tail == "repeat" else np.zeros_like(self._frame)
            for k in range(size - padded, size):
                self._put(last, k)
            self._end_row(grid_t - 1)
        elif grid_t * size < count:
            dropped = count - grid_t * size
            message = f"{dropped} frames fill no tubelet of {size}"
            losses.append(("tail_dropped", dropped, 0, message))
        covered = min(count, grid_t * size)
        bad = sorted(row for row in self._bad if row < grid_t)
        if bad:
            frames = sum(min(size, covered - row * size) for row in bad)
            message = "frames that are damaged or missing; their grid rows are dropped"
            losses.append(("corrupt_frames", frames, len(bad) * self.cells, message))
        return ClipTokens(
            grid_t=grid_t if self._kept else 0,
            rows=np.array(self._kept, np.int32),
            num_frames=covered,
            padded_frames=padded,
            losses=tuple(losses),
            decoder=", ".join(self._decoders),
            damaged=np.array(
                [k for k in self._damaged if k < covered and k // size not in self._bad], np.int32
            ),
        )

    def _advance(self) -> None:
        self._next += 1
        if self._next % self._settings.tubelet_size == 0:
            self._end_row(self._next // self._settings.tubelet_size - 1)

    def _end_row(self, row: int) -> None:
        # A bad row's place is taken by the next one: rows lie one after the other.
        if row not in self._bad:
            self._kept.append(row)

    def _put(self, frame: np.ndarray, k: int) -> None:
        start = len(self._kept) * self.cells
        if start >= len(self.tokens):
            # Frames past the last whole tubelet, which `tail="drop"` does not keep.
            return
        write_frame(
            frame,
            self.tokens[start : start + self.cells],
            index_in_tubelet=k,
            tubelet_size=self._settings.tubelet_size,
            patch_size=self._settings.patch_size,
            layout=self._settings.layout,
        )
