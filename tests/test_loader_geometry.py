"""Tokens of several widths, patches, orders and normalizations as tensors."""

from __future__ import annotations

import io
import tarfile
from collections import defaultdict
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import pytest
import torch
from loaded_packs import assert_same, read_plainly, segments_of
from small_runs import make_dataset
from torch.utils.data import DataLoader

from spacepatch.loader import PackDataset, collate

FLEXI = {
    "num_frames": 1,
    "short_side": 96,
    "crop": "96x96",
    "patch": "1x24x24,1x16x16,1x12x12",
    "views": "all",
    "pack_length": 128,
    "shard_size": "100kB",
}
WIDTHS = [3 * 24 * 24, 3 * 16 * 16, 3 * 12 * 12]


@pytest.fixture(scope="session")
def flexi(sample_clips, tmp_path_factory) -> Path:
    """Three views of each clip, with patches of three sizes."""
    return make_dataset(
        [sample_clips],
        tmp_path_factory.mktemp("flexi") / "out",
        **FLEXI,
        layout="p q c",
        normalize="imagenet",
        split="train=0.6,val=0.4",
    )


# --- tokens of several widths -----------------------------------------------------------------


def test_packs_of_one_width_are_those_of_the_tars_in_their_order(flexi) -> None:
    document = PackDataset(flexi).document
    assert document["token_widths"] == WIDTHS
    assert len(document["shards"]) > 2
    plain = read_plainly(flexi)
    for width in WIDTHS:
        expected = [pack for pack in plain if pack["tokens"].shape[1] == width]
        dataset = PackDataset(flexi, token_width=width)
        assert len(dataset) == len(expected) > 1
        for pack, stored in zip(dataset, expected, strict=True):
            assert np.array_equal(pack["tokens"][: pack["num_tokens"]].numpy(), stored["tokens"])
            assert pack["segments"] == stored["pack"]["segments"]


def test_packs_of_all_widths_come_as_they_lie_in_the_shards(flexi) -> None:
    dataset, plain = PackDataset(flexi), read_plainly(flexi)
    assert len(dataset) == len(plain)
    for pack, stored in zip(dataset, plain, strict=True):
        assert pack["tokens"].shape == (128, stored["tokens"].shape[1])
        assert pack["segments"] == stored["pack"]["segments"]


def test_a_split_has_its_own_packs_of_a_width(flexi) -> None:
    rows = parquet.read_table(flexi / "segments.parquet").to_pylist()
    for split in ("train", "val"):
        for width, patch in zip(WIDTHS, (24, 16, 12), strict=True):
            loaded = PackDataset(flexi, split=split, token_width=width)
            assert {s["segment_id"] for pack in loaded for s in pack["segments"]} == {
                row["segment_id"]
                for row in rows
                if row["split"] == split and row["patch_size"] == [patch, patch]
            }


def test_a_width_that_no_pack_has_is_refused_with_those_that_there_are(flexi) -> None:
    with pytest.raises(ValueError, match=r"token_width 100: .* has \[432, 768, 1728\]"):
        PackDataset(flexi, token_width=100)


def test_a_batch_of_mixed_widths_is_refused_with_the_way_out(flexi) -> None:
    dataset = PackDataset(flexi)
    with pytest.raises(ValueError, match=r"\[432, 768, 1728\] values .*token_width="):
        collate([dataset[index] for index in range(len(dataset))])


def test_packs_of_one_width_make_batches(flexi) -> None:
    dataset = PackDataset(flexi, token_width=768)
    batches = list(DataLoader(dataset, batch_size=2, drop_last=True, collate_fn=collate))
    assert len(batches) == len(dataset) // 2 > 0
    assert all(batch["tokens"].shape == (2, 128, 768) for batch in batches)


def test_the_patch_of_each_segment_is_that_of_the_table(flexi) -> None:
    rows = parquet.read_table(flexi / "segments.parquet").to_pylist()
    table = {row["segment_id"]: [row["tubelet_size"], *row["patch_size"]] for row in rows}
    found = set()
    for pack in PackDataset(flexi):
        patches = pack["patch"].tolist()
        assert pack["patch"].dtype == torch.int32
        assert patches == [table[segment["segment_id"]] for segment in pack["segments"]]
        assert {3 * t * h * w for t, h, w in patches} == {pack["tokens"].shape[1]}
        found |= set(map(tuple, patches))
    assert found == {(1, 24, 24), (1, 16, 16), (1, 12, 12)}


# --- order ------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def by_order(sample_clips, tmp_path_factory) -> dict[str, Path]:
    """The same clips in both orders."""
    folder = tmp_path_factory.mktemp("orders")
    return {
        order: make_dataset(
            [sample_clips],
            folder / order[:1],
            fps="1",
            multiple=2,
            max_tokens_per_frame=64,
            order=order,
        )
        for order in ("raster", "merge 2 x 2")
    }


def tokens_by_place(folder: Path, **options) -> dict[tuple, np.ndarray]:
    """Each token by source, t, h and w."""
    return {
        (segment["source"], segment["clip"], *place): token
        for pack in PackDataset(folder, **options)
        for segment, tokens in segments_of(pack)
        for place, token in zip(
            pack["positions"][tokens].tolist(), pack["tokens"][tokens].numpy(), strict=True
        )
    }


@pytest.mark.parametrize("drop", [None, "random:0.6"])
def test_positions_are_true_in_merge_order_too(by_order, drop) -> None:
    raster = tokens_by_place(by_order["raster"])
    merged = tokens_by_place(by_order["merge 2 x 2"], drop=drop)
    assert merged.keys() == raster.keys() if drop is None else merged.keys() < raster.keys()
    assert all(np.array_equal(token, raster[place]) for place, token in merged.items())


def test_four_tokens_of_merge_order_are_a_block_of_2_x_2(by_order) -> None:
    corners = [[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1]]
    for pack in PackDataset(by_order["merge 2 x 2"]):
        for _, tokens in segments_of(pack):
            blocks = pack["positions"][tokens].reshape(-1, 4, 3)
            first = blocks[:, :1]
            assert not (first[..., 1:] % 2).any()
            assert ((blocks - first) == torch.tensor(corners)).all()


# --- run lengths ------------------------------------------------------------------------------


def test_run_lengths_are_those_of_the_tar_and_sum_to_the_rows_of_a_cell(
    sample_clips, tmp_path
) -> None:
    folder = make_dataset([sample_clips], tmp_path / "out", fps="4", drop="static")
    stored = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            stored |= {
                info.name: np.load(io.BytesIO(tar.extractfile(info).read()))
                for info in tar
                if info.name.endswith(".run_lengths.npy")
            }
    for pack, lengths in zip(PackDataset(folder), stored.values(), strict=True):
        kept = pack["num_tokens"]
        assert pack["run_lengths"].dtype == torch.int32
        assert np.array_equal(pack["run_lengths"][:kept].numpy(), lengths)
        assert not pack["run_lengths"][kept:].any()
        for segment, tokens in segments_of(pack):
            sums: dict[tuple, int] = defaultdict(int)
            places = pack["positions"][tokens].tolist()
            for (_, h, w), length in zip(places, pack["run_lengths"][tokens].tolist(), strict=True):
                sums[h, w] += length
            assert len(sums) == segment["grid_thw"][1] * segment["grid_thw"][2]
            assert set(sums.values()) == {segment["grid_thw"][0]}


# --- normalization ----------------------------------------------------------------------------

IMAGENET = np.array([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])


def test_tokens_are_normalized_by_the_constants_of_the_dataset(flexi) -> None:
    dataset = PackDataset(flexi)
    for pack in dataset:
        tokens = pack["tokens"]
        made = dataset.normalize(tokens)
        assert made.dtype == torch.float32
        # "p q c": the channel is innermost.
        values = tokens.numpy().reshape(len(tokens), -1, 3) / 255
        expected = ((values - IMAGENET[0]) / IMAGENET[1]).reshape(tokens.shape)
        assert np.abs(made.numpy() - expected).max() < 1e-6
        assert tokens.dtype == torch.uint8


def test_channels_are_found_where_the_layout_has_them(sample_clips, tmp_path) -> None:
    settings = {"num_frames": 2, "max_tokens_per_frame": 64, "layout": "c t p q"}
    dataset = PackDataset(
        make_dataset([sample_clips], tmp_path / "out", **settings, normalize="imagenet")
    )
    tokens = dataset[0]["tokens"]
    values = tokens.numpy().reshape(len(tokens), 3, -1) / 255
    expected = (values - IMAGENET[0][:, None]) / IMAGENET[1][:, None]
    made = dataset.normalize(tokens).numpy()
    assert np.abs(made - expected.reshape(tokens.shape)).max() < 1e-6


def test_a_batch_is_normalized_as_its_packs_are(flexi) -> None:
    dataset = PackDataset(flexi, token_width=768)
    packs = [dataset[0], dataset[1]]
    made = dataset.normalize(collate(packs)["tokens"])
    assert made.shape == (2, 128, 768)
    for one, pack in zip(made, packs, strict=True):
        assert torch.equal(one, dataset.normalize(pack["tokens"]))


def test_tokens_are_not_normalized_twice(flexi) -> None:
    dataset = PackDataset(flexi)
    made = dataset.normalize(dataset[0]["tokens"])
    with pytest.raises(ValueError, match=r"tokens are torch\.float32: .* uint8"):
        dataset.normalize(made)


def test_a_dataset_of_several_widths_gives_each_pack_at_its_index(flexi) -> None:
    dataset = PackDataset(flexi)
    by_width = {width: list(PackDataset(flexi, token_width=width)) for width in WIDTHS}
    for index in reversed(range(len(dataset))):
        pack = dataset[index]
        assert_same(pack, by_width[pack["tokens"].shape[1]].pop())
    assert not any(by_width.values())
