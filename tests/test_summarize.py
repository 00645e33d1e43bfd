"""What `summarize` says of a dataset, held against its tables read by pyarrow alone."""

from __future__ import annotations

import json
import shutil
from fractions import Fraction
from pathlib import Path

import pyarrow.compute as compute
import pyarrow.parquet as parquet
import pytest
from conftest import SpacepatchCli
from small_runs import DATASET, make_dataset
from spoiled_shards import edit_json, found, tars, unfinish

from spacepatch.config import load_config
from spacepatch.errors import ShardError
from spacepatch.inspection import summarize, verify
from spacepatch.pipeline import make_plan
from spacepatch.shards import read_table


def test_a_summary_agrees_with_the_tables_read_by_pyarrow_alone(pristine: Path) -> None:
    summary = summarize(pristine)
    segments = parquet.read_table(pristine / "segments.parquet")
    sources = parquet.read_table(pristine / "sources.parquet")
    totals = summary["totals"]
    assert totals["segments"] == len(segments)
    assert totals["tokens"] == compute.sum(segments["num_kept"]).as_py()
    assert totals["frames_written"] == compute.sum(segments["valid_frames"]).as_py()
    assert totals["sources"] == len(sources)
    assert totals["sources_with_segments"] == len(segments["source_id"].unique())
    assert totals["frames_selected"] == compute.sum(sources["frames_selected"]).as_py()
    assert totals["frames_lost"] == compute.sum(sources["frames_lost"]).as_py()
    assert summary["aspect_error"]["max"] == compute.max(segments["aspect_error"]).as_py()
    mean = compute.mean(segments["aspect_error"]).as_py()
    assert summary["aspect_error"]["mean"] == pytest.approx(mean)


def test_a_summary_agrees_with_dataset_json(pristine: Path) -> None:
    summary = summarize(pristine)
    document = json.loads((pristine / "dataset.json").read_text())
    for key, value in summary["totals"].items():
        assert value == document["totals"][key], key
    shards = [{k: v for k, v in entry.items() if k != "fill"} for entry in summary["shards"]]
    assert shards == document["shards"]
    assert summary["settings"] == document["settings"]
    assert summary["environment"] == document["environment"]


@pytest.fixture(scope="module")
def varied(part_damaged: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of several patches and views, of which tokens were dropped and frames lost."""
    return make_dataset(
        part_damaged,
        tmp_path_factory.mktemp("varied") / "out",
        fps="4",
        patch="2x16x16,1x32x32",
        views="all",
        drop="random:uniform:0.2..0.8",
        mask="tube:0.9",
        normalize="imagenet",
    )


def test_dropped_tokens_are_those_of_the_rows_that_are_there(varied: Path) -> None:
    kept = there = 0
    for row in read_table(varied / "segments.parquet"):
        frames = range(len(row["frame_pts"]))
        rows = {frame // row["tubelet_size"] for frame in frames}
        # A lost row takes all of its frames along, and only the last one has fewer.
        lost = -(-row["corrupt_frames"] // row["tubelet_size"])
        there += (len(rows) - lost) * row["grid_thw"][1] * row["grid_thw"][2]
        kept += row["num_kept"]
    assert summarize(varied)["drop"] == {
        "policy": "random:uniform:0.2..0.8",
        "kept_tokens": kept,
        "dropped_tokens": there - kept,
    }
    assert 0.3 < kept / there < 0.7


def test_nothing_dropped_is_none_dropped(pristine: Path) -> None:
    drop = summarize(pristine)["drop"]
    assert drop["policy"] is None
    assert drop["dropped_tokens"] == 0
    assert drop["kept_tokens"] == summarize(pristine)["totals"]["tokens"]


def test_patches_views_and_widths_are_those_of_the_segments(varied: Path) -> None:
    segments = read_table(varied / "segments.parquet")
    summary = summarize(varied)
    for entry in summary["patches"]:
        shape = entry["tubelet_size"], entry["patch_size"]
        same = [row for row in segments if (row["tubelet_size"], row["patch_size"]) == shape]
        assert len(same) == entry["segments"]
    assert len(summary["patches"]) == summary["views"] == 2
    assert summary["tokens"]["token_widths"] == [3072, 1536]
    packs = [pair for shard in summary["shards"] for pair in shard["token_widths"]]
    assert sum(count for _, count in packs) == summary["totals"]["packs"]
    assert {width for width, _ in packs} == {3072, 1536}


def test_inspect_shows_what_tokens_are(varied: Path, spacepatch_cli: SpacepatchCli) -> None:
    said = spacepatch_cli("inspect", varied).stdout
    assert "1x32x32 (" in said
    assert "3072, 1536 x uint8 a token" in said
    assert "views     2" in said
    assert "%) by random:uniform:0.2..0.8" in said
    assert "mask      tube:0.9, made by the loader" in said
    assert "normalize imagenet" in said


def test_histograms_count_every_segment_once(pristine: Path) -> None:
    summary = summarize(pristine)
    segments = read_table(pristine / "segments.parquet")
    for name, bins in summary["histograms"].items():
        assert sum(entry["count"] for entry in bins) == len(segments), name
    for name, values in {
        "tokens": [row["num_kept"] for row in segments],
        "aspect_ratio": [row["size"][1] / row["size"][0] for row in segments],
        "source_fps": [row["source_fps"] for row in segments],
        "duration_seconds": [
            (row["clip_stop_pts"] - row["clip_start_pts"]) * float(Fraction(row["time_base"]))
            for row in segments
        ],
    }.items():
        for entry in summary["histograms"][name]:
            if entry["from"] is None:
                expected = sum(value is None for value in values)
            else:
                stop = entry["to"] or float("inf")
                expected = sum(v is not None and entry["from"] <= v < stop for v in values)
            assert entry["count"] == expected, (name, entry)


def test_losses_are_shown_by_reason_with_examples(pristine: Path) -> None:
    (loss,) = summarize(pristine)["losses"]
    assert loss["reason"] == "unreadable"
    assert loss["rows"] == 1
    assert loss["retryable"] is False
    assert loss["examples"][0]["source"] == "broken_on_purpose.mp4"
    assert loss["examples"][0]["message"]


def test_a_summary_is_json(pristine: Path) -> None:
    summary = summarize(pristine)
    assert json.loads(json.dumps(summary)) == summary


def test_a_shard_alone_tells_size_fps_patch_and_layout(pristine: Path, tmp_path: Path) -> None:
    tar = tars(pristine)[0]
    for path in pristine.glob(f"{tar.stem}.*"):
        shutil.copy(path, tmp_path)
    whole = summarize(pristine)
    for path in (tmp_path / tar.name, tmp_path / f"{tar.stem}.json"):
        summary = summarize(path)
        assert list(summary) == list(whole)
        assert summary["kind"] == "shard"
        assert summary["name"] == whole["name"]
        assert summary["tokens"] == whole["tokens"] | {"kind": None}
        assert summary["sampled_fps"] == {"min": 2.0, "max": 2.0}
        assert summary["sizes"]["most_common"][0]["size"]
        assert {row["matrix"] for row in summary["colour"]}
        assert summary["shards"] == whole["shards"][:1]
        json.dumps(summary)


def test_a_shard_without_its_other_files_says_so(pristine: Path, tmp_path: Path) -> None:
    tar = tars(pristine)[0]
    for name in (tar.name, f"{tar.stem}.json"):
        shutil.copy(pristine / name, tmp_path)
    with pytest.raises(ShardError, match="copy the four files"):
        summarize(tmp_path / tar.name)


def test_an_unfinished_folder_is_described(spoilable: Path) -> None:
    whole = summarize(spoilable)
    unfinish(spoilable)
    summary = summarize(spoilable)
    assert summary["finished"] is False
    assert summary["tasks"] == {"planned": 3, "done": 2}
    assert list(summary) == list(whole)
    assert summary["totals"]["sources"] == whole["totals"]["sources"]
    assert summary["shards"] == whole["shards"][1:]
    assert summary["losses"] == whole["losses"]
    totals = summary["totals"]
    assert totals["frames_selected"] == totals["frames_written"] + totals["frames_lost"]
    json.dumps(summary)


def test_a_plan_without_shards_is_described(sample_clips: Path, tmp_path: Path) -> None:
    make_plan([str(sample_clips)], config=load_config(DATASET | {"fps": "2"}), out=tmp_path / "p")
    summary = summarize(tmp_path / "p")
    assert summary["tasks"] == {"planned": 3, "done": 0}
    assert summary["totals"]["segments"] == 0
    assert found(verify(tmp_path / "p"), "plan.json", "0 of 3 tasks")


def test_a_shard_of_a_newer_format_is_refused_by_name_when_described(spoilable: Path) -> None:
    edit_json(spoilable / "dataset.json", lambda d: d.update(format_version=9))
    with pytest.raises(ShardError, match="format version 9"):
        summarize(spoilable)
