"""Runs that several ranks share, of few small clips in many shards."""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

from spacepatch.config import load_config
from spacepatch.pipeline import tokenize_rank
from spacepatch.ranks import Rank

FEW = ("square_320x320.mp4", "odd_size_321x179_vp9.webm", "broken_on_purpose.mp4")
SETTINGS = {
    "fps": "8",
    "max_tokens_per_frame": 64,
    "pack_length": 192,
    "shard_size": "400kB",
    "split": "train=0.6,val=0.4",
    "workers": 1,
}
DONE_WITH_LOSSES = 3


def make_place(folder: Path, sample_clips: Path) -> Path:
    """Put there videos/, gone.txt, which lists one that is not, and run.toml, the settings."""
    (folder / "videos").mkdir()
    for name in FEW:
        shutil.copy(sample_clips / name, folder / "videos")
    (folder / "gone.txt").write_text("gone.mp4\n")
    lines = [f"{key} = {json.dumps(value)}\n" for key, value in SETTINGS.items()]
    (folder / "run.toml").write_text("".join(lines))
    return folder


def digests(folder: Path) -> dict[str, str]:
    """sha256 of every file of the format."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
        if path.is_file()
    }


def receipts(folder: Path) -> dict[int, Path]:
    """By the number of the task."""
    return {int(path.stem[-6:]): path for path in sorted(folder.glob("*-0*.json"))}


def start(place: Path, out: Path, rank: int, world_size: int, *more: str) -> subprocess.Popen[str]:
    """A rank as a process of its own, which leads a group as schedulers' do."""
    arguments = ["videos", "@gone.txt", "--out", str(out), "--config", "run.toml", *more]
    which = ["--rank", str(rank), "--world-size", str(world_size)]
    return subprocess.Popen(
        [sys.executable, "-m", "spacepatch", "tokenize", *arguments, *which],
        cwd=place,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        start_new_session=True,
    )


def end(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Its exit code, stdout and stderr."""
    stdout, stderr = process.communicate(timeout=120)
    return process.returncode, stdout, stderr


def run_rank(sources: list[str], out: Path, rank: int, world_size: int, **settings: str) -> None:
    """A rank in this process."""
    config = load_config(SETTINGS | settings)
    tokenize_rank(sources, out=out, config=config, rank=Rank(rank, world_size))
