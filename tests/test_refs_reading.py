"""Everything that looks at tokens, on datasets that hold references to their sources."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SpacepatchCli
from json_schemas import faults_of
from PIL import Image
from small_runs import rows, run
from spoiled_shards import Shard, flip_byte

from spacepatch.config import load_config
from spacepatch.errors import ConfigError, ShardError
from spacepatch.inspection import compare, summarize, verify
from spacepatch.inspection.decoded import Decoded
from spacepatch.inspection.decoding import decode_segments
from spacepatch.preview import preview
from spacepatch.report import report_dataset, write_page
from spacepatch.source_roots import ANY
from spacepatch.unpack import unpack

REFS = {"store": "refs"}
CHECKED = {"store": "refs", "checked": True}
SMALL = {"shard_size": "1MB", "pack_length": 512}
ALL = 2**20


def made(videos: Path, out: Path, **settings: Any) -> Path:
    run([videos], out, **(SMALL | settings))
    return out


def decoded(folder: Path, root: Path | None, wanted: int = ALL, **options: Any) -> Decoded:
    roots = {} if root is None else {ANY: str(root)}
    config = load_config({"workers": 2})
    return decode_segments(folder, num_segments=wanted, config=config, roots=roots, **options)


@pytest.fixture(scope="module")
def tokens(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(videos, tmp_path_factory.mktemp("tokens") / "a")


@pytest.fixture(scope="module")
def planned(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(videos, tmp_path_factory.mktemp("planned") / "a", **REFS)


@pytest.fixture(scope="module")
def checked(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(videos, tmp_path_factory.mktemp("checked") / "a", **CHECKED)


# --- verify --decode ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"drop": "random:0.5", "order": "merge 2 x 2", "multiple": 2},
        {"cut_to_fit": True, "clip_seconds": "2", "halo": 2},
        {"mask": "random:0.75", "store_mask": True, "views": "all", "patch": "1x32x32,2x16x16"},
    ],
)
def test_references_are_made_again_and_held_to_their_checksums(
    videos: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    folder = made(videos, tmp_path / "a", **CHECKED, **settings)
    found = decoded(folder, videos)
    assert found.problems == []
    number = len(rows(folder, "segments.parquet"))
    assert len(found.segments) == found.num_same == found.num_sound == number
    whole = [s for s in found.segments if s.row["num_kept"] == s.row["num_tokens"]]
    assert all(segment.psnr == float("inf") for segment in whole)
    assert bool(whole) == ("drop" not in settings)


def test_references_without_checksums_are_held_to_their_numbers(
    planned: Path, videos: Path
) -> None:
    found = decoded(planned, videos)
    assert found.problems == []
    assert (found.num_same, found.num_sound) == (0, len(found.segments))
    assert all(segment.found.is_same is None for segment in found.segments)


def test_another_checksum_is_a_problem_that_names_its_segment(
    checked: Path, videos: Path, tmp_path: Path
) -> None:
    shard = Shard.of(shutil.copytree(checked, tmp_path / "a"))
    changed: list[dict[str, Any]] = []

    def change(own: list[dict[str, Any]]) -> None:
        own[0]["tokens_crc32c"] ^= 1
        changed.append(own[0])

    shard.edit_rows(change)
    shard.seal()
    assert verify(shard.folder) == []
    found = decoded(shard.folder, videos)
    (wrong,) = [segment for segment in found.segments if segment.problem]
    assert wrong.segment_id == changed[0]["segment_id"]
    assert wrong.found.is_same is False
    assert "gives other tokens than tokens_crc32c says" in wrong.problem
    assert found.num_sound == len(found.segments) - 1


def test_fewer_tokens_than_were_planned_are_a_problem(corpus: Path, tmp_path: Path) -> None:
    folder = tmp_path / "a"
    run([corpus / "mediabunny__annex-b.mp4"], folder, every_frame=True, fps=None, **REFS)
    found = decoded(folder, corpus)
    (problem,) = found.problems
    assert re.search(r"gives \d+ tokens of the \d+ that .* \(corrupt_frames: ", problem.what)
    assert (found.num_same, found.num_sound) == (0, 0)


def test_sources_that_are_gone_or_changed_are_problems(planned: Path, videos: Path,
    tmp_path: Path) -> None:  # fmt: skip
    others = shutil.copytree(videos, tmp_path / "others")
    (others / "square_320x320.mp4").unlink()
    shutil.copy(others / "landscape_640x360.mp4", others / "portrait_270x480.mp4")
    problems = {s.source: s.problem for s in decoded(planned, others).segments if s.problem}
    assert sorted(problems) == ["portrait_270x480.mp4", "square_320x320.mp4"]
    assert "source_changed" in problems["portrait_270x480.mp4"]
    assert "its source is not in" in problems["square_320x320.mp4"]


@pytest.mark.parametrize("options", [{}, {"make_again": False, "num_shown": 2}])
def test_without_their_sources_nothing_can_be_made(planned: Path, options: Any) -> None:
    with pytest.raises(ConfigError, match=r"holds references, no tokens: .* --source-root 0=DIR"):
        decoded(planned, None, **options)


def test_a_pack_that_is_damaged_is_a_problem(planned: Path, videos: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(planned, tmp_path / "a")
    shard = Shard.of(folder)
    info, _ = shard.members[shard.place("segments.npy")]
    flip_byte(shard.tar, info.offset_data + 130)
    problems = decoded(folder, videos).problems
    assert problems
    assert all("is damaged" in problem.what for problem in problems)


# --- preview, unpack, inspect ------------------------------------------------------------------


def test_a_preview_is_drawn_of_the_sources(
    planned: Path, tokens: Path, videos: Path, tmp_path: Path
) -> None:
    pictures = []
    for folder in (planned, tokens):
        out = tmp_path / f"{folder.parent.name}.png"
        options = {"config": load_config({}), "roots": {ANY: str(videos)}, "pack": "0"}
        assert preview(folder, out=out, **options).problems == []
        pictures.append(np.asarray(Image.open(out)))
    np.testing.assert_array_equal(*pictures)


def test_a_preview_shows_the_mask_that_tokens_would_have(videos: Path, tmp_path: Path) -> None:
    settings = {"mask": "random:0.75", "store_mask": True}
    shown = []
    for name, store in (("refs", REFS), ("tokens", {})):
        folder = made(videos, tmp_path / name, **settings, **store)
        found = decoded(folder, videos, 3, make_again=False, num_shown=1)
        shown.append([segment.found.visible for segment in found.segments])
    # Which segments are drawn depends on the plan: each has a quarter that is seen.
    for masks in shown:
        assert all(0.2 < mask.mean() < 0.3 for mask in masks)


def test_what_cannot_be_had_without_sources_is_one_line(
    planned: Path, tmp_path: Path, spacepatch_cli: SpacepatchCli
) -> None:
    for words, code in (
        (("preview", planned, "--out", tmp_path / "a.png"), 2),
        (("verify", planned, "--decode", "2"), 2),
        (("unpack", planned, "--out", tmp_path / "frames"), 1),
    ):
        done = spacepatch_cli(*words)
        assert (done.returncode, done.stdout) == (code, ""), words
        assert done.stderr.startswith(f"error: {planned}: holds references, no tokens: ")
        assert done.stderr.count("\n") == 1
    with pytest.raises(ShardError, match="spacepatch convert --store tokens --source-root DIR"):
        unpack(planned, out=tmp_path / "frames", config=load_config({}))
    assert not (tmp_path / "frames").exists()


def test_the_command_says_how_references_were_checked(
    planned: Path, checked: Path, videos: Path, spacepatch_cli: SpacepatchCli
) -> None:
    for folder, state, same in ((planned, "as many", 0), (checked, "same", 3)):
        words = ("verify", folder, "--decode", "3", "--source-root", videos)
        done = spacepatch_cli(*words)
        assert done.returncode == 0, done.stderr
        assert len(re.findall(rf" {state}  ", done.stdout)) == 3
        assert f"3 of 3 segments are what is in their sources, {same} to the bit" in done.stdout
        document = json.loads(spacepatch_cli(*words, "--json").stdout)
        assert faults_of("verify", document) == []
        assert document["decoded"]["num_same"] == same


def test_inspect_says_what_is_stored(
    planned: Path, checked: Path, tokens: Path, spacepatch_cli: SpacepatchCli
) -> None:
    for folder, words in ((planned, "as planned"), (checked, "as checked")):
        shown = spacepatch_cli("inspect", folder).stdout
        assert (
            f"  stored    store refs, {words}: no tokens, they are made of the sources\n" in shown
        )
        document = json.loads(spacepatch_cli("inspect", folder, "--json").stdout)
        assert faults_of("inspect", document) == []
        assert document["tokens"]["store"] == "refs"
    assert "stored " not in spacepatch_cli("inspect", tokens).stdout
    assert summarize(planned)["decoders"] == []
    alone = spacepatch_cli("inspect", next(planned.glob("*.tar")))
    assert "  stored    store refs: no tokens" in alone.stdout, alone.stderr


def test_a_page_of_references_says_that_there_are_no_frames(
    planned: Path, checked: Path, tmp_path: Path
) -> None:
    for folder in (planned, checked):
        page = report_dataset(folder, summarize(folder))
        write_page(tmp_path / "page.html", page)
        text = (tmp_path / "page.html").read_text()
        assert "No frames: the shards hold references, and no tokens." in text
        assert "data:image/webp" not in text
        assert rows(folder, "segments.parquet")[0]["source"] in text


# --- compare -----------------------------------------------------------------------------------


def test_references_are_compared_by_what_is_known_of_their_tokens(
    planned: Path, checked: Path, tokens: Path
) -> None:
    number = len(rows(tokens, "segments.parquet"))
    found = compare(checked, tokens)
    assert found["fields"]["settings"]["store"] == {"first": "refs", "second": "tokens"}
    segments = found["segments"]
    assert (segments["both"], segments["changed"], segments["unchecked"]) == (number, 0, 0)
    for first, second in ((planned, tokens), (checked, planned)):
        document = compare(first, second)
        assert faults_of("compare", document) == []
        segments = document["segments"]
        assert (segments["both"], segments["changed"]) == (number, 0)
        assert segments["unchecked"] == number
    assert compare(planned, planned)["same"]


def test_other_tokens_of_references_are_told(checked: Path, tokens: Path, tmp_path: Path) -> None:
    shard = Shard.of(shutil.copytree(checked, tmp_path / "a"))

    def change(own: list[dict[str, Any]]) -> None:
        own[0]["tokens_crc32c"] ^= 1

    shard.edit_rows(change)
    shard.seal()
    assert compare(shard.folder, tokens)["segments"]["changed"] == 1


def test_the_command_counts_what_it_cannot_compare(
    planned: Path, tokens: Path, spacepatch_cli: SpacepatchCli
) -> None:
    done = spacepatch_cli("compare", planned, tokens)
    number = len(rows(tokens, "segments.parquet"))
    assert done.returncode == 1
    assert f"{number} in both, 0 of them with other tokens" in done.stdout
    assert f"  not compared: {number} without a checksum (references)\n" in done.stdout


# --- compressed --------------------------------------------------------------------------------


@pytest.mark.parametrize(("store", "is_exact"), [("compressed", True), ("compressed:35", False)])
def test_compressed_tokens_are_near_enough_to_their_sources(
    videos: Path, tmp_path: Path, store: str, is_exact: bool
) -> None:
    folder = made(videos, tmp_path / "a", store=store, halo=2)
    found = decoded(folder, videos)
    assert found.problems == []
    assert found.num_sound == len(found.segments)
    assert (found.num_same == len(found.segments)) == is_exact
    assert found.psnr is not None
    assert found.psnr >= 35
