"""Paths on an object store: whole uploads, range reads, leases, errors in one line."""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from conftest import SpacepatchCli
from s3_server import Fault, S3Server

from spacepatch.errors import ConfigError, MissingDependencyError, ResumeError, StoreError
from spacepatch.storage import lock, open_folder, publish, sweep_temporary

DENIED = Fault("status", status=403, code="AccessDenied")


@pytest.fixture(autouse=True)
def credentials(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in s3.env.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def folder(s3: S3Server) -> Any:
    """An empty folder on S3."""
    return open_folder(f"s3://{s3.bucket()}/folder", writes=True)


LARGE = os.urandom(1 << 20) * 20
"""Bytes that go in several parts."""


def write_large(file: Any) -> None:
    file.write(LARGE)


def test_a_large_file_appears_whole_through_faults(folder: Any, s3: S3Server) -> None:
    with s3.faults(
        Fault("status", count=1, target="partNumber=2"),
        Fault("reset", count=1, target="partNumber=3"),
        Fault("reset", count=1, method="POST", target=r"\?uploadId=", applied=True),
    ):
        publish(folder / "large", write_large)
    bucket = folder.path.split("/")[0]
    assert s3.get(bucket, "folder/large") == LARGE
    assert "Uploads" not in s3.client().list_multipart_uploads(Bucket=bucket)


def test_an_upload_that_fails_leaves_neither_object_nor_parts(folder: Any, s3: S3Server) -> None:
    denied = Fault("status", status=403, code="AccessDenied", target="partNumber=2")
    with s3.faults(denied), pytest.raises(StoreError, match="large: the store denies access"):
        publish(folder / "large", write_large)
    bucket = folder.path.split("/")[0]
    assert s3.keys(bucket) == []
    assert "Uploads" not in s3.client().list_multipart_uploads(Bucket=bucket)


def test_the_next_run_ends_the_uploads_of_a_killed_one_and_no_others(
    folder: Any, s3: S3Server
) -> None:
    bucket, client = folder.path.split("/")[0], s3.client()
    for key in ("folder/a.tar", "folder2/b.tar", "c.tar"):
        client.create_multipart_upload(Bucket=bucket, Key=key)
    sweep_temporary(folder)
    left = [entry["Key"] for entry in client.list_multipart_uploads(Bucket=bucket)["Uploads"]]
    assert sorted(left) == ["c.tar", "folder2/b.tar"]


def test_what_is_not_there_as_it_was_sent_is_sent_again(folder: Any, s3: S3Server) -> None:
    bucket, client = folder.path.split("/")[0], s3.client()

    def spoil() -> None:
        while not s3.keys(bucket):
            time.sleep(0.01)
        client.put_object(Bucket=bucket, Key="folder/one", Body=b"another")

    # Before the store says what it has, somebody else puts something else there.
    slow = Fault("slow", count=1, method="HEAD", target="folder/one", seconds=2)
    with s3.faults(slow), ThreadPoolExecutor(1) as beside:
        spoiled = beside.submit(spoil)
        publish(folder / "one", lambda file: file.write(b"content"))
        spoiled.result()
    assert s3.get(bucket, "folder/one") == b"content"
    puts = [request for request in s3.requests() if request.method == "PUT"]
    assert len([request for request in puts if request.path.endswith("/one")]) >= 3


def test_answers_that_are_cut_off_are_asked_for_again(folder: Any, s3: S3Server) -> None:
    content = bytes(range(256)) * 1000
    publish(folder / "one", lambda file: file.write(content))
    for kind in ("truncate", "short"):
        with s3.faults(Fault(kind, count=2, method="GET", target="folder/one")):
            assert (folder / "one").read_bytes() == content
        with s3.faults(Fault(kind, count=2, method="GET", target="folder/one")):
            assert (folder / "one").read_range(1000, 200_000) == content[1000:200_000]
    with s3.faults(Fault("status", count=2, status=429, code="TooManyRequests")):
        assert (folder / "one").is_file()


# --- what a user sees -----------------------------------------------------------------------------


def test_a_denied_store_is_named(folder: Any, s3: S3Server) -> None:
    with (
        s3.faults(DENIED),
        pytest.raises(StoreError, match=rf"{folder}.*denies access; set AWS_ACCESS_KEY"),
        lock(folder),
    ):
        pass


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("ftp://host/folder", "only file://, s3://"),
        ("https://host/folder", "only file://, s3://"),
        ("hf://datasets/me/shards", "memory:// can be written; give a folder"),
        ("s3://", "names no bucket"),
        ("s3://key:secret@bucket/a", "s3://bucket/a: no user or password in an address"),
        ("s3://bucket/a?versionId=3", "is no plain s3://BUCKET/FOLDER"),
        ("s3://bucket/a/../b", "is no plain s3://BUCKET/FOLDER"),
        ("memory://a::s3://b", "is no plain memory://BUCKET/FOLDER"),
        ("file://host/folder", "is on another machine"),
        (Path("s3://bucket/folder"), "was a URL before it was made a Path"),
    ],
)
def test_what_is_no_place_for_shards_is_refused(place: str | Path, said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        open_folder(place, writes=True)


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MissingDependencyError, match=r"gs:// needs gcsfs .*pip install gcsfs"):
        open_folder("gs://bucket/shards")
    monkeypatch.setitem(sys.modules, "upath", None)
    with pytest.raises(MissingDependencyError, match="universal_pathlib"):
        open_folder("s3://bucket/shards")


def test_file_urls_are_local_disk(tmp_path: Path) -> None:
    assert open_folder((tmp_path / "a b").as_uri(), writes=True) == tmp_path / "a b"


def test_a_picture_and_a_codec_go_to_local_disk(spacepatch_cli: SpacepatchCli) -> None:
    done = spacepatch_cli("preview", "shards", "--out", "s3://bucket/a.png")
    assert done.returncode == 2
    assert "s3://bucket/a.png: must be on local disk here" in done.stderr


def test_of_many_runs_one_may_write(folder: Any) -> None:
    def write(_: int) -> bool:
        try:
            with lock(folder):
                begun.wait(60)
                try:
                    # This endpoint may make an object twice that is to be made where there is
                    # none; who writes sees who has the lease all the same.
                    publish(folder / "one", lambda file: file.write(b"content"))
                except ResumeError:
                    return False
                finally:
                    written.wait(60)
                return True
        except ResumeError:
            begun.wait(60)
            written.wait(60)
            return False

    begun, written = threading.Barrier(6), threading.Barrier(6)
    with ThreadPoolExecutor(6) as many:
        assert sum(many.map(write, range(6))) == 1
    with lock(folder):
        pass
