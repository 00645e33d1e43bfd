"""Mutation testing of `verify`: defects of files and documents must be found."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.compute as compute
import pyarrow.parquet as parquet
import pytest
from small_runs import make_dataset
from spoiled_shards import (
    Mutations,
    Shard,
    edit_json,
    edit_rows,
    flip_byte,
    flip_token,
    found,
    in_document,
    in_receipt,
    seal_plan,
    seal_tables,
)

from spacepatch.inspection import Problem, verify
from spacepatch.shards import LOSSES, PLAN, SEGMENTS, SOURCES, read_table


def truncate(shard: Shard) -> None:
    shard.tar.write_bytes(shard.tar.read_bytes()[:-200_000])


def append_bytes(shard: Shard) -> None:
    with shard.tar.open("ab") as file:
        file.write(b"more")


def flip_index(shard: Shard) -> None:
    flip_byte(shard.tar.with_name(f"{shard.tar.stem}.index.npy"), -3)


def delete(*suffixes: str) -> Callable[[Shard], None]:
    def mutate(shard: Shard) -> None:
        for suffix in suffixes:
            (shard.folder / f"{shard.tar.stem}{suffix}").unlink()

    return mutate


def delete_file(name: str) -> Callable[[Shard], None]:
    return lambda shard: (shard.folder / name).unlink()


def stray_tar(shard: Shard) -> None:
    name = shard.tar.stem[:-6]
    shutil.copy(shard.tar, shard.folder / f"{name}000099.tar")


def stray_of_another_plan(shard: Shard) -> None:
    shutil.copy(shard.receipt, shard.folder / "deadbeef-000000.json")


def in_table(
    name: str, columns: dict[str, str], change: Callable[[list[Any]], None]
) -> Callable[[Shard], None]:
    """Change a merged table, and mend its checksum."""

    def mutate(shard: Shard) -> None:
        edit_rows(shard.folder / name, columns, change)
        seal_tables(shard.folder)

    return mutate


def first_written(rows: list[Any]) -> Any:
    return next(row for row in rows if row["num_segments"])


def lose_frame(rows: list[Any]) -> None:
    first_written(rows)["frames_written"] -= 1


def lose_frame_and_say_so(rows: list[Any]) -> None:
    row = first_written(rows)
    row["frames_written"] -= 1
    row["frames_lost"] += 1


def other_plan_rows(shard: Shard) -> None:
    path = shard.folder / "plan.parquet"
    table = parquet.read_table(path)
    parquet.write_table(table.slice(0, len(table) - 1), path)


def table_with_other_types(shard: Shard) -> None:
    table = parquet.read_table(shard.folder / "sources.parquet")
    place = table.schema.get_field_index("bytes")
    table = table.set_column(place, "bytes", compute.cast(table.column(place), "float64"))
    parquet.write_table(table, shard.folder / "sources.parquet")
    seal_tables(shard.folder)


def new_loss(reason: str) -> Callable[[Shard], None]:
    """A loss in the receipt and in losses.parquet alike."""

    def mutate(shard: Shard) -> None:
        row = read_table(shard.table)[0]
        loss = {key: row[key] for key in ("source", "source_root", "source_id", "split", "clip")}
        loss |= {"stage": "decode", "reason": reason, "num_frames": 0, "num_tokens": 0}
        loss |= {"message": "none"}
        edit_json(shard.receipt, lambda receipt: receipt["losses"].append(loss))
        edit_rows(
            shard.folder / "losses.parquet",
            LOSSES,
            lambda rows: rows.append(loss | {"retryable": False}),
        )
        seal_tables(shard.folder)

    return mutate


def flip_writers_name(path: Path) -> None:
    content = bytearray(path.read_bytes())
    # The name of the writer, before the footer's length and the magic number.
    content[content.rindex(b"parquet-cpp")] ^= 1
    path.write_bytes(content)


SHALLOW: Mutations = {
    "a byte of a token flipped": (flip_token, ".tar", "tokens_crc32c"),
    "a byte of a pack flipped": (flip_token, ".tar", "crc32c differs from the receipt"),
    "a byte of a tar flipped": (flip_token, ".tar", "sha256"),
    "tar truncated": (truncate, ".tar", "bytes, the receipt says"),
    "tar truncated within a pack": (truncate, ".tar", "is torn"),
    "bytes after the tar's end": (append_bytes, ".tar", "bytes, the receipt says"),
    "a byte of the index flipped": (flip_index, ".index.npy", "sha256"),
    "tar deleted": (delete(".tar"), ".tar", "missing"),
    "index deleted": (delete(".index.npy"), ".index.npy", "missing"),
    "table deleted": (delete(".segments.parquet"), ".segments.parquet", "missing"),
    "receipt deleted": (delete(".json"), ".json", "no receipt"),
    "shard deleted": (
        delete(".json", ".tar", ".index.npy", ".segments.parquet"),
        ".json",
        "no receipt",
    ),
    "a byte of a merged table that says nothing flipped": (
        lambda shard: flip_writers_name(shard.folder / "segments.parquet"),
        "segments.parquet",
        "sha256",
    ),
    "merged segments deleted": (delete_file("segments.parquet"), "segments.parquet", "missing"),
    "sources deleted": (delete_file("sources.parquet"), "sources.parquet", "missing"),
    "losses deleted": (delete_file("losses.parquet"), "losses.parquet", "missing"),
    "plan deleted": (delete_file("plan.parquet"), "plan.parquet", "missing"),
    "plan document deleted": (delete_file("plan.json"), "plan.json", "missing"),
    "stray tar of this dataset": (stray_tar, "-000099.tar", "no task of the plan"),
    "stray receipt of another plan": (stray_of_another_plan, "deadbeef", "another plan"),
    "plan changed": (other_plan_rows, "plan.parquet", "not the file that plan.json names"),
    "seed changed": (
        in_document("plan.json", lambda d: d["settings"].update(seed=5)),
        "plan.json",
        "plan_id",
    ),
    "setting changed": (
        in_document("plan.json", lambda d: d["settings"].update(upscale=True)),
        "plan.json",
        "fingerprints: token",
    ),
    "layout changed": (
        in_document("plan.json", lambda d: d["layout"].update(halo=4)),
        "plan.json",
        "layout is not",
    ),
    "settings of the dataset changed": (
        in_document("dataset.json", lambda d: d["settings"].update(fps="3")),
        "dataset.json",
        "settings is not that of plan.json",
    ),
    "totals changed": (
        in_document("dataset.json", lambda d: d["totals"].update(tokens=1)),
        "dataset.json",
        "totals: tokens",
    ),
    "frames of totals changed": (
        in_document("dataset.json", lambda d: d["totals"].update(frames_lost=1)),
        "dataset.json",
        "totals: frames_lost",
    ),
    "a shard unlisted": (
        in_document("dataset.json", lambda d: d["shards"].pop()),
        "dataset.json",
        "shards is not",
    ),
    "members of the dataset changed": (
        in_document("dataset.json", lambda d: d["members"].pop()),
        "dataset.json",
        "members",
    ),
    "newer dataset": (
        in_document("dataset.json", lambda d: d.update(format_version=9)),
        "dataset.json",
        "format version 9",
    ),
    "newer plan": (
        in_document("plan.json", lambda d: d.update(format_version=9)),
        "plan.json",
        "format version 9",
    ),
    "newer receipt": (in_receipt(lambda d: d.update(format_version=9)), ".json", "version 9"),
    "dataset torn": (
        lambda shard: (shard.folder / "dataset.json").write_text("{"),
        "dataset.json",
        "damaged",
    ),
    "receipt torn": (lambda shard: shard.receipt.write_text('{"a":'), ".json", "torn"),
    "receipt of another kind": (in_receipt(lambda d: d.update(packs="2")), ".json", "packs is"),
    "receipt of another task": (in_receipt(lambda d: d.update(task_id="0")), ".json", "task_id"),
    "an observed source renamed": (
        in_receipt(lambda d: d["observed"].update({"0": d["observed"].popitem()[1]})),
        ".json",
        "observed: source 0 is not in this task",
    ),
    "an observed source gone": (
        in_receipt(lambda d: d["observed"].popitem()),
        ".json",
        "has segments and is not in it",
    ),
    "checksum of a pack changed": (
        in_receipt(lambda d: d["pack_crc32c"].__setitem__(0, 1)),
        ".tar: pack 0",
        "crc32c differs",
    ),
    "unknown reason": (new_loss("gremlins"), ".json", "'gremlins' is not in the closed list"),
    "unknown reason in the table": (new_loss("gremlins"), "losses.parquet", "closed list"),
    "a loss of the table removed": (
        in_table("losses.parquet", LOSSES, lambda rows: rows.pop()),
        "losses.parquet",
        "rows, plan and receipts have",
    ),
    "a loss of the table changed": (
        in_table("losses.parquet", LOSSES, lambda rows: rows[0].update(message="no")),
        "losses.parquet",
        "message differs",
    ),
    "a frame of a source unaccounted for": (
        in_table("sources.parquet", SOURCES, lose_frame),
        "sources.parquet",
        "frames selected",
    ),
    "a frame of a source called lost": (
        in_table("sources.parquet", SOURCES, lose_frame_and_say_so),
        "sources.parquet",
        "losses.parquet has 0",
    ),
    "codec of a source changed": (
        in_table("sources.parquet", SOURCES, lambda rows: rows[0].update(codec="theora")),
        "sources.parquet",
        "codec is 'theora'",
    ),
    "rotation of a source changed": (
        in_table("sources.parquet", SOURCES, lambda rows: first_written(rows).update(rotation=5)),
        "sources.parquet",
        "rotation is 5",
    ),
    "a source missing": (
        in_table("sources.parquet", SOURCES, lambda rows: rows.remove(first_written(rows))),
        "sources.parquet",
        "is planned and missing",
    ),
    "a source twice": (
        in_table("sources.parquet", SOURCES, lambda rows: rows.append(rows[0])),
        "sources.parquet",
        "occurs 2 times",
    ),
    "a column of another type": (table_with_other_types, "sources.parquet", "column bytes is"),
    "merged segments in another order": (
        in_table("segments.parquet", SEGMENTS, lambda rows: rows.reverse()),
        "segments.parquet",
        "segment_id differs",
    ),
    "a merged segment missing": (
        in_table("segments.parquet", SEGMENTS, lambda rows: rows.pop()),
        "segments.parquet",
        "ends within the segments",
    ),
    "a merged segment changed": (
        in_table("segments.parquet", SEGMENTS, lambda rows: rows[2].update(tail="drop")),
        "segments.parquet",
        "tail differs",
    ),
    "a merged segment too many": (
        in_table("segments.parquet", SEGMENTS, lambda rows: rows.append(rows[0])),
        "segments.parquet",
        "more rows than the shards",
    ),
}
"""Name: the mutation, the file that must be named, and what must be said."""


@pytest.mark.parametrize(("mutate", "where", "what"), SHALLOW.values(), ids=SHALLOW)
def test_an_injected_defect_is_found(
    spoilable: Path, mutate: Callable[[Shard], None], where: str, what: str
) -> None:
    mutate(Shard.of(spoilable))
    problems = verify(spoilable)
    assert found(problems, where, what), problems


@pytest.fixture(scope="module")
def named(sample_clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset whose name does not come from its plan."""
    clips = [sample_clips / "square_320x320.mp4", sample_clips / "portrait_270x480.mp4"]
    out = tmp_path_factory.mktemp("named") / "out"
    return make_dataset(clips, out, fps="2", name="own", pack_length=1024, shard_size="1MB")


def move_keyframe(rows: list[Any]) -> None:
    rows[-1]["key_pts"][0] += 1


def exchange_clips(rows: list[Any]) -> None:
    for key in rows[0].keys() - {"task", "order"}:
        rows[0][key], rows[-1][key] = rows[-1][key], rows[0][key]


@pytest.mark.parametrize("change", [move_keyframe, exchange_clips])
def test_a_row_of_the_plan_that_is_changed_with_its_checksums_is_found(
    named: Path, tmp_path: Path, change: Callable[[list[Any]], None]
) -> None:
    copy = shutil.copytree(named, tmp_path / "copy")
    seal_plan(copy)
    assert verify(copy) == []
    before = read_table(copy / "plan.parquet")
    edit_rows(copy / "plan.parquet", PLAN, change)
    seal_plan(copy)
    changed = [
        f"rows of task {row['task']} are not those that were planned"
        for row, old in zip(read_table(copy / "plan.parquet"), before, strict=True)
        if row != old
    ]
    problems = [problem.what for problem in verify(copy) if problem.where == "plan.parquet"]
    assert problems == changed
    assert len(changed) == (1 if change is move_keyframe else 2)


def test_counts_of_a_task_that_its_rows_do_not_have_are_found(named: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(named, tmp_path / "copy")

    def change(plan: Any) -> None:
        plan["tasks"]["num_frames"][1] += 1

    edit_json(copy / "plan.json", change)
    (problem,) = verify(copy)
    assert problem == Problem("plan.parquet", "rows of task 1 have other counts than plan.json")
