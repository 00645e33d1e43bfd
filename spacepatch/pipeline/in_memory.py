"""Tokens of frames that are in memory already: the way of a task, without a file or a decoder."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from spacepatch.clipwriter import ClipTokens, ClipWriter
from spacepatch.config import RunConfig
from spacepatch.data import POLICY_REASONS, ClipSpec, Fit, Part, Picture, VideoInfo
from spacepatch.encoding import facts_of
from spacepatch.errors import SpacepatchError
from spacepatch.jobs import frame_of, own_memory, takers_of, writing
from spacepatch.latentwriter import LatentWriter
from spacepatch.pipeline.choosing import clips_of, view_rules_of
from spacepatch.pipeline.encoders import Encoded, encoder_settings, settle
from spacepatch.pipeline.job_settings import token_settings
from spacepatch.pipeline.planhead import largest_side, layout_of
from spacepatch.tubelets import cells_of_rows


@dataclass(frozen=True, slots=True)
class FrameTokens:
    """The tokens of one clip."""

    clip: ClipSpec
    """Which frames, at which size, in which patches; its times count frames."""
    tokens: np.ndarray
    """``(N, D)`` uint8, never normalized; with an encoder latents or codes, as they are stored
    (bfloat16 as uint16)."""
    positions: np.ndarray
    """``(N, 3)`` int64: t, h, w of each token in the clip's grid."""
    run_lengths: np.ndarray | None
    """``(N,)`` uint16, where static tubelets are dropped."""
    pixels: np.ndarray | None = None
    """``(P, D)`` uint8: the pixel tokens beside those of an encoder, where they are asked for."""


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
        SpacepatchError: the settings leave nothing of them, and why; or the encoder cannot be used.
    """
    import av

    if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8 or not len(frames):
        raise ValueError(f"frames are {frames.dtype} {frames.shape}, not uint8 (T, H, W, 3)")
    encoded = Encoded(config)
    asked = encoder_settings(config)
    if asked is not None:
        facts = facts_of(asked)
        encoded = Encoded(settle(config, facts), asked, facts)
    config = encoded.config
    info = _describe(frames, Fraction(fps))
    clips, losses = clips_of(
        config,
        info,
        row=0,
        ranges=(),
        key=(config.seed, "frames", key),
        rules=view_rules_of(config),
        facts=encoded.facts,
    )
    if not clips:
        raise SpacepatchError(f"nothing is left: {losses[0].reason}: {losses[0].message}")
    layout = layout_of(config, largest_side(clips), encoded.facts)
    settings = token_settings(
        config.effective(),
        token_dtype=layout.token_dtype,
        encoder=encoded.settings,
        facts=encoded.facts,
        pixel_tubelet=layout.pixel_tubelet,
    )
    ids = [f"{config.seed}\0{key}\0{clip.clip}\0{clip.view}" for clip in clips]
    with writing(clips, ids, settings, own_memory) as writers:
        for index, takers in sorted(takers_of(writers).items()):
            rgb = av.VideoFrame.from_ndarray(np.ascontiguousarray(frames[index]), format="rgb24")
            picture = Picture(rgb, index, index, rotation=0, mirrored=False, is_corrupt=False)
            made: dict[Fit, np.ndarray] = {}
            for writer in takers:
                writer.add(picture, frame_of(settings, picture, writer.clip.fit, made), "")
        return [_result(writer, _finished(writer), config) for writer in writers]


def _finished(writer: ClipWriter) -> ClipTokens:
    """What became of a clip; a `SpacepatchError` where the encoder lost any of it."""
    made = writer.finish()
    for loss in made.losses:
        if loss.stage == "encode" and loss.reason not in POLICY_REASONS:
            raise SpacepatchError(f"{loss.reason}: {loss.message}")
    return made


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
    pixels = writer.pixels if isinstance(writer, LatentWriter) else None
    if pixels is not None:
        pixels = pixels[: made.num_pixel_tokens]
    return FrameTokens(clip, writer.tokens[: made.num_kept], positions, made.run_lengths, pixels)
