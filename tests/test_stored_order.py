"""Blocks of patches and pixels around them, as they are stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from einops import rearrange
from loaded_packs import read_plainly
from small_runs import make_dataset
from stored_segments import pictures_of, segments_of

from spacepatch.inspection import verify

SETTINGS: dict[str, Any] = {"fps": "4", "max_tokens_per_frame": 80, "resampler": "area"}
BLOCKS = "(t h mh w mw) d -> (t h w mh mw) d"


@pytest.mark.parametrize(("index", "merge"), [("full", 2), ("compact", 2), ("full", 3)])
def test_tokens_in_blocks_are_those_of_a_raster_run_permuted_as_einops_says(
    sample_clips: Path, tmp_path: Path, index: str, merge: int
) -> None:
    settings = SETTINGS | {"multiple": merge, "patch": "2x8x8", "index": index}
    raster = segments_of(make_dataset([sample_clips], tmp_path / "raster", **settings))
    order = f"merge {merge} x {merge}"
    out = make_dataset([sample_clips], tmp_path / "out", **settings, order=order)
    assert verify(out) == []
    assert {pack["pack"]["order"] for pack in read_plainly(out)} == {order}
    member = {"full": "positions", "compact": "kept"}[index]
    assert all(member in pack for pack in read_plainly(out))
    moved = 0
    # The order of tokens is layout: the ids of segments are the same.
    blocks = segments_of(out)
    ids = [{one.row["segment_id"] for one in run.values()} for run in (raster, blocks)]
    assert ids[0] == ids[1]
    for name, segment in blocks.items():
        t, h, w = segment.grid
        sizes = {"t": t, "h": h // merge, "mh": merge, "w": w // merge, "mw": merge}
        whole = raster[name]
        assert segment.row["order"] == order
        for found, expected in [
            (segment.tokens, whole.tokens),
            (segment.positions, whole.positions),
        ]:
            np.testing.assert_array_equal(found, rearrange(expected, BLOCKS, **sizes))
        np.testing.assert_array_equal(whole.raster, np.arange(t * h * w))
        moved += (segment.raster != whole.raster).any()
    assert moved > 5


@pytest.mark.parametrize("halo", [1, 20])
def test_a_halo_widens_tokens_on_the_same_grid_by_pixels_of_the_frame_around(
    sample_clips: Path, tmp_path: Path, halo: int
) -> None:
    settings = SETTINGS | {"patch": "2x16x16", "pack_length": 512, "max_tokens_per_frame": 30}
    plain = segments_of(make_dataset([sample_clips], tmp_path / "plain", **settings))
    out = make_dataset([sample_clips], tmp_path / "out", **settings, halo=halo)
    assert verify(out) == []
    wide = segments_of(out)
    assert wide.keys() == plain.keys()
    side = 16 + 2 * halo
    for name, segment in wide.items():
        whole = plain[name]
        assert segment.row["halo"] == halo
        assert segment.grid == whole.grid
        np.testing.assert_array_equal(segment.positions, whole.positions)
        assert segment.tokens.shape == (len(whole.tokens), 3 * 2 * side * side)
        around = np.pad(pictures_of(whole), ((0, 0), (halo, halo), (halo, halo), (0, 0)))
        for token, (t, h, w) in zip(segment.tokens, segment.positions.tolist(), strict=True):
            window = around[2 * t : 2 * t + 2, 16 * h : 16 * h + side, 16 * w : 16 * w + side]
            np.testing.assert_array_equal(
                token.reshape(3, 2, side, side), window.transpose(3, 0, 1, 2)
            )


def test_a_halo_in_blocks_that_are_dropped_is_that_of_each_token(
    sample_clips: Path, tmp_path: Path
) -> None:
    source = [sample_clips / "landscape_640x360.mp4", sample_clips / "square_320x320.mp4"]
    settings = SETTINGS | {"halo": 3, "multiple": 2, "layout": "t p q c", "pack_length": 4096}
    whole = segments_of(make_dataset(source, tmp_path / "whole", **settings))
    more = {"order": "merge 2 x 2", "drop": "random:0.6"}
    out = make_dataset(source, tmp_path / "out", **settings, **more)
    assert verify(out) == []
    for name, segment in segments_of(out).items():
        expected = whole[name].tokens[segment.raster]
        np.testing.assert_array_equal(segment.tokens, expected)
        assert 0.3 < len(segment.tokens) / len(whole[name].tokens) < 0.5
