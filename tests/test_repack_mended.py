"""Repacking what was mended since, what is lost whole, and what lies in very many shards."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from small_runs import SMALL, rows, run
from stored_segments import digests

from spacepatch.config import load_config
from spacepatch.inspection import verify
from spacepatch.pipeline import Watch, repack, tokenize

SETTINGS = {"pack_length": 512, "shard_size": "1MB"}
OTHER = {"pack_length": 700, "shard_size": "1500KB", "balance": "attention"}


def run_without(lost: Path, folder: Path, out: Path, **settings: Any) -> None:
    """Tokenize a folder of which one video is away while it is decoded, as on a slow share."""
    away = folder.parent / "away"

    def hide(plan: object, pending: object) -> None:
        lost.rename(away)

    config = load_config(SMALL | settings)
    tokenize([str(folder)], out=out, config=config, watch=Watch(on_start=hide))
    away.rename(lost)
    losses = rows(out, "losses.parquet")
    assert {(row["source"], row["reason"]) for row in losses if row["retryable"]} == {
        (lost.name, "io")
    }


@pytest.fixture(scope="module")
def mended(sample_clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``a``, a dataset whose lost video came back; ``b``, its repack from before;
    and ``expected``, the repack of a dataset that was never troubled."""
    folder = tmp_path_factory.mktemp("mended")
    clips = shutil.copytree(sample_clips, folder / "clips")
    a = folder / "a"
    # The one of which most is lost, so that the borders of shards would move.
    lost = clips / "square_320x320.mp4"
    run_without(lost, clips, a, **SETTINGS)
    repack(a, out=folder / "b", **OTHER)
    assert verify(folder / "b") == []
    tokenize([str(clips)], out=a, config=load_config(SMALL | SETTINGS), retry_lost=True)
    assert not any(row["retryable"] for row in rows(a, "losses.parquet"))
    tokenize([str(clips)], out=folder / "whole", config=load_config(SMALL | SETTINGS))
    repack(folder / "whole", out=folder / "expected", **OTHER)
    return folder


def test_a_repack_of_what_came_back_since_is_mended_by_the_same_command(
    mended: Path, tmp_path: Path
) -> None:
    out = shutil.copytree(mended / "b", tmp_path / "b")
    assert digests(out) != digests(mended / "expected")
    repack(mended / "a", out=out, **OTHER)
    assert digests(out) == digests(mended / "expected")


def test_mending_that_is_interrupted_leaves_no_dataset_that_looks_finished(
    mended: Path, tmp_path: Path
) -> None:
    out = shutil.copytree(mended / "b", tmp_path / "b")

    def interrupt(done: int, total: int) -> None:
        if done == total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        repack(mended / "a", out=out, on_shard=interrupt, **OTHER)
    assert not (out / "dataset.json").exists()
    assert not list(out.glob("segments.parquet"))
    repack(mended / "a", out=out, **OTHER)
    assert digests(out) == digests(mended / "expected")


def test_a_shard_of_which_all_is_lost_has_no_costs_before_balance(
    sample_clips: Path, tmp_path: Path
) -> None:
    clips = tmp_path / "clips"
    clips.mkdir()
    clip = Path(shutil.copy(sample_clips / "square_320x320.mp4", clips))
    run_without(clip, clips, tmp_path / "a", balance="attention")
    repack(tmp_path / "a", out=tmp_path / "b", packer="spfhp")
    for folder in (tmp_path / "a", tmp_path / "b"):
        (receipt,) = folder.glob("*-000000.json")
        document = json.loads(receipt.read_text())
        assert (document["packs"], document["unbalanced"]) == (0, None)


def test_more_old_shards_than_files_may_be_open_go_into_a_new_one(
    sample_clips: Path, tmp_path: Path
) -> None:
    many, out = tmp_path / "many", tmp_path / "b"
    run([sample_clips], many, pack_length=32, max_tokens_per_frame=32, shard_size="1KB")
    most = 24
    assert len(list(many.glob("*.tar"))) > most
    script = (
        "import resource\n"
        f"resource.setrlimit(resource.RLIMIT_NOFILE, ({most}, {most}))\n"
        "from spacepatch.cli import main\n"
        "main()\n"
    )
    command = ["repack", str(many), "--shard-size", "1GB", "--out", str(out)]
    done = subprocess.run([sys.executable, "-c", script, *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(list(out.glob("*.tar"))) == 1
    repack(many, out=tmp_path / "c", shard_size="1GB")
    assert digests(out) == digests(tmp_path / "c")


@pytest.mark.parametrize("command", ["repack", "plan", "inspect"])
def test_a_bound_that_needs_scipy_is_refused_before_anything_is_written(
    mended: Path, tmp_path: Path, command: str
) -> None:
    arguments = {
        "repack": [str(mended / "a"), "--pack-length", "700", "--out", str(tmp_path / "x")],
        "plan": [str(mended / "clips"), "--out", str(tmp_path / "x")],
        "inspect": [str(mended / "a")],
    }[command]
    script = (
        "import sys\n"
        "sys.modules['scipy'] = sys.modules['scipy.optimize'] = None\n"
        "from spacepatch.cli import main\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, command, *arguments, "--bound"],
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "pip install 'spacepatch[pack]'" in done.stderr
    assert not done.stdout
    assert not (tmp_path / "x").exists()
