"""Pixel tokens compressed and turned back: every value, or a PSNR that is measured once more."""

from __future__ import annotations

import io
import itertools
import json
import math
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from compressed_tokens import (
    CONTENTS,
    Geometry,
    back,
    draw_tokens,
    geometry,
    psnr,
    segments,
    stored_cells,
)
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from small_runs import run
from stored_segments import Stored, segments_of
from untimed import untimed

from spacepatch.codecs import compress
from spacepatch.codecs.segments import EXACT, LOSSY, PLAIN
from spacepatch.tubelets import merge_of, token_width

# --- without loss ------------------------------------------------------------------------------


@given(segments())
@untimed
def test_tokens_come_back_as_they_were(
    segment: tuple[np.ndarray, np.ndarray, Geometry],
) -> None:
    tokens, kept, shape = segment
    made = compress(tokens, kept, **shape)
    assert made.codec in (EXACT, PLAIN)
    assert made.psnr is None
    found = back(made, kept, shape)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, tokens)


@given(segments())
@untimed
def test_the_same_tokens_give_the_same_bytes(
    segment: tuple[np.ndarray, np.ndarray, Geometry],
) -> None:
    tokens, kept, shape = segment
    # Elsewhere in memory, and read-only.
    again = np.array(tokens[::-1])[::-1]
    again.setflags(write=False)
    assert compress(again, kept.copy(), **shape) == compress(tokens, kept, **shape)


def test_another_process_makes_the_same_bytes() -> None:
    shape = geometry((2, 2, 3), patch=(16, 16))
    tokens = draw_tokens("smooth", shape)
    script = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_codecs import *
shape = geometry((2, 2, 3), patch=(16, 16))
for floor in (None, 40):
    made = compress(draw_tokens("smooth", shape), stored_cells(shape), **shape, floor=floor)
    print(made.content.hex())
"""
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=300
    )
    here = [compress(tokens, stored_cells(shape), **shape, floor=floor) for floor in (None, 40)]
    assert done.stdout.split() == [made.content.hex() for made in here]


@pytest.mark.parametrize("what", CONTENTS)
def test_what_can_be_foretold_takes_little_and_noise_hardly_more_than_itself(what: str) -> None:
    shape = geometry((4, 8, 8), patch=(16, 16))
    tokens = draw_tokens(what, shape)
    made = compress(tokens, stored_cells(shape), **shape)
    most = {"noise": 1.001, "flat": 0.003, "smooth": 0.45, "still": 0.1}[what]
    assert len(made.content) <= most * tokens.nbytes


def test_missing_tokens_cost_nothing_in_a_still_clip() -> None:
    """A cell without a token shows on what it showed."""
    shape = geometry((8, 6, 6), patch=(16, 16))
    tokens, kept = draw_tokens("still", shape), stored_cells(shape)
    whole = compress(tokens, kept, **shape)
    few = np.arange(len(kept)) < 36
    few |= np.random.default_rng(0).random(len(kept)) < 0.6
    assert len(compress(tokens[few], kept[few], **shape).content) < 1.02 * len(whole.content)


def test_a_real_clip_takes_less_than_as_pngs(sample_clips: Path, tmp_path: Path) -> None:
    run([sample_clips / "landscape_640x360.mp4"], tmp_path, max_tokens_per_frame=256)
    for stored in segments_of(tmp_path).values():
        tokens, kept, shape = of_stored(stored)
        size = len(compress(tokens, kept, **shape).content)
        frames = tokens.reshape(*shape["grid_thw"], 3, 2, 16, 16).transpose(0, 4, 1, 5, 2, 6, 3)
        pngs = 0
        for frame in frames.reshape(-1, *(16 * side for side in shape["grid_thw"][1:]), 3):
            file = io.BytesIO()
            Image.fromarray(frame).save(file, "PNG")
            pngs += file.tell()
        assert size < pngs
        assert size < len(zlib.compress(tokens, 6))


# --- as they are stored ------------------------------------------------------------------------


def of_stored(stored: Stored) -> tuple[np.ndarray, np.ndarray, Geometry]:
    row = stored.row
    patch = tuple(row["patch_size"])
    one = token_width(row["tubelet_size"], patch, 1, row["halo"])
    return (
        stored.tokens,
        stored.raster.astype(np.uint32),
        geometry(
            stored.grid,
            tubelet=row["tubelet_size"],
            patch=patch,
            channels=stored.tokens.shape[1] // one,
            halo=row["halo"],
            layout=row["layout"],
            merge=merge_of(row["order"]),
        ),
    )


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"order": "merge 2 x 2", "layout": "t p q c", "multiple": 2},
        {"drop": "random:0.3"},
        {"drop": "random:0.8"},
        {"drop": "static"},
        {"halo": 3},
    ],
    ids=json.dumps,
)
def test_stored_segments_come_back_or_reach_the_floor(
    sample_clips: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    run([sample_clips], tmp_path, max_segments=2, **settings)
    found = segments_of(tmp_path)
    assert len(found) > 5
    for stored in found.values():
        tokens, kept, shape = of_stored(stored)
        exact = compress(tokens, kept, **shape)
        np.testing.assert_array_equal(back(exact, kept, shape), tokens)
        lossy = compress(tokens, kept, **shape, floor=42)
        assert psnr(tokens, back(lossy, kept, shape)) >= 42
        assert len(lossy.content) <= len(exact.content)


# --- down to a floor ---------------------------------------------------------------------------


@given(segments(), st.sampled_from([25.0, 33.3, 40.0, 48.0]))
@untimed
def test_floors_are_reached_and_what_is_told_is_so(
    segment: tuple[np.ndarray, np.ndarray, Geometry], floor: float
) -> None:
    tokens, kept, shape = segment
    made = compress(tokens, kept, **shape, floor=floor)
    assert made == compress(tokens, kept, **shape, floor=floor)
    found = back(made, kept, shape)
    assert found.shape == tokens.shape
    if made.psnr is None:
        np.testing.assert_array_equal(found, tokens)
    else:
        assert floor <= made.psnr <= psnr(tokens, found) < made.psnr + 0.002
        assert len(made.content) < len(compress(tokens, kept, **shape).content)


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("floor", [30, 38, 46])
def test_loss_is_what_makes_smooth_clips_small(channels: int, floor: float) -> None:
    shape = geometry((4, 8, 8), patch=(16, 16), channels=channels)
    tokens, kept = draw_tokens("smooth", shape), stored_cells(shape)
    made = compress(tokens, kept, **shape, floor=floor)
    assert made.codec == LOSSY
    assert made.psnr is not None
    assert floor <= made.psnr <= psnr(tokens, back(made, kept, shape))
    assert len(made.content) < len(compress(tokens, kept, **shape).content) / 2


def test_a_higher_floor_takes_more_bytes() -> None:
    shape = geometry((4, 8, 8), patch=(16, 16))
    tokens = draw_tokens("smooth", shape)
    tokens += draw_tokens("noise", shape) % 8
    sizes = [
        len(compress(tokens, stored_cells(shape), **shape, floor=floor).content)
        for floor in (32, 36, 40, 44)
    ]
    assert all(less < more for less, more in itertools.pairwise(sizes))


@pytest.mark.parametrize(("what", "floor"), [("noise", 50), ("smooth", 90), ("smooth", math.inf)])
def test_a_floor_out_of_reach_is_kept_exactly(what: str, floor: float) -> None:
    shape = geometry(patch=(16, 16))
    tokens, kept = draw_tokens(what, shape), stored_cells(shape)
    made = compress(tokens, kept, **shape, floor=floor)
    assert made == compress(tokens, kept, **shape)


def test_wider_pictures_than_h264_has_are_kept_exactly() -> None:
    shape = geometry((1, 1, 130), patch=(1, 128), tubelet=1)
    tokens, kept = draw_tokens("smooth", shape), stored_cells(shape)
    assert compress(tokens, kept, **shape, floor=30).codec == PLAIN


def test_the_bytes_do_not_name_the_version_of_x264() -> None:
    shape = geometry((2, 8, 8), patch=(16, 16))
    made = compress(draw_tokens("smooth", shape), stored_cells(shape), **shape, floor=38)
    assert made.codec == LOSSY
    assert b"x264" not in made.content


# --- many at once ------------------------------------------------------------------------------


def test_threads_make_what_one_makes() -> None:
    work = []
    for number, what in itertools.product(range(6), CONTENTS):
        shape = geometry((1 + number % 3, 3, 4 + number), patch=(14, 14))
        tokens = draw_tokens(what, shape, number)
        work.append((tokens, stored_cells(shape), shape, 40.0 if number % 2 else None))

    def there_and_back(one: tuple[np.ndarray, np.ndarray, Geometry, float | None]) -> Any:
        tokens, kept, shape, floor = one
        made = compress(tokens, kept, **shape, floor=floor)
        return made, back(made, kept, shape).tobytes()

    alone = [there_and_back(one) for one in work]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            assert list(pool.map(there_and_back, work)) == alone
