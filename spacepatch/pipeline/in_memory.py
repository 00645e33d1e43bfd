"""Tokens of frames that are in memory already: the way of a task, without a file or a decoder."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from spacepatch.clipwriter import ClipTokens, ClipWriter
from spacepatch.config import RunConfig
from spacepatch.data import ClipSpec, Fit, Part, Picture, VideoInfo
from spacepatch.errors import ConfigError, SpacepatchError
from spacepatch.jobs import frame_of, takers_of
from spacepatch.pipeline.choosing import clips_of, view_rules_of
from spacepatch.pipeline.running import token_settings
from spacepatch.tubelets import cells_of_rows


@dataclass(frozen=True, slots=True)
class FrameTokens:
    """The tokens of one clip."""

    clip: ClipSpec
    """Which frames, at which size, in which patches; its times count frames."""
    tokens: np.ndarray
    """``(N, D)`` uint8, never normalized."""
    positions: np.ndarray
    """``(N, 3)`` int64: t, h, w of each token in the clip's grid."""
    run_lengths: np.ndarray | None
    """``(N,)`` uint16, where static tubelets are dropped."""


def tokenize_frames(
    frames: np.ndarray, config: RunConfig, *, fps: Fraction | int = 30, key: str = ""
) -> list[FrameTokens]:
    """Turn a video that was decoded elsewhere into tokens, as `tokenize` turns a file.

    Sampling, sizes, cropping, tubelets and dropping are those of the settings; what is for files
    (decoders, colour, shards) is without effect.

    Args:
        frames: ``(T, H, W, 3)`` uint8 RGB, upright, square pixels; with one frame, a picture.
        fps: at which they were taken.
        key: what random draws are keyed by, besides the seed.

    Returns:
        The clips, in order of time.

    Raises:
        SpacepatchError: the settings leave nothing of them, and why.
    """
    import av

    if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8 or not len(frames):
        raise ValueError(f"frames are {frames.dtype} {frames.shape}, not uint8 (T, H, W, 3)")
    if config.kind != "pixels":
        raise ConfigError(f"encoder: {config.encoder}: this version tokenizes pixels only")
    info = _describe(frames, Fraction(fps))
    clips, losses = clips_of(
        config,
        info,
        row=0,
        ranges=(),
        key=(config.seed, "frames", key),
        rules=view_rules_of(config),
    )
    if not clips:
        raise SpacepatchError(f"nothing is left: {losses[0].reason}: {losses[0].message}")
    settings = token_settings(config.effective(), token_dtype="uint8")
    writers = [
        ClipWriter(
            clip,
            np.empty((clip.num_kept, settings.width_of(clip)), np.uint8),
            settings,
            clip_id=f"{config.seed}\0{key}\0{clip.clip}\0{clip.view}",
        )
        for clip in clips
    ]
    for index, takers in sorted(takers_of(writers).items()):
        rgb = av.VideoFrame.from_ndarray(np.ascontiguousarray(frames[index]), format="rgb24")
        picture = Picture(rgb, index, index, rotation=0, mirrored=False, is_corrupt=False)
        made: dict[Fit, np.ndarray] = {}
        for writer in takers:
            writer.add(picture, frame_of(settings, picture, writer.clip.fit, made), "")
    return [_result(writer, writer.finish(), config) for writer in writers]


def _describe(frames: np.ndarray, fps: Fraction) -> VideoInfo:
    """What a probe would say of them."""
    num_frames, size = len(frames), (frames.shape[1], frames.shape[2])
    return VideoInfo(
        container="",
        codec="",
        stream_index=0,
        parts=(Part(0, 0, size, size, Fraction(1)),),
        rotation=0,
        pixel_format="rgb24",
        colour={},
        bit_depth=8,
        hdr="",
        interlaced="progressive",
        alpha=False,
        time_base=1 / fps,
        frame_pts=np.arange(num_frames),
        stop_pts=num_frames,
        num_packets=num_frames,
        num_before_key=0,
        pts_repaired="",
        still=num_frames == 1,
        keyframes=np.arange(num_frames),
    )


def _result(writer: ClipWriter, made: ClipTokens, config: RunConfig) -> FrameTokens:
    clip = writer.clip
    kept = made.kept
    if kept is None:
        kept = cells_of_rows(made.rows, *clip.grid_thw[1:], merge=config.merge)
    positions = np.stack(np.unravel_index(kept.astype(np.int64), clip.grid_thw), axis=-1)
    return FrameTokens(clip, writer.tokens[: made.num_kept], positions, made.run_lengths)
