"""Jobs planned by hand, and the other way to tokens: decode everything, then pick, then cut."""

from contextlib import suppress
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from einops import rearrange
from made_videos import plain_view

from spacepatch.clips import choose_clips
from spacepatch.clipwriter import ClipTokens, TokenSettings
from spacepatch.data import ClipRange, Fit, Picture, VideoInfo
from spacepatch.jobs import Job, tokens_of
from spacepatch.probes import ProbeJob, probe_source, slim
from spacepatch.resize import make_frame
from spacepatch.sources import list_sources
from spacepatch.tubelets import token_width

SIZE = (48, 64)
PATCH = (16, 16)
PATTERNS = {
    "c t p q": "(t k) (h p) (w q) c -> (t h w) (c k p q)",
    "t p q c": "(t k) (h p) (w q) c -> (t h w) (k p q c)",
    "p q c": "(t k) (h p) (w q) c -> (t h w) (k p q c)",
    "c p q": "(t k) (h p) (w q) c -> (t h w) (k c p q)",
}


def plan(
    path: Path,
    *,
    sampler: str = "fps",
    value: Fraction | int = 8,
    tubelet: int = 2,
    tail: str = "repeat",
    layout: str = "c t p q",
    resampler: str = "bicubic",
    pack_length: int = 10**6,
    ranges: tuple[ClipRange, ...] = (),
    one_size: bool = False,
) -> tuple[Job, VideoInfo]:
    """A job of all the clips of one file, and what the probe said.

    With `one_size` it overlooked that the pictures change their size.
    """
    (source,) = list_sources([str(path)]).sources
    probed = probe_source(ProbeJob(source))
    assert probed.info is not None
    if one_size:
        probed = replace(probed, info=replace(probed.info, parts=probed.info.parts[:1]))
    assert probed.info is not None
    clips, losses = choose_clips(
        probed.info,
        source=0,
        ranges=ranges,
        sampler=sampler,
        views=lambda window: (plain_view(value, tubelet_size=tubelet, patch_size=PATCH),),
        one_grid=True,
        fit=lambda size, view, num_frames: Fit(SIZE, SIZE),
        tail=tail,
        pack_length=pack_length,
    )
    assert losses == []
    settings = TokenSettings(layout=layout, tail=tail, resampler=resampler)
    width = token_width(tubelet, PATCH)
    offsets = np.cumsum([0, *(clip.num_tokens * width for clip in clips)])[:-1]
    job = Job(
        source=source,
        content_id=probed.content_id,
        info=slim(probed.info),
        clips=tuple(clips),
        clip_ids=tuple(str(clip.clip) for clip in clips),
        offsets=tuple(offsets.tolist()),
        arena="",
        settings=settings,
    )
    return job, probed.info


def made(job: Job) -> list[tuple[np.ndarray, ClipTokens]]:
    return list(tokens_of(job))


def every_frame(path: Path, info: VideoInfo, resampler: str) -> dict[int, np.ndarray]:
    """The frames that come, by time."""
    frames = {}
    with av.open(str(path)) as container:
        stream = container.streams[info.stream_index]
        stream.codec_context.thread_count = 1  # with more, a damaged video looks otherwise
        for packet in container.demux(stream):
            with suppress(av.error.InvalidDataError):
                for frame in packet.decode():
                    turn = {0: 0, -90: 90, 90: 270, 180: 180, -180: 180}[frame.rotation]
                    picture = Picture(frame, frame.pts, 0, turn, False, frame.is_corrupt)
                    made = make_frame(picture, size=SIZE, resampler=resampler)
                    frames[frame.pts] = made.copy()
    return frames


def other_tokens(frames: list[np.ndarray], *, tubelet: int, tail: str, layout: str) -> np.ndarray:
    missing = -len(frames) % tubelet
    if tail == "drop":
        frames = frames[: len(frames) // tubelet * tubelet]
    elif missing:
        last = frames[-1] if tail == "repeat" else np.zeros_like(frames[-1])
        frames = frames + [last] * missing
    height, width = PATCH
    return rearrange(np.stack(frames), PATTERNS[layout], k=tubelet, p=height, q=width)
