"""Varied segments hold the very tokens that other ways make of the same frames."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from varied_packs import segments_in, written

from spacepatch.decode import decode_pictures, probe_video
from spacepatch.loader import PackDataset
from spacepatch.resize import make_frame


@pytest.fixture(scope="module")
def refs(sample_clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(sample_clips, tmp_path_factory.mktemp("varied") / "refs", store="refs")


@pytest.fixture(scope="module")
def stored(sample_clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(sample_clips, tmp_path_factory.mktemp("varied") / "tokens")


@pytest.fixture(scope="module")
def opened(refs: Path, sample_clips: Path):
    def make(kind: type = PackDataset, folder: Path = refs, **options: Any) -> Any:
        return kind(folder, source_root=sample_clips, **options)

    return make


@pytest.mark.parametrize("checked", [False, True])
def test_half_the_rate_gives_every_second_row_of_the_stored_tokens(
    opened, stored, sample_clips, tmp_path, checked
) -> None:
    (whole,) = segments_in(PackDataset(stored), 0)
    folder = written(sample_clips, tmp_path / "refs", store="refs", checked=checked)
    (halves,) = segments_in(opened(folder=folder, vary={"fps": "2"}), 0)
    assert halves.keys() == whole.keys()
    for identity, (segment, tokens, positions, seconds) in halves.items():
        of_whole, stored_tokens, places, times = whole[identity]
        even = places[:, 0] % 2 == 0
        assert torch.equal(tokens, stored_tokens[even])
        assert torch.equal(seconds, times[even])
        assert torch.equal(positions, places[even] // torch.tensor([2, 1, 1]))
        assert segment["num_kept"] == len(tokens) == math.prod(segment["grid_thw"])
        assert segment["seconds"] == of_whole["seconds"][::2]
        assert (segment["size"], segment["extra"]) == (of_whole["size"], of_whole["extra"])


@pytest.mark.parametrize(
    "variation",
    [
        {"resolution": "80"},
        {"patch": "1x32x32"},
        {"patch": "2x16x16"},
        {"resolution": "64", "patch": "3x8x16", "fps": "2"},
    ],
    ids=["resolution", "patch", "tubelet", "together"],
)
def test_a_varied_segment_has_the_tokens_that_tokenize_gives_with_these_settings(
    opened, sample_clips, tmp_path, variation
) -> None:
    # So large that the tokens that were planned bound nothing, and so small is what is varied.
    base = {"pack_length": 16384, "clip_seconds": None, "resolution": "144"}
    base |= {"max_tokens_per_frame": None}
    folder = written(sample_clips, tmp_path / "refs", store="refs", **base)
    tokenized = written(sample_clips, tmp_path / "tokens", **base | variation)
    (made,) = segments_in(opened(folder=folder, vary=variation), 5)
    (wanted,) = segments_in(PackDataset(tokenized), 0)
    of_source = {segment["source"]: rest for segment, *rest in wanted.values()}
    assert len(made) == len(of_source) == 10
    for segment, *rest in made.values():
        for own, theirs in zip(rest, of_source[segment["source"]], strict=True):
            assert torch.equal(own, theirs), segment["source"]


def test_a_random_crop_shows_the_window_that_is_said_of_it(opened, sample_clips) -> None:
    (made,) = segments_in(opened(vary={"random_crop": "uniform:0.2..0.6"}), 1)
    found = [made for made in made.values() if made[0]["source"] == "square_320x320.mp4"]
    info = probe_video(str(sample_clips / "square_320x320.mp4"))
    for segment, tokens, *_ in found:
        top, left, height, width = segment["varied"]["crop"]
        assert [height, width] == segment["size"]
        index = round(segment["seconds"][0] * 24)
        pts = np.array([info.frame_pts[index]])
        assert float(pts[0] * info.time_base) == segment["seconds"][0]
        (picture,) = decode_pictures(
            str(sample_clips / "square_320x320.mp4"),
            info=info,
            indices=np.array([index]),
            pts=pts,
        )
        frame = make_frame(picture, size=tuple(segment["varied"]["scaled"]))
        window = torch.from_numpy(frame[top : top + height, left : left + width].copy())
        patches = window.unfold(0, 16, 16).unfold(1, 16, 16).reshape(-1, 3 * 16 * 16)
        assert torch.equal(tokens[: len(patches)], patches)
    assert len({(*own[0]["varied"]["scaled"], *own[0]["varied"]["crop"]) for own in found}) > 1


def test_a_drawn_drop_takes_other_tokens_each_epoch_and_positions_say_which(opened, stored) -> None:
    (whole,) = segments_in(PackDataset(stored), 0)
    epochs = list(segments_in(opened(vary={"drop": "random:uniform:0.2..0.8"}), 0, 1))
    differing = 0
    for identity, (segment, tokens, positions, seconds) in epochs[0].items():
        of_whole, stored_tokens, _, times = whole[identity]
        _, grid_h, grid_w = segment["grid_thw"]
        raster = (positions.long() * torch.tensor([grid_h * grid_w, grid_w, 1])).sum(1)
        assert (raster.diff() > 0).all()
        assert torch.equal(tokens, stored_tokens[raster])
        assert torch.equal(seconds, times[raster])
        rate = float(segment["varied"]["drop"].removeprefix("random "))
        assert len(tokens) == max(1, int(of_whole["num_kept"] * (1 - rate)))
        differing += positions.tolist() != epochs[1][identity][2].tolist()
    assert differing == len(whole)
