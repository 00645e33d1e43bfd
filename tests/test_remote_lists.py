"""What SOURCE arguments at URLs name, what lists may lead to, and what is said where that fails."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import SpacepatchCli
from listings import listed, names
from s3_server import Fault, S3Server

from spacepatch.errors import ConfigError, SpacepatchError
from spacepatch.sources import list_sources


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3://no-such-bucket-here/x", "no such object, folder or bucket"),
        ("s3://{bucket}/nothing", "no such object, folder or bucket"),
        ("@s3://{bucket}/nothing.txt", "no such object, folder or bucket"),
        ("s3://{bucket}/nothing*.mp4", "the pattern matches no object"),
        ("s3://*/nothing.mp4", "name one bucket"),
        ("s3://", "names no bucket"),
        ("gs://{bucket}", "pip install gcsfs"),
        ("ftp://{bucket}/x", "only file://, s3://"),
        ("simplecache::file:///etc", "can be read"),
        ("file://host/x", "a file on another machine"),
        ("http://example.com/x.mp4", "give --allow-network"),
        ("s3://key:HIDDEN@{bucket}/x", "no user or password in an address"),
    ],
)
def test_a_source_that_cannot_be_listed_is_one_line_that_says_what_to_do(
    bucket: str, url: str, message: str
) -> None:
    with pytest.raises(SpacepatchError) as caught:
        list_sources([url.format(bucket=bucket)])
    said = str(caught.value)
    assert message in said and "HIDDEN" not in said and "\n" not in said


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        (
            {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""},
            "no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        ),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "see whether AWS_ENDPOINT_URL is right"),
    ],
)
def test_without_credentials_or_endpoint_the_program_says_which_variables_to_set(
    bucket: str, spacepatch_cli: SpacepatchCli, variables: dict[str, str], message: str
) -> None:
    done = spacepatch_cli("plan", f"s3://{bucket}", env=variables)
    assert done.returncode == 2 and message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_store_that_denies_the_source_argument_is_one_line(s3: S3Server, bucket: str) -> None:
    fault = Fault("status", status=403, code="AccessDenied")
    with s3.faults(fault), pytest.raises(ConfigError, match="denies access; set AWS_ACCESS"):
        list_sources([f"s3://{bucket}/x"])


def test_lists_and_manifests_of_the_users_own_may_lead_to_any_store(
    s3: S3Server, bucket: str, sample_clips: Path, tmp_path: Path
) -> None:
    clip = sample_clips / "square_320x320.mp4"
    s3.upload(clip, bucket)
    (tmp_path / "here.mp4").write_bytes(clip.read_bytes())
    uris = [f"s3://{bucket}/{clip.name}", "here.mp4", f"s3://{bucket}/none.mp4"]
    (tmp_path / "list.txt").write_text("\n".join(uris))
    manifest = "\n".join(json.dumps({"uri": uri}) for uri in uris)
    (tmp_path / "rows.jsonl").write_text(manifest)
    for argument in (f"@{tmp_path}/list.txt", f"{tmp_path}/rows.jsonl"):
        listing = list_sources([argument])
        assert [source.name for source in listing.sources] == uris[:2]
        assert [source.name for source in listing.missing] == uris[2:]
        assert {source.num_bytes for source in listing.sources} == {clip.stat().st_size}


def test_a_list_in_a_store_leads_nowhere_but_below_itself_or_its_root(
    s3: S3Server, bucket: str, sample_clips: Path
) -> None:
    s3.upload(sample_clips / "square_320x320.mp4", bucket, "in/")
    put: Callable[[str], object] = lambda line: s3.client().put_object(  # noqa: E731
        Bucket=bucket, Key="lists/list.txt", Body=line.encode()
    )
    put("ok.mp4")
    argument = f"@s3://{bucket}/lists/list.txt"
    assert len(list_sources([argument]).missing) == 1
    for outside in (
        "../in/square_320x320.mp4",
        f"s3://{bucket}/in/square_320x320.mp4",
        f"s3://{bucket}/lists/../in/square_320x320.mp4",
        f"s3://{bucket}/lists2/x.mp4",
        "s3://another/lists/x.mp4",
        "/etc/passwd",
        "file:///etc/passwd",
        "http://127.0.0.1/x.mp4",
    ):
        put(outside)
        with pytest.raises(ConfigError, match=r"line 1: .* lies outside .*say where"):
            list_sources([argument])
    put("square_320x320.mp4")
    found = list_sources([argument], root=f"s3://{bucket}/in")
    assert names(found) == ["square_320x320.mp4"]


def test_file_urls_are_paths(sample_clips: Path, tmp_path: Path) -> None:
    assert listed(f"file://{sample_clips}") == listed(sample_clips)
    (tmp_path / "a 100%25.mp4").write_bytes(b"x")
    assert names(listed(f"file://{tmp_path}/a 100%25.mp4")) == ["a 100%25.mp4"]
    (tmp_path / "list.txt").write_text(f"file://{tmp_path}/a 100%25.mp4\nfile:///etc/passwd\n")
    with pytest.raises(ConfigError, match=r"line 2: /etc/passwd lies outside"):
        listed(f"@file://{tmp_path}/list.txt")


def test_files_are_read_without_any_package_for_stores(sample_clips: Path) -> None:
    script = (
        "import sys, spacepatch.cli, spacepatch.pipeline, spacepatch.preloaded\n"
        "from spacepatch.sources import list_sources\n"
        "assert list_sources(sys.argv[1:]).sources\n"
        "assert not {'fsspec', 'aiohttp', 's3fs', 'upath'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script, sample_clips], check=True)
