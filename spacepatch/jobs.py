"""Make the tokens of a source's clips in one task: what a worker does."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from spacepatch.arena import ArenaSlice
from spacepatch.clipwriter import ClipTokens, ClipWriter, TokenSettings
from spacepatch.data import ClipSpec, Fit, Picture, Source, VideoInfo
from spacepatch.decode import BACKENDS, UNTAGGED_MATRIX, choose_decoder, decode_pictures
from spacepatch.encoding import ClipEncoder, encoder_of
from spacepatch.errors import Declined, DecodeError, SourceError
from spacepatch.latentwriter import LatentWriter, pixel_clip
from spacepatch.resize import colour_of, hdr_of, make_frame, place_frame
from spacepatch.sources import content_id
from spacepatch.stages import counted, stage, timed
from spacepatch.tubelets import token_width
from spacepatch.workers import Fault, beat


@dataclass(frozen=True, slots=True)
class Job:
    """The clips of one source in one task: the unit of CPU work, of time limit, of crash."""

    source: Source
    content_id: str
    info: VideoInfo
    """As probed, without its `frame_pts`: the clips have those that are wanted."""
    clips: tuple[ClipSpec, ...]
    clip_ids: tuple[str, ...]
    """The segment id of each clip: what its draws are keyed by."""
    offsets: tuple[int, ...]
    """Where each clip's tokens start in the arena, in bytes; its pixel tokens follow them."""
    arena: str
    """Path that opens the task's arena."""
    settings: TokenSettings


@dataclass(frozen=True, slots=True)
class JobResult:
    """What a job made: small, because the tokens are in the arena."""

    clips: tuple[ClipTokens, ...]
    observed: dict[str, Any]
    """What only a picture tells: rotation, mirrored, colour, and how it was read."""


def run_job(job: Job) -> JobResult | Fault:
    """Decode one source once, for all of its clips in the task, into the arena."""
    if job.settings.encoder is not None:
        try:
            encoder_of(job.settings.encoder)
        except SourceError as error:
            return Fault(error.reason, str(error), stage="encode")
    first = min(job.offsets)
    end = max(
        offset + arena_bytes(job.settings, clip)
        for offset, clip in zip(job.offsets, job.clips, strict=True)
    )
    window = ArenaSlice(job.arena, offset=first, num_bytes=end - first)
    if job.settings.static_threshold is None:
        window.enter_pages()
    try:

        def memory(n: int, start: int, count: int, width: int, dtype: str) -> np.ndarray:
            return window.tokens(job.offsets[n] + start, count=count, dtype=dtype, width=width)

        with writing(job.clips, job.clip_ids, job.settings, memory) as writers:
            try:
                observed = _fill(job, writers)
            except Exception as error:
                error.add_note(f"source: {job.source.name}")
                raise
            with stage("tubelets"):
                results = tuple(writer.finish() for writer in writers)
        del writers
    finally:
        window.close()
    # Without a picture there is nothing to say of its source.
    return JobResult(results, observed if "rotation" in observed else {})


def tokens_of(job: Job) -> Iterator[tuple[np.ndarray, ClipTokens]]:
    """The tokens of a job's clips in memory of our own: what a task puts into its arena."""
    with writing(job.clips, job.clip_ids, job.settings, own_memory) as writers:
        _fill(job, writers)
        for writer in writers:
            result = writer.finish()
            yield writer.tokens[: result.num_kept], result


def planned_tokens(
    clips: Sequence[ClipSpec], clip_ids: Sequence[str], settings: TokenSettings
) -> JobResult:
    """What a job would say of its clips if all of their frames came: nothing is decoded."""
    nothing = np.empty((0, 0), np.uint8)
    return JobResult(
        tuple(
            ClipWriter(clip, nothing, settings, clip_id=identity).finish_as_planned()
            for clip, identity in zip(clips, clip_ids, strict=True)
        ),
        {},
    )


def arena_bytes(settings: TokenSettings, clip: ClipSpec) -> int:
    """What a clip takes in the arena: its tokens, then its pixel tokens if it has such."""
    content = settings.num_bytes(clip)
    if settings.pixel_tubelet is not None:
        pixels = pixel_clip(clip, settings.pixel_tubelet)
        content += pixels.num_kept * token_width(settings.pixel_tubelet[0], pixels.patch_size)
    return content


@contextmanager
def writing(
    clips: Sequence[ClipSpec],
    clip_ids: Sequence[str],
    settings: TokenSettings,
    memory: Callable[[int, int, int, int, str], np.ndarray],
) -> Iterator[list[ClipWriter]]:
    """A writer for each clip.

    Args:
        memory: ``(count, width)`` of a dtype for the n-th clip, from a byte of its place on: of
            (n, byte, count, width, dtype).
    """
    if settings.encoder is None or settings.facts is None:
        yield [
            ClipWriter(clip, memory(n, 0, *_shape_of(settings, clip)), settings, clip_id=identity)
            for n, (clip, identity) in enumerate(zip(clips, clip_ids, strict=True))
        ]
        return
    encoder = ClipEncoder(settings.encoder, settings.facts)
    try:
        writers: list[ClipWriter] = []
        for n, (clip, identity) in enumerate(zip(clips, clip_ids, strict=True)):
            pixels = None
            if settings.pixel_tubelet is not None:
                beside = pixel_clip(clip, settings.pixel_tubelet)
                width = token_width(beside.tubelet_size, beside.patch_size)
                start = settings.num_bytes(clip)
                pixels = memory(n, start, beside.num_kept, width, "uint8")
            tokens = memory(n, 0, *_shape_of(settings, clip))
            writers.append(
                LatentWriter(
                    clip, tokens, settings, clip_id=identity, encoder=encoder, pixels=pixels
                )
            )
        yield writers
    finally:
        encoder.close()


def own_memory(n: int, start: int, count: int, width: int, dtype: str) -> np.ndarray:
    """Memory of `writing` that is nobody else's."""
    return np.empty((count, width), dtype)


def _shape_of(settings: TokenSettings, clip: ClipSpec) -> tuple[int, int, str]:
    return clip.num_kept, settings.width_of(clip), settings.storage


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
        takers = takers_of(writers)
        for picture in timed("decode", _pictures(job, indices, pts, observed)):
            _observe(job, picture, observed)
            if settings.hdr == "skip" and hdr_of(picture.frame):
                message = "its pictures are HDR though its header is not, and hdr is skip"
                raise DecodeError(message, reason="skipped_by_policy")
            frames: dict[Fit, np.ndarray] = {}
            for writer in takers.get(picture.index, ()):
                with stage("resize"):
                    frame = frame_of(settings, picture, writer.clip.fit, frames)
                with stage("tubelets"):
                    writer.add(picture, frame, observed["decoder"])
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


def takers_of(writers: Sequence[ClipWriter]) -> dict[int, list[ClipWriter]]:
    """By presentation index, whose clips want it."""
    takers: dict[int, list[ClipWriter]] = defaultdict(list)
    for writer in writers:
        for index in np.unique(writer.clip.frame_indices).tolist():
            takers[index].append(writer)
    return takers


def frame_of(
    settings: TokenSettings, picture: Picture, fit: Fit, made: dict[Fit, np.ndarray]
) -> np.ndarray:
    """The frame of a picture; clips of one size, and windows of one scaled picture, share it."""
    whole = Fit(fit.scaled, fit.scaled)
    if whole not in made:
        made[whole] = make_frame(
            picture,
            size=fit.scaled,
            resampler=settings.resampler,
            untagged=settings.untagged,
            hdr="raw" if settings.hdr == "skip" else settings.hdr,
            background=settings.background,
            alpha=settings.alpha,
        )
    if fit not in made:
        made[fit] = place_frame(made[whole], fit)
    return made[fit]


def _pictures(
    job: Job, indices: np.ndarray, pts: np.ndarray, observed: dict[str, Any]
) -> Iterator[Picture]:
    """The pictures from the decoder that was asked for, and from PyAV what that cannot give."""
    source, settings = job.source, job.settings
    keyframes = np.unique(np.concatenate([clip.keyframes for clip in job.clips]), axis=0)

    def decode(word: str, indices: np.ndarray, pts: np.ndarray) -> Iterator[Picture]:
        observed["decoder"] = choose_decoder(job.info, word)
        return decode_pictures(
            source.uri,
            info=job.info,
            indices=indices,
            pts=pts,
            offset=source.member_offset,
            num_bytes=source.num_bytes,
            on_picture=counted("decoded", beat),
            interlaced=settings.interlaced,
            max_pixels=settings.max_pixels,
            trust_input=settings.trust_input,
            untagged=settings.untagged,
            decoder=word,
            keyframes=keyframes,
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
