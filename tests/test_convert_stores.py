"""Conversion to another store: tokens left out, and made again of the sources."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SpacepatchCli
from encoded_runs import codec
from json_schemas import faults_of
from other_stores import CHECKED, made, restored
from small_runs import rows
from spoiled_shards import other_checksum
from stored_segments import digests, segments_of

from spacepatch.errors import ConfigError, ResumeError, SegmentError, ShardError
from spacepatch.inspection import verify
from spacepatch.loader import PackDataset
from spacepatch.pipeline import Restoring, convert, repack
from spacepatch.source_roots import ANY

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def tokens(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(videos, tmp_path_factory.mktemp("tokens") / "a")


@pytest.fixture(scope="module")
def planned(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(videos, tmp_path_factory.mktemp("planned") / "a", store="refs")


@pytest.fixture(scope="module")
def checked(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(videos, tmp_path_factory.mktemp("checked") / "a", **CHECKED)


# --- every way ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"drop": "random:0.5", "layout": "t p q c"},
        {"index": "compact", "mask": "random:0.75", "store_mask": True, "split": "a=0.6,b=0.4"},
        {"halo": 3, "cut_to_fit": True, "clip_seconds": "2"},
        {"views": "all", "patch": "1x32x32,1x16x16,2x8x8", "balance": "attention"},
        {"alpha": True, "random_crop": "0.3", "short_side": 64, "crop": "48x48",
         "max_tokens_per_frame": None},
    ],
)  # fmt: skip
def test_every_way_gives_the_bytes_of_tokenizing_so(
    sample_clips: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    tokens = made(sample_clips, tmp_path / "tokens", **settings)
    planned = made(sample_clips, tmp_path / "planned", **settings, store="refs")
    checked = made(sample_clips, tmp_path / "checked", **settings, **CHECKED)
    assert len(rows(tokens, "segments.parquet")) > 5
    convert(tokens, out=tmp_path / "a", store="refs")
    restored(planned, tmp_path / "b", sample_clips)
    restored(checked, tmp_path / "c", sample_clips)
    restored(planned, tmp_path / "d", sample_clips, "refs")
    for found, expected in (("a", checked), ("b", tokens), ("c", tokens), ("d", checked)):
        assert digests(tmp_path / found) == digests(expected), found


def test_static_tubelets_are_dropped_again(sample_clips: Path, tmp_path: Path) -> None:
    tokens = made(sample_clips, tmp_path / "a", drop="static", patch="2x16x16")
    convert(tokens, out=tmp_path / "b", store="refs")
    assert verify(tmp_path / "b") == []
    restored(tmp_path / "b", tmp_path / "c", sample_clips)
    assert digests(tmp_path / "c") == digests(tokens)


def test_videos_that_are_damaged_lose_as_much_again(corpus: Path, tmp_path: Path) -> None:
    damaged = ("derived__", "mediabunny__no-aud", "mediabunny__annex-b")
    names = sorted(path for path in corpus.iterdir() if path.name.startswith(damaged))
    settings = {"every_frame": True, "fps": None, "long": "skip"}
    tokens = made(names, tmp_path / "tokens", **settings)
    planned = made(names, tmp_path / "planned", **settings, store="refs")
    assert len(rows(planned, "losses.parquet")) < len(rows(tokens, "losses.parquet"))
    convert(tokens, out=tmp_path / "checked", store="refs")
    again = restored(planned, tmp_path / "again", corpus)
    restored(tmp_path / "checked", tmp_path / "back", corpus)
    assert digests(tmp_path / "again") == digests(tmp_path / "back") == digests(tokens)
    assert again.losses
    assert verify(tmp_path / "checked") == []


def test_references_are_a_small_part_of_the_tokens(tokens: Path, tmp_path: Path) -> None:
    convert(tokens, out=tmp_path / "a", store="refs")
    sizes = [sum(path.stat().st_size for path in f.glob("*.tar")) for f in (tmp_path / "a", tokens)]
    assert sizes[0] < sizes[1] / 50
    assert verify(tmp_path / "a") == []


def test_references_of_a_table_that_is_damaged_are_not_written(
    tokens: Path, tmp_path: Path
) -> None:
    bad = shutil.copytree(tokens, tmp_path / "bad")
    table = sorted(bad.glob("*-000000.segments.parquet"))[0]
    content = bytearray(table.read_bytes())
    content[200] ^= 1
    table.write_bytes(content)
    with pytest.raises(ShardError, match="sha256 differs from the receipt"):
        convert(bad, out=tmp_path / "x", store="refs")
    table.unlink()
    with pytest.raises(ShardError, match="missing or of another size"):
        convert(bad, out=tmp_path / "x", store="refs")


def packs_in(folder: Path) -> set[frozenset[str]]:
    """Which segments share a pack."""
    packs: dict[tuple[int, int], set[str]] = defaultdict(set)
    for row in rows(folder, "segments.parquet"):
        packs[row["shard"], row["pack"]].add(row["segment_id"])
    return {frozenset(pack) for pack in packs.values()}


# --- packs that were made of packs -------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"cut_to_fit": True, "clip_seconds": "2"}])
def test_repacked_references_become_the_repacked_tokens(
    videos: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    wish = {"pack_length": 768, "packer": "first-fit", "shard_size": "2MB"}
    tokens = made(videos, tmp_path / "tokens", **settings)
    repack(tokens, out=tmp_path / "repacked", **wish)
    convert(tmp_path / "repacked", out=tmp_path / "refs", store="refs")
    restored(tmp_path / "refs", tmp_path / "back", videos)
    assert digests(tmp_path / "back") == digests(tmp_path / "repacked")


@pytest.mark.parametrize("kind", [{"store": "refs"}, CHECKED])
def test_references_are_repacked_as_tokens_are(
    videos: Path, tmp_path: Path, kind: dict[str, Any]
) -> None:
    wish = {"pack_length": 768, "shard_size": "2MB", "balance": "attention"}
    refs = made(videos, tmp_path / "refs", **kind)
    tokens = made(videos, tmp_path / "tokens")
    repack(refs, out=tmp_path / "repacked", **wish)
    repack(tokens, out=tmp_path / "expected", **wish)
    assert verify(tmp_path / "repacked") == []
    if kind is CHECKED:
        convert(tmp_path / "expected", out=tmp_path / "left_out", store="refs")
        assert digests(tmp_path / "left_out") == digests(tmp_path / "repacked")
    restored(tmp_path / "repacked", tmp_path / "back", videos)
    assert digests(tmp_path / "back") == digests(tmp_path / "expected")
    loaded = PackDataset(tmp_path / "repacked", source_root=videos)
    for pack, stored in zip(loaded, PackDataset(tmp_path / "expected"), strict=True):
        assert (pack["tokens"] == stored["tokens"]).all()
        assert (pack["positions"] == stored["positions"]).all()


def test_references_of_frames_that_were_cut_again(videos: Path, tmp_path: Path) -> None:
    tokens = made(videos, tmp_path / "tokens", patch="1x16x16")
    convert(tokens, out=tmp_path / "cut", patch="1x8x8")
    convert(tmp_path / "cut", out=tmp_path / "refs", store="refs")
    assert verify(tmp_path / "refs") == []
    restored(tmp_path / "refs", tmp_path / "back", videos)
    assert verify(tmp_path / "back") == []
    found, expected = segments_of(tmp_path / "back"), segments_of(tmp_path / "cut")
    assert found.keys() == expected.keys()
    for name, segment in found.items():
        np.testing.assert_array_equal(segment.tokens, expected[name].tokens)
        for key in ("segment_id", "shard", "tokens_crc32c"):
            assert segment.row[key] == expected[name].row[key]
    assert packs_in(tmp_path / "back") == packs_in(tmp_path / "cut")


def test_a_source_that_is_gone_leaves_its_place_in_repacked_packs(
    videos: Path, tmp_path: Path
) -> None:
    refs = made(videos, tmp_path / "refs", store="refs", cut_to_fit=True, clip_seconds="2")
    repack(refs, out=tmp_path / "repacked", pack_length=768)
    fewer = shutil.copytree(videos, tmp_path / "fewer")
    (fewer / "square_320x320.mp4").unlink()
    done = restored(tmp_path / "repacked", tmp_path / "back", fewer)
    assert done.lost_sources == ("square_320x320.mp4",)
    assert verify(tmp_path / "back") == []
    names = {row["source"] for row in rows(tmp_path / "repacked", "segments.parquet")}
    left = {row["source"] for row in rows(tmp_path / "back", "segments.parquet")}
    assert names - left == {"square_320x320.mp4"}


# --- interrupted -------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["", ":SIGINT"])
def test_an_interrupted_conversion_goes_on_to_the_same_bytes(
    planned: Path, tokens: Path, videos: Path, tmp_path: Path, how: str
) -> None:
    command = [sys.executable, HERE / "killed_at_step.py"]
    words = ["convert", planned, "--store", "tokens", "--source-root", videos]
    words += ["--out", tmp_path / "a", "--workers", "2"]
    for step in (9, 14, 30):
        done = subprocess.run(
            [*command, f"{step}{how}", *words],
            capture_output=True,
            text=True,
            timeout=120,
            start_new_session=True,
            check=False,
        )
        assert done.returncode == (130 if how else -signal.SIGKILL), done.stderr
        assert not how or "the same command goes on" in done.stderr
        assert not (tmp_path / "a" / "dataset.json").exists()
    done = subprocess.run([*command, "0", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert digests(tmp_path / "a") == digests(tokens)


def test_what_is_there_is_not_made_again(planned: Path, videos: Path, tmp_path: Path) -> None:
    out = tmp_path / "a"
    restored(planned, out, videos)
    whole, times = digests(out), {path: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    assert len(times) > 1
    (out / "dataset.json").unlink()
    gone = sorted(times)[0]
    gone.with_suffix(".json").unlink()
    restored(planned, out, videos)
    assert digests(out) == whole
    again = {path for path, time in times.items() if path.stat().st_mtime_ns != time}
    assert again == {gone}
    with pytest.raises(ResumeError, match="holds another dataset"):
        restored(planned, out, videos, "refs")
    restored(planned, out, videos, "refs", overwrite=True)
    assert verify(out) == []


# --- sources that are others -------------------------------------------------------------------


def test_sources_that_are_gone_or_changed_are_losses(
    planned: Path, tokens: Path, videos: Path, tmp_path: Path
) -> None:
    others = shutil.copytree(videos, tmp_path / "others")
    (others / "square_320x320.mp4").unlink()
    shutil.copy(others / "landscape_640x360.mp4", others / "portrait_270x480.mp4")
    done = restored(planned, tmp_path / "a", others)
    reasons = {loss.source: loss.reason for loss in done.losses}
    assert reasons == {"square_320x320.mp4": "io", "portrait_270x480.mp4": "source_changed"}
    assert sorted(done.lost_sources) == ["portrait_270x480.mp4", "square_320x320.mp4"]
    assert verify(tmp_path / "a") == []
    # They come back: what is retryable is done again at once.
    shutil.copy(videos / "square_320x320.mp4", others)
    shutil.copy(videos / "portrait_270x480.mp4", others)
    done = restored(planned, tmp_path / "a", others, retry_lost=True)
    assert "square_320x320.mp4" not in done.lost_sources
    restored(planned, tmp_path / "a", others, overwrite=True)
    assert digests(tmp_path / "a") == digests(tokens)


def test_other_tokens_than_the_checksum_says(
    checked: Path, videos: Path, tokens: Path, tmp_path: Path
) -> None:
    refs, row = other_checksum(checked, tmp_path / "spoiled")
    words = f"{row['source']}: segment {row['segment_id']}: gives other tokens .*--on-mismatch warn"
    for _ in range(2):  # the next start finds it as well
        with pytest.raises(SegmentError, match=words) as error:
            restored(refs, tmp_path / "a", videos)
        assert error.value.reason == "other_tokens"
        assert not (tmp_path / "a" / "dataset.json").exists()
    done = restored(refs, tmp_path / "a", videos, on_mismatch="warn")
    assert done.other_tokens == 1
    assert digests(tmp_path / "a") == digests(tokens)
    # All is there: they are counted all the same.
    assert restored(refs, tmp_path / "a", videos, on_mismatch="warn").other_tokens == 1
    with pytest.raises(SegmentError, match=words):
        restored(refs, tmp_path / "a", videos)
    assert restored(checked, tmp_path / "b", videos).other_tokens == 0


# --- refused -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "wish", "words"),
    [
        ("tokens", {"store": "tokens"}, "is of store tokens already"),
        ("checked", {"store": "refs"}, "is of store refs, checked, already"),
        ("tokens", {"store": "gzip"}, "store: must be one of tokens, refs"),
        ("tokens", {"store": "refs", "layout": "t p q c"}, "--store: is converted by itself"),
        ("tokens", {"store": "refs", "pack_length": 512}, "--store: is converted by itself"),
        ("planned", {"layout": "t p q c"}, "convert --store tokens first"),
        ("checked", {"order": "merge 2 x 2"}, "convert --store tokens first"),
        ("planned", {"patch": "1x8x8"}, "convert --store tokens first"),
        ("planned", {"store": "tokens"}, "say where the sources of SOURCE argument 0 lie"),
        ("checked", {"store": "tokens"}, "--source-root 0=DIR"),
        ("tokens", {}, "give --to, --order, --patch or --store"),
        ("tokens", {"store": "refs", "restoring": Restoring(roots={ANY: "."})}, "leave it out"),
        ("tokens", {"layout": "p q c", "restoring": Restoring(roots={ANY: "."})}, "are for --st"),
        ("checked", {"store": "tokens", "restoring": Restoring(roots={ANY: "/no"})}, "/no"),
    ],
)
def test_a_wish_that_cannot_be_met_is_one_line(
    request: pytest.FixtureRequest, tmp_path: Path, source: str, wish: Any, words: str
) -> None:
    with pytest.raises(ConfigError, match=words) as error:
        convert(request.getfixturevalue(source), out=tmp_path / "x", **wish)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "x").exists()


def test_latents_are_stored_only(videos: Path, tmp_path: Path) -> None:
    latents = made(videos, tmp_path / "a", encoder=codec(tmp_path), patch="1x2x2", kind="latents")
    with pytest.raises(ConfigError, match="store refs is for pixels"):
        convert(latents, out=tmp_path / "x", store="refs")


def test_of_what_to_do_about_other_tokens_there_are_two_words() -> None:
    with pytest.raises(ConfigError, match="must be one of error, warn, not skip"):
        Restoring(on_mismatch="skip")


# --- the command -------------------------------------------------------------------------------


def test_the_command_says_what_it_made_and_lost(
    spacepatch_cli: SpacepatchCli, checked: Path, videos: Path, tmp_path: Path
) -> None:
    refs, row = other_checksum(checked, tmp_path / "spoiled")
    words = ("convert", refs, "--store", "tokens", "--source-root", f"0={videos}")
    wrong = spacepatch_cli(*words, "--out", tmp_path / "a")
    assert (wrong.returncode, wrong.stdout) == (1, "")
    planned, error = wrong.stderr.splitlines()
    assert planned.startswith("plan: 10 sources, ")
    assert error.startswith(f"error: {row['source']}: segment {row['segment_id']}: ")
    done = spacepatch_cli(*words, "--out", tmp_path / "a", "--on-mismatch", "warn")
    assert done.returncode == 0
    assert done.stderr.splitlines()[1:] == [
        "note: 1 segment with other tokens than the checksum said"
    ]
    assert f"{tmp_path / 'a'}: " in done.stdout

    fewer = shutil.copytree(videos, tmp_path / "fewer")
    (fewer / "square_320x320.mp4").unlink()
    lost = spacepatch_cli(
        *("convert", checked, "--store", "tokens", "--source-root", fewer, "--json"),
        *("--out", tmp_path / "b", "--workers", "1"),
    )
    assert lost.returncode == 3
    assert lost.stderr.splitlines()[-1] == (
        "lost: square_320x320.mp4 clip 0: io: cannot be read: No such file or directory "
        f"({json.loads(lost.stdout)['losses'][0]['num_frames']} frames)"
    )
    document = json.loads(lost.stdout)
    assert faults_of("convert", document) == []
    assert document["lost_sources"] == ["square_320x320.mp4"]
    assert document["other_tokens"] == 0


def test_a_setting_of_workers_is_for_what_decodes(
    spacepatch_cli: SpacepatchCli, tokens: Path, tmp_path: Path
) -> None:
    done = spacepatch_cli(
        *("convert", tokens, "--to", "t p q c", "--out", tmp_path / "x", "--workers", "2")
    )
    assert done.returncode == 2
    assert done.stderr == "error: workers is for --store: nothing else is decoded\n"
