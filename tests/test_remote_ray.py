"""A Ray cluster whose sources and shards are on S3."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from ray_clusters import add_node, make_cluster
from s3_server import S3Server

pytest.importorskip("ray", reason="ray is not installed: pip install 'spacepatch[ray]'")

SETTINGS = ["--fps=4", "--max-tokens-per-frame=64", "--pack-length=192", "--shard-size=800kB"]
CLIPS = ("square_320x320.mp4", "odd_size_321x179_vp9.webm")


@pytest.fixture(scope="module")
def cluster(s3: S3Server) -> Iterator[Any]:
    """A head that knows no store, and two nodes that do and have GPUs: so tasks can be sent to
    them alone."""
    cluster = make_cluster()
    for _ in range(2):
        add_node(cluster, num_gpus=1, env_vars=s3.env)
    yield cluster
    cluster.shutdown()


def tokenize(
    source: str, out: str | Path, *more: str, env: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "spacepatch", "tokenize", source, "--out", str(out)]
    command += [*SETTINGS, "--cache-bytes", "0", *more]
    environment = {**os.environ, **env}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def test_nodes_that_know_the_store_make_the_same_bytes_and_one_that_does_not_is_named(
    cluster: Any, s3: S3Server, sample_clips: Path, tmp_path: Path
) -> None:
    bucket = s3.bucket()
    for name in CLIPS:
        s3.upload(sample_clips / name, bucket, "in/")
    sources, out = f"s3://{bucket}/in", f"s3://{bucket}/out"
    done = tokenize(sources, tmp_path / "out", env=s3.env)
    assert done.returncode == 0, done.stderr
    local = {path.name: path for path in (tmp_path / "out").iterdir() if path.is_file()}

    on_ray = ["--executor", "ray", "--address", cluster.address]
    # The head takes one of the tasks, before any of them can be done.
    done = tokenize(sources, out, *on_ray, env=s3.env)
    line = done.stderr.splitlines()[-1]
    assert line.startswith("error: node ")
    assert f"s3://{bucket}/in/" in line
    assert "no credentials; set AWS_ACCESS_KEY_ID" in line
    assert done.returncode == 1

    done = tokenize(sources, out, *on_ray, "--gpus-per-task", "0.5", env=s3.env)
    assert done.returncode == 0, done.stderr
    keys = [key for key in s3.keys(bucket, "out/") if "/.spacepatch/" not in key]
    found = {key.removeprefix("out/"): hashlib.sha256(s3.get(bucket, key)) for key in keys}
    assert {name: digest.hexdigest() for name, digest in found.items()} == {
        name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in local.items()
    }
    assert sum(name.endswith(".tar") for name in found) > 1
    session = Path(cluster.head_node.get_session_dir_path())
    for path in session.rglob("*"):
        if path.is_file():
            assert b"testing" not in path.read_bytes(), f"{path} holds credentials"
