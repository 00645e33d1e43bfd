"""Packs as tensors, held against plain tarfile, numpy, webdataset, pyarrow and PyAV."""

from __future__ import annotations

import io
import json
import multiprocessing
import pickle
import shutil
import subprocess
import sys
import tarfile
import zlib
from bisect import bisect_right
from collections import Counter
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pyarrow.parquet as parquet
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
import webdataset
from crc32c import crc32c
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader

from spacepatch import loader
from spacepatch.config import load_config
from spacepatch.data import Picture
from spacepatch.errors import ShardError
from spacepatch.loader import PackDataset, collate
from spacepatch.masks import block_mask, cu_seqlens
from spacepatch.pipeline import tokenize
from spacepatch.resize import make_frame
from spacepatch.tubelets import join_tubelets

SETTINGS = {"fps": "4", "pack_length": 2048, "shard_size": "12MB", "workers": 2}
BACKENDS = [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION]

ignore_fork_warning = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")


# --- a dataset and an independent reader -----------------------------------------------------


@pytest.fixture(scope="session")
def videos(sample_clips, tmp_path_factory) -> list[str]:
    """The sample clips, and two that are damaged in the middle, so that grid rows are dropped."""
    folder = tmp_path_factory.mktemp("damaged")
    for name, share in (("square_320x320.mp4", 0.7), ("portrait_270x480.mp4", 0.3)):
        content = bytearray((sample_clips / name).read_bytes())
        start = content.index(b"mdat")
        place = start + int(int.from_bytes(content[start - 4 : start]) * share)
        content[place : place + 200] = bytes(200)
        (folder / f"damaged_{name}").write_bytes(content)
    return [str(sample_clips), str(folder)]


def make_dataset(videos, folder: Path, **changes) -> Path:
    tokenize(videos, out=folder, config=load_config(SETTINGS | changes))
    return folder


@pytest.fixture(scope="session")
def folder(videos, tmp_path_factory) -> Path:
    return make_dataset(videos, tmp_path_factory.mktemp("dataset") / "full")


@pytest.fixture(scope="session")
def compact_folder(videos, tmp_path_factory) -> Path:
    return make_dataset(videos, tmp_path_factory.mktemp("dataset") / "compact", index="compact")


@pytest.fixture(scope="session")
def dataset(folder) -> PackDataset:
    return PackDataset(folder)


@pytest.fixture
def copy(folder, tmp_path) -> Path:
    """The dataset in a folder that a test may damage."""
    return shutil.copytree(folder, tmp_path / "copy")


@pytest.fixture(scope="session")
def plain_packs(folder) -> list[dict]:
    return read_plainly(folder)


def read_plainly(folder: Path) -> list[dict]:
    """Each pack by tarfile, numpy and json: from member (`tokens`) to content."""
    packs: dict[str, dict] = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for info in tar:
                key, member, extension = info.name.split(".")
                content = tar.extractfile(info).read()
                read = np.load(io.BytesIO(content)) if extension == "npy" else json.loads(content)
                packs.setdefault(key, {})[member] = read
    return list(packs.values())


def count_tokens(arrays) -> Counter:
    return Counter(zlib.crc32(row.tobytes()) for tokens in arrays for row in tokens)


def assert_same(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        if isinstance(value, torch.Tensor):
            assert value.dtype == other[name].dtype, name
            assert torch.equal(value, other[name]), name
        else:
            assert value == other[name], name


def segments_of(pack: dict):
    """(segment as in pack.json, slice of its tokens) for each segment."""
    borders = pack["cu_seqlens"].tolist()
    return zip(pack["segments"], map(slice, borders, borders[1:]), strict=True)


def find_segments(dataset: PackDataset, source: str) -> list[tuple]:
    """(pack, segment, slice of its tokens) for each segment of a source."""
    return [
        (pack, segment, tokens)
        for pack in dataset
        for segment, tokens in segments_of(pack)
        if segment["source"] == source
    ]


def frames_on_display(path: Path, count: int) -> list:
    """The frames that a player shows at 0, 1/4, 2/4, .. seconds after the first one.

    None in the place of one that the decoder refuses.
    """
    frames = {}
    with av.open(path) as container:
        stream = container.streams.video[0]
        time_base = stream.time_base  # once the container is closed, it is freed memory
        # What FFmpeg paints over damage depends on its number of threads.
        stream.thread_count = 1
        for packet in container.demux(stream):
            if packet.pts is not None:
                frames.setdefault(packet.pts)
            with suppress(av.error.InvalidDataError):
                frames.update({frame.pts: frame for frame in packet.decode()})
    stamps = sorted(frames)
    times = [(pts - stamps[0]) * time_base for pts in stamps]
    return [frames[stamps[bisect_right(times, Fraction(k, 4)) - 1]] for k in range(count)]


def is_good(frame) -> bool:
    return frame is not None and not frame.is_corrupt


def resized(frame, segment: dict, rotation: int = 0) -> np.ndarray:
    picture = Picture(frame, frame.pts, 0, rotation, False, False)
    return make_frame(picture, size=tuple(segment["size"]))


# --- what is in the tensors ------------------------------------------------------------------


def test_the_dataset_has_several_shards_and_a_segment_with_dropped_rows(folder) -> None:
    rows = parquet.read_table(folder / "segments.parquet").to_pylist()
    assert len({row["shard"] for row in rows}) > 1
    assert any(row["num_kept"] < row["num_tokens"] for row in rows)
    assert any(row["num_kept"] == row["num_tokens"] for row in rows)


def test_every_token_comes_out_exactly_once(dataset, plain_packs) -> None:
    loaded = count_tokens(pack["tokens"][: pack["num_tokens"]].numpy() for pack in dataset)
    assert loaded == count_tokens(pack["tokens"] for pack in plain_packs)
    assert loaded.total() == dataset.document["totals"]["tokens"]


def test_packs_come_in_the_order_of_the_shards(dataset, plain_packs) -> None:
    assert len(dataset) == len(plain_packs)
    for pack, plain in zip(dataset, plain_packs, strict=True):
        assert np.array_equal(pack["tokens"][: pack["num_tokens"]].numpy(), plain["tokens"])
        assert pack["segments"] == plain["pack"]["segments"]


def test_ids_positions_and_borders_agree_with_the_stored_tables(dataset, plain_packs) -> None:
    for pack, plain in zip(dataset, plain_packs, strict=True):
        kept = pack["num_tokens"]
        table = plain["segments"]
        assert np.array_equal(pack["segment_ids"][:kept].numpy(), plain["segment_ids"])
        assert np.array_equal(pack["positions"][:kept].numpy(), plain["positions"])
        assert pack["cu_seqlens"].tolist() == [*table[:, 0], table[-1, 0] + table[-1, 1]]
        assert pack["cu_seqlens"][-1] == kept
        assert pack["max_seqlen"] == max(table[:, 1])
        assert np.array_equal(pack["grid_thw"].numpy(), table[:, 2:5])


def test_a_pack_has_the_dtypes_and_shapes_that_are_promised(dataset) -> None:
    pack = dataset[0]
    n, s = dataset.pack_length, len(pack["segments"])
    assert {
        name: (value.dtype, tuple(value.shape))
        for name, value in pack.items()
        if isinstance(value, torch.Tensor)
    } == {
        "tokens": (torch.uint8, (n, 3 * 2 * 16 * 16)),
        "segment_ids": (torch.int32, (n,)),
        "positions": (torch.int32, (n, 3)),
        "seconds": (torch.float64, (n,)),
        "cu_seqlens": (torch.int32, (s + 1,)),
        "grid_thw": (torch.int32, (s, 3)),
    }
    assert type(pack["max_seqlen"]) is type(pack["num_tokens"]) is int


def test_positions_of_a_whole_segment_are_its_grid_in_raster_order(dataset) -> None:
    for pack in dataset:
        for grid, (segment, tokens) in zip(pack["grid_thw"], segments_of(pack), strict=True):
            t, h, w = grid.tolist()
            raster = [[a, b, c] for a in range(t) for b in range(h) for c in range(w)]
            if segment["num_kept"] == segment["num_tokens"]:
                assert pack["positions"][tokens].tolist() == raster


@pytest.mark.parametrize("name", ["square_320x320.mp4", "portrait_270x480.mp4"])
def test_positions_stay_true_where_grid_rows_are_dropped(dataset, videos, name) -> None:
    [(pack, segment, tokens)] = find_segments(dataset, f"damaged_{name}")
    frames = frames_on_display(Path(videos[1]) / f"damaged_{name}", 2 * segment["grid_thw"][0])
    pairs = list(zip(frames[::2], frames[1::2], strict=True))
    whole = [t for t, pair in enumerate(pairs) if all(map(is_good, pair))]
    assert 0 < len(whole) < len(pairs)
    _, h, w = segment["grid_thw"]
    raster = [[a, b, c] for a in whole for b in range(h) for c in range(w)]
    assert pack["positions"][tokens].tolist() == raster
    joined = join_tubelets(
        pack["tokens"][tokens].numpy(),
        grid_thw=(len(whole), h, w),
        tubelet_size=2,
        patch_size=(16, 16),
    )
    shown = [resized(frame, segment) for t in whole for frame in pairs[t]]
    assert np.array_equal(joined, np.stack(shown))


def test_seconds_are_the_time_stamps_of_the_first_frame_of_each_row(folder, dataset) -> None:
    table = parquet.read_table(folder / "segments.parquet").to_pylist()
    rows = {row["segment_id"]: row for row in table}
    for pack in dataset:
        for segment, tokens in segments_of(pack):
            row = rows[segment["segment_id"]]
            stamps = row["frame_pts"][:: row["tubelet_size"]]
            times = [float(pts * Fraction(row["time_base"])) for pts in stamps]
            expected = [times[t] for t in pack["positions"][tokens][:, 0].tolist()]
            assert pack["seconds"][tokens].tolist() == expected


def test_padding_is_zero_and_at_the_end(dataset) -> None:
    assert any(pack["num_tokens"] < dataset.pack_length for pack in dataset)
    for pack in dataset:
        for name in ("tokens", "segment_ids", "positions", "seconds"):
            assert not pack[name][pack["num_tokens"] :].any()
        assert pack["segment_ids"][: pack["num_tokens"]].all()


def test_ragged_packs_are_padded_packs_without_padding(folder, dataset) -> None:
    ragged = PackDataset(folder, padded=False)
    for padded, pack in zip(dataset, ragged, strict=True):
        kept = pack["num_tokens"]
        assert len(pack["tokens"]) == kept
        cut = {
            name: value[:kept] if name in loader.STACKED else value
            for name, value in padded.items()
        }
        assert_same(pack, cut)


def test_the_compact_index_gives_the_same_tensors_as_the_full_one(dataset, compact_folder) -> None:
    compact = PackDataset(compact_folder)
    assert "positions.npy" not in compact.document["members"]
    for one, other in zip(dataset, compact, strict=True):
        assert_same(one, other)


def test_tensors_are_copies_that_may_be_written(folder) -> None:
    dataset = PackDataset(folder)
    before = dataset[0]["tokens"]
    changed = dataset[0]
    for value in changed.values():
        if isinstance(value, torch.Tensor):
            value.fill_(7)
    assert torch.equal(dataset[0]["tokens"], before)


def test_indices_are_those_of_a_list(dataset) -> None:
    assert_same(dataset[-1], dataset[len(dataset) - 1])
    for index in (len(dataset), -len(dataset) - 1):
        with pytest.raises(IndexError):
            dataset[index]


@pytest.mark.parametrize(
    ("name", "rotation"),
    [
        ("landscape_640x360.mp4", 0),
        ("odd_size_321x179_vp9.webm", 0),
        ("rotated_90_phone.mp4", 90),
        ("ten_bit_432x240_hevc.mp4", 0),
        ("variable_frame_rate_480x270.mp4", 0),
    ],
)
def test_tokens_join_to_the_frames_on_display(dataset, sample_clips, name, rotation) -> None:
    [(pack, segment, tokens)] = find_segments(dataset, name)
    joined = join_tubelets(
        pack["tokens"][tokens].numpy(),
        grid_thw=segment["grid_thw"],
        tubelet_size=2,
        patch_size=(16, 16),
    )
    frames = frames_on_display(sample_clips / name, len(joined))
    shown = [resized(frame, segment, rotation) for frame in frames]
    assert np.array_equal(joined, np.stack(shown))


# --- other readers ---------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")
def test_plain_webdataset_reads_the_same_packs(folder, dataset) -> None:
    tars = [str(folder / f"{shard['name']}.tar") for shard in dataset.document["shards"]]
    samples = list(webdataset.WebDataset(tars, shardshuffle=False))
    assert len(samples) == len(dataset)
    assert len({sample["__key__"] for sample in samples}) == len(samples)
    for sample, pack in zip(samples, dataset, strict=True):
        for name in ("tokens", "segment_ids", "positions"):
            plain = np.load(io.BytesIO(sample[f"{name}.npy"]))
            assert np.array_equal(plain, pack[name][: pack["num_tokens"]].numpy())
        assert json.loads(sample["pack.json"])["segments"] == pack["segments"]


def test_segments_parquet_by_pyarrow_says_what_the_packs_hold(folder, dataset) -> None:
    table = iter(parquet.read_table(folder / "segments.parquet").to_pylist())
    for pack in dataset:
        for segment, tokens in segments_of(pack):
            row = next(table)
            row["extra"] = json.loads(row["extra"])
            assert {name: row[name] for name in segment} == segment
            assert row["offset"] == tokens.start
            assert row["num_kept"] == tokens.stop - tokens.start
            assert row["tokens_crc32c"] == crc32c(pack["tokens"][tokens].numpy().tobytes())
    assert next(table, None) is None


# --- processes -------------------------------------------------------------------------------


@ignore_fork_warning
@pytest.mark.parametrize("start", ["spawn", "fork"])
def test_workers_give_the_same_packs_as_none(folder, dataset, start) -> None:
    shared = PackDataset(folder)
    assert shared[0]  # so that a shard is open here when the workers start
    workers = DataLoader(
        shared, batch_size=None, num_workers=2, multiprocessing_context=start, timeout=120
    )
    for one, other in zip(dataset, workers, strict=True):
        assert_same(one, other)


def test_no_open_shard_travels_with_a_pickle(folder) -> None:
    dataset = PackDataset(folder)
    pack = dataset[0]
    travelled = pickle.loads(pickle.dumps(dataset))
    assert travelled._readers == {}
    assert len(dataset._readers) == 1
    assert_same(travelled[0], pack)


@ignore_fork_warning
def test_a_forked_process_opens_its_own_shards(folder) -> None:
    dataset = PackDataset(folder)
    before = dataset._reader(0)

    def child() -> None:
        sys.exit(23 if dataset._reader(0) is not before else 1)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(60)
    assert process.exitcode == 23
    assert dataset._reader(0) is before


def test_few_open_shards_give_the_same_packs(folder, dataset, monkeypatch) -> None:
    monkeypatch.setattr(loader, "MAX_OPEN_SHARDS", 1)
    thrifty = PackDataset(folder)
    order = [*range(len(dataset)), *range(0, len(dataset), 2)]
    for index in order:
        assert_same(thrifty[index], dataset[index])
        assert len(thrifty._readers) == 1


def test_batches_stack_padded_packs(dataset) -> None:
    batches = list(DataLoader(dataset, batch_size=2, collate_fn=collate))
    assert sum(len(batch["tokens"]) for batch in batches) == len(dataset)
    n, d = dataset.pack_length, dataset.document["token_width"]
    assert batches[0]["tokens"].shape == (2, n, d)
    assert batches[0]["positions"].shape == (2, n, 3)
    assert block_mask(batches[0]["segment_ids"]).shape == (2, n, n)
    first = {name: value[0] for name, value in batches[0].items()}
    assert_same(first, dataset[0])


def test_nothing_but_a_user_imports_the_loader_or_torch() -> None:
    script = (
        "import sys, spacepatch, spacepatch.pipeline, spacepatch.shards\n"
        "print({'torch', 'spacepatch.loader', 'spacepatch.masks'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", script]
    assert subprocess.run(command, capture_output=True, text=True).stdout == "set()\n"


# --- what is wrong with a folder -------------------------------------------------------------


def test_a_flipped_byte_is_an_error_that_names_the_shard(copy, dataset) -> None:
    name = dataset.document["shards"][0]["name"]
    path = copy / f"{name}.tar"
    with tarfile.open(path) as tar:
        info = next(info for info in tar if info.name == f"{name}-000000.tokens.npy")
    content = bytearray(path.read_bytes())
    content[info.offset_data + info.size // 2] ^= 1
    path.write_bytes(content)
    damaged = PackDataset(copy)
    with pytest.raises(ShardError, match=rf"{name}\.tar: pack 0 is damaged"):
        damaged[0]
    assert_same(damaged[1], dataset[1])


def test_a_shard_that_is_cut_off_is_an_error_that_names_it(copy, dataset) -> None:
    name, packs = (dataset.document["shards"][0][key] for key in ("name", "packs"))
    path = copy / f"{name}.tar"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ShardError, match=rf"{name}\.tar"):
        PackDataset(copy)[packs - 1]


def test_pickled_objects_are_refused_even_with_a_good_checksum(copy, dataset) -> None:
    name = dataset.document["shards"][0]["name"]
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
def test_a_missing_file_is_an_error_that_names_it(copy, dataset, suffix) -> None:
    name = f"{dataset.document['shards'][0]['name']}.{suffix}"
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
    folder = make_dataset([str(sample_clips)], tmp_path / "out", split="train=0.6,val=0.4", fps="1")
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


# --- masks -----------------------------------------------------------------------------------

LENGTHS = st.lists(st.integers(1, 5), max_size=6)


def make_ids(lengths, padding) -> torch.Tensor:
    ids = [place for place, length in enumerate(lengths, 1) for _ in range(length)]
    return torch.tensor(ids + [0] * padding, dtype=torch.int32)


@given(lengths=LENGTHS, padding=st.integers(0, 4))
@settings(max_examples=50, deadline=None)
def test_the_mask_is_what_its_sentence_says(lengths, padding) -> None:
    ids = make_ids(lengths, padding)
    mask = block_mask(ids)
    for i, mine in enumerate(ids.tolist()):
        for j, other in enumerate(ids.tolist()):
            assert bool(mask[i, j]) is (i == j if mine == 0 else mine == other)


def test_the_mask_of_a_batch_is_the_masks_of_its_packs() -> None:
    ids = torch.stack([make_ids([3, 2], 1), make_ids([1], 5), make_ids([], 6)])
    assert torch.equal(block_mask(ids), torch.stack([block_mask(row) for row in ids]))


@given(lengths=LENGTHS, padding=st.integers(0, 4))
@settings(max_examples=50, deadline=None)
def test_borders_are_the_running_sum_of_the_lengths(lengths, padding) -> None:
    borders = cu_seqlens(make_ids(lengths, padding))
    assert borders.dtype == torch.int32
    assert borders.tolist() == [0, *np.cumsum(lengths)]


@pytest.mark.parametrize(
    "ids",
    [
        [2, 2, 3],  # does not start with 1
        [1, 3],  # a segment without tokens
        [1, 2, 1],
        [2, 1],
        [0, 1],  # padding first
        [1, 0, 2],  # padding in between
        [1, 0, 1],
        [-1, 0],
        [1, -1],
    ],
)
def test_ids_of_any_other_form_are_refused(ids) -> None:
    with pytest.raises(ValueError, match=r"segment_ids\[\d\]"):
        cu_seqlens(torch.tensor(ids))


def test_borders_of_a_batch_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3\)"):
        cu_seqlens(torch.ones(2, 3, dtype=torch.int32))


def test_borders_by_ids_are_those_of_the_packs(dataset) -> None:
    for pack in dataset:
        assert torch.equal(cu_seqlens(pack["segment_ids"]), pack["cu_seqlens"])


# --- attention -------------------------------------------------------------------------------


class Attention(torch.nn.Module):
    """One layer of self-attention over real tokens."""

    def __init__(self, width: int, heads: int = 4, size: int = 16) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.heads = heads
        self.project = torch.nn.Linear(width, 3 * heads * size)

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        parts = self.project(tokens / 127.5 - 1).unflatten(-1, (3, self.heads, -1))
        query, key, value = parts.permute(1, 2, 0, 3)[:, None]
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return out[0].transpose(0, 1).flatten(1)


@pytest.fixture(scope="session")
def padded_pack(dataset) -> dict:
    """The one with the most segments of the packs with padding."""
    packs = [pack for pack in dataset if pack["num_tokens"] < dataset.pack_length]
    pack = max(packs, key=lambda pack: len(pack["segments"]))
    assert len(pack["segments"]) > 1
    return pack


@pytest.mark.parametrize("backend", BACKENDS)
def test_packed_segments_get_the_same_as_each_alone(dataset, padded_pack, backend) -> None:
    attention = Attention(dataset.document["token_width"])
    with torch.no_grad(), sdpa_kernel(backend):
        packed = attention(padded_pack["tokens"], block_mask(padded_pack["segment_ids"]))
        for _, tokens in segments_of(padded_pack):
            alone = attention(padded_pack["tokens"][tokens])
            torch.testing.assert_close(packed[tokens], alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_changed_tokens_leave_the_other_segments_bit_identical(
    dataset, padded_pack, backend
) -> None:
    attention = Attention(dataset.document["token_width"])
    mask = block_mask(padded_pack["segment_ids"])
    with torch.no_grad(), sdpa_kernel(backend):
        before = attention(padded_pack["tokens"], mask)
        for _, changed in segments_of(padded_pack):
            tokens = padded_pack["tokens"].clone()
            tokens[changed] = 255 - tokens[changed]
            after = attention(tokens, mask)
            others = torch.ones(len(tokens), dtype=torch.bool)
            others[changed] = False
            assert torch.equal(after[others], before[others])
            assert not torch.equal(after[changed], before[changed])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("padding", range(13))
def test_padding_gives_no_nan_forward_or_backward(padding, backend) -> None:
    ids = make_ids([3, 5, 4], 0)
    ids[len(ids) - padding :] = 0
    generator = torch.Generator().manual_seed(padding)
    query, key, value = (
        torch.randn(1, 2, len(ids), 8, generator=generator).requires_grad_() for _ in range(3)
    )
    with sdpa_kernel(backend):
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=block_mask(ids))
        out.square().sum().backward()
    assert out.isfinite().all()
    assert all(tensor.grad.isfinite().all() for tensor in (query, key, value))
