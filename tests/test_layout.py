"""How segments lie in packs and shards: packers, cutting, splits, order and size."""

from __future__ import annotations

import json
from pathlib import Path

from small_runs import rows, run

from spacepatch.inspection import verify


def test_every_shard_holds_one_split_and_the_splits_hold_all(
    sample_clips: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run([sample_clips], out, split="train=0.6,val=0.4")
    segments = rows(out, "segments.parquet")
    assert {row["split"] for row in segments} == {"train", "val"}
    for tar in out.glob("*.tar"):
        held = {row["split"] for row in rows(out, f"{tar.stem}.segments.parquet")}
        assert held == {tar.stem.split("-")[1]}
    assert len({row["source"] for row in segments}) == 10
    assert verify(out) == []


def test_each_packer_conserves_the_segments(sample_clips: Path, tmp_path: Path) -> None:
    ids = {}
    for packer in ("next-fit", "first-fit", "first-fit-decreasing", "best-fit-decreasing"):
        out = tmp_path / packer
        run([sample_clips], out, packer=packer, max_segments=3)
        segments = rows(out, "segments.parquet")
        ids[packer] = sorted(row["segment_id"] for row in segments)
        places = [(row["shard"], row["pack"]) for row in segments]
        assert max(places.count(place) for place in set(places)) <= 3
        assert verify(out) == []
    assert len({tuple(found) for found in ids.values()}) == 1


def test_cut_to_fit_fills_packs_and_drops_nothing(sample_clips: Path, tmp_path: Path) -> None:
    folder = tmp_path / "equal"
    folder.mkdir()
    for number in range(60):
        (folder / f"{number}.mp4").symlink_to(sample_clips / "square_320x320.mp4")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    # 4 rows of 64 tokens: 3 clips fit a pack of 896 whole, 3.5 when they are cut.
    run([folder], whole, pack_length=896)
    run([folder], cut, pack_length=896, cut_to_fit=True)
    assert verify(cut) == []

    def frames(out: Path) -> dict[str, list[int]]:
        held: dict[str, list[int]] = {}
        for row in sorted(rows(out, "segments.parquet"), key=lambda row: row["clip_start_pts"]):
            held.setdefault(row["source"], []).extend(row["frame_indices"])
        return held

    assert frames(cut) == frames(whole)
    packs = {out: json.loads((out / "dataset.json").read_text())["totals"] for out in (whole, cut)}
    assert packs[whole]["packs"] == 20
    assert packs[cut]["packs"] == packs[cut]["lower_bound"] == 18


def test_the_seed_changes_the_order_and_not_the_tokens(sample_clips: Path, tmp_path: Path) -> None:
    crcs, orders = [], []
    for seed in (0, 1):
        out = tmp_path / str(seed)
        run([sample_clips], out, seed=seed)
        segments = rows(out, "segments.parquet")
        crcs.append(sorted((row["source"], row["tokens_crc32c"]) for row in segments))
        orders.append([row["source"] for row in segments])
    assert crcs[0] == crcs[1]
    assert orders[0] != orders[1]


def test_a_shard_keeps_to_its_size(sample_clips: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run([sample_clips], out, shard_size="1MB", pack_length=256)
    sizes = [tar.stat().st_size for tar in out.glob("*.tar")]
    assert len(sizes) >= 3
    # The limit is for the packs' tokens with their index; headers and json come on top.
    assert max(sizes) <= 1e6 * 1.1
