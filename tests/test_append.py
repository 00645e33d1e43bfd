"""A later run adds what is new to a dataset, and does nothing again that is done."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet
import pytest
from conftest import SpacepatchCli
from PIL import Image
from ranked_runs import digests
from small_runs import copied

from spacepatch.config import load_config
from spacepatch.errors import ConfigError, ResumeError, ShardError
from spacepatch.inspection import summarize, verify
from spacepatch.loader import PackDataset
from spacepatch.pipeline import Watch, join_ranks, make_plan, repack, tokenize, tokenize_rank
from spacepatch.ranks import Rank

SETTINGS = {"fps": "8", "max_tokens_per_frame": 16, "pack_length": 64, "shard_size": "1kB"}
A, B, C = "square_320x320.mp4", "odd_size_321x179_vp9.webm", "landscape_640x360.mp4"


@pytest.fixture
def videos(sample_clips: Path, tmp_path: Path) -> Path:
    return copied(sample_clips, tmp_path / "videos", (A, B))


def append(source: Path | str, out: Path, **settings: Any) -> tuple[Any, list[str]]:
    """What came of it, and its notes."""
    notes: list[str] = []
    config = load_config(SETTINGS | {"workers": 1} | settings)
    watch = Watch(on_note=notes.append)
    return tokenize([str(source)], out=out, config=config, append=True, watch=watch), notes


def changes(*, new: int = 0, changed: int = 0, moved: int = 0, removed: int = 0) -> list[str]:
    return [
        f"sources since the last plan: {new} new, {changed} changed, {moved} moved, "
        f"{removed} removed"
    ]


def rows(out: Path, name: str) -> list[dict[str, Any]]:
    return parquet.read_table(out / name).to_pylist()


def made_of(out: Path) -> Counter[str]:
    """Segments by the names of their sources; each id once, in table and loader."""
    table = rows(out, "segments.parquet")
    ids = [row["segment_id"] for row in table]
    assert len(ids) == len(set(ids))
    assert len({(row["source_id"], row["clip"], row["view"]) for row in table}) == len(table)
    seen = [segment["segment_id"] for pack in PackDataset(out) for segment in pack["segments"]]
    assert sorted(seen) == sorted(ids)
    return Counter(row["source"] for row in table)


def stamps(out: Path) -> dict[str, tuple[int, str]]:
    """Of the files of shards: when they were written, and their sha256."""
    return {
        path.name: (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in out.iterdir()
        if path.is_file() and (path.name.startswith("plan") or "-0" in path.name)
    }


def plans_of(out: Path) -> Any:
    return json.loads((out / "dataset.json").read_text())["plans"]


def test_what_is_new_changed_or_copied_is_done_and_what_moved_or_is_gone_is_not(
    sample_clips: Path, videos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copy(sample_clips / C, videos / "gone.mp4")
    shutil.copy(sample_clips / C, videos / "same_size.mp4")
    shutil.copy(sample_clips / C, videos / "copied.mp4")
    assert append(videos, out)[1] == []
    before = stamps(out)
    segments = made_of(out)
    assert segments.keys() == {A, B, "gone.mp4", "same_size.mp4", "copied.mp4"}

    (videos / "gone.mp4").unlink()
    content = bytearray((videos / "same_size.mp4").read_bytes())
    content[-1] ^= 1
    (videos / "same_size.mp4").write_bytes(content)
    with (videos / A).open("ab") as file:
        file.write(bytes(8))
    (videos / B).rename(videos / "moved.webm")
    for name in ("copy_1.mp4", "copy_2.mp4"):
        shutil.copy(videos / "copied.mp4", videos / name)
    shutil.copy(sample_clips / "portrait_270x480.mp4", videos / "new.mp4")
    _, notes = append(videos, out)
    # One of the two copies has the content of what is gone: that has moved there.
    assert notes == changes(new=2, changed=2, moved=2)

    assert before.items() <= stamps(out).items()
    assert plans_of(out) == ["plan.parquet", "plan-000001.parquet"]
    after = made_of(out)
    assert after - segments == Counter(
        {
            A: segments[A],
            "same_size.mp4": segments["same_size.mp4"],
            "new.mp4": after["new.mp4"],
            "copy_2.mp4": segments["copied.mp4"],
        }
    )
    assert segments - after == Counter()
    assert verify(out) == []
    assert summarize(out)["totals"]["sources"] == 9

    with (videos / "moved.webm").open("ab") as file:
        file.write(bytes(8))
    assert append(videos, out)[1] == changes(changed=1)
    assert made_of(out)["moved.webm"] == segments[B]
    unread = stamps(out), digests(out)
    assert append(videos, out)[1] == changes()
    assert (stamps(out), digests(out)) == unread
    # The same as what the last generation was made of: to go on needs no --append.
    config = load_config(SETTINGS | {"workers": 1})
    tokenize([str(videos)], out=out, config=config)
    assert digests(out) == unread[1]
    (videos / "copied.mp4").unlink()
    with pytest.raises(ResumeError, match="not those of the last --append"):
        tokenize([str(videos)], out=out, config=config)


def test_what_is_planned_needs_not_be_there_any_more(
    sample_clips: Path, videos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    append(videos, out)
    before = stamps(out)
    (videos / A).unlink()
    (videos / B).unlink()
    for number, name in enumerate((C, "portrait_270x480.mp4"), 1):
        shutil.copy(sample_clips / name, videos)
        assert append(videos, out)[1] == changes(new=1, removed=2)
        assert len(plans_of(out)) == number + 1
        assert made_of(out).keys() >= {A, B, name}
        assert verify(out) == []
    assert before.items() <= stamps(out).items()
    assert append(tmp_path / "videos", out)[1] == changes(removed=2)

    config = load_config(SETTINGS | {"workers": 1})
    plans = [path.name for path in sorted(out.glob("plan*"))]
    assert plans == [f"plan{n}.{end}" for n in ("-000001", "-000002", "") for end in ENDINGS]
    tokenize([str(videos)], out=out, config=config, overwrite=True)
    assert [path.name for path in sorted(out.glob("plan*"))] == ["plan.json", "plan.parquet"]
    assert made_of(out).keys() == {C, "portrait_270x480.mp4"}
    assert verify(out) == []


ENDINGS = ("json", "parquet")


def test_of_a_manifest_the_ranges_that_are_new_are_done_and_files_that_came_later(
    videos: Path, tmp_path: Path
) -> None:
    out, manifest = tmp_path / "out", tmp_path / "clips.csv"
    late = (videos / B).rename(tmp_path / B)
    lines = ["uri,start,end,caption", f"videos/{A},0,0.5,one", f"videos/{A},1,1.5,two"]
    manifest.write_text("\n".join([*lines, f"videos/{B},,,late"]))
    append(manifest, out)
    assert made_of(out) == {f"videos/{A}": 2}
    before = stamps(out)

    late.rename(videos / B)
    lines[1:1] = [f"videos/{A},2,2.5,three"]
    manifest.write_text("\n".join([*lines, f"videos/{B},,,another caption"]))
    assert append(manifest, out)[1] == changes(changed=2)
    assert made_of(out)[f"videos/{A}"] == 3
    captions = [json.loads(row["extra"])["caption"] for row in rows(out, "segments.parquet")]
    assert set(captions) == {"another caption", "one", "three", "two"}
    assert before.items() <= stamps(out).items()
    assert verify(out) == []
    manifest.write_text("\n".join([lines[0], lines[3], f"videos/{B},,,captions alone"]))
    assert append(manifest, out)[1] == changes()


def start(source: Path, out: Path, *more: str) -> subprocess.Popen[str]:
    options = [f"--{key.replace('_', '-')}={value}" for key, value in SETTINGS.items()]
    command = [sys.executable, "-m", "spacepatch", "tokenize", str(source), "--out", str(out)]
    return subprocess.Popen(
        [*command, *options, "--workers=1", *more],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        start_new_session=True,
    )


@pytest.fixture
def grown(sample_clips: Path, videos: Path, tmp_path: Path) -> Path:
    """A dataset of one generation, to whose videos another one has come."""
    append(videos, tmp_path / "out")
    shutil.copy(sample_clips / C, videos)
    return tmp_path / "out"


@pytest.fixture
def whole(grown: Path, videos: Path, tmp_path: Path) -> Path:
    """What an append without trouble makes of it."""
    out = shutil.copytree(grown, tmp_path / "whole")
    append(videos, out)
    return out


def test_an_append_that_was_killed_goes_on_to_the_same_bytes(
    grown: Path, whole: Path, videos: Path
) -> None:
    old = digests(grown)
    process = start(videos, grown, "--append")
    first = len(list(grown.glob("*-0*.tar")))
    while len(list(grown.glob("*-0*.tar"))) == first:
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    # Readers have the former state, whole.
    assert digests(grown).items() > old.items()
    assert made_of(grown).keys() == {A, B}
    assert summarize(grown)["totals"]["sources"] == 2
    (problem,) = verify(grown)
    assert problem.where == "plan-000001.json"
    assert "not finished" in problem.what
    assert append(videos, grown)[1] == changes()
    assert digests(grown) == digests(whole)
    assert verify(grown) == []


@pytest.mark.parametrize("left", ["plan-000001.parquet", "plan-000001.json"])
def test_what_a_crash_between_two_files_leaves_is_gone_on_with(
    grown: Path, whole: Path, videos: Path, left: str
) -> None:
    for name in ["plan-000001.parquet", "plan-000001.json"]:
        shutil.copy(whole / name, grown)
        if name == left:
            break
    assert [problem.where for problem in verify(grown)] == [left]
    assert append(videos, grown)[1] == changes(new=1 if left.endswith("parquet") else 0)
    assert digests(grown) == digests(whole)


def test_ranks_do_what_is_left_of_all_generations(grown: Path, whole: Path, videos: Path) -> None:
    sources, config = [str(videos)], load_config(SETTINGS | {"workers": 1})
    assert len(make_plan(sources, out=grown, config=config, append=True).generations) == 2
    with pytest.raises(ConfigError, match="append"):
        make_plan(sources, config=config, append=True)
    tokenize_rank(sources, out=grown, config=config, rank=Rank(1, 2))
    # Nothing that it lists was to be done: the former dataset is still there.
    assert plans_of(grown) == ["plan.parquet"]
    for receipt in list(grown.glob("*-000000.json")):
        receipt.unlink()
    tokenize_rank(sources, out=grown, config=config, rank=Rank(0, 2))
    assert not (grown / "dataset.json").exists()
    join_ranks(grown)
    assert digests(grown) == digests(whole)


def test_what_the_first_generation_has_left_is_done_from_where_it_lies_now(
    sample_clips: Path, videos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    make_plan([str(videos)], out=out, config=load_config(SETTINGS | {"workers": 1}))
    (videos / A).rename(videos / "moved.mp4")
    (videos / B).unlink()
    shutil.copy(sample_clips / C, videos)
    process = start(videos, out, "--append")
    assert "1 new, 0 changed, 1 moved, 1 removed" in process.communicate()[1]
    assert process.returncode == 3
    assert made_of(out).keys() == {A, C}
    assert {row["source"] for row in rows(out, "losses.parquet")} == {B}
    assert verify(out) == []


def test_a_repack_of_several_generations_has_the_same_tokens_and_one_plan(
    whole: Path, tmp_path: Path
) -> None:
    repack(whole, out=tmp_path / "again", pack_length=128)
    assert plans_of(tmp_path / "again") == ["plan.parquet"]
    assert made_of(tmp_path / "again") == made_of(whole)
    sums = [
        {row["segment_id"]: row["tokens_crc32c"] for row in rows(out, "segments.parquet")}
        for out in (whole, tmp_path / "again")
    ]
    assert sums[0] == sums[1]
    assert verify(tmp_path / "again") == []


def test_a_later_plan_that_is_damaged_is_named(whole: Path, videos: Path) -> None:
    table = whole / "plan-000001.parquet"
    content = table.read_bytes()
    table.write_bytes(content + b"\0")
    (problem,) = [each for each in verify(whole) if each.where == table.name]
    assert "is not the file that plan-000001.json names" in problem.what
    table.write_bytes(content)
    document = json.loads((whole / "plan-000001.json").read_text())
    document["generation"]["first_plan_id"] = "0" * 32
    (whole / "plan-000001.json").write_text(json.dumps(document))
    with pytest.raises(ShardError, match=r"plan-000001\.json: is of another dataset"):
        append(videos, whole)


def test_a_grid_too_long_for_the_positions_of_the_dataset_is_refused_by_name(
    tmp_path: Path,
) -> None:
    pictures, out = tmp_path / "pictures", tmp_path / "out"
    pictures.mkdir()
    asked = {"patch": "1x8x1", "pixels": "64..6000000", "pack_length": 700_000}
    config = load_config({"fps": "1", "workers": 1} | asked)
    Image.new("RGB", (64, 8)).save(pictures / "small.png")
    make_plan([str(pictures)], out=out, config=config, append=True)
    Image.new("RGB", (33_000, 168)).save(pictures / "wide.png")
    with pytest.raises(ConfigError, match=r"wide\.png: 33,000 cells .* int32"):
        make_plan([str(pictures)], out=out, config=config, append=True)
    assert sorted(path.name for path in out.glob("plan*")) == ["plan.json", "plan.parquet"]


def test_an_append_wants_the_settings_of_the_dataset_and_no_overwrite(
    grown: Path, videos: Path, spacepatch_cli: SpacepatchCli
) -> None:
    with pytest.raises(ResumeError, match="fps was '8', is '3'"):
        append(videos, grown, fps="3")
    refused = spacepatch_cli("tokenize", videos, "--out", grown, "--append", "--overwrite")
    assert refused.returncode == 2
    assert "--overwrite removes it" in refused.stderr
