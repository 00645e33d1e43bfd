"""Mutation testing of `verify`: defects whose checksums agree must be found in the content."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from spoiled_shards import Shard, edit_rows, found

from spacepatch.inspection import verify
from spacepatch.pipeline.segments import make_segment_id
from spacepatch.shards import SEGMENTS


def wrong_offset(shard: Shard) -> None:
    path = shard.tar.with_name(f"{shard.tar.stem}.index.npy")
    index = np.load(path)
    index[shard.pack, 1, 0] += 512
    np.save(path, index)
    shard.seal_files()


def swap_members(shard: Shard) -> None:
    first, second = shard.place("segments.npy"), shard.place("segment_ids.npy")
    members = shard.members
    members[first], members[second] = members[second], members[first]
    shard.seal()


def leave_out_member(shard: Shard) -> None:
    del shard.members[shard.place("positions.npy")]
    shard.seal()


def rename_pack(shard: Shard, key: Callable[[str], str]) -> None:
    for info, _ in shard.members[shard.place(shard.names[0]) :][: len(shard.names)]:
        old, name = info.name.split(".", 1)
        info.name = f"{key(old)}.{name}"
    shard.seal()


def duplicate_key(shard: Shard) -> None:
    count = len(shard.names)
    shard.members += [(tarfile.TarInfo(i.name), c) for i, c in shard.members[:count]]
    shard.seal()


def bad_key(shard: Shard) -> None:
    rename_pack(shard, lambda key: key[:-2] + " x")


def other_key(shard: Shard) -> None:
    rename_pack(shard, lambda key: key[:-1] + "7")


def interleave(shard: Shard) -> None:
    members, count = shard.members, len(shard.names)
    if len(members) < 2 * count:
        raise AssertionError("the shard has one pack only")
    members[count - 1], members[count] = members[count], members[count - 1]
    shard.seal()


def set_time(shard: Shard) -> None:
    shard.members[0][0].mtime = 1
    shard.seal()


def set_owner(shard: Shard) -> None:
    shard.members[0][0].uname = "somebody"
    shard.seal()


def positions_outside(shard: Shard) -> None:
    positions = shard.array("positions.npy")
    positions[-1, 2] = 999
    shard.put("positions.npy", positions)
    shard.seal()


def positions_swapped(shard: Shard) -> None:
    positions = shard.array("positions.npy")
    positions[[3, 4]] = positions[[4, 3]]
    shard.put("positions.npy", positions)
    shard.seal()


def positions_of_another_dtype(shard: Shard) -> None:
    shard.put("positions.npy", shard.array("positions.npy").astype(np.int64))
    shard.seal()


def positions_fortran(shard: Shard) -> None:
    shard.put("positions.npy", np.asfortranarray(shard.array("positions.npy")))
    shard.seal()


def wrong_ids(shard: Shard) -> None:
    ids = shard.array("segment_ids.npy")
    ids[0] = 2
    shard.put("segment_ids.npy", ids)
    shard.seal()


def wrong_segments(shard: Shard) -> None:
    segments = shard.array("segments.npy")
    segments[1, 2] += 1
    shard.put("segments.npy", segments)
    shard.seal()


def tokens_exchanged(shard: Shard) -> None:
    tokens = shard.array("tokens.npy")
    tokens[[0, -1]] = tokens[[-1, 0]]
    tokens[0, 0] += 1
    shard.put("tokens.npy", tokens)
    shard.seal()


def segments_of_another_shape(shard: Shard) -> None:
    shard.put("segments.npy", shard.array("segments.npy")[:, :7])
    shard.seal()


def json_differs(shard: Shard) -> None:
    document = json.loads(shard.members[shard.place("pack.json")][1])
    document["segments"][0]["num_tokens"] += 1
    shard.put("pack.json", json.dumps(document).encode())
    shard.seal()


def json_of_another_store(shard: Shard) -> None:
    document = json.loads(shard.members[shard.place("pack.json")][1])
    document["store"] = "refs"
    shard.put("pack.json", json.dumps(document).encode())
    shard.seal()


def json_torn(shard: Shard) -> None:
    shard.put("pack.json", shard.members[shard.place("pack.json")][1][:-5])
    shard.seal()


def newer_pack(shard: Shard) -> None:
    document = json.loads(shard.members[shard.place("pack.json")][1])
    document["format_version"] = 7
    shard.put("pack.json", json.dumps(document).encode())
    shard.seal()


def in_first_row(change: Callable[[dict[str, Any]], None]) -> Callable[[Shard], None]:
    """Change one row of the table and of pack.json, and mend every checksum."""

    def mutate(shard: Shard) -> None:
        shard.edit_rows(lambda rows: change(max(rows, key=lambda row: len(row["seconds"]))))
        shard.seal()

    return mutate


def reverse_seconds(row: dict[str, Any]) -> None:
    row["seconds"] = row["seconds"][::-1]


def shift_seconds(row: dict[str, Any]) -> None:
    row["seconds"] = [value + 0.001 for value in row["seconds"]]


def stop_seconds(row: dict[str, Any]) -> None:
    row["seconds"][1] = row["seconds"][0]


def more_valid_frames(row: dict[str, Any]) -> None:
    row["valid_frames"] += 1


def valid_frames_called_corrupt(row: dict[str, Any]) -> None:
    row["valid_frames"] -= 1
    row["corrupt_frames"] += 1


def more_padding(row: dict[str, Any]) -> None:
    row["padded_frames"] += 1


def other_frames(row: dict[str, Any]) -> None:
    row["frame_indices"][-1] += 1


def repeated_frames(row: dict[str, Any]) -> None:
    row["repeated_frames"] += 1


def decreasing_frames(row: dict[str, Any]) -> None:
    row["frame_pts"][-1] = 0


def other_id(row: dict[str, Any]) -> None:
    row["segment_id"] = row["segment_id"][::-1]


def other_source(row: dict[str, Any]) -> None:
    row["source"] = "elsewhere.mp4"


def rate_that_is_no_number(row: dict[str, Any]) -> None:
    row["sampled_fps"] = float("nan")


def other_decoder(row: dict[str, Any]) -> None:
    row["decoder"] = "vlc"


def damaged_frames(row: dict[str, Any]) -> None:
    row["damaged_frames"] = 1


def other_size(row: dict[str, Any]) -> None:
    row["size"] = [row["size"][0] + 16, row["size"][1]]


def other_scale(row: dict[str, Any]) -> None:
    row["scale"] = [1.0, 1.0]


def other_offset(row: dict[str, Any]) -> None:
    row["offset"] += 1


def moved_clip(shard: Shard) -> None:
    prints = json.loads((shard.folder / "dataset.json").read_text())["fingerprints"]

    def move(rows: list[Any]) -> None:
        row = rows[0]
        row["clip_start_pts"] += 1
        row["segment_id"] = make_segment_id(
            prints["token"],
            seed=0,
            source_id=row["source_id"],
            start_pts=row["clip_start_pts"],
            stop_pts=row["clip_stop_pts"],
            time_base=Fraction(row["time_base"]),
            view=0,
        )

    shard.edit_rows(move)
    shard.seal()


def same_ids(shard: Shard) -> None:
    def copy(rows: list[Any]) -> None:
        rows[1]["segment_id"] = rows[0]["segment_id"]

    shard.edit_rows(copy)
    shard.seal()


def drop_last_row(shard: Shard) -> None:
    edit_rows(shard.table, SEGMENTS, lambda rows: rows.pop())
    shard.seal_files()


DEEP: dict[str, tuple[Callable[[Shard], None], str, str]] = {
    "wrong offset in the index": (wrong_offset, ".tar: pack", "the index says"),
    "two members exchanged": (swap_members, ".tar", "in this order"),
    "a member left out": (leave_out_member, ".tar", "has the members"),
    "a key twice": (duplicate_key, ".tar", "occurs twice"),
    "a pack too many": (duplicate_key, ".tar", "packs, the receipt says"),
    "a key with a space": (bad_key, ".tar", "is not 1 to 80 of"),
    "a key of another pack": (other_key, ".tar", "has key"),
    "members not adjacent": (interleave, ".tar", "not adjacent"),
    "a time of day": (set_time, ".tar", "time 1"),
    "an owner": (set_owner, ".tar", "'somebody'"),
    "positions outside the grid": (positions_outside, ".tar: pack", "outside the grid"),
    "positions exchanged": (positions_swapped, ".tar: pack", "raster order"),
    "positions of another dtype": (positions_of_another_dtype, ".tar: pack", "positions.npy is"),
    "positions in Fortran order": (positions_fortran, ".tar: pack", "no plain npy"),
    "wrong segment_ids": (wrong_ids, ".tar: pack", "segment_ids.npy is not"),
    "wrong segments.npy": (wrong_segments, ".tar: pack", "segments.npy: segment 2 has T"),
    "segments.npy of another shape": (
        segments_of_another_shape,
        ".tar: pack",
        "segments.npy is int32",
    ),
    "tokens exchanged": (tokens_exchanged, ".tar: pack", "tokens_crc32c"),
    "pack.json of another length": (json_differs, ".tar: pack", "has num_tokens"),
    "pack.json torn": (json_torn, ".tar: pack", "pack.json is damaged"),
    "newer pack": (newer_pack, ".tar: pack", "format version 7"),
    "seconds decrease": (in_first_row(reverse_seconds), ".parquet: row", "seconds decrease"),
    "seconds shifted": (in_first_row(shift_seconds), ".parquet: row", "frame_pts x time_base"),
    "seconds stand still": (in_first_row(stop_seconds), ".parquet: row", "stand still"),
    "too many valid frames": (in_first_row(more_valid_frames), ".parquet: row", "frames, not"),
    "too many valid frames for the plan": (
        in_first_row(more_valid_frames),
        ".segments.parquet",
        "frames planned",
    ),
    "valid frames called corrupt": (
        in_first_row(valid_frames_called_corrupt),
        ".tar: pack",
        "valid_frames says",
    ),
    "too much padding": (in_first_row(more_padding), ".parquet: row", "do not fill"),
    "a frame that the plan has not": (
        in_first_row(other_frames),
        ".segments.parquet",
        "frame_indices are not those of the plan",
    ),
    "frames decrease": (in_first_row(decreasing_frames), ".parquet: row", "frame_pts decreases"),
    "repeated frames miscounted": (in_first_row(repeated_frames), ".parquet: row", "repeats 0"),
    "another segment_id": (in_first_row(other_id), ".parquet: row", "not that of its source"),
    "another source": (in_first_row(other_source), ".parquet: row", "source is 'elsewhere.mp4'"),
    "a rate that is no number": (
        in_first_row(rate_that_is_no_number),
        ".parquet: row",
        "sampled_fps is not finite",
    ),
    "damaged frames": (in_first_row(damaged_frames), ".parquet: row", "the settings allow none"),
    "another decoder": (in_first_row(other_decoder), ".parquet: row", "decoder is 'vlc'"),
    "pack.json of another store": (json_of_another_store, ".tar: pack", "store is 'refs'"),
    "another size": (in_first_row(other_size), ".parquet: row", "is not that of grid"),
    "another scale": (in_first_row(other_scale), ".parquet: row", "scale is"),
    "another offset": (in_first_row(other_offset), ".tar: pack", "offset"),
    "a clip's start moved": (moved_clip, ".segments.parquet", "leaves a gap"),
    "segment ids not unique": (same_ids, "segments.parquet", "occurs 2 times"),
    "a segment gone": (drop_last_row, ".segments.parquet", "neither written nor lost"),
}
"""As `SHALLOW`; every checksum is mended, so that only the content can tell."""


@pytest.mark.parametrize(("mutate", "where", "what"), DEEP.values(), ids=DEEP)
def test_a_defect_whose_checksums_agree_is_found(
    spoilable: Path, mutate: Callable[[Shard], None], where: str, what: str
) -> None:
    mutate(Shard.of(spoilable))
    problems = verify(spoilable)
    assert found(problems, where, what), problems
    assert not found(problems, "", "sha256")
