"""`spacepatch inspect --html`: what the page says is what the dataset holds."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("vl_convert")
pytest.importorskip("jinja2")

from conftest import SpacepatchCli
from report_pages import ReadPage, make_page, picture_of, read_page
from small_runs import rows, run

from spacepatch.report import samples
from spacepatch.report.histograms import SegmentCounts
from spacepatch.report.otherwise import MOST_SHARDS, choose_shards
from spacepatch.report.samples import PACKS, choose_packs
from spacepatch.shards import ShardReader


@pytest.fixture(scope="module")
def dropped(sample_clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Segments of which tokens are dropped, in one shard."""
    out = tmp_path_factory.mktemp("dropped") / "out"
    clips = [sample_clips / name for name in ("portrait_270x480.mp4", "square_320x320.mp4")]
    run(clips, out, drop="random:0.3", clip_seconds="1", pack_length=128)
    return out


@pytest.fixture(scope="module")
def page(pristine: Path, tmp_path_factory: pytest.TempPathFactory) -> ReadPage:
    return make_page(pristine, tmp_path_factory.mktemp("page") / "report.html")


@pytest.fixture(scope="module")
def page_of_dropped(dropped: Path, tmp_path_factory: pytest.TempPathFactory) -> ReadPage:
    return make_page(dropped, tmp_path_factory.mktemp("page") / "report.html")


def test_the_same_dataset_gives_the_same_page_wherever_it_lies(
    pristine: Path, page: ReadPage, spacepatch_cli: SpacepatchCli, tmp_path: Path
) -> None:
    copy = shutil.copytree(pristine, tmp_path / "elsewhere")
    (tmp_path / "pages").mkdir()
    path = tmp_path / "pages" / "again.html"
    path.write_text(page.html.replace("<h1>", "<h1>Old "))  # a report of ours is replaced
    done = spacepatch_cli("inspect", copy, "--html", path, env={"PYTHONHASHSEED": "7"})
    assert done.returncode == 0, done.stderr
    assert read_page(path).html == page.html
    assert list(path.parent.iterdir()) == [path]


def test_the_page_asks_no_network_and_names_no_path_of_this_machine(
    page: ReadPage, pristine: Path
) -> None:
    linked = [
        values.get("src") or values.get("href")
        for _, values in page.tags
        if "src" in values or "href" in values
    ]
    assert all(link and link.startswith("#") for link in linked)
    assert "@import" not in page.html
    assert str(pristine.parent) not in page.html
    (policy,) = (values["content"] for _, values in page.tags if "http-equiv" in values)
    assert policy and policy.startswith("default-src 'none'; img-src data:;")


def test_the_tables_behind_the_charts_count_what_the_tables_of_the_dataset_hold(
    page: ReadPage, pristine: Path
) -> None:
    segments = rows(pristine, "segments.parquet")
    packs = Counter((row["shard"], row["pack"]) for row in segments)
    (_, *counts) = page.tables["Segments in a pack"]
    assert sum(int(count) for _, count, _ in counts) == len(packs)
    assert {name: int(count) for name, count, _ in counts}["1"] == list(packs.values()).count(1)
    sides = [min(row["size"]) for row in segments]
    (_, *after) = page.tables["Shorter side after"]
    for name, count, _ in after:
        low, high = map(int, name.replace(",", "").split("–"))
        assert int(count) == sum(low <= side < high for side in sides), name
    kept = [row for row in rows(pristine, "sources.parquet") if row["num_segments"]]
    (_, *before) = page.tables["Shorter side before"]
    assert sum(int(count) for _, count, _ in before) == len(kept)
    (_, *errors) = page.tables["Aspect error"]
    assert sum(int(count) for _, count, _ in errors) == len(segments)
    assert {name: int(count) for name, count, _ in errors}["none"] == sum(
        row["aspect_error"] == 0 for row in segments
    )
    assert page.data["figures"]["totals"]["segments"] == len(segments)
    assert f"{len(segments):,} segments" in page.text


def test_losses_are_there_with_their_reasons_and_examples(page: ReadPage, pristine: Path) -> None:
    lost = rows(pristine, "losses.parquet")
    assert lost
    for row in lost:
        assert row["message"] in page.text and row["source"] in page.text
    (_, *reasons) = page.tables["Losses by reason"]
    assert {reason: int(count) for reason, count, *_ in reasons} == Counter(
        row["reason"] for row in lost
    )


def test_settings_that_are_not_the_defaults_are_named(page: ReadPage) -> None:
    (_, *changed) = page.tables["Not as by default"]
    assert changed == [
        ["fps", "2", "8"],
        ["pack_length", "2048", "8192"],
        ["shard_size", "8MB", "256MB"],
    ]


def test_other_packs_are_those_that_repack_makes(
    dropped: Path, page_of_dropped: ReadPage, spacepatch_cli: SpacepatchCli, tmp_path: Path
) -> None:
    (_, *found) = page_of_dropped.tables["Fill by pack length"]
    packs = {length.replace(",", ""): int(count) for length, count, _ in found}
    assert "256" in packs
    done = spacepatch_cli(
        "repack", dropped, "--out", tmp_path / "longer", "--pack-length", "256", "--json"
    )
    assert done.returncode == 0, done.stderr
    totals = json.loads((tmp_path / "longer" / "dataset.json").read_text())["totals"]
    assert totals["packs"] == packs["256"] < packs["128"]


def test_frames_are_those_of_the_tokens_and_dropped_tokens_are_holes(
    dropped: Path, page_of_dropped: ReadPage
) -> None:
    table = {row["segment_id"]: row for row in rows(dropped, "segments.parquet")}
    document = json.loads((dropped / "dataset.json").read_text())
    (stem,) = (shard["name"] for shard in document["shards"])
    looked_at = 0
    with ShardReader(dropped / f"{stem}.tar") as reader:
        for segment in page_of_dropped.segments:
            row = table[dict(segment["facts"])["Segment id"]]
            members = reader.read(row["pack"])
            span = slice(row["offset"], row["offset"] + row["num_kept"])
            tokens, places = members.tokens[span], members.positions[span]
            for frame in segment["frames"]:
                picture, t = picture_of(frame), int(frame["caption"].split("row ")[1].split(",")[0])
                cells = _cells(tokens, places, row, t)
                height, width = (side // 16 for side in row["size"])
                there = picture.reshape(height, 16, width, 16, 4).mean(axis=(1, 3))
                assert np.array_equal(there[..., 3] == 255, ~np.isnan(cells[..., 0]))
                error = np.abs(there[..., :3] - cells)[~np.isnan(cells[..., 0])]
                assert error.mean() < 6  # WebP
                looked_at += 1
            del members, tokens, places
    assert looked_at > 5


def _cells(tokens: np.ndarray, places: np.ndarray, row: dict, t: int) -> np.ndarray:
    """``(H, W, 3)``: the mean colour of the first frame of each token; NaN where there is none."""
    cells = np.full((*row["grid_thw"][1:], 3), np.nan)
    own = places[:, 0] == t
    # Layout c t p q.
    means = tokens[own].reshape(-1, 3, 2, 256)[:, :, 0].mean(axis=2)
    cells[places[own, 1], places[own, 2]] = means
    return cells


# --- sampling, which keeps large datasets quick --------------------------------------------------


def test_packs_are_counted_alike_however_the_table_is_read_in_pieces() -> None:
    draws = np.random.default_rng(5)
    shards = np.sort(draws.integers(0, 9, 500))
    packs = np.zeros(500, int)
    for shard in range(9):
        own = shards == shard
        packs[own] = np.sort(draws.integers(0, 20, own.sum()))
    tokens = draws.integers(1, 60, 500)
    expected = Counter(zip(shards.tolist(), packs.tolist(), strict=True))
    for step in (500, 7, 1):
        counts = SegmentCounts(1000)
        for first in range(0, 500, step):
            part = slice(first, first + step)
            counts.add_places(shards[part], packs[part], tokens[part])
        counts.close()
        assert sum(count for _, count in counts.in_packs) == len(expected)
        assert dict(counts.in_packs)["1"] == list(expected.values()).count(1)


def test_sampled_packs_are_spread_over_the_dataset_and_always_the_same() -> None:
    shards = [{"name": f"a-{n:06d}", "packs": 1 + n % 7, "segments": 20} for n in range(10_000)]
    chosen = choose_packs(shards, key="one")
    assert chosen == choose_packs(shards, key="one") != choose_packs(shards, key="other")
    numbers = [int(name[2:]) for name, _ in chosen]
    assert len(chosen) == PACKS and [number // 1000 for number in numbers] == list(range(PACKS))
    for (_, pack), number in zip(chosen, numbers, strict=True):
        assert 0 <= pack < shards[number]["packs"]


def test_the_page_is_kept_small_and_says_so(
    pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samples, "MOST_OF_PACK", 2)
    monkeypatch.setattr(samples, "MOST_FRAMES", 5)
    page = make_page(pristine, tmp_path / "page.html")
    assert max(len(pack["segments"]) for pack in page.data["packs"]) == 2
    assert sum(len(segment["frames"]) for segment in page.segments) == 5
    assert "the first 2 can be opened" in page.text
    assert "unshown" in {values.get("class") for _, values in page.tags}
    without = {segment["without"] for segment in page.segments if not segment["frames"]}
    assert without == {"No frames of this one: the page is kept small."}


def test_of_many_shards_a_few_are_packed_otherwise() -> None:
    shards = [{"name": str(n), "segments": 200} for n in range(10_000)]
    assert len(choose_shards(shards)) == MOST_SHARDS
    assert [shard["name"] for shard in choose_shards(shards)[:2]] == ["0", "156"]
    large = [{"name": str(n), "segments": 50_000} for n in range(100)]
    assert len(choose_shards(large)) == 2
