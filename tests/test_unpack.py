"""`spacepatch unpack`: the frames that were cut into tokens, as files."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from conftest import SpacepatchCli
from small_runs import copied, rows, run
from spoiled_shards import Shard
from stored_segments import scaled_frames
from unpacked_files import film_in, pictures_in, table_of, tree_of, unpacked

from spacepatch.errors import ConfigError, ResumeError, ShardError

CLIPS = ("square_320x320.mp4", "odd_size_321x179_vp9.webm", "variable_frame_rate_480x270.mp4")


@pytest.fixture(scope="module")
def clips(sample_clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copied(sample_clips, tmp_path_factory.mktemp("clips"), CLIPS)


@pytest.fixture(scope="module")
def dataset(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dataset") / "out"
    run([clips], out, fps="5", clip_seconds="1", patch="2x16x16", shard_size="500kB", workers=1)
    return out


@pytest.fixture(scope="module")
def pngs(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pngs") / "frames"
    done = unpacked(dataset, out)
    assert done.num_segments == done.num_exact == len(rows(dataset, "segments.parquet"))
    return out


def test_unpacked_frames_are_the_resized_frames(dataset: Path, clips: Path, pngs: Path) -> None:
    stored = rows(dataset, "segments.parquet")
    assert len({(row["shard"], row["pack"]) for row in stored}) > 2
    assert any(row["padded_frames"] for row in stored)
    for row in stored:
        frames = pictures_in(pngs / row["segment_id"])
        assert list(frames) == list(range(len(row["frame_pts"]))), "and none that fills the end"
        expected = scaled_frames(clips / row["source"], row)
        np.testing.assert_array_equal(np.stack(list(frames.values())), expected)


def test_unpacked_frames_are_those_of_the_ffmpeg_command(
    ffmpeg: str, dataset: Path, clips: Path, tmp_path: Path
) -> None:
    name = "odd_size_321x179_vp9.webm"
    # Of this size FFmpeg 5 and 8 scale alike; of others within 2 levels, see test_frames.py.
    run([clips / name], tmp_path / "out", fps="4", max_tokens_per_frame=256, pack_length=8192)
    unpacked(tmp_path / "out", tmp_path / "frames")
    (row,) = table_of(tmp_path / "frames")
    height, width = row["size"]
    wanted = "+".join(f"eq(n\\,{index})" for index in row["frame_indices"])
    flags = "bicubic+full_chroma_int+full_chroma_inp+accurate_rnd+bitexact"
    chain = f"select='{wanted}',scale={width}:{height}:flags={flags},format=rgb24"
    options = ["-vf", chain, "-vsync", "0", "-f", "rawvideo", "-"]
    done = subprocess.run(
        [ffmpeg, "-v", "error", "-i", clips / name, *options], capture_output=True, check=True
    )
    expected = np.frombuffer(done.stdout, np.uint8).reshape(-1, height, width, 3)
    frames = pictures_in(tmp_path / "frames" / row["folder"])
    np.testing.assert_array_equal(np.stack(list(frames.values())), expected)


def test_the_table_says_what_each_folder_holds(dataset: Path, pngs: Path) -> None:
    stored = rows(dataset, "segments.parquet")
    table = table_of(pngs)
    assert [row["segment_id"] for row in table] == [row["segment_id"] for row in stored]
    for row, own in zip(table, stored, strict=True):
        assert row["folder"] == own["segment_id"]
        for key in ("source", "clip", "view", "size", "frame_pts", "padded_frames", "num_kept"):
            assert row[key] == own[key]
        base = Fraction(own["time_base"])
        assert row["frame_seconds"] == [float(pts * base) for pts in own["frame_pts"]]
        assert (row["lost_frames"], row["is_exact"]) == ([], True)
        found = json.loads((pngs / row["folder"] / "segment.json").read_text())
        assert found == row
    names = {path.name for path in pngs.iterdir()}
    assert names - {row["folder"] for row in table} == {
        "unpack.json",
        "unpacked.parquet",
        ".spacepatch",
    }


def test_a_lossless_mp4_has_the_same_values_at_the_same_times(
    dataset: Path, pngs: Path, tmp_path: Path
) -> None:
    done = unpacked(dataset, tmp_path / "frames", file_format="mp4-lossless")
    assert done.num_exact == done.num_segments
    for row in table_of(tmp_path / "frames"):
        frames, times, end = film_in(tmp_path / "frames" / row["folder"])
        expected = pictures_in(pngs / row["folder"])
        np.testing.assert_array_equal(frames, np.stack(list(expected.values())))
        base = Fraction(row["time_base"])
        pts = [entry - row["frame_pts"][0] for entry in row["frame_pts"]]
        if len(set(pts)) < len(pts):
            continue  # below
        assert times == [entry * base for entry in pts]
        steps = sorted(np.diff(pts).tolist())
        last = steps[(len(steps) - 1) // 2] * base if steps else 1
        assert end == times[-1] + last


def test_an_mp4_for_every_player_is_near_and_says_so(
    dataset: Path, pngs: Path, tmp_path: Path
) -> None:
    done = unpacked(dataset, tmp_path / "frames", file_format="mp4", pack="0")
    assert done.num_exact == 0
    for row in table_of(tmp_path / "frames"):
        assert row["is_exact"] is False
        frames, _, _ = film_in(tmp_path / "frames" / row["folder"])
        expected = np.stack(list(pictures_in(pngs / row["folder"]).values()))
        assert np.abs(frames.astype(int) - expected).mean() < 6


def test_frames_of_one_time_are_all_shown(clips: Path, tmp_path: Path) -> None:
    run([clips / CLIPS[2]], tmp_path / "out", fps="60", clip_seconds="0.5", pack_length=4096)
    row = max(rows(tmp_path / "out", "segments.parquet"), key=lambda row: row["repeated_frames"])
    assert row["repeated_frames"]
    segment = row["segment_id"]
    unpacked(tmp_path / "out", tmp_path / "film", file_format="mp4-lossless", segment=segment)
    frames, times, _ = film_in(tmp_path / "film" / segment)
    pts = np.array(row["frame_pts"])
    assert len(frames) == len(pts)
    base = Fraction(row["time_base"])
    assert all(after > before for before, after in pairwise(times))
    firsts = np.flatnonzero(np.diff(pts, prepend=pts[0] - 1))
    assert [times[k] for k in firsts] == [(int(pts[k]) - int(pts[0])) * base for k in firsts]


@pytest.mark.parametrize(
    "settings",
    [
        {
            "layout": "t p q c",
            "order": "merge 2 x 2",
            "multiple": 2,
            "views": 2,
            "patch": "2x16x16",
        },
        {"halo": 4, "patch": "1x16x16", "layout": "p q c"},
        {"patch": "1x32x32,2x8x8", "tail": "pad", "max_tokens_per_frame": 256},
        {"cut_to_fit": True, "pack_length": 256},
    ],
    ids=["merged views", "halo", "two patches", "cut to fit"],
)
def test_every_form_of_tokens_comes_back(clips: Path, tmp_path: Path, settings: dict) -> None:
    run([clips / name for name in CLIPS[:2]], tmp_path / "out", **settings)
    done = unpacked(tmp_path / "out", tmp_path / "frames")
    assert done.num_exact == done.num_segments > 1
    for row in rows(tmp_path / "out", "segments.parquet"):
        frames = np.stack(list(pictures_in(tmp_path / "frames" / row["segment_id"]).values()))
        expected = scaled_frames(clips / row["source"], row)
        np.testing.assert_array_equal(frames, expected)


def test_alpha_comes_back(shared: Path, tmp_path: Path) -> None:
    source = shared / "corpus" / "lilliput__party-discord.webp"
    run([source], tmp_path / "out", alpha=True, clip_seconds="1")
    unpacked(tmp_path / "out", tmp_path / "frames")
    row = table_of(tmp_path / "frames")[0]
    frames = pictures_in(tmp_path / "frames" / row["folder"])
    assert frames[0].shape == (*row["size"], 4)
    assert 0 in frames[0][..., 3]
    assert 255 in frames[0][..., 3]
    with pytest.raises(ConfigError, match="has no alpha, as these frames have: give png"):
        unpacked(tmp_path / "out", tmp_path / "film", file_format="mp4")


# --- starting again ----------------------------------------------------------------------------


@pytest.mark.parametrize("step", [4, 30])
def test_a_killed_run_goes_on_to_the_same_files(
    dataset: Path, pngs: Path, tmp_path: Path, step: int
) -> None:
    killer = str(Path(__file__).parent / "killed_at_step.py")
    words = ["unpack", str(dataset), "--out", str(tmp_path / "frames"), "--workers", "1"]
    done = subprocess.run([sys.executable, killer, str(step), *words], capture_output=True)
    assert done.returncode == -9, done.stderr
    assert not (tmp_path / "frames" / "unpacked.parquet").exists()
    unpacked(dataset, tmp_path / "frames")
    assert tree_of(tmp_path / "frames") == tree_of(pngs)
    assert [path.name for path in (tmp_path / "frames" / ".spacepatch").iterdir()] == ["lock"]


def test_a_folder_of_something_else_is_refused(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ResumeError, match=r"is not empty \(mine\.txt\); give a new or empty"):
        unpacked(dataset, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    unpacked(dataset, tmp_path / "frames", pack="0")
    with pytest.raises(ResumeError, match="what another spacepatch unpack wrote"):
        unpacked(dataset, tmp_path / "frames", pack="1")
    with pytest.raises(ConfigError, match="is a file; --out takes a folder"):
        unpacked(dataset, tmp_path / "mine.txt")


# --- which, and what goes wrong ----------------------------------------------------------------


def test_one_pack_or_segment_can_be_named(dataset: Path, tmp_path: Path) -> None:
    stored = rows(dataset, "segments.parquet")
    places = sorted({(row["shard"], row["pack"]) for row in stored})
    name = json.loads((dataset / "dataset.json").read_text())["name"]
    shard, pack = places[-1]
    own = [row["segment_id"] for row in stored if (row["shard"], row["pack"]) == places[-1]]
    for number, word in enumerate((str(len(places) - 1), f"{name}-{shard:06d}-{pack:06d}")):
        unpacked(dataset, tmp_path / str(number), pack=word)
        assert [row["segment_id"] for row in table_of(tmp_path / str(number))] == own
    unpacked(dataset, tmp_path / "one", segment=own[-1][:9])
    assert [row["segment_id"] for row in table_of(tmp_path / "one")] == own[-1:]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"pack": "99"}, r"has no pack 99: there are \d+, numbers 0 to \d+, or by key, such as"),
        ({"pack": "x"}, "has no pack x"),
        ({"segment": "zz"}, r"has no segment zz: there are \d+, such as [0-9a-f]{32}"),
        ({"segment": ""}, "has no segment"),
        ({"segment": "0", "pack": "0"}, "give one of them"),
        ({"file_format": "gif"}, "--format gif: is none of png, mp4, mp4-lossless"),
        ({"encoder": "linear:x"}, "these are pixels: leave it out"),
    ],
)
def test_what_cannot_be_unpacked_is_wrong_usage(
    dataset: Path, tmp_path: Path, more: dict, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        unpacked(dataset, tmp_path / "frames", **more)


def test_a_damaged_pack_costs_itself_alone(dataset: Path, pngs: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(dataset, tmp_path / "copy")
    shard = Shard.of(copy)
    content = bytearray(shard.tar.read_bytes())
    content[len(content) // 2] ^= 1
    shard.tar.write_bytes(content)
    with pytest.raises(
        ShardError, match=r"1 of \d+ packs cannot be unpacked.*\(crc32c.*The others"
    ):
        unpacked(copy, tmp_path / "frames")
    there = tree_of(tmp_path / "frames")
    whole = tree_of(pngs)
    assert there.items() <= whole.items()
    missing = {Path(name).parts[0] for name in whole.keys() - there.keys()}
    packs = {row["segment_id"]: (row["shard"], row["pack"]) for row in table_of_dataset(dataset)}
    assert len({packs[name] for name in missing - {"unpacked.parquet"}}) == 1
    shutil.copy(dataset / shard.tar.name, shard.tar)
    unpacked(copy, tmp_path / "frames")
    assert tree_of(tmp_path / "frames") == whole


def table_of_dataset(dataset: Path) -> list[dict]:
    return rows(dataset, "segments.parquet")


def test_the_command_says_what_it_wrote(
    spacepatch_cli: SpacepatchCli, dataset: Path, tmp_path: Path
) -> None:
    out = tmp_path / "frames"
    done = spacepatch_cli("unpack", dataset, "--out", out, "--pack", "0")
    row = table_of(out)
    frames = sum(len(entry["frame_pts"]) for entry in row)
    assert done.returncode == 0
    assert done.stdout == f"{out}: {frames} frames of {len(row)} segments, all exact\n"
    done = spacepatch_cli("unpack", dataset, "--out", out, "--pack", "0", "--json")
    assert json.loads(done.stdout)["num_exact"] == len(row)
    done = spacepatch_cli("unpack", "--help")
    assert "Example:  spacepatch unpack" in done.stdout.rstrip().splitlines()[-1]


def test_what_is_no_finished_dataset_is_said(dataset: Path, tmp_path: Path) -> None:
    unfinished = shutil.copytree(dataset, tmp_path / "unfinished")
    (unfinished / "dataset.json").unlink()
    for folder, said in (
        (tmp_path, "is no output folder of spacepatch"),
        (tmp_path / "none", "no such file or folder"),
        (unfinished, "is no finished dataset"),
    ):
        with pytest.raises(ShardError, match=said):
            unpacked(folder, tmp_path / "frames")
    assert not (tmp_path / "frames").exists()
