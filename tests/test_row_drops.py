"""Dropped tokens and lost rows together: every planned token is kept, or lost and counted."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from decoding import in_corpus
from loaded_packs import drawn_order
from small_runs import make_dataset, rows
from stored_segments import Name, Stored, segments_of

from spacepatch.inspection import verify

SETTINGS: dict[str, Any] = {"fps": "8", "max_tokens_per_frame": 24, "multiple": 2}


def cut_off_end(clip: Path, path: Path, share: float) -> Path:
    """A copy whose pictures after a share of the data are zeros, though its index lists them."""
    content = bytearray(clip.read_bytes())
    start = content.index(b"mdat")
    size = int.from_bytes(content[start - 4 : start])
    first, last = start + int(size * share), start - 4 + size
    content[first:last] = bytes(last - first)
    path.write_bytes(content)
    return path


@pytest.fixture(scope="module")
def damaged(
    sample_clips: Path, part_damaged: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> list[Path]:
    """Clips that lose rows in the middle, at the end, and (of the corpus) as they came."""
    folder = tmp_path_factory.mktemp("cut")
    square = sample_clips / "square_320x320.mp4"
    made = [cut_off_end(square, folder / f"cut_at_{share}.mp4", share) for share in (0.5, 0.8)]
    both = part_damaged[1] / "damaged_portrait_270x480.mp4"
    made.append(cut_off_end(both, folder / "damaged_and_cut.mp4", 0.7))
    return [part_damaged[1], *made, Path(in_corpus("decord__corrupted.mp4"))]


@pytest.fixture(scope="module", params=[("repeat", "raster"), ("drop", "merge 2 x 2")])
def way(request: pytest.FixtureRequest) -> dict[str, str]:
    tail, order = request.param
    return {"tail": tail, "order": order}


@pytest.fixture(scope="module")
def undropped(
    damaged: list[Path], way: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Stored]:
    """By source: the segments of a run that drops nothing, which have lost rows."""
    out = tmp_path_factory.mktemp("undropped") / "out"
    stored = segments_of(make_dataset(damaged, out, **SETTINGS | {"tail": way["tail"]}))
    assert len(stored) == 6
    assert {row["reason"] for row in rows(out, "losses.parquet")} >= {"corrupt_frames", "truncated"}
    return {name[0]: segment for name, segment in stored.items()}


def planned_tokens(out: Path) -> dict[tuple[str, int], int]:
    """By source and clip."""
    return {
        (row["source"], row["clip"]): row["num_kept"]
        for row in rows(out, "plan.parquet")
        if row["num_kept"] is not None
    }


def lost_tokens(out: Path) -> Counter[tuple[str, int]]:
    lost: Counter[tuple[str, int]] = Counter()
    for row in rows(out, "losses.parquet"):
        assert row["num_tokens"] >= 0, row
        assert row["num_frames"] > 0, row
        lost[row["source"], row["clip"]] += row["num_tokens"]
    return lost


def make(damaged: list[Path], out: Path, **settings: Any) -> dict[Name, Stored]:
    make_dataset(damaged, out, **SETTINGS | settings)
    assert verify(out) == []
    return segments_of(out)


def assert_tokens_are_those_of(whole: Stored, dropped: Stored) -> None:
    place = {raster: n for n, raster in enumerate(whole.raster.tolist())}
    assert dropped.grid == whole.grid
    own = [place[raster] for raster in dropped.raster.tolist()]
    np.testing.assert_array_equal(dropped.tokens, whole.tokens[own])


def drawn_tokens(out: Path) -> dict[Name, np.ndarray]:
    """By clip as planned: its raster indices in the order that they were drawn in."""
    document = json.loads((out / "dataset.json").read_text())
    drawn = {}
    for row in rows(out, "plan.parquet"):
        if row["clip"] is None or row["num_tokens"] is None:
            continue
        # Of the clip as planned: a segment whose end is lost has another stop, and so another id.
        content = [
            document["fingerprints"]["token"],
            document["settings"]["seed"],
            row["source_id"],
        ]
        content += [row["clip_start_pts"], row["clip_stop_pts"]]
        content += [json.loads(row["info"])["time_base"], row["view"]]
        name = hashlib.blake2b("\0".join(map(str, content)).encode(), digest_size=16).hexdigest()
        order = drawn_order(row["num_tokens"], name, "keep")
        drawn[row["source"], row["clip"], row["view"]] = order
    return drawn


def expected_kept(order: np.ndarray, planned: int, whole: Stored) -> list[int]:
    """The first `planned` of the order whose rows are there; where none is, the first that is."""
    _, grid_h, grid_w = whole.grid
    there = np.isin(order // (grid_h * grid_w), whole.positions[:, 0])
    return sorted(order[:planned][there[:planned]].tolist() or [int(order[there.argmax()])])


@pytest.mark.parametrize("drop", ["random:0.5", "random:uniform:0.7..0.99", "tokens:30"])
def test_what_is_kept_is_what_was_drawn_less_the_lost_rows(
    damaged: list[Path],
    undropped: dict[str, Stored],
    way: dict[str, str],
    drop: str,
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    stored = make(damaged, out, drop=drop, **way, index="compact")
    planned, lost, drawn = planned_tokens(out), lost_tokens(out), drawn_tokens(out)
    assert sum(lost.values()) > 20
    for (source, clip, view), segment in stored.items():
        whole = undropped[source]
        assert_tokens_are_those_of(whole, segment)
        num = planned[source, clip]
        kept = expected_kept(drawn[source, clip, view], num, whole)
        assert sorted(segment.raster.tolist()) == kept
        assert num == len(segment.tokens) + lost[source, clip]
        assert segment.row["seconds"] == whole.row["seconds"]


def test_where_all_was_in_lost_rows_the_next_one_drawn_is_kept(
    damaged: list[Path], undropped: dict[str, Stored], way: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    stored = make(damaged, out, drop="tokens:1", **way, views=48, index="compact")
    planned, lost, drawn = planned_tokens(out), lost_tokens(out), drawn_tokens(out)
    assert set(planned.values()) == {1}
    assert sum(lost.values()) == 0
    assert len(stored) == len(planned) == 6 * 48
    replaced = Counter()
    for (source, clip, view), segment in stored.items():
        whole, order = undropped[source], drawn[source, clip, view]
        assert_tokens_are_those_of(whole, segment)
        kept = expected_kept(order, 1, whole)
        assert sorted(segment.raster.tolist()) == kept
        replaced[source] += kept != [order[0]]
    assert min(replaced.values()) > 0


def test_static_tokens_are_kept_whole_after_a_lost_row_and_runs_add_up(
    damaged: list[Path], undropped: dict[str, Stored], way: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    stored = make(damaged, out, drop="static:0.2", **way)
    planned, lost = planned_tokens(out), lost_tokens(out)
    after_gaps = 0
    for (source, clip, _), segment in stored.items():
        whole = undropped[source]
        assert_tokens_are_those_of(whole, segment)
        assert len(segment.tokens) < len(whole.tokens)
        assert len(segment.tokens) + lost[source, clip] <= planned[source, clip]
        present = set(whole.positions[:, 0].tolist())
        for row in present:
            if row - 1 not in present:
                assert segment.keep[row].all()
                after_gaps += row > 0
        lengths = np.zeros(segment.keep.shape, int)
        lengths.reshape(-1)[segment.raster] = segment.run_lengths
        assert (lengths.sum(axis=0) == len(present)).all()
        for row, cell in zip(*np.nonzero(segment.keep), strict=True):
            stop = row + 1
            while stop in present and not segment.keep[stop, cell]:
                stop += 1
            assert lengths[row, cell] == stop - row
    assert after_gaps > 0
