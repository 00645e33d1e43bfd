"""Packs as tensors, held against plain tarfile, numpy, webdataset, pyarrow and PyAV."""

from __future__ import annotations

import io
import json
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
import webdataset
from crc32c import crc32c
from loaded_packs import assert_same, read_plainly, segments_of
from small_runs import LOADED, make_dataset

from spacepatch.data import Picture
from spacepatch.loader import STACKED, PackDataset
from spacepatch.resize import make_frame
from spacepatch.tubelets import join_tubelets

# --- independent readers ----------------------------------------------------------------------


@pytest.fixture(scope="session")
def compact_folder(part_damaged, tmp_path_factory) -> Path:
    return make_dataset(
        part_damaged, tmp_path_factory.mktemp("dataset") / "compact", **LOADED, index="compact"
    )


@pytest.fixture(scope="session")
def plain_packs(packed_folder) -> list[dict]:
    return read_plainly(packed_folder)


def count_tokens(arrays) -> Counter:
    return Counter(zlib.crc32(row.tobytes()) for tokens in arrays for row in tokens)


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


def test_the_dataset_has_several_shards_and_a_segment_with_dropped_rows(packed_folder) -> None:
    rows = parquet.read_table(packed_folder / "segments.parquet").to_pylist()
    assert len({row["shard"] for row in rows}) > 1
    assert any(row["num_kept"] < row["num_tokens"] for row in rows)
    assert any(row["num_kept"] == row["num_tokens"] for row in rows)


def test_every_token_comes_out_exactly_once(pack_dataset, plain_packs) -> None:
    loaded = count_tokens(pack["tokens"][: pack["num_tokens"]].numpy() for pack in pack_dataset)
    assert loaded == count_tokens(pack["tokens"] for pack in plain_packs)
    assert loaded.total() == pack_dataset.document["totals"]["tokens"]


def test_packs_come_in_the_order_of_the_shards(pack_dataset, plain_packs) -> None:
    assert len(pack_dataset) == len(plain_packs)
    for pack, plain in zip(pack_dataset, plain_packs, strict=True):
        assert np.array_equal(pack["tokens"][: pack["num_tokens"]].numpy(), plain["tokens"])
        assert pack["segments"] == plain["pack"]["segments"]


def test_ids_positions_and_borders_agree_with_the_stored_tables(pack_dataset, plain_packs) -> None:
    for pack, plain in zip(pack_dataset, plain_packs, strict=True):
        kept = pack["num_tokens"]
        table = plain["segments"]
        assert np.array_equal(pack["segment_ids"][:kept].numpy(), plain["segment_ids"])
        assert np.array_equal(pack["positions"][:kept].numpy(), plain["positions"])
        assert pack["cu_seqlens"].tolist() == [*table[:, 0], table[-1, 0] + table[-1, 1]]
        assert pack["cu_seqlens"][-1] == kept
        assert pack["max_seqlen"] == max(table[:, 1])
        assert np.array_equal(pack["grid_thw"].numpy(), table[:, 2:5])
        assert np.array_equal(pack["patch"].numpy(), table[:, 5:8])


def test_a_pack_has_the_dtypes_and_shapes_that_are_promised(pack_dataset) -> None:
    pack = pack_dataset[0]
    n, s = pack_dataset.pack_length, len(pack["segments"])
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
        "patch": (torch.int32, (s, 3)),
    }
    assert type(pack["max_seqlen"]) is type(pack["num_tokens"]) is int


def test_positions_of_a_whole_segment_are_its_grid_in_raster_order(pack_dataset) -> None:
    for pack in pack_dataset:
        for grid, (segment, tokens) in zip(pack["grid_thw"], segments_of(pack), strict=True):
            t, h, w = grid.tolist()
            raster = [[a, b, c] for a in range(t) for b in range(h) for c in range(w)]
            if segment["num_kept"] == segment["num_tokens"]:
                assert pack["positions"][tokens].tolist() == raster


@pytest.mark.parametrize("name", ["square_320x320.mp4", "portrait_270x480.mp4"])
def test_positions_stay_true_where_grid_rows_are_dropped(pack_dataset, part_damaged, name) -> None:
    [(pack, segment, tokens)] = find_segments(pack_dataset, f"damaged_{name}")
    frames = frames_on_display(part_damaged[1] / f"damaged_{name}", 2 * segment["grid_thw"][0])
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


def test_seconds_are_the_time_stamps_of_the_first_frame_of_each_row(
    packed_folder, pack_dataset
) -> None:
    table = parquet.read_table(packed_folder / "segments.parquet").to_pylist()
    rows = {row["segment_id"]: row for row in table}
    for pack in pack_dataset:
        for segment, tokens in segments_of(pack):
            row = rows[segment["segment_id"]]
            stamps = row["frame_pts"][:: row["tubelet_size"]]
            times = [float(pts * Fraction(row["time_base"])) for pts in stamps]
            expected = [times[t] for t in pack["positions"][tokens][:, 0].tolist()]
            assert pack["seconds"][tokens].tolist() == expected


def test_padding_is_zero_and_at_the_end(pack_dataset) -> None:
    assert any(pack["num_tokens"] < pack_dataset.pack_length for pack in pack_dataset)
    for pack in pack_dataset:
        for name in ("tokens", "segment_ids", "positions", "seconds"):
            assert not pack[name][pack["num_tokens"] :].any()
        assert pack["segment_ids"][: pack["num_tokens"]].all()


def test_ragged_packs_are_padded_packs_without_padding(packed_folder, pack_dataset) -> None:
    ragged = PackDataset(packed_folder, padded=False)
    for padded, pack in zip(pack_dataset, ragged, strict=True):
        kept = pack["num_tokens"]
        assert len(pack["tokens"]) == kept
        cut = {name: value[:kept] if name in STACKED else value for name, value in padded.items()}
        assert_same(pack, cut)


def test_the_compact_index_gives_the_same_tensors_as_the_full_one(
    pack_dataset, compact_folder
) -> None:
    compact = PackDataset(compact_folder)
    assert "positions.npy" not in compact.document["members"]
    for one, other in zip(pack_dataset, compact, strict=True):
        assert_same(one, other)


def test_tensors_are_copies_that_may_be_written(packed_folder) -> None:
    dataset = PackDataset(packed_folder)
    before = dataset[0]["tokens"]
    changed = dataset[0]
    for value in changed.values():
        if isinstance(value, torch.Tensor):
            value.fill_(7)
    assert torch.equal(dataset[0]["tokens"], before)


def test_indices_are_those_of_a_list(pack_dataset) -> None:
    assert_same(pack_dataset[-1], pack_dataset[len(pack_dataset) - 1])
    for index in (len(pack_dataset), -len(pack_dataset) - 1):
        with pytest.raises(IndexError):
            pack_dataset[index]


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
def test_tokens_join_to_the_frames_on_display(pack_dataset, sample_clips, name, rotation) -> None:
    [(pack, segment, tokens)] = find_segments(pack_dataset, name)
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
def test_plain_webdataset_reads_the_same_packs(packed_folder, pack_dataset) -> None:
    tars = [
        str(packed_folder / f"{shard['name']}.tar") for shard in pack_dataset.document["shards"]
    ]
    samples = list(webdataset.WebDataset(tars, shardshuffle=False))
    assert len(samples) == len(pack_dataset)
    assert len({sample["__key__"] for sample in samples}) == len(samples)
    for sample, pack in zip(samples, pack_dataset, strict=True):
        for name in ("tokens", "segment_ids", "positions"):
            plain = np.load(io.BytesIO(sample[f"{name}.npy"]))
            assert np.array_equal(plain, pack[name][: pack["num_tokens"]].numpy())
        assert json.loads(sample["pack.json"])["segments"] == pack["segments"]


def test_segments_parquet_by_pyarrow_says_what_the_packs_hold(packed_folder, pack_dataset) -> None:
    table = iter(parquet.read_table(packed_folder / "segments.parquet").to_pylist())
    for pack in pack_dataset:
        for segment, tokens in segments_of(pack):
            row = next(table)
            row["extra"] = json.loads(row["extra"])
            assert {name: row[name] for name in segment} == segment
            assert row["offset"] == tokens.start
            assert row["num_kept"] == tokens.stop - tokens.start
            assert row["tokens_crc32c"] == crc32c(pack["tokens"][tokens].numpy().tobytes())
    assert next(table, None) is None
