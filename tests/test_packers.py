"""The words of --packer, from the plan to the packs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import SpacepatchCli
from small_runs import SMALL, run
from stored_segments import digests

from spacepatch.config import load_config
from spacepatch.errors import ConfigError, MissingDependencyError
from spacepatch.inspection import verify
from spacepatch.packers import ALL_PACKERS, check_least_squares, num_packs
from spacepatch.pipeline import make_plan
from spacepatch.pipeline.forecast import forecast

SETTINGS = {"pack_length": 128, "shard_size": "2MB", "clip_seconds": "1"}


@pytest.mark.parametrize("packer", ALL_PACKERS)
def test_packs_are_counted_as_they_are_made(packer: str) -> None:
    pytest.importorskip("scipy", reason="nnlshp and optimal need scipy")
    draws = np.random.default_rng(0)
    for most, max_segments in ((60, None), (25, 3), (8, 2)):
        lengths = draws.integers(1, most, 200)
        limits = {"pack_length": 60, "max_segments": max_segments, "window": 3}
        packs = ALL_PACKERS[packer](lengths, **limits)
        assert num_packs(lengths, packer=packer, **limits) == len(packs)
    empty = np.zeros(0, np.int64)
    assert num_packs(empty, packer=packer, pack_length=60) == 0


@pytest.mark.parametrize("packer", ["spfhp", "nnlshp", "optimal"])
def test_a_run_makes_the_packs_that_its_plan_counted_on_any_number_of_workers(
    sample_clips: Path, tmp_path: Path, packer: str
) -> None:
    pytest.importorskip("scipy", reason="nnlshp and optimal need scipy")
    settings = SETTINGS | {"packer": packer}
    plan = make_plan([str(sample_clips)], config=load_config(SMALL | settings))
    planned = forecast(plan)
    for workers in (1, 2):
        summary = run([sample_clips], tmp_path / str(workers), **settings, workers=workers)
        assert summary.totals["packs"] == planned["packers"][packer]["packs"]
    assert planned["totals"]["packer"] == packer
    assert digests(tmp_path / "1") == digests(tmp_path / "2")
    assert verify(tmp_path / "1") == []
    environment = json.loads((tmp_path / "1" / "plan.json").read_text())["environment"]
    assert ("scipy" in environment) == (packer != "spfhp")
    sizes = [path.stat().st_size for path in (tmp_path / "1").glob("*.tar")]
    assert max(sizes) < 2_200_000
    assert len(sizes) > 1


@pytest.mark.parametrize("packer", ["nnlshp", "optimal"])
def test_without_scipy_it_says_what_to_install_and_leaves_no_folder(
    sample_clips: Path, tmp_path: Path, without_scipy: None, packer: str
) -> None:
    with pytest.raises(MissingDependencyError, match=r"pip install 'spacepatch\[pack\]'"):
        run([sample_clips], tmp_path / "a", packer=packer)
    assert not (tmp_path / "a").exists()


def test_packs_too_long_for_least_squares_are_refused_before_decoding(
    sample_clips: Path, tmp_path: Path
) -> None:
    pytest.importorskip("scipy", reason="nnlshp needs scipy")
    wish = {"packer": "nnlshp", "pack_length": 8192, "max_tokens_per_frame": 100}
    with pytest.raises(
        ConfigError, match=r"give --pack-length \d+ or less, or --packer optimal"
    ) as error:
        run([sample_clips], tmp_path / "a", **wish)
    assert not [path for path in tmp_path.glob("a/*") if path.is_file()]
    plan = make_plan(
        [str(sample_clips)], config=load_config(SMALL | wish | {"packer": "spfhp"})
    ).whole()
    cells = np.array([clip.cells for task in plan.tasks for clip in task.clips])
    most = int(str(error.value).split("--pack-length ")[1].split()[0])
    check_least_squares(cells, pack_length=most)
    with pytest.raises(ConfigError):
        check_least_squares(cells, pack_length=most + np.gcd.reduce(cells))


def test_the_command_takes_the_words_of_the_histogram_packers(
    sample_clips: Path, tmp_path: Path, spacepatch_cli: SpacepatchCli
) -> None:
    clip = sample_clips / "square_320x320.mp4"
    flags = ["--packer", "spfhp", "--balance", "attention", "--fps", "2"]
    done = spacepatch_cli("tokenize", clip, "--out", tmp_path / "a", *flags)
    assert done.returncode == 0, done.stderr
    done = spacepatch_cli("tokenize", clip, "--out", tmp_path / "b", "--packer", "optimum")
    assert done.returncode == 2
    assert "did you mean optimal?" in done.stderr
