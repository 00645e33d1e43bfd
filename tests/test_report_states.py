"""Reports of what is unfinished, lost or hostile: each says what to do next."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("vl_convert")
pytest.importorskip("jinja2")

from conftest import SpacepatchCli
from fitted_codecs import written
from report_pages import make_page, read_page
from small_runs import run

from spacepatch.errors import ConfigError
from spacepatch.report import check_page

HOSTILE = (
    '"><img src=x onerror=alert(1)>.mp4',
    # A folder named `<`, so that the name has a slash.
    "</script><script>alert(2)</script>.mp4",
    "<!--<script>{{ 7 * 7 }}${7}.mp4",
    "' onfocus=alert(3) autofocus='.mp4",
)


@pytest.fixture(scope="module")
def hostile(sample_clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of videos whose names are markup, and of one whose name is no text."""
    base = tmp_path_factory.mktemp("hostile")
    for name in (*HOSTILE, os.fsdecode(b"not utf8 \xff.mp4")):
        path = base / "videos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(sample_clips / "square_320x320.mp4", path)
    (base / "videos" / "<b>lost<b>.mp4").write_bytes(b"no video")
    run([base / "videos"], base / "out")
    return base / "out"


def test_names_of_files_never_become_markup(hostile: Path, tmp_path: Path) -> None:
    page = make_page(hostile, tmp_path / "page.html")
    tags = [tag for tag, _ in page.tags]
    assert tags.count("script") == 2 and not {"img", "b"} & {*tags}
    assert not [key for _, values in page.tags for key in values if key.startswith("on")]
    titles = {segment["title"].removesuffix(", clip 0") for segment in page.segments}
    assert {*HOSTILE} <= titles
    assert "<b>lost<b>.mp4" in page.text


def test_what_is_lost_whole_says_what_to_do(spacepatch_cli: SpacepatchCli, tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a.mp4").write_bytes(b"no video")
    run([tmp_path / "videos"], tmp_path / "out")
    page = make_page(tmp_path / "out", tmp_path / "page.html")
    assert "Everything was lost: none of 1 sources gave a segment." in page.text
    assert "tokenize again with --overwrite" in page.text and "unreadable" in page.text
    assert page.data["packs"] == []


def test_an_unfinished_run_is_shown_as_far_as_it_is(spoilable: Path, tmp_path: Path) -> None:
    shards = json.loads((spoilable / "dataset.json").read_text())["shards"]
    (spoilable / "dataset.json").unlink()
    for name in ("segments.parquet", "sources.parquet", "losses.parquet"):
        (spoilable / name).unlink()
    (spoilable / f"{shards[-1]['name']}.json").unlink()
    page = make_page(spoilable, tmp_path / "page.html")
    assert f"{len(shards) - 1} of {len(shards)} tasks are done" in page.text
    assert "The same spacepatch tokenize command goes on from here" in page.text
    assert all(segment["frames"] for segment in page.segments)


def test_one_shard_has_a_report_of_its_own(pristine: Path, tmp_path: Path) -> None:
    tar = sorted(pristine.glob("*.tar"))[0]
    page = make_page(tar, tmp_path / "page.html")
    assert "give the folder that it is of" in page.text
    assert {segment["frames"] != [] for segment in page.segments} == {True}


def test_a_damaged_tar_costs_its_frames_and_not_the_page(spoilable: Path, tmp_path: Path) -> None:
    for tar in spoilable.glob("*.tar"):
        content = bytearray(tar.read_bytes())
        content[len(content) // 4 :: 512] = bytes(len(content[len(content) // 4 :: 512]))
        tar.write_bytes(content)
    page = make_page(spoilable, tmp_path / "page.html")
    without = {segment["without"] for segment in page.segments if not segment["frames"]}
    assert any("is damaged (crc32c differs from the receipt)" in why for why in without)


def test_frames_of_latents_need_an_encoder(sample_clips: Path, tmp_path: Path) -> None:
    codec, out = f"linear:{written(tmp_path)}", tmp_path / "out"
    run([sample_clips / "square_320x320.mp4"], out, encoder=codec)
    page = make_page(out, tmp_path / "page.html")
    (why,) = {segment["without"] for segment in page.segments}
    assert why.endswith("say where it lies: --encoder linear:WHERE")
    assert "Mean ± standard deviation" in page.tables
    page = make_page(out, tmp_path / "page.html", encoder=codec)
    assert all(segment["frames"] for segment in page.segments)


def test_a_report_is_refused_where_it_cannot_be_written(tmp_path: Path) -> None:
    mine = tmp_path / "mine.html"
    mine.write_text("<p>written by hand</p>")
    (tmp_path / "folder.html").mkdir()
    for place, said in (
        (tmp_path / "nowhere" / "page.html", "there is no folder"),
        (tmp_path / "page.txt", "let it end in .html"),
        (tmp_path / "folder.html", "is a folder; --html takes a file here"),
        (mine, "no report of ours; give another --html"),
    ):
        with pytest.raises(ConfigError, match=said):
            check_page(place)


def test_what_is_no_dataset_or_no_latents_is_refused_before_a_page_is_written(
    pristine: Path, spacepatch_cli: SpacepatchCli, tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    done = spacepatch_cli("inspect", tmp_path, "--html", page)
    assert done.returncode == 1 and "give the folder that --out named" in done.stderr
    done = spacepatch_cli("inspect", pristine, "--html", page, "--encoder", "linear:a")
    assert done.returncode == 2 and "these are pixels: leave it out" in done.stderr
    done = spacepatch_cli("inspect", pristine, "--encoder", "linear:a")
    assert done.returncode == 2 and "give --html too" in done.stderr
    assert not page.exists()


def test_without_the_extra_it_says_what_to_install(pristine: Path, tmp_path: Path) -> None:
    program = (
        "import sys; sys.modules['vl_convert'] = None; "
        "from spacepatch.__main__ import main; sys.exit(main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "inspect", pristine, "--html", tmp_path / "page.html"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and "pip install 'spacepatch[report]'" in done.stderr


def test_a_plan_has_a_page_before_anything_is_decoded(
    sample_clips: Path, spacepatch_cli: SpacepatchCli, tmp_path: Path
) -> None:
    path, broken = tmp_path / "plan.html", sample_clips / "broken_on_purpose.mp4"
    clip = sample_clips / "square_320x320.mp4"
    done = spacepatch_cli("plan", clip, broken, "--html", path, "--workers", "1", "--json")
    assert done.returncode == 0, done.stderr
    page, figures = read_page(path), json.loads(done.stdout)
    assert page.data["figures"]["totals"] == figures["totals"]
    assert "1 segment in packs of 8,192 tokens" in page.text
    assert "Expected time" in page.text and "Tokens a second by workers" in page.tables
    assert {segment["without"] for segment in page.segments} == {"Nothing has been decoded yet."}
    assert sum(len(pack["segments"]) for pack in page.data["packs"]) == figures["totals"]["clips"]
    assert "broken_on_purpose.mp4" in page.text
    packers = {name: int(packs) for name, packs, *_ in page.tables["Fill by packer"][1:]}
    assert packers == {name: entry["packs"] for name, entry in figures["packers"].items()}


def test_a_plan_of_nothing_says_so(spacepatch_cli: SpacepatchCli, tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"no video")
    done = spacepatch_cli("plan", tmp_path / "a.mp4", "--html", tmp_path / "plan.html")
    assert done.returncode == 0, done.stderr
    page = read_page(tmp_path / "plan.html")
    assert "No source gives a segment; the reasons are below." in page.text
    assert "There is no estimate of time" in page.text
