"""Masks of masked prediction, made at load or stored: redrawn here with numpy alone."""

from __future__ import annotations

import math
import pickle
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import pytest
import torch
from loaded_packs import assert_same, drawn_order, read_plainly, segments_of
from small_runs import make_dataset
from torch.utils.data import DataLoader

from spacepatch.loader import PackDataset, collate

PICTURES = {
    "num_frames": 1,
    "short_side": 256,
    "crop": "224x224",
    "upscale": True,
    "patch": "1x16x16",
}
"""196 tokens a segment, as MAE has them."""
TUBES = {"num_frames": 16, "crop": "112x112", "short_side": 112, "patch": "2x8x8"}
"""196 tokens a grid row, as VideoMAE has them."""

ignore_fork_warning = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")


@pytest.fixture(scope="session")
def pictures(sample_clips, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("mae") / "out"
    return make_dataset([sample_clips], out, **PICTURES, pack_length=800, mask="random:0.75")


@pytest.fixture(scope="session")
def tubes(sample_clips, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("videomae") / "out"
    return make_dataset([sample_clips], out, **TUBES, mask="tube:0.9")


@pytest.fixture(scope="session")
def stored(part_damaged, tmp_path_factory) -> Path:
    """A stored mask over grids of which rows and tokens were dropped, in merge order."""
    settings = {"fps": "2", "order": "merge 2 x 2", "multiple": 2, "drop": "random:0.4"}
    out = tmp_path_factory.mktemp("stored") / "out"
    return make_dataset(part_damaged, out, **settings, mask="random:0.5", store_mask=True)


def seen(num_tokens: int, rate: float, *key: object) -> np.ndarray:
    """MAE's: the first int(L (1 - r)) of a random order."""
    visible = np.zeros(num_tokens, bool)
    visible[drawn_order(num_tokens, *key, "mask")[: int(num_tokens * (1 - rate))]] = True
    return visible


def visible_of(dataset: PackDataset) -> list[list[bool]]:
    return [pack["visible"].tolist() for pack in dataset]


# --- the counts of the models -----------------------------------------------------------------


def test_mae_sees_49_of_196_tokens_anywhere(pictures) -> None:
    segments = [each for pack in PackDataset(pictures) for each in _visible_segments(pack)]
    assert len(segments) == 10
    for segment, _, visible in segments:
        assert segment["grid_thw"] == [1, 14, 14]
        assert len(visible) == 196
        assert visible.sum() == 49
    assert len({tuple(visible.tolist()) for _, _, visible in segments}) == len(segments)


def test_videomae_sees_20_of_196_in_every_frame_and_the_same_ones(tubes) -> None:
    maps = set()
    for pack in PackDataset(tubes):
        for segment, _, visible in _visible_segments(pack):
            rows = visible.reshape(segment["grid_thw"][0], 196)
            assert rows.sum(axis=1).tolist() == [20] * len(rows)
            assert (rows == rows[0]).all()
            maps.add(tuple(rows[0].tolist()))
    assert len(maps) == 10


def test_a_mask_is_the_first_tokens_of_the_order_of_seed_epoch_and_segment(pictures) -> None:
    dataset = PackDataset(pictures, seed=7)
    dataset.set_epoch(3)
    for pack in dataset:
        for segment, _, visible in _visible_segments(pack):
            expected = seen(196, 0.75, 7, 3, segment["segment_id"])
            assert np.array_equal(visible.numpy(), expected)


def test_a_mask_hides_nothing_of_the_rest_of_a_pack(pictures) -> None:
    plain = read_plainly(pictures)
    for pack, stored_pack in zip(PackDataset(pictures), plain, strict=True):
        kept = pack["num_tokens"]
        assert np.array_equal(pack["tokens"][:kept].numpy(), stored_pack["tokens"])
        assert np.array_equal(pack["positions"][:kept].numpy(), stored_pack["positions"])
        assert pack["visible"].dtype == torch.bool
        assert len(pack["visible"]) == len(pack["tokens"])


def test_padding_is_never_visible(pictures) -> None:
    packs = list(PackDataset(pictures))
    assert any(pack["num_tokens"] < len(pack["tokens"]) for pack in packs)
    for pack in packs:
        assert not (pack["visible"] & (pack["segment_ids"] == 0)).any()


def test_masks_and_run_lengths_are_there_only_where_a_dataset_has_them(pack_dataset) -> None:
    assert not {"visible", "run_lengths"} & set(pack_dataset[0])


# --- which mask -------------------------------------------------------------------------------


def test_a_mask_that_is_given_goes_over_that_of_the_settings(pictures) -> None:
    for pack in PackDataset(pictures, mask="random:0.5"):
        for segment, _, visible in _visible_segments(pack):
            assert np.array_equal(visible.numpy(), seen(196, 0.5, 0, 0, segment["segment_id"]))


def test_any_dataset_takes_a_mask(packed_folder, pack_dataset) -> None:
    masked = PackDataset(packed_folder, mask="multi-block")
    for pack, plain in zip(masked, pack_dataset, strict=True):
        assert 0 < pack["visible"].sum() < pack["num_tokens"]
        assert_same({name: pack[name] for name in plain}, plain)


def test_what_is_no_mask_is_refused_with_what_is_allowed(pictures) -> None:
    with pytest.raises(ValueError, match="none of random:R, tube:R"):
        PackDataset(pictures, mask="blocks")


def test_a_stored_mask_is_what_the_shard_says_in_every_epoch(stored) -> None:
    dataset = PackDataset(stored)
    plain = [pack["visible"].astype(bool) for pack in read_plainly(stored)]
    assert all(0 < visible.sum() < len(visible) for visible in plain)
    for epoch in (0, 1):
        dataset.set_epoch(epoch)
        for pack, visible in zip(dataset, plain, strict=True):
            assert np.array_equal(pack["visible"][: pack["num_tokens"]].numpy(), visible)


def test_a_mask_lies_on_the_grid_whatever_was_dropped_and_whatever_the_order(stored) -> None:
    rows = parquet.read_table(stored / "segments.parquet").to_pylist()
    assert any(row["corrupt_frames"] for row in rows)
    for pack in PackDataset(stored, mask="random:0.3"):
        for segment, tokens, visible in _visible_segments(pack):
            t, h, w = segment["grid_thw"]
            whole = seen(t * h * w, 0.3, 0, 0, segment["segment_id"])
            assert len(visible) < len(whole)
            for place, value in zip(pack["positions"][tokens].tolist(), visible, strict=True):
                assert whole[(place[0] * h + place[1]) * w + place[2]] == value


def test_a_stored_mask_is_that_of_the_seed_and_the_segment(stored) -> None:
    for pack in PackDataset(stored):
        for segment, tokens, visible in _visible_segments(pack):
            t, h, w = segment["grid_thw"]
            whole = seen(t * h * w, 0.5, 0, segment["segment_id"]).reshape(t, h, w)
            a, b, c = pack["positions"][tokens].numpy().T
            assert np.array_equal(visible.numpy(), whole[a, b, c])


# --- epochs, seeds, processes -----------------------------------------------------------------


def test_epochs_and_seeds_draw_other_masks_and_the_same_ones_again(pictures) -> None:
    dataset = PackDataset(pictures)
    first = visible_of(dataset)
    dataset.set_epoch(1)
    second = visible_of(dataset)
    dataset.set_epoch(0)
    assert visible_of(dataset) == first != second
    assert visible_of(PackDataset(pictures, seed=1)) not in (first, second)


def test_an_epoch_is_no_negative_number(pictures) -> None:
    with pytest.raises(ValueError, match="epoch is -1"):
        PackDataset(pictures).set_epoch(-1)


@ignore_fork_warning
@pytest.mark.parametrize(
    ("start", "persistent"), [("fork", False), ("fork", True), ("spawn", True)]
)
def test_workers_draw_what_the_main_process_draws_in_every_epoch(
    pictures, start, persistent
) -> None:
    here, there = (PackDataset(pictures, drop="random:0.25") for _ in range(2))
    loader = DataLoader(
        there,
        batch_size=None,
        num_workers=2,
        persistent_workers=persistent,
        multiprocessing_context=start,
        timeout=120,
    )
    epochs = []
    for epoch, rate in ((0, None), (1, None), (2, 0.5)):
        for dataset in (here, there):
            dataset.set_epoch(epoch)
            if rate is not None:
                dataset.set_drop_rate(rate)
        packs = list(loader)
        for one, other in zip(here, packs, strict=True):
            assert_same(one, other)
        epochs.append([pack["visible"].tolist() for pack in packs])
    assert epochs[0] != epochs[1]
    assert packs[0]["segments"][0]["num_kept"] == 98


@ignore_fork_warning
def test_a_dataset_that_was_pickled_tells_its_own_workers_of_the_epoch(pictures) -> None:
    dataset = PackDataset(pictures)
    dataset.set_epoch(4)
    travelled = pickle.loads(pickle.dumps(dataset))
    loader = DataLoader(
        travelled,
        batch_size=None,
        num_workers=1,
        persistent_workers=True,
        multiprocessing_context="fork",
        timeout=120,
    )
    assert [pack["visible"].tolist() for pack in loader] == visible_of(dataset)
    travelled.set_epoch(5)
    assert [pack["visible"].tolist() for pack in loader] == visible_of(travelled)
    assert visible_of(dataset) != visible_of(travelled)


def test_masks_are_the_same_in_any_order_and_batch(pictures) -> None:
    dataset = PackDataset(pictures)
    expected = {pack["segments"][0]["segment_id"]: pack["visible"] for pack in dataset}
    generator = torch.Generator().manual_seed(0)
    loader = DataLoader(
        dataset, batch_size=2, shuffle=True, generator=generator, collate_fn=collate
    )
    found = {}
    for batch in loader:
        assert batch["visible"].shape == batch["tokens"].shape[:2]
        for segments, visible in zip(batch["segments"], batch["visible"], strict=True):
            found[segments[0]["segment_id"]] = visible
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def _visible_segments(pack: dict):
    """(segment, slice of its tokens, what of them is visible) for each segment."""
    for segment, tokens in segments_of(pack):
        assert segment["num_tokens"] == math.prod(segment["grid_thw"])
        yield segment, tokens, pack["visible"][tokens]
