"""Plans of many sources: kept in parts while they are made, ordered by way of the disk, and never
all in memory."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from PIL import Image

from spacepatch.config import load_config
from spacepatch.data import ClipRange, Source
from spacepatch.listings import GROUP, MOST_IN_MEMORY, Listing, SourceTable
from spacepatch.pipeline import forecast as forecasting
from spacepatch.pipeline import make_plan, planning, sorting
from spacepatch.pipeline.planfile import open_plan
from spacepatch.shards import tables
from spacepatch.sources import list_sources, make_source_id

NUMBER = 1200
"""Pictures, in two or three parts."""


def made_up(number: int) -> list[Source]:
    return [
        Source(
            uri=f"/there/{place}.mp4",
            name=f"{place}.mp4",
            source_root=0,
            source_id=make_source_id(f"{place}.mp4", ordinal=0),
            num_bytes=place,
            ranges=(ClipRange(None, None, {"caption": "é", "n": place}),) if place % 3 else (),
            split="train" if place % 2 else "",
        )
        for place in range(number)
    ]


def test_many_sources_lie_on_disk_and_are_the_same_sequence(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    sources = made_up(MOST_IN_MEMORY + GROUP + 7)
    table = SourceTable(iter(sources))
    assert len(table) == len(sources)
    assert list(table) == sources
    for place in (0, GROUP, MOST_IN_MEMORY - 1, MOST_IN_MEMORY, len(sources) - 1, -1):
        assert table[place] == sources[place]
    assert table[GROUP - 2 : GROUP + 2] == tuple(sources[GROUP - 2 : GROUP + 2])
    for source in random.Random(0).sample(sources, 50):
        assert table.find(source.source_id) == source
    assert table.find("0" * 32) is None
    with pytest.raises(IndexError):
        table[len(sources)]


def test_the_fingerprint_of_the_inputs_is_that_of_a_set() -> None:
    sources = made_up(20)
    before = Listing(SourceTable(sources[:15]), 0, SourceTable(sources[15:])).inputs()
    random.Random(0).shuffle(sources)
    assert Listing(SourceTable(sources), 0).inputs() == before
    assert Listing(SourceTable(sources[1:]), 0).inputs() != before


def rows(keys: list[bytes]) -> pa.Table:
    return pa.table({"key": pa.array(keys, pa.binary()), "place": range(len(keys))})


@pytest.mark.parametrize("held", [1, 3000, 2**26])
def test_rows_come_in_the_order_of_their_keys_and_of_their_coming(tmp_path, monkeypatch, held):
    monkeypatch.setattr(sorting, "HELD_BYTES", held)
    draw = random.Random(1)
    keys = [draw.choice([b"a\0", b"b\0"]) + draw.randbytes(2) for _ in range(3000)]
    table = rows(keys)
    parts = [table[first : first + 41] for first in range(0, len(table), 41)]
    found = list(sorting.in_order(iter(parts), tmp_path))
    assert len(found) == 1 or held < 2**26
    flat = [(row["key"], row["place"]) for part in found for row in part.to_pylist()]
    assert flat == sorted(zip(keys, range(3000), strict=True))
    assert not list(tmp_path.iterdir())
    ends = [(part["key"][0].as_py(), part["key"][-1].as_py()) for part in found]
    assert all(one[1] < two[0] for one, two in pairwise(ends))


def test_no_rows_are_no_tables(tmp_path) -> None:
    assert list(sorting.in_order(iter([]), tmp_path)) == []


def test_a_plan_that_was_ordered_on_disk_has_the_same_bytes(sample_clips, tmp_path, monkeypatch):
    config = load_config({"pack_length": 1024, "shard_size": "3MB", "split": "a=0.5,b=0.5"})
    make_plan([str(sample_clips)], config=config, out=tmp_path / "memory")
    monkeypatch.setattr(sorting, "HELD_BYTES", 1)
    make_plan([str(sample_clips)], config=config, out=tmp_path / "disk")
    for name in ("plan.parquet", "plan.json"):
        assert (tmp_path / "disk" / name).read_bytes() == (tmp_path / "memory" / name).read_bytes()
    plan = open_plan(tmp_path / "disk")
    assert len(plan.tasks) > 4
    assert {task.split for task in plan.tasks} == {"a", "b"}


def test_missing_sources_are_in_the_plan_by_name_in_chunks_of_any_size(
    sample_clips, tmp_path, monkeypatch
) -> None:
    names = [f"{number}.mp4" for number in range(50)]
    still = sample_clips / "still_picture_400x300.png"
    (tmp_path / "list.txt").write_text("\n".join([str(still), *names]))
    for rows in (7, tables.GROUP_ROWS):
        monkeypatch.setattr(tables, "GROUP_ROWS", rows)
        out = tmp_path / f"{rows}"
        plan = make_plan([f"@{tmp_path}/list.txt"], config=load_config({}), root="/", out=out)
        assert [loss.source for loss in plan.losses()] == names
        assert {loss.reason for loss in plan.losses()} == {"unreadable"}
    assert sha256(tmp_path / "7" / "plan.parquet") == sha256(out / "plan.parquet")


def test_a_task_is_read_by_itself_and_is_what_the_whole_plan_says(sample_clips, tmp_path) -> None:
    config = load_config({"pack_length": 1024, "shard_size": "3MB"})
    make_plan([str(sample_clips)], config=config, out=tmp_path)
    stored = open_plan(tmp_path, list_sources([str(sample_clips)]).find)
    whole = stored.whole()
    table = parquet.read_table(tmp_path / "plan.parquet").to_pylist()
    for task, own in zip(stored.tasks, whole.tasks, strict=True):
        part = stored.part(task)
        (alone,) = part.tasks
        in_table = [row for row in table if row["task"] == task.number]
        assert [row["order"] for row in in_table] == list(range(task.num_clips))
        named = [
            (part.sources[clip.source].source.source_id, clip.clip, clip.start_pts)
            for clip in alone.clips
        ]
        assert named == [(r["source_id"], r["clip"], r["clip_start_pts"]) for r in in_table]
        assert sum(clip.num_kept for clip in alone.clips) == task.num_tokens
        assert len({row["source_id"] for row in in_table}) == task.num_jobs == len(part.sources)
        assert sum(len(row["frame_pts"]) for row in in_table) == task.num_frames
        assert (alone.task_id, len(alone.clips)) == (own.task_id, len(own.clips))
        assert all(Path(planned.source.uri).is_file() for planned in part.sources)
    assert len({task.task_id for task in stored.tasks}) == len(stored.tasks)


def test_more_sources_than_can_be_read_are_not_listed_one_by_one(sample_clips, monkeypatch) -> None:
    config = load_config({})
    plan = make_plan([str(sample_clips)], config=config)
    every = forecasting.forecast(plan)
    monkeypatch.setattr(forecasting, "MOST_LISTED", 3)
    some = forecasting.forecast(plan)
    assert some.pop("sources") is None
    assert len(every.pop("sources")) == plan.num_sources
    assert some == every


# --- interrupted ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(NUMBER):
        colour = number % 256, number // 256, 0
        Image.new("RGB", (32, 32), colour).save(folder / f"{number:04d}.png")
    return folder


def command(pictures: Path, out: Path) -> list[str]:
    return [sys.executable, "-m", "spacepatch", "plan", str(pictures), "--out", str(out)]


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_plan_that_was_killed_goes_on_with_what_it_has_probed(pictures, tmp_path) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    subprocess.run(command(pictures, whole), check=True, capture_output=True)
    parts = out / ".spacepatch" / planning.PARTS
    process = subprocess.Popen(
        command(pictures, out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while not list(parts.glob("*.parquet")) and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it was killed before its end"
    kept = [row for part in parts.glob("*.parquet") for row in parquet.read_table(part).to_pylist()]
    assert 0 < len(kept) < NUMBER
    # Were one of these looked at again, it would be lost.
    for row in kept:
        path = pictures / row["source"]
        original = path.read_bytes()
        path.write_bytes(bytes(len(original)))
        os.utime(path)
        row["original"] = original
    try:
        done = subprocess.run(command(pictures, out), check=True, capture_output=True, text=True)
    finally:
        for row in kept:
            (pictures / row["source"]).write_bytes(row["original"])
    assert f"{NUMBER:,} sources" in done.stdout
    for name in ("plan.parquet", "plan.json"):
        assert sha256(out / name) == sha256(whole / name)
    assert not parts.exists()


def test_parts_that_cannot_be_read_and_lost_probes_are_probed_again(pictures, tmp_path) -> None:
    """A part that the disk has lost, and one with a source whose probe hung."""
    config = load_config({})
    listing = list_sources([str(pictures)])
    folder = tmp_path / "parts"
    files = planning.PartFiles(folder)
    part = next(planning.cut_into_parts(listing.sources, settings="x"))
    part.rows = {place: [{"reason": "timeout"}] for place in range(len(part.sources))}
    files.write(part)
    assert not planning.PartFiles(folder).has(part.name)
    part.rows = {place: [{"reason": "unreadable"}] for place in range(len(part.sources))}
    files.write(part)
    assert planning.PartFiles(folder).has(part.name)
    (kept,) = folder.glob("*.parquet")
    kept.write_bytes(kept.read_bytes()[:-10])
    assert not planning.PartFiles(folder).has(part.name)
    assert config.probe is None


def test_one_source_more_changes_no_part_but_its_own(pictures) -> None:
    sources = list(list_sources([str(pictures)]).sources)
    before = [part.name for part in planning.cut_into_parts(sources, settings="x")]
    assert len(before) > 1
    after = [part.name for part in planning.cut_into_parts(sources[1:], settings="x")]
    assert before[1:] == after[1:]
    assert before[0] != after[0]
    other = [part.name for part in planning.cut_into_parts(sources, settings="y")]
    assert not set(other) & set(before)


def test_an_old_plan_is_refused_by_name(sample_clips, tmp_path) -> None:
    make_plan([str(sample_clips)], config=load_config({}), out=tmp_path)
    document = json.loads((tmp_path / "plan.json").read_text())
    del document["tasks"]
    (tmp_path / "plan.json").write_text(json.dumps(document))
    done = subprocess.run(
        [sys.executable, "-m", "spacepatch", "finish", str(tmp_path)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "older spacepatch; use --overwrite" in done.stderr
    assert "Traceback" not in done.stderr
