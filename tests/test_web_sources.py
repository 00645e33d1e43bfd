"""Sources on web servers: only with leave, and never inside a private network."""

import socket
from pathlib import Path
from typing import Any

import pytest
from conftest import SpacepatchCli
from listings import make_tar
from small_runs import SMALL, rows
from web_server import Server

from spacepatch.errors import ConfigError
from spacepatch.listings import Listing
from spacepatch.remote import configure, open_source
from spacepatch.remote.web import is_private, is_public
from spacepatch.sources import list_sources


@pytest.fixture(autouse=True)
def without_blocks() -> None:
    configure(None, 0)


def listed(*arguments: str) -> Listing:
    return list_sources(arguments, allow_network=True)


def names(listing: Listing) -> list[str]:
    return [source.name for source in listing.sources]


def test_videos_tars_lists_and_manifests_are_read_from_a_server_that_was_named(
    server: Server, sample_clips: Path, spacepatch_cli: SpacepatchCli, tmp_path: Path
) -> None:
    clip = (sample_clips / "square_320x320.mp4").read_bytes()
    make_tar(tmp_path / "some.tar", [("one.mp4", clip)])
    server.files = {
        "/in/a b.mp4": clip,
        "/in/some.tar": (tmp_path / "some.tar").read_bytes(),
        "/in/rows.csv": b"uri\na b.mp4\nnone.mp4\n",
        "/in/list.txt": b"a%20b.mp4\n",
    }
    done = spacepatch_cli(
        *("tokenize", f"{server.url}/in/a%20b.mp4?signature=SECRET", f"{server.url}/in/some.tar"),
        *(f"{server.url}/in/rows.csv", f"@{server.url}/in/list.txt?token=SECRET"),
        *("--out", tmp_path / "out", "--allow-network", "--json", "--cache-bytes", "0"),
        *(f"--{key.replace('_', '-')}={value}" for key, value in SMALL.items()),
    )
    assert done.returncode == 3, done.stderr
    assert "SECRET" not in done.stderr + done.stdout
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert files and not any(b"SECRET" in path.read_bytes() for path in files)
    found = rows(tmp_path / "out", "sources.parquet")
    assert sorted((row["source"], row["num_segments"] > 0) for row in found) == [
        ("a b.mp4", True),
        ("a b.mp4", True),
        ("a b.mp4", True),
        ("none.mp4", False),
        ("some.tar/one.mp4", True),
    ]
    assert any("signature=SECRET" in path for path in server.asked)


@pytest.mark.parametrize("has_head", [True, False])
def test_a_server_without_ranges_serves_small_files_only(server: Server, has_head: bool) -> None:
    server.has_ranges, server.has_head = False, has_head
    server.files = {"/small.mp4": b"x" * 100_000, "/large.mp4": b"y" * 2_000_000}
    with open_source(f"{server.url}/small.mp4") as file:
        assert file.read() == server.files["/small.mp4"]
    with open_source(f"{server.url}/large.mp4") as file:
        file.seek(1_000_000)
        with pytest.raises(OSError, match="does not answer with ranges"):
            file.read(10)


def test_redirects_stay_on_the_server_that_was_named_or_go_to_public_addresses(
    server: Server,
) -> None:
    server.files = {"/there.mp4": b"x" * 1000}
    server.redirects = {"/here.mp4": "/there.mp4", "/round.mp4": "/round.mp4"}
    with open_source(f"{server.url}/here.mp4") as file:
        assert file.read() == b"x" * 1000
    with pytest.raises(ConfigError, match="redirects without end"):
        listed(f"{server.url}/round.mp4")
    with Server() as other:
        for target in (
            f"http://127.0.0.1:{other.server_port}/x.mp4",
            f"http://localhost:{other.server_port}/x.mp4",
            f"http://[::1]:{other.server_port}/x.mp4",
            f"http://[::ffff:127.0.0.1]:{other.server_port}/x.mp4",
            "http://169.254.169.254/latest/meta-data/",
            "http://10.0.0.1/",
        ):
            server.redirects["/away.mp4"] = target
            with pytest.raises(ConfigError, match="private address"):
                listed(f"{server.url}/away.mp4")
    for target in ("file:///etc/passwd", "http://2130706433/", "ftp://127.0.0.1/x"):
        server.redirects["/away.mp4"] = target
        with pytest.raises(ConfigError, match="no address that http:// takes"):
            listed(f"{server.url}/away.mp4")


def test_a_name_that_resolves_to_a_private_address_is_refused_each_time_it_is_asked(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve = socket.getaddrinfo

    def lie(host: str, *args: Any, **kwargs: Any) -> object:
        if host == "videos.example" and not kwargs.get("flags", 0) & socket.AI_NUMERICHOST:
            host = "127.0.0.1"
        return resolve(host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", lie)
    server.files = {"/x.mp4": b"x"}
    with pytest.raises(ConfigError, match="private address"):
        listed(f"http://videos.example:{server.server_port}/x.mp4")
    assert server.asked == []


def test_lists_name_no_private_addresses(server: Server, tmp_path: Path) -> None:
    server.files = {"/x.mp4": b"x"}
    for host in ("127.0.0.1", "localhost", "127.1", "0x7f000001", "[::1]", "192.168.1.1"):
        (tmp_path / "list.txt").write_text(f"http://{host}:{server.server_port}/x.mp4\n")
        with pytest.raises(ConfigError, match=r"line 1: .* is a private address"):
            listed(f"@{tmp_path}/list.txt")
    assert server.asked == []


def test_without_leave_nothing_is_asked_also_not_for_a_list(server: Server, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("https://example.com/x.mp4?token=SECRET\n")
    for argument in (f"{server.url}/x.mp4?token=SECRET", f"@{tmp_path}/list.txt"):
        with pytest.raises(ConfigError, match="--allow-network") as caught:
            list_sources([argument])
        assert "SECRET" not in str(caught.value)
    assert server.asked == []


@pytest.mark.parametrize(
    "address",
    "0.0.0.0 10.1.2.3 100.64.0.1 127.0.0.2 169.254.169.254 172.16.0.1 192.168.0.1 224.0.0.1 "
    "255.255.255.255 ::1 :: fe80::1 fc00::1 ff02::1 ::ffff:10.0.0.1 64:ff9b::7f00:1 "
    "2002:7f00:1::1".split(),
)
def test_private_addresses_are_known_in_all_their_forms(address: str) -> None:
    assert not is_public(address) and is_private(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "64:ff9b::808:808"])
def test_public_addresses_are_public(address: str) -> None:
    assert is_public(address) and not is_private(address)
