"""Tokens of several widths in one dataset: a pack holds one, and none is lost."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections import Counter
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SpacepatchCli
from loaded_packs import read_plainly
from small_runs import make_dataset, rows
from stored_segments import digests, segments_of

from spacepatch.config import parse_bytes
from spacepatch.inspection import verify

HERE = Path(__file__).parent
PATCHES = {"1x32x32": 3072, "2x16x16": 1536, "1x16x16": 768, "2x8x8": 384}
"""And the values in a token of each."""
SETTINGS: dict[str, Any] = {
    "fps": "4",
    "resolution": "128",
    "multiple": 1,
    "fit": "crop",
    "pack_length": 256,
    "shard_size": "4MB",
}
FLAGS = ["--fps", "4", "--resolution", "128", "--fit", "crop", "--pack-length", "256"]
FLAGS += ["--shard-size", "4MB", "--patch", ",".join(PATCHES), "--views", "all"]
DONE_WITH_LOSSES = 3  # broken_on_purpose.mp4


@pytest.fixture(scope="module")
def mixed(sample_clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each sample clip in each patch."""
    out = tmp_path_factory.mktemp("mixed") / "out"
    make_dataset([sample_clips], out, **SETTINGS, patch=",".join(PATCHES), views="all")
    assert verify(out) == []
    return out


def test_a_pack_holds_one_width_and_says_which_and_the_widest_come_first(mixed: Path) -> None:
    shards = sorted(mixed.glob("*.tar"))
    assert len(shards) > 3
    listed = {
        shard["name"]: shard for shard in json.loads((mixed / "dataset.json").read_text())["shards"]
    }
    several = 0
    for shard in shards:
        packs = read_plainly(mixed, shard.stem)
        widths = [pack["tokens"].shape[1] for pack in packs]
        assert widths == [pack["pack"]["token_width"] for pack in packs]
        assert widths == sorted(widths, reverse=True)
        receipt = json.loads(shard.with_suffix(".json").read_text())
        assert receipt["pack_token_widths"] == widths
        counted = [[width, len(list(same))] for width, same in groupby(widths)]
        assert listed[shard.stem]["token_widths"] == counted
        for pack in packs:
            assert 0 < len(pack["tokens"]) <= 256
            for _, _, _, _, _, t, p, q in pack["segments"].tolist():
                assert 3 * t * p * q == pack["tokens"].shape[1]
        several += len(counted) > 1
    assert several > 0


def test_tokens_of_every_width_are_those_of_a_run_of_that_patch_alone(
    mixed: Path, sample_clips: Path, tmp_path: Path
) -> None:
    stored = segments_of(mixed)
    planned: Counter[tuple[int, int, int]] = Counter()
    for row in rows(mixed, "plan.parquet"):
        if row["num_kept"] is not None:
            planned[row["tubelet_size"], *row["patch_size"]] += row["num_kept"]
    for view, (patch, width) in enumerate(PATCHES.items()):
        single = make_dataset([sample_clips], tmp_path / patch, **SETTINGS, patch=patch)
        document = json.loads((single / "dataset.json").read_text())
        assert (document["token_width"], document["token_widths"]) == (width, [width])
        alone = pieces_by_source(segments_of(single).values())
        found = pieces_by_source(one for name, one in stored.items() if name[2] == view)
        assert found.keys() == alone.keys() and len(found) == 10
        for source, tokens in found.items():
            np.testing.assert_array_equal(tokens, alone[source])
            assert tokens.shape[1] == width
        number = sum(map(len, found.values()))
        assert planned[tuple(map(int, patch.split("x")))] == number > 0
    document = json.loads((mixed / "dataset.json").read_text())
    assert (document["token_width"], document["token_widths"]) == (
        None,
        sorted(PATCHES.values())[::-1],
    )
    assert document["totals"]["tokens"] == sum(planned.values())


def pieces_by_source(segments: Any) -> dict[str, np.ndarray]:
    """All tokens of a source, of clips that packs cut apart in order of time."""
    pieces: dict[str, list[Any]] = {}
    for segment in segments:
        pieces.setdefault(segment.row["source"], []).append(segment)
    return {
        source: np.concatenate(
            [one.tokens for one in sorted(own, key=lambda one: one.row["clip_start_pts"])]
        )
        for source, own in pieces.items()
    }


@pytest.mark.parametrize("size", ["1MB", "4MB", "16MB"])
def test_shards_stay_below_their_size_whatever_the_widths(
    sample_clips: Path, tmp_path: Path, size: str
) -> None:
    settings = SETTINGS | {"shard_size": size, "patch": ",".join(PATCHES), "views": "all"}
    out = make_dataset([sample_clips], tmp_path / "out", **settings)
    assert verify(out) == []
    # A pack of the widest tokens, with its index, is the least that a shard can hold.
    pack = 256 * (3072 + 16) + 2**14
    sizes = sorted(shard.stat().st_size for shard in out.glob("*.tar"))
    assert sizes[-1] <= parse_bytes(size) + pack
    total = sum(sizes)
    # And they are not cut to crumbs.
    assert len(sizes) <= 1 + 2.5 * total / max(parse_bytes(size), pack)


def test_killed_it_resumes_to_the_same_bytes(
    mixed: Path, sample_clips: Path, tmp_path: Path, spacepatch_cli: SpacepatchCli
) -> None:
    def command(out: Path) -> list[str]:
        return ["tokenize", str(sample_clips), "--out", str(out), *FLAGS, "--workers", "2"]

    def run(step: int, out: Path) -> subprocess.CompletedProcess[str]:
        arguments = [str(HERE / "killed_at_step.py"), str(step), *command(out)]
        return subprocess.run(
            [sys.executable, *arguments], capture_output=True, text=True, timeout=120
        )

    whole = run(0, tmp_path / "whole")
    match = re.search(r"steps: (\d+)", whole.stderr)
    assert match is not None, whole.stderr
    num_steps = int(match[1])
    for share in (0.35, 0.75):
        out = tmp_path / str(share)
        assert run(int(num_steps * share), out).returncode == -signal.SIGKILL
        assert not (out / "dataset.json").exists()
        done = spacepatch_cli(*command(out))
        assert done.returncode == DONE_WITH_LOSSES, done.stderr
        assert digests(out) == digests(mixed)
