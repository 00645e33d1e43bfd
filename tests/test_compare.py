"""What `spacepatch compare` says, held against pyarrow, tarfile and scipy alone."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
import pytest
from conftest import SpacepatchCli
from encoded_runs import codec
from small_runs import make_dataset
from spoiled_shards import unfinish

from spacepatch.errors import MissingDependencyError, ShardError
from spacepatch.inspection import compare, distances, folders
from spacepatch.pipeline import convert

stats = pytest.importorskip("scipy.stats", reason="scipy is not installed")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compared")


@pytest.fixture(scope="module")
def faster(sample_clips: Path, place: Path) -> Path:
    """`pristine` at another rate."""
    return make_dataset([sample_clips], place / "faster", fps="3")


@pytest.fixture(scope="module")
def fewer(sample_clips: Path, place: Path) -> Path:
    """A part of its sources; under one of their names lies another video."""
    folder = place / "clips"
    folder.mkdir()
    for name in ("square_320x320.mp4", "portrait_270x480.mp4"):
        (folder / name).symlink_to(sample_clips / name)
    (folder / "landscape_640x360.mp4").symlink_to(sample_clips / "ultrawide_960x270.mp4")
    return make_dataset([folder], place / "fewer", fps="2")


def rows(folder: Path, table: str = "segments") -> list[dict[str, Any]]:
    return parquet.read_table(folder / f"{table}.parquet").to_pylist()


def test_a_dataset_made_twice_is_the_same_and_needs_no_scipy(
    pristine: Path, sample_clips: Path, tmp_path: Path, without_scipy: None
) -> None:
    again = make_dataset([sample_clips], tmp_path / "again", fps="2", workers=1)
    found = compare(pristine, again)
    assert found["same"]
    assert found["first"]["plan_id"] == found["second"]["plan_id"]
    assert [key for key, value in found.items() if value is None] == (
        "fields totals sources segments losses distributions channels".split()
    )


def test_distances_are_those_of_scipy_between_all_values(pristine: Path, faster: Path) -> None:
    values: dict[str, list[np.ndarray]] = {}
    for folder in (pristine, faster):
        table = rows(folder)
        found = {
            "tokens": [row["num_kept"] for row in table],
            "duration_seconds": [
                (row["clip_stop_pts"] - row["clip_start_pts"]) * float(Fraction(row["time_base"]))
                for row in table
            ],
            "aspect_ratio": [row["size"][1] / row["size"][0] for row in table],
            "source_fps": [row["source_fps"] for row in table],
            "sampled_fps": [row["sampled_fps"] for row in table],
        }
        for name, numbers in found.items():
            known = [number for number in numbers if number is not None]
            values.setdefault(name, []).append(np.array(known, np.float64))
    compared = compare(pristine, faster)["distributions"]
    assert compared.keys() == values.keys()
    for name, (first, second) in values.items():
        entry = compared[name]
        assert entry["distance"] == pytest.approx(stats.wasserstein_distance(first, second)), name
        assert entry["first"]["mean"] == pytest.approx(first.mean()), name
        assert entry["second"]["known"] == len(second), name
        assert entry["second"]["unknown"] == len(rows(faster)) - len(second), name
    assert compared["tokens"]["distance"] > 100
    assert compared["sampled_fps"]["distance"] == 1
    assert compared["source_fps"]["first"]["unknown"] == 1  # the still picture


def test_settings_that_differ_are_named_and_segments_are_matched_across_them(
    pristine: Path, faster: Path
) -> None:
    found = compare(pristine, faster)
    assert found["fields"]["settings"] == {"fps": {"first": "2", "second": "3"}}
    assert list(found["fields"]["fingerprints"]) == ["token"]
    assert found["fields"]["environment"] == found["fields"]["encoder"] == {}
    segments, before, after = found["segments"], rows(pristine), rows(faster)
    assert (segments["first"], segments["second"]) == (len(before), len(after))
    crc = {row["source"]: row["tokens_crc32c"] for row in after}
    changed = sum(row["tokens_crc32c"] != crc[row["source"]] for row in before)
    assert (segments["both"], segments["changed"]) == (len(before), changed)
    assert changed == len(before) - 1  # the still picture has no rate
    documents = [json.loads((folder / "dataset.json").read_text()) for folder in (pristine, faster)]
    for key in ("tokens", "bytes", "frames_selected"):
        expected = {
            side: document["totals"][key]
            for side, document in zip(("first", "second"), documents, strict=True)
        }
        assert found["totals"][key] == expected
    assert found["losses"]["unreadable"] == {
        "first": {"rows": 1, "frames": 0},
        "second": {"rows": 1, "frames": 0},
    }


@pytest.mark.parametrize("batch_rows", [3, 16384])
def test_what_is_in_one_of_them_only_is_counted_and_named(
    pristine: Path, fewer: Path, monkeypatch: pytest.MonkeyPatch, batch_rows: int
) -> None:
    monkeypatch.setattr(folders, "BATCH_ROWS", batch_rows)
    found = compare(fewer, pristine)
    ours = {row["source"] for row in rows(fewer, "sources")}
    missing = [row["source"] for row in rows(pristine, "sources") if row["source"] not in ours]
    sources = found["sources"]
    assert (sources["both"], sources["only_in_first"]) == (3, 0)
    assert sources["only_in_second"] == len(missing)
    assert sources["examples"]["only_in_second"] == missing[:5]
    assert sources["examples"]["changed"] == ["landscape_640x360.mp4"]
    segments = found["segments"]
    columns = "source_id clip_start_pts clip_stop_pts time_base view".split()
    clips = {tuple(row[name] for name in columns) for row in rows(fewer)}
    held = {
        row["source"] for row in rows(pristine) if tuple(row[name] for name in columns) in clips
    }
    assert segments["both"] == len(held) == 2
    assert segments["changed"] == 0
    assert segments["only_in_second"] == len(rows(pristine)) - segments["both"]
    assert [row["source"] for row in segments["examples"]["only_in_second"]] == [
        row["source"] for row in rows(pristine) if row["source"] not in held
    ][:5]


def test_another_layout_has_the_same_segments_with_other_tokens(
    pristine: Path, tmp_path: Path
) -> None:
    convert(pristine, out=tmp_path / "other", layout="t p q c")
    found = compare(pristine, tmp_path / "other")
    assert found["fields"]["settings"]["layout"] == {"first": "c t p q", "second": "t p q c"}
    assert found["segments"]["both"] == found["segments"]["changed"] == len(rows(pristine))
    assert {entry["distance"] for entry in found["distributions"].values()} == {0}


# --- latents -----------------------------------------------------------------------------------


def channels_of(folder: Path, wanted: list[int]) -> np.ndarray:
    """``(n, 6)``: the latents of some packs, of layout `c t p q`, by tarfile."""
    found = []
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".tokens.npy"):
                    file = tar.extractfile(member)
                    assert file is not None
                    found.append(np.load(io.BytesIO(file.read())).astype(np.float64))
    chosen = [found[place].reshape(len(found[place]), 6, -1) for place in wanted]
    return np.concatenate([tokens.transpose(0, 2, 1).reshape(-1, 6) for tokens in chosen])


@pytest.fixture(scope="module")
def encoded(sample_clips: Path, place: Path) -> list[Path]:
    """Latents of other clips, in few packs and in many."""
    made = []
    for name, clips, pack_length in (
        ("few", ["square"], 16384),
        ("many", ["portrait", "ultrawide"], 64),
    ):
        made.append(
            make_dataset(
                [path for clip in clips for path in sample_clips.glob(f"{clip}_*")],
                place / name,
                encoder=codec(place / "codec"),
                fps="4",
                max_tokens_per_frame=64,
                pack_length=pack_length,
                clip_seconds="0.5",
                clip_stride="0.25",
            )
        )
    return made


def test_channels_of_latents_are_as_far_apart_as_scipy_says_of_the_sampled_packs(
    encoded: list[Path],
) -> None:
    counts = [
        json.loads((folder / "dataset.json").read_text())["totals"]["packs"] for folder in encoded
    ]
    assert counts[0] <= 16 < counts[1], counts
    found = compare(*encoded)["channels"]
    assert found["packs"] == {"first": counts[0], "second": 16}
    middles = [int((part + 0.5) * counts[1] / 16) for part in range(16)]
    samples = [channels_of(encoded[0], list(range(counts[0]))), channels_of(encoded[1], middles)]
    for channel, row in enumerate(found["channels"]):
        first, second = (sample[:, channel] for sample in samples)
        assert row["distance"] == pytest.approx(stats.wasserstein_distance(first, second))
        # Of everything that was written.
        assert row["first"]["mean"] == pytest.approx(first.mean())
        assert row["first"]["std"] == pytest.approx(first.std())
    assert len(found["channels"]) == 6


def test_pixels_and_latents_have_no_channels_to_compare(
    encoded: list[Path], pristine: Path, fewer: Path
) -> None:
    assert compare(pristine, fewer)["channels"] is None
    found = compare(pristine, encoded[0])
    assert found["channels"] is None
    assert found["fields"]["other"]["kind"] == {"first": "pixels", "second": "latents"}


def test_merged_values_are_counted_as_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distances, "MERGED_AT_ONCE", 7)
    generator = np.random.default_rng(0)
    parts = [generator.integers(0, 12, 5).astype(np.float64) for _ in range(40)]
    distribution = distances.Distribution()
    for part in parts:
        distribution.add(np.append(part, np.nan))
    values, counts = np.unique(np.concatenate(parts), return_counts=True)
    assert distribution.counted()[0].tolist() == values.tolist()
    assert distribution.counted()[1].tolist() == counts.tolist()
    assert distribution.num_unknown == 40


# --- mistakes, and the command -----------------------------------------------------------------


def test_without_scipy_what_differs_is_an_error_that_says_what_to_install(
    pristine: Path, fewer: Path, without_scipy: None
) -> None:
    with pytest.raises(MissingDependencyError, match=r"pip install 'spacepatch\[compare\]'"):
        compare(pristine, fewer)


def test_a_table_that_is_gone_is_named(pristine: Path, fewer: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(fewer, tmp_path / "copy")
    (copy / "sources.parquet").unlink()
    with pytest.raises(ShardError, match=r"copy/sources.parquet: missing"):
        compare(pristine, copy)


def test_a_clip_of_another_stretch_of_time_is_named_once(
    sample_clips: Path, tmp_path: Path, spacepatch_cli: SpacepatchCli
) -> None:
    clip, numbers = sample_clips / "square_320x320.mp4", []
    for name, seconds in (("a", "2"), ("b", "1")):
        make_dataset([clip], tmp_path / name, fps="2", clip_seconds=seconds)
        numbers.append({row["clip"] for row in rows(tmp_path / name)})
    assert numbers == [{0, 1}, {0, 1, 2, 3}]
    done = spacepatch_cli("compare", tmp_path / "a", tmp_path / "b")
    assert "0 in both, 0 of them with other tokens; 2 only in the first, 4 only" in done.stdout
    for number in range(2):
        line = f"  with another stretch of time: {clip.name} clip {number} view 0\n"
        assert done.stdout.count(f"{clip.name} clip {number} ") == done.stdout.count(line) == 1
    for number in range(2, 4):
        assert f"  only in the second: {clip.name} clip {number} view 0\n" in done.stdout
    assert "only in the first:" not in done.stdout


def test_the_command_exits_as_diff_does(
    pristine: Path, fewer: Path, tmp_path: Path, spacepatch_cli: SpacepatchCli
) -> None:
    same = spacepatch_cli("compare", pristine, shutil.copytree(pristine, tmp_path / "copy"))
    assert (same.returncode, same.stdout.count("are the same")) == (0, 1)
    differ = spacepatch_cli("compare", pristine, fewer)
    assert differ.returncode == 1
    assert "other content: landscape_640x360.mp4" in differ.stdout
    assert "and 3 more" in differ.stdout
    # As if its run had been stopped.
    unfinish(tmp_path / "copy")
    failed = spacepatch_cli("compare", pristine, tmp_path / "copy")
    assert failed.returncode == 2
    assert len(failed.stderr.splitlines()) == 1
    assert "unfinished" in failed.stderr
