"""Runs: the clips of one source that go into a shard together, so that little is decoded twice."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from made_videos import clips_of, regular

from spacepatch.config import load_config
from spacepatch.data import ClipSpec
from spacepatch.pipeline.planhead import largest_side, layout_of
from spacepatch.pipeline.runs import clip_bytes, cut_runs

FRAMES = 1500
CLIP_FRAMES = 16
LEAST, MOST = 5, 20
"""Clips: an eighth of a shard, and half of it."""


def runs_of(keyframes: range, *, decodes: bool = True) -> list[list[ClipSpec]]:
    """Of a video of 1500 frames in 94 clips, 40 of which fill a shard."""
    video = replace(regular(60), keyframes=np.array(keyframes))
    clips = clips_of(video, sampler="every-frame", clip_seconds=Fraction(CLIP_FRAMES, 25))
    config = load_config({"pack_length": clips[0].num_kept, "shard_size": "3MB"})
    layout = layout_of(config, largest_side(clips))
    assert 3_000_000 // clip_bytes(clips[0], layout) == 2 * MOST == 8 * LEAST
    runs = cut_runs(clips, config, layout, decodes=decodes)
    assert [clip for run in runs for clip in run] == clips
    return runs


def decoded_again(run: list[ClipSpec], after: list[ClipSpec], keyframes: range) -> int:
    """Frames of a run that the next one decodes as well, on its way from a keyframe."""
    start = max(key for key in keyframes if key <= after[0].frame_indices[0])
    return max(0, int(run[-1].frame_indices[-1]) + 1 - start)


def test_a_run_ends_beyond_an_eighth_of_a_shard_where_a_keyframe_is_near() -> None:
    keyframes = range(0, FRAMES, 48)  # every third clip begins with one
    runs = runs_of(keyframes)
    assert [len(run) for run in runs[:-1]] == [6] * (len(runs) - 1)
    for run, after in pairwise(runs):
        assert decoded_again(run, after, keyframes) == 0


@pytest.mark.parametrize("step", [30, 47, 100, 250])
def test_a_run_goes_on_where_much_would_be_decoded_twice(step: int) -> None:
    keyframes = range(0, FRAMES, step)
    runs = runs_of(keyframes)
    assert len(runs) > 4
    for run, after in pairwise(runs):
        is_cheap = decoded_again(run, after, keyframes) <= CLIP_FRAMES * len(run) / 32
        assert LEAST <= len(run) <= MOST
        assert is_cheap or len(run) == MOST
        # It ends at the first place that will do.
        for end in range(LEAST, len(run)):
            again = decoded_again(run[:end], run[end:], keyframes)
            assert again > CLIP_FRAMES * end / 32


def test_without_keyframes_between_a_run_is_half_a_shard() -> None:
    assert [len(run) for run in runs_of(range(1))] == [MOST] * 4 + [14]


def test_where_nothing_is_decoded_every_border_is_cheap() -> None:
    assert {len(run) for run in runs_of(range(1), decodes=False)[:-1]} == {LEAST}
