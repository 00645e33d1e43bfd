"""Ranks whose output is on an object store: leases keep apart who must not meet."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
from ranked_runs import FEW, SETTINGS, digests
from s3_server import S3Server

from spacepatch.config import load_config
from spacepatch.errors import ResumeError, UnfinishedError
from spacepatch.pipeline import join_ranks, make_plan, tokenize, tokenize_rank
from spacepatch.ranks import Rank
from spacepatch.storage import lock, lock_rank, open_folder


@pytest.fixture(autouse=True)
def credentials(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in s3.env.items():
        monkeypatch.setenv(name, value)


def take(folder: Any, rank: tuple[int, int] | None) -> None:
    with lock_rank(folder, *rank) if rank else lock(folder):
        pass


def test_ranks_of_one_world_size_share_a_store_and_nobody_else_does(s3: S3Server) -> None:
    folder = open_folder(f"s3://{s3.bucket()}/shards", writes=True)
    with lock_rank(folder, 1, 4):
        take(folder, (0, 4))
        for other in ((1, 4), (1, 8), None):
            with pytest.raises(ResumeError, match="is writing to this folder"):
                take(folder, other)
    with lock(folder), pytest.raises(ResumeError, match="is writing to this folder"):
        take(folder, (0, 4))
    take(folder, None)


def test_ranks_make_the_dataset_on_a_store_that_one_process_makes_on_disk(
    s3: S3Server, sample_clips: Path, tmp_path: Path
) -> None:
    videos = [str(sample_clips / name) for name in FEW]
    config = load_config(SETTINGS)
    tokenize(videos, out=tmp_path / "whole", config=config)
    bucket = s3.bucket()
    url = f"s3://{bucket}/shards"
    make_plan(videos, config=config, out=url)
    tokenize_rank(videos, out=url, config=config, rank=Rank(0, 2))
    with pytest.raises(UnfinishedError, match="rank 1"):
        join_ranks(url, world_size=2)
    tokenize_rank(videos, out=url, config=config, rank=Rank(1, 2))
    join_ranks(url)
    names = [entry["Key"] for entry in s3.client().list_objects_v2(Bucket=bucket)["Contents"]]
    found = {
        name.removeprefix("shards/"): hashlib.sha256(s3.get(bucket, name)).hexdigest()
        for name in names
        if "/.spacepatch/" not in name
    }
    assert found == digests(tmp_path / "whole")
