"""The peers' rules of which frames of a video they take, by number as if the rate were constant."""

from __future__ import annotations

import math

import numpy as np


def qwen2_vl_indices(
    num_frames: int,
    fps_source: float,
    fps_target: float,
    *,
    tubelet_size: int = 2,
    min_frames: int = 4,
    max_frames: int = 768,
) -> np.ndarray:
    """``(n,)`` int64: which of `num_frames` frames Qwen2-VL and Qwen2.5-VL take.

    `sample_frames` of transformers' `Qwen2VLVideoProcessor`. Its indices are a float32 `arange`,
    here with torch's roundings on x86, which show from 16,384 frames on. Where that rule goes one
    index beyond the last frame (111 frames, 54 of them), or has no number (fewer frames than a
    tubelet), the processor fails; here that index is left out, and all frames are taken.
    """
    if num_frames < tubelet_size:
        return np.arange(num_frames, dtype=np.int64)
    most = min(max_frames, num_frames) // tubelet_size * tubelet_size
    wanted = min(max(num_frames / fps_source * fps_target, min_frames), most)
    step = num_frames / (math.floor(wanted / tubelet_size) * tubelet_size)
    count = math.ceil(num_frames / step)
    number = np.arange(count)
    # torch computes eight values from the float32 of their first one, as long as 16 are left.
    base = np.where(number < count // 16 * 16, number // 8 * 8, number)
    exact = (base * step).astype(np.float32).astype(np.float64) + (number - base) * step
    indices = exact.astype(np.float32).astype(np.int64)
    return indices[indices < num_frames]


def qwen3_vl_indices(
    num_frames: int,
    fps_source: float,
    fps_target: float,
    *,
    min_frames: int = 4,
    max_frames: int = 768,
) -> np.ndarray:
    """``(n,)`` int64: which of `num_frames` frames Qwen3-VL takes, the last one among them.

    `sample_frames` of transformers' `Qwen3VLVideoProcessor`.
    """
    wanted = int(num_frames / fps_source * fps_target)
    count = min(max(wanted, min_frames), max_frames, num_frames)
    return np.linspace(0, num_frames - 1, count).round().astype(np.int64)


def transformers_indices(num_frames: int, count: int) -> np.ndarray:
    """``(count,)`` int64: `default_sample_indices_fn` of transformers' `video_utils`.

    More than there are, which is an error there, repeat frames.
    """
    return np.arange(count, dtype=np.int64) * num_frames // count
