"""Datasets held against sources at URLs: `verify --decode` and `preview`."""

from pathlib import Path

import pytest
from conftest import SpacepatchCli
from listings import make_tar
from s3_server import S3Server
from small_runs import run
from web_server import Server

from spacepatch.config import load_config
from spacepatch.errors import ConfigError
from spacepatch.inspection.decoded import Decoded
from spacepatch.inspection.decoding import decode_segments
from spacepatch.preview import preview

CLIPS = ("square_320x320.mp4", "odd_size_321x179_vp9.webm")


@pytest.fixture(scope="module")
def videos(sample_clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip in a folder, whose name has a blank, and one in a tar."""
    folder = tmp_path_factory.mktemp("videos") / "in"
    (folder / "a b").mkdir(parents=True)
    first, second = (sample_clips / name for name in CLIPS)
    (folder / "a b" / first.name).write_bytes(first.read_bytes())
    make_tar(folder / "some.tar", [(f"k/{second.name}", second.read_bytes())])
    return folder


@pytest.fixture(scope="module")
def dataset(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dataset") / "out"
    run([videos, videos / "some.tar"], out)
    return out


def decoded(dataset: Path, **roots: str) -> Decoded:
    config = load_config({"workers": 1, "allow_network": True})
    places = {int(number.removeprefix("of_")): place for number, place in roots.items()}
    return decode_segments(dataset, num_segments=100, config=config, roots=places)


def test_sources_that_lie_in_a_bucket_now_are_found_there(
    s3: S3Server, bucket: str, videos: Path, dataset: Path, spacepatch_cli: SpacepatchCli
) -> None:
    s3.upload(videos, bucket, "now/")
    s3.forget()
    url = f"s3://{bucket}/now"
    roots = ["--source-root", f"0={url}", "--source-root", f"1={url}/some.tar"]
    done = spacepatch_cli("verify", dataset, "--decode", "100", *roots)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert "segments are what is in their sources" in done.stdout
    # A large folder is not listed: what is asked for is one name.
    assert not any("delimiter=&" in request.query for request in s3.requests())
    picture = dataset.parent / "a.png"
    done = spacepatch_cli("preview", dataset, "--out", picture, "--segments", "2", *roots)
    assert (done.returncode, done.stderr) == (0, "")
    alone = dataset.parent / "alone.png"
    preview(dataset, out=alone, config=load_config({"workers": 1}), roots={}, num_segments=2)
    assert picture.stat().st_size > alone.stat().st_size


def test_another_object_of_that_name_is_told_from_the_source(
    s3: S3Server, bucket: str, videos: Path, dataset: Path, sample_clips: Path
) -> None:
    other = (sample_clips / "portrait_270x480.mp4").read_bytes()
    s3.client().put_object(Bucket=bucket, Key=f"a b/{CLIPS[0]}", Body=other)
    found = decoded(dataset, of_0=f"s3://{bucket}", of_1=str(videos))
    said = {segment.source: segment.problem for segment in found.segments}
    assert "source_changed: " in said[f"a b/{CLIPS[0]}"]
    assert said[f"some.tar/k/{CLIPS[1]}"] == ""


def test_sources_on_a_web_server_are_found_with_leave(
    server: Server, videos: Path, dataset: Path, spacepatch_cli: SpacepatchCli
) -> None:
    server.files = {
        f"/in/{path.relative_to(videos)}": path.read_bytes()
        for path in videos.rglob("*")
        if path.is_file()
    }
    found = decoded(dataset, of_0=f"{server.url}/in/", of_1=f"{server.url}/in/")
    assert {segment.problem for segment in found.segments} == {""}
    assert all(segment.found.is_same for segment in found.segments)
    del server.files[f"/in/a b/{CLIPS[0]}"]
    found = decoded(dataset, of_0=f"{server.url}/in/", of_1=str(videos))
    said = {segment.source: segment.problem for segment in found.segments}
    assert f"its source is not in {server.url}/in/" in said[f"a b/{CLIPS[0]}"]

    server.redirects["/in/some.tar"] = "http://169.254.169.254/some.tar"
    with pytest.raises(ConfigError, match=r"--source-root: .*private address"):
        decoded(dataset, of_0=str(videos), of_1=f"{server.url}/in/some.tar")
    server.asked.clear()
    root = f"--source-root={server.url}/in/"
    done = spacepatch_cli("verify", dataset, "--decode", "1", root)
    assert done.returncode == 2 and "give --allow-network" in done.stderr
    assert server.asked == []
