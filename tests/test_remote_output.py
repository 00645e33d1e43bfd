"""Shards on an object store: the bytes of a local run, whole or not at all."""

from __future__ import annotations

import gc
import hashlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SpacepatchCli
from s3_server import Fault, S3Server

from spacepatch.config import load_config
from spacepatch.errors import StoreError
from spacepatch.inspection import summarize, verify
from spacepatch.pipeline import convert, repack, tokenize
from spacepatch.storage import open_folder

HERE = Path(__file__).parent
CONFIG = {
    "fps": "4",
    "max_tokens_per_frame": 64,
    "pack_length": 192,
    "shard_size": "800kB",
    "workers": 1,
}
SETTINGS = [
    word for name, value in CONFIG.items() for word in (f"--{name.replace('_', '-')}", str(value))
]


@pytest.fixture(scope="module")
def clips(sample_clips: Path) -> list[str]:
    names = ("square_320x320.mp4", "odd_size_321x179_vp9.webm")
    return [str(sample_clips / name) for name in names]


@pytest.fixture(scope="module")
def on_disk(
    clips: list[str], spacepatch_cli: SpacepatchCli, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("disk") / "shards"
    done = spacepatch_cli("tokenize", *clips, "--out", out, *SETTINGS)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def on_s3(clips: list[str], spacepatch_cli: SpacepatchCli, s3: S3Server, on_disk: Path) -> str:
    """The URL of the same, made by the same command."""
    url = f"s3://{s3.bucket()}/some/shards"
    done = spacepatch_cli("tokenize", *clips, "--out", url, *SETTINGS, env=s3.env)
    assert done.returncode == 0, done.stderr
    assert done.stdout.replace(url, str(on_disk)).strip()
    return url


@pytest.fixture(autouse=True)
def credentials(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in s3.env.items():
        monkeypatch.setenv(name, value)


def digests(place: Path | str, s3: S3Server) -> dict[str, str]:
    """sha256 of every file of the format."""
    if isinstance(place, Path):
        contents = {path.name: path.read_bytes() for path in place.iterdir() if path.is_file()}
    else:
        bucket, _, folder = place.removeprefix("s3://").partition("/")
        keys = s3.keys(bucket, f"{folder}/")
        contents = {key.removeprefix(f"{folder}/"): s3.get(bucket, key) for key in keys}
    return {
        name: hashlib.sha256(content).hexdigest()
        for name, content in sorted(contents.items())
        if not name.startswith(".spacepatch/")
    }


def test_output_on_s3_has_the_bytes_of_a_local_run(on_s3: str, on_disk: Path, s3: S3Server) -> None:
    found = digests(on_s3, s3)
    assert found == digests(on_disk, s3)
    assert sum(name.endswith(".tar") for name in found) > 1


def test_output_in_memory_has_the_bytes_of_a_local_run(clips: list[str], on_disk: Path) -> None:
    tokenize(clips, out="memory://shards", config=load_config(CONFIG))
    paths = open_folder("memory://shards").iterdir()
    found = {path.name: path.read_bytes() for path in paths if path.is_file()}
    assert found == {path.name: path.read_bytes() for path in on_disk.iterdir() if path.is_file()}


def test_a_finished_run_leaves_nothing_private_but_its_lease(on_s3: str, s3: S3Server) -> None:
    bucket = on_s3.split("/")[2]
    private = [key for key in s3.keys(bucket) if ".spacepatch" in key]
    assert private == ["some/shards/.spacepatch/lock.000001"]


def test_a_run_that_stopped_before_its_plan_was_whole_is_begun_again(
    clips: list[str], s3: S3Server, on_disk: Path
) -> None:
    url = f"s3://{s3.bucket()}/shards"
    denied = Fault("status", status=403, code="AccessDenied", target=r"/plan\.json", method="PUT")
    with s3.faults(denied), pytest.raises(StoreError, match=r"plan\.json: the store denies access"):
        tokenize(clips, out=url, config=load_config(CONFIG))
    assert list(digests(url, s3)) == ["plan.parquet"]
    tokenize(clips, out=url, config=load_config(CONFIG))
    assert digests(url, s3) == digests(on_disk, s3)


def test_a_dataset_is_verified_and_described_where_it_lies(on_s3: str, on_disk: Path) -> None:
    assert verify(on_s3) == []
    assert summarize(on_s3) == summarize(on_disk)
    tar = sorted(on_disk.glob("*.tar"))[0].name
    assert verify(f"{on_s3}/{tar}") == []


def test_damage_is_found_where_it_lies(on_s3: str, s3: S3Server) -> None:
    bucket = on_s3.split("/")[2]
    tar = next(key for key in s3.keys(bucket) if key.endswith(".tar"))
    content = s3.get(bucket, tar)
    spoiled = bytearray(content)
    spoiled[700] ^= 1
    try:
        s3.client().put_object(Bucket=bucket, Key=tar, Body=bytes(spoiled))
        assert any("sha256" in problem.what for problem in verify(on_s3))
    finally:
        s3.client().put_object(Bucket=bucket, Key=tar, Body=content)


@pytest.mark.parametrize(
    "rewrite",
    [
        lambda folder, out: convert(folder, out=out, layout="t p q c"),
        lambda folder, out: repack(folder, out=out, pack_length=384),
    ],
    ids=["convert", "repack"],
)
def test_a_dataset_is_written_anew_from_store_to_store(
    rewrite: Callable[[Any, Any], Any], on_s3: str, on_disk: Path, s3: S3Server, tmp_path: Path
) -> None:
    rewrite(on_disk, tmp_path / "new")
    url = f"s3://{s3.bucket()}/new"
    rewrite(on_s3, url)
    assert digests(url, s3) == digests(tmp_path / "new", s3)


def test_loaders_give_the_same_packs_from_a_store(on_s3: str, on_disk: Path) -> None:
    import torch
    from torch.utils.data import DataLoader

    from spacepatch.loader import PackDataset, PackStream

    local, remote = PackDataset(on_disk), PackDataset(on_s3)
    loaded = list(DataLoader(remote, batch_size=None, num_workers=2))
    assert len(loaded) == len(local) > 3
    for number, pack in enumerate(loaded):
        for name in ("tokens", "segment_ids", "positions"):
            assert torch.equal(pack[name], local[number][name])
    # In this process too, before and after which workers are forked.
    assert torch.equal(remote[1]["tokens"], local[1]["tokens"])
    streams = [list(PackStream(place)) for place in (on_disk, on_s3)]
    assert len(streams[1]) == len(local)
    for pack, other in zip(*streams, strict=True):
        assert torch.equal(pack["tokens"], other["tokens"])


def test_a_pack_is_read_by_its_range(on_s3: str, on_disk: Path, s3: S3Server) -> None:
    from spacepatch.loader import PackDataset

    packs = PackDataset(on_s3)
    run, place = packs.packs.find(len(packs) - 1)
    s3.forget()
    packs[len(packs) - 1]
    found = [request for request in s3.requests() if request.path.endswith(".tar")]
    index = np.load(on_disk / f"{run.shard}.index.npy")[place]
    last = int(index[-1].sum()) - 1
    assert [(request.method, request.range) for request in found] == [
        ("HEAD", ""),  # when the shard is opened
        ("GET", f"bytes={index[0, 0]}-{last}"),
    ]


def test_errors_of_a_store_are_one_line(
    clips: list[str], spacepatch_cli: SpacepatchCli, s3: S3Server
) -> None:
    url = f"s3://{s3.bucket()}/shards"
    nobody = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}
    nowhere = url.replace("bucket-", "nobody-has-")
    for out, env, said in (
        (nowhere, {}, "there is no bucket nobody-has-"),
        (url, nobody, "no credentials"),
    ):
        done = spacepatch_cli("tokenize", *clips, "--out", out, *SETTINGS, env=s3.env | env)
        assert done.returncode == 1
        lines = [line for line in done.stderr.splitlines() if line.startswith("error:")]
        assert len(lines) == 1 and said in lines[0] and out in lines[0]
        assert "Traceback" not in done.stderr


def test_a_local_run_loads_nothing_of_it(clips: list[str], tmp_path: Path) -> None:
    program = (
        "import sys; from spacepatch.cli import app\n"
        "try: app(sys.argv[1:])\n"
        "finally: assert not {'fsspec', 'upath', 's3fs'} & set(sys.modules), 'loaded'\n"
    )
    arguments = ["plan", clips[0], "--out", str(tmp_path / "out"), *SETTINGS]
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True)
    assert b"loaded" not in done.stderr
    assert (tmp_path / "out" / "plan.json").exists()


def test_a_run_that_fails_after_requests_were_repeated_says_why(
    clips: list[str], s3: S3Server
) -> None:
    # Of what was repeated nothing may keep the tokens of a shard that is written.
    gc.disable()
    try:
        with (
            s3.faults(
                Fault("reset", method="PUT", target=r"-000000\.tar", count=10),
                Fault("status", status=403, code="AccessDenied", target=r"-000001\.tar"),
            ),
            pytest.raises(StoreError, match=r"-000001\.tar: the store denies access"),
        ):
            tokenize(clips, out=f"s3://{s3.bucket()}/shards", config=load_config(CONFIG))
    finally:
        gc.enable()


# --- two runs, and runs that die ------------------------------------------------------------------


LEASE_SECONDS = "2"


class Runs:
    """Runs of the same command, side by side."""

    def __init__(self, clips: list[str], s3: S3Server) -> None:
        self.s3 = s3
        self.url = f"s3://{s3.bucket()}/shards"
        self._command = [sys.executable, "-m", "spacepatch", "tokenize", *clips, *SETTINGS]
        self._env = {**os.environ, **s3.env, "SPACEPATCH_LEASE_SECONDS": LEASE_SECONDS}

    def start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*self._command, "--out", self.url], env=self._env, stderr=subprocess.PIPE, text=True
        )

    @contextmanager
    def held_before_a_receipt(self) -> Iterator[subprocess.Popen[str]]:
        """A run that has written a shard, and cannot write its receipt inside the block."""
        self.s3.forget()
        receipt = r"/[0-9a-f]{8}-\d{6}\.json"
        with self.s3.faults(Fault("reset", method="PUT", target=receipt)), self.start() as run:
            try:
                while not any(
                    request.fault and re.fullmatch(f".*{receipt}", request.path)
                    for request in self.s3.requests()
                ):
                    assert run.poll() is None
                    time.sleep(0.01)
                yield run
            finally:
                run.kill()

    def refused(self) -> str:
        """What a run is told that must not begin."""
        with self.start() as run:
            _, told = run.communicate(timeout=120)
        assert run.returncode == 1
        assert told.count("error:") == 1 and "Traceback" not in told
        return told

    def wait_until_let_in(self) -> None:
        """Start until the lease of another has ended, and be done."""
        for _ in range(60):
            with self.start() as run:
                _, told = run.communicate(timeout=120)
            if run.returncode == 0:
                return
            assert "another spacepatch run" in told, told
        raise AssertionError("the lease never ended")


def test_killed_between_shard_and_receipt_the_next_run_goes_on(
    clips: list[str], s3: S3Server, on_disk: Path
) -> None:
    runs = Runs(clips, s3)
    with runs.held_before_a_receipt() as run:
        refusal = runs.refused()
        assert f"process {run.pid}" in refusal and "its lease ends at" in refusal
        os.kill(run.pid, signal.SIGKILL)
        run.wait()
        visible = digests(runs.url, s3)
    whole = digests(on_disk, s3)
    assert visible.items() < whole.items()
    assert any(name.endswith(".tar") for name in visible)
    assert not any(re.fullmatch(r".*-\d{6}\.json", name) for name in visible)
    runs.wait_until_let_in()
    assert digests(runs.url, s3) == whole


def test_a_run_that_slept_while_another_took_over_writes_nothing_more(
    clips: list[str], s3: S3Server, on_disk: Path
) -> None:
    runs = Runs(clips, s3)
    with runs.held_before_a_receipt() as run:
        os.kill(run.pid, signal.SIGSTOP)
        s3.inject()
        runs.wait_until_let_in()
        s3.forget()
        os.kill(run.pid, signal.SIGCONT)
        _, told = run.communicate(timeout=120)
    assert run.returncode == 1
    assert "another run took over" in told and "Traceback" not in told
    # But for the request that was on its way when it fell asleep, which the library may send again
    # where its connection broke meanwhile: the same bytes at the same place.
    written = [request for request in s3.requests() if request.method not in ("GET", "HEAD")]
    assert {request.path.rpartition("-")[2] for request in written} <= {"000000.json"}, written
    assert digests(runs.url, s3) == digests(on_disk, s3)


def test_through_seeded_faults_and_kills_nothing_is_lost_or_half_visible() -> None:
    done = subprocess.run(
        [sys.executable, HERE / "remote_trials.py", "--trials", "3"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "trials: 3" in done.stdout
    assert "runs killed" in done.stdout and "faults: " in done.stdout
