"""What `verify` says of clean, lossy, unfinished and foreign datasets, and of single shards."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_runs import make_dataset
from spoiled_shards import Shard, edit_json, flip_byte, flip_token, found, tars, unfinish

from spacepatch.errors import ShardError
from spacepatch.inspection import summarize, verify
from spacepatch.inspection.verification import check_overlaps
from spacepatch.pipeline import finish_run, read_plan
from spacepatch.pipeline.planfile import open_plan
from spacepatch.shards import read_table

NAMED = ("source_id", "source_root", "split")

CORRUPT = (
    "decord__corrupted.mp4",
    "derived__resolution_change_midstream.ts",
    "derived__truncated_faststart_half.mp4",
)
"""Videos of the corpus that lose some of their frames."""


def test_a_clean_dataset_has_no_problems(pristine: Path) -> None:
    assert verify(pristine) == []


def test_mending_alone_makes_no_problem(spoilable: Path) -> None:
    shard = Shard.of(spoilable)
    shard.edit_rows(lambda rows: None)
    shard.seal()
    assert verify(spoilable) == []


@pytest.mark.parametrize(
    "settings",
    [
        {"fps": "2", "split": "train=0.6,val=0.4"},
        {"fps": "8", "clip_seconds": "1", "clip_stride": "0.5", "pack_length": 4096},
        {"fps": "4", "cut_to_fit": True, "index": "compact", "pack_length": 1000},
        {"every_frame": True, "tail": "pad", "patch": "3x16x16", "short_side": 64},
        {"fps": "2", "pack_length": 16},
        {"fps": "3", "tail": "drop", "patch": "4x16x16"},
        {"fps": "6", "cut_to_fit": True, "clip_seconds": "0.7", "patch": "1x16x16"},
        {"num_frames": 16, "native": True, "pack_length": 65536},
    ],
    ids=[
        "splits",
        "overlapping windows",
        "cut to fit",
        "every frame",
        "nothing fits",
        "tail dropped",
        "windows cut to fit",
        "native",
    ],
)
def test_other_settings_verify_clean_and_are_described(
    sample_clips: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    out = make_dataset([sample_clips], tmp_path / "out", **settings)
    assert verify(out) == []
    summary = summarize(out)
    assert set(summary["splits"]) == ({"train", "val"} if "split" in settings else set())
    for bins in summary["histograms"].values():
        assert sum(entry["count"] for entry in bins) == summary["totals"]["segments"]


def test_overlapping_ranges_of_a_manifest_are_no_problem(
    sample_clips: Path, tmp_path: Path
) -> None:
    clip = next(path for path in sorted(sample_clips.iterdir()) if "landscape" in path.name)
    shutil.copy(clip, tmp_path / "a.mp4")
    (tmp_path / "list.csv").write_text("uri,start,end\na.mp4,0,2\na.mp4,1,3\nabsent.mp4,,\n")
    out = make_dataset([tmp_path / "list.csv"], tmp_path / "out", fps="4")
    assert verify(out) == []


def test_damaged_frames_are_accounted_for(corpus: Path, tmp_path: Path) -> None:
    sources = tmp_path / "sources"
    sources.mkdir()
    for name in CORRUPT:
        shutil.copyfile(corpus / name, sources / name)
    out = make_dataset([sources], tmp_path / "out", fps="8", pack_length=8192)
    assert verify(out) == []
    rows = read_table(out / "losses.parquet")
    assert {row["reason"] for row in rows} & {"corrupt_frames", "size_changed", "truncated"}
    summary = summarize(out)
    assert summary["totals"]["frames_lost"] == sum(row["num_frames"] for row in rows) > 0


def test_a_task_that_lost_everything_is_clean(spoilable: Path) -> None:
    plan = read_plan(spoilable)
    task, tar = plan.tasks[-1], tars(spoilable)[-1]
    losses = [
        {
            **{key: getattr(plan.sources[clip.source].source, key) for key in NAMED},
            "source": plan.sources[clip.source].source.name,
            "clip": clip.clip,
            "stage": "decode",
            "reason": "crash",
            "num_frames": len(clip.frame_pts),
            "num_tokens": clip.num_kept,
            "message": "the worker died",
        }
        for clip in task.clips
    ]
    lost = {"packs": 0, "segments": 0, "tokens": 0, "files": {}, "pack_crc32c": [], "observed": {}}
    lost |= {"pack_token_widths": []}
    edit_json(tar.with_suffix(".json"), lambda d: d.update(lost, losses=losses))
    for suffix in (".tar", ".index.npy", ".segments.parquet"):
        (spoilable / f"{tar.stem}{suffix}").unlink()
    finish_run(spoilable, open_plan(spoilable))
    assert verify(spoilable) == []
    summary = summarize(spoilable)
    assert summary["tasks"] == {"planned": 3, "done": 3}
    assert summary["totals"]["shards"] == 2
    assert {entry["reason"] for entry in summary["losses"]} == {"crash", "unreadable"}
    alone = summarize(tar.with_suffix(".json"))
    assert alone["totals"]["packs"] == 0
    edit_json(tar.with_suffix(".json"), lambda d: d["losses"].pop())
    assert found(verify(spoilable), tar.stem, "neither written nor lost")


def test_one_shard_verifies_with_and_without_its_dataset(spoilable: Path, tmp_path: Path) -> None:
    tar = tars(spoilable)[0]
    assert verify(tar) == []
    alone = tmp_path / "alone"
    alone.mkdir()
    for path in spoilable.glob(f"{tar.stem}.*"):
        shutil.copy(path, alone)
    assert verify(alone / tar.name) == []
    assert verify(alone / f"{tar.stem}.json") == []


def test_a_defect_of_one_shard_is_found_in_it_alone(spoilable: Path, tmp_path: Path) -> None:
    shard = Shard.of(spoilable)
    flip_token(shard)
    assert any("tokens_crc32c" in problem.what for problem in verify(shard.tar))
    others = [tar for tar in tars(spoilable) if tar != shard.tar]
    assert verify(others[0]) == []


def test_a_sample_reads_only_some_tars(spoilable: Path) -> None:
    stop = len(tars(spoilable)) - 1
    flip_byte(tars(spoilable)[stop], -5000)
    assert verify(spoilable)
    assert verify(spoilable, sample=1) == []
    assert verify(spoilable, sample=100) == verify(spoilable)


def test_clips_of_a_plan_that_overlap_are_found(pristine: Path) -> None:
    plan = read_plan(pristine)
    problems: list[str] = []
    check_overlaps(plan, problems.append)
    assert problems == []
    task = plan.tasks[0]
    again = replace(task.clips[0], clip=9, start_pts=task.clips[0].stop_pts - 1)
    spoilt = replace(task, clips=(*task.clips, again))
    check_overlaps(replace(plan, tasks=(spoilt, *plan.tasks[1:])), problems.append)
    assert len(problems) == 1
    assert "overlap" in problems[0]


def test_many_problems_of_one_file_are_counted_not_shown(spoilable: Path) -> None:
    shard = Shard.of(spoilable)
    for info, _ in shard.members:
        info.mode = 0o777
    shard.members *= 10
    shard.seal()
    problems = [problem for problem in verify(spoilable) if shard.tar.name in problem.where]
    assert len(problems) == 51
    assert problems[-1].what.startswith("and ")


# --- unfinished and foreign folders ------------------------------------------------------------


def test_an_unfinished_folder_says_how_far_it_is(spoilable: Path) -> None:
    unfinish(spoilable)
    problems = verify(spoilable)
    assert len(problems) == 1
    assert "not finished: 2 of 3 tasks" in problems[0].what


def test_an_unfinished_folder_has_its_shards_checked(spoilable: Path) -> None:
    unfinish(spoilable)
    flip_byte(tars(spoilable)[1], -5000)
    assert found(verify(spoilable), ".tar: pack", "crc32c differs")


@pytest.mark.parametrize("look", [summarize, verify])
def test_a_folder_that_is_none_of_ours_says_what_to_give(
    spoilable: Path, tmp_path: Path, look: Callable[[Path], Any]
) -> None:
    with pytest.raises(ShardError, match="give the folder that --out named"):
        look(tmp_path)
    with pytest.raises(ShardError, match="no such file or folder"):
        look(tmp_path / "absent")
    (tmp_path / "a.mp4").touch()
    with pytest.raises(ShardError, match=r"NAME-000000\.tar"):
        look(tmp_path / "a.mp4")
    (spoilable / "dataset.json").unlink()
    (spoilable / "plan.json").unlink()
    with pytest.raises(ShardError, match="or one of its shards, such as"):
        look(spoilable)
