"""What the loader says of damaged, unfinished and foreign folders, and of splits."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path

import pyarrow.parquet as parquet
import pytest
from crc32c import crc32c
from loaded_packs import assert_same
from small_runs import LOADED, make_dataset

from spacepatch.errors import ShardError
from spacepatch.loader import PackDataset


@pytest.fixture
def copy(packed_folder, tmp_path) -> Path:
    """The dataset in a folder that a test may damage."""
    return shutil.copytree(packed_folder, tmp_path / "copy")


def test_a_flipped_byte_is_an_error_that_names_the_shard(copy, pack_dataset) -> None:
    name = pack_dataset.document["shards"][0]["name"]
    path = copy / f"{name}.tar"
    with tarfile.open(path) as tar:
        info = next(info for info in tar if info.name == f"{name}-000000.tokens.npy")
    content = bytearray(path.read_bytes())
    content[info.offset_data + info.size // 2] ^= 1
    path.write_bytes(content)
    damaged = PackDataset(copy)
    with pytest.raises(ShardError, match=rf"{name}\.tar: pack 0 is damaged"):
        damaged[0]
    assert_same(damaged[1], pack_dataset[1])


def test_a_shard_that_is_cut_off_is_an_error_that_names_it(copy, pack_dataset) -> None:
    name, packs = (pack_dataset.document["shards"][0][key] for key in ("name", "packs"))
    path = copy / f"{name}.tar"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ShardError, match=rf"{name}\.tar"):
        PackDataset(copy)[packs - 1]


def test_pickled_objects_are_refused_even_with_a_good_checksum(copy, pack_dataset) -> None:
    name = pack_dataset.document["shards"][0]["name"]
    path, receipt = copy / f"{name}.tar", copy / f"{name}.json"
    content = path.read_bytes()
    path.write_bytes(content.replace(b"{'descr': '|u1',", b"{'descr': '|O', ", 1))
    assert path.read_bytes() != content
    with tarfile.open(path) as tar:
        members = [info for info in tar if info.name.startswith(f"{name}-000000.")]
        data = b"".join(tar.extractfile(info).read() for info in members)
    document = json.loads(receipt.read_bytes())
    document["pack_crc32c"][0] = crc32c(data)
    receipt.write_text(json.dumps(document))
    with pytest.raises(ShardError, match="objects"):
        PackDataset(copy)[0]


@pytest.mark.parametrize("suffix", ["tar", "json", "index.npy"])
def test_a_missing_file_is_an_error_that_names_it(copy, pack_dataset, suffix) -> None:
    name = f"{pack_dataset.document['shards'][0]['name']}.{suffix}"
    (copy / name).unlink()
    with pytest.raises(ShardError, match=name):
        PackDataset(copy)[0]


def test_an_unfinished_dataset_is_refused_with_the_way_out(copy) -> None:
    (copy / "dataset.json").unlink()
    with pytest.raises(ShardError, match="unfinished one; run spacepatch tokenize to the end"):
        PackDataset(copy)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read"),
        ("{}", "no format_version"),
        ('{"format_version": 99}', "upgrade spacepatch"),
    ],
)
def test_a_dataset_json_of_another_kind_is_refused(tmp_path, content, message) -> None:
    (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(ShardError, match=message):
        PackDataset(tmp_path)


def test_a_shard_of_another_run_is_refused(copy) -> None:
    path = copy / "dataset.json"
    document = json.loads(path.read_bytes())
    document["shards"][0]["packs"] += 1
    path.write_text(json.dumps(document))
    with pytest.raises(ShardError, match=r"dataset\.json says"):
        PackDataset(copy)[0]


def test_a_split_has_its_own_packs_and_no_others(sample_clips, tmp_path) -> None:
    folder = make_dataset(
        [sample_clips], tmp_path / "out", **LOADED | {"split": "train=0.6,val=0.4", "fps": "1"}
    )
    rows = parquet.read_table(folder / "segments.parquet").to_pylist()
    for split in ("train", "val"):
        expected = {row["segment_id"] for row in rows if row["split"] == split}
        packs = PackDataset(folder, split=split)
        assert expected == {s["segment_id"] for pack in packs for s in pack["segments"]}
        assert expected
    both = sum(len(PackDataset(folder, split=split)) for split in ("train", "val"))
    assert len(PackDataset(folder)) == both
    with pytest.raises(ValueError, match="vall"):
        PackDataset(folder, split="vall")
