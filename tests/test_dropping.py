"""Dropped tokens: as many as planned, each as in the undropped run, at its true place."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SpacepatchCli
from decoding import in_corpus, psnr
from loaded_packs import drawn_order
from small_runs import make_dataset, rows
from stored_segments import Name, Stored, pictures_of, segments_of

from spacepatch.config import load_config
from spacepatch.drop import fill_static
from spacepatch.errors import ConfigError
from spacepatch.inspection import verify

SETTINGS: dict[str, Any] = {"fps": "8", "max_tokens_per_frame": 24, "pack_length": 1024}
FLAGS = ["--fps", "8", "--max-tokens-per-frame", "24", "--pack-length", "1024"]
DONE_WITH_LOSSES = 3  # broken_on_purpose.mp4


@pytest.fixture(scope="module")
def undropped(sample_clips: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[Name, Stored]:
    """Each sample clip with all of its tokens."""
    out = tmp_path_factory.mktemp("undropped") / "out"
    return segments_of(make_dataset([sample_clips], out, **SETTINGS))


def assert_tokens_are_those_of(whole: Stored, dropped: Stored) -> None:
    """Whatever the order of either, token by token at the same position."""
    place = {raster: n for n, raster in enumerate(whole.raster.tolist())}
    own = [place[raster] for raster in dropped.raster.tolist()]
    assert len(set(own)) == len(own) >= 1
    np.testing.assert_array_equal(dropped.tokens, whole.tokens[own])
    for key in ("grid_thw", "size", "num_tokens", "seconds", "frame_pts", "frame_indices"):
        assert dropped.row[key] == whole.row[key], key


# --- at random ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("drop", "index"),
    [
        ("random:0.5", "full"),
        ("random:uniform:0.2..0.8", "compact"),
        ("random:beta:0.5,0.9", "full"),
        ("random:length:0.2..0.6:30..300", "compact"),
        ("tokens:40", "full"),
        ("random:0.999999", "compact"),
    ],
)
def test_as_many_tokens_are_written_as_planned_each_as_it_was_at_its_true_place(
    sample_clips: Path,
    undropped: dict[Name, Stored],
    tmp_path: Path,
    spacepatch_cli: SpacepatchCli,
    drop: str,
    index: str,
) -> None:
    flags = [*FLAGS, "--drop", drop, "--index", index]
    plan = json.loads(spacepatch_cli("plan", sample_clips, *flags, "--json").stdout)
    out = make_dataset([sample_clips], tmp_path / "out", **SETTINGS, drop=drop, index=index)
    assert verify(out) == []
    stored = segments_of(out)
    assert stored.keys() == undropped.keys()
    planned = {source["source"]: source["tokens"] for source in plan["sources"]}
    for name, segment in stored.items():
        whole = undropped[name]
        assert_tokens_are_those_of(whole, segment)
        assert (np.diff(segment.raster) > 0).all()
        num = segment.row["num_tokens"]
        assert len(segment.tokens) == segment.row["num_kept"] == planned[name[0]]
        order = drawn_order(num, segment.row["segment_id"], "keep")
        assert segment.raster.tolist() == sorted(order[: len(segment.tokens)].tolist())
        word, value = segment.row["drop"].split()
        if word == "random":
            # MAE's rounding, of the rate that is recorded.
            assert len(segment.tokens) == max(1, int(num * (1 - float(value))))
        else:
            assert (word, len(segment.tokens)) == ("tokens", min(40, num))
    written = sum(len(segment.tokens) for segment in stored.values())
    assert written == plan["totals"]["tokens"]
    assert plan["totals"]["is_bound"] is False
    document = json.loads((out / "dataset.json").read_text())
    assert document["totals"]["tokens"] == written


def test_rates_by_length_lie_two_sigma_around_a_mean_that_grows_with_the_clip(
    sample_clips: Path, tmp_path: Path
) -> None:
    drop = "random:length:0.2..0.6:30..300"
    out = make_dataset([sample_clips], tmp_path / "out", **SETTINGS, drop=drop, views=8)
    lengths = set()
    for row in rows(out, "segments.parquet"):
        share = min(max((row["num_tokens"] - 30) / 270, 0), 1)
        rate = float(row["drop"].split()[1])
        assert abs(rate - (0.2 + 0.4 * share)) <= 0.04 + 1e-6
        lengths.add(row["num_tokens"])
    assert min(lengths) < 30 < 150 < max(lengths)


def test_packs_are_those_of_kept_tokens_alone(sample_clips: Path, tmp_path: Path) -> None:
    # No clip would fit a pack whole.
    settings = SETTINGS | {"pack_length": 64, "views": 4}
    out = make_dataset([sample_clips], tmp_path / "out", **settings, drop="tokens:32")
    stored = rows(out, "segments.parquet")
    assert len(stored) == 40
    assert max(row["num_tokens"] for row in stored) > 64 * 3
    assert json.loads((out / "dataset.json").read_text())["totals"]["packs"] == 20


@pytest.mark.parametrize("drop", ["random:0.5", "tokens:9", "static"])
def test_cut_to_fit_refuses_to_drop(drop: str) -> None:
    with pytest.raises(ConfigError, match="cut_to_fit cuts whole grid rows, which drop"):
        load_config({"cut_to_fit": True, "drop": drop})


# --- what does not change ----------------------------------------------------------------------


def rlt_keep(frames: np.ndarray, tubelet_size: int, patch: int, threshold: float) -> np.ndarray:
    """(T, cells) of (T * tubelet_size, H, W, 3): RLT's formula in float64 on frames that are
    normalized with ImageNet's constants, patch by patch."""
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    clip = (frames / 255 - mean) / std
    num_rows, grid_h, grid_w = (
        len(clip) // tubelet_size, clip.shape[1] // patch, clip.shape[2] // patch,
    )  # fmt: skip
    keep = np.ones((num_rows, grid_h, grid_w), bool)
    for row in range(1, num_rows):
        first = clip[(row - 1) * tubelet_size]
        last = clip[(row + 1) * tubelet_size - 1]
        for y in range(grid_h):
            for x in range(grid_w):
                window = np.s_[y * patch : (y + 1) * patch, x * patch : (x + 1) * patch]
                change = np.abs(last[window] - first[window]).mean()
                # So near that the last digit of float64 would decide: the clip is no evidence.
                assert abs(change - threshold) > 1e-9
                keep[row, y, x] = change > threshold
    return keep.reshape(num_rows, -1)


def assert_runs_add_up(segment: Stored) -> None:
    """Each kept token stands for itself and what was dropped after it; all rows are there."""
    keep = segment.keep
    lengths = np.zeros(keep.size, int)
    lengths[segment.raster] = segment.run_lengths
    lengths = lengths.reshape(keep.shape)
    assert (lengths.sum(axis=0) == len(keep)).all()
    for row, cell in zip(*np.nonzero(keep), strict=True):
        later = np.flatnonzero(keep[row + 1 :, cell])
        assert lengths[row, cell] == (later[0] + 1 if len(later) else len(keep) - row)


@pytest.mark.parametrize(
    ("drop", "tail", "index"),
    [
        ("static", "repeat", "full"),
        ("static:0.03", "pad", "compact"),
        ("static:0.2", "drop", "full"),
    ],
)
def test_static_tokens_are_those_of_rlt_and_plan_says_at_most(
    sample_clips: Path,
    tmp_path: Path,
    spacepatch_cli: SpacepatchCli,
    drop: str,
    tail: str,
    index: str,
) -> None:
    changes = {"tail": tail, "index": index, "fps": "12"}
    whole = segments_of(make_dataset([sample_clips], tmp_path / "whole", **SETTINGS | changes))
    out = make_dataset([sample_clips], tmp_path / "out", **SETTINGS | changes, drop=drop)
    assert verify(out) == []
    stored = segments_of(out)
    # With tail drop the still picture fills no tubelet of two frames.
    assert stored.keys() == whole.keys() and len(stored) == (9 if tail == "drop" else 10)
    threshold = float(drop.partition(":")[2] or 0.1)
    for name, segment in stored.items():
        assert segment.row["drop"] == f"static {threshold:g}"
        assert_tokens_are_those_of(whole[name], segment)
        frames = pictures_of(whole[name])
        np.testing.assert_array_equal(segment.keep, rlt_keep(frames, 2, 16, threshold))
        assert_runs_add_up(segment)
    written = sum(len(segment.tokens) for segment in stored.values())
    total = sum(len(segment.tokens) for segment in whole.values())
    assert 0.1 * total < written < 0.95 * total
    flags = ["--fps", "12", *FLAGS[2:], "--drop", drop, "--tail", tail, "--index", index]
    said = spacepatch_cli("plan", sample_clips, *flags)
    assert re.search(rf"<= {total:,} tokens", said.stdout), said.stdout


def test_static_tokens_in_blocks_are_those_of_raster_order_in_another_order(
    sample_clips: Path, tmp_path: Path
) -> None:
    changes = SETTINGS | {"drop": "static", "multiple": 2, "max_tokens_per_frame": 40}
    raster = segments_of(make_dataset([sample_clips], tmp_path / "raster", **changes))
    out = make_dataset([sample_clips], tmp_path / "out", **changes, order="merge 2 x 2")
    assert verify(out) == []
    for name, segment in segments_of(out).items():
        whole = raster[name]
        assert_tokens_are_those_of(whole, segment)
        assert_runs_add_up(segment)
        t, h, w = segment.positions.T.astype(int)
        blocks = np.lexsort((w % 2, h % 2, w // 2, h // 2, t))
        np.testing.assert_array_equal(blocks, np.arange(len(t)))
        back = np.argsort(segment.raster)
        np.testing.assert_array_equal(segment.raster[back], whole.raster)
        np.testing.assert_array_equal(segment.run_lengths[back], whole.run_lengths)


@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("exo__sample_with_colr_mdcv_and_clli.mp4", 0.25),  # almost still
        ("lilliput__big_buck_bunny_480p_10s_std.mp4", 0.65),  # moves
    ],
)
@pytest.mark.parametrize("setting", [{"fps": "8"}, {"every_frame": True, "clip_seconds": 2}])
def test_real_clips_are_rebuilt_to_30_db_from_what_is_stored(
    tmp_path: Path, name: str, most: float, setting: dict[str, Any]
) -> None:
    # A tubelet is compared with the one before it, not with the one that stands for it: over 10 s
    # of 24 frames a second what changes slowly drifts below 30 dB. RLT's own clips are of 2 s.
    settings = {"max_tokens_per_frame": 256, "pack_length": 2**16, **setting}
    source = Path(in_corpus(name))
    whole = segments_of(make_dataset([source], tmp_path / "whole", **settings))
    stored = segments_of(make_dataset([source], tmp_path / "out", **settings, drop="static"))
    seen = np.concatenate([fill_static(one.tokens, one.keep) for one in stored.values()])
    tokens = np.concatenate([whole[clip].tokens for clip in stored])
    figure, share = (
        psnr(tokens, seen),
        sum(len(one.tokens) for one in stored.values()) / len(tokens),
    )
    print(f"{name}: {share:.1%} of {len(tokens)} tokens, {figure:.2f} dB")
    assert share < most
    assert figure >= 30


def test_a_rate_that_grows_with_the_length_leaves_no_piece_that_exceeds_a_pack(
    sample_clips: Path, tmp_path: Path
) -> None:
    """Of a whole clip less may stay than of the remainder that a cut would leave."""
    drop = {"drop": "random:length:0..0.9:100..1000", "patch": "1x16x16", "pack_length": 200}
    settings = SETTINGS | {"max_tokens_per_frame": 100} | drop
    out = make_dataset([sample_clips], tmp_path / "out", **settings)
    made = rows(out, "segments.parquet")
    assert max(row["num_kept"] for row in made) <= 200
    assert verify(out) == []
    assert any(row["num_tokens"] > 200 for row in made)
