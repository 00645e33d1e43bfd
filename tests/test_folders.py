"""Folders as SOURCE: what is found, in which order, under which names."""

import os
import socket
from pathlib import Path

import pytest
from listings import listed, names, put

from spacepatch.sources import content_id


def test_a_folder_is_searched_to_its_depths_and_names_are_relative_to_it(tmp_path: Path) -> None:
    put(tmp_path / "videos", "a.mp4", "one/b.webm", "one/two/three/c.gif", "one/d.MKV")
    listing = listed(tmp_path / "videos")
    assert names(listing) == ["a.mp4", "one/b.webm", "one/d.MKV", "one/two/three/c.gif"]
    assert [Path(source.uri) for source in listing.sources] == [
        tmp_path / "videos" / name for name in names(listing)
    ]


@pytest.mark.parametrize("order", [1, -1])
def test_order_is_that_of_the_bytes_of_names_whatever_the_order_of_creation(
    tmp_path: Path, order: int
) -> None:
    # Bytes, not letters: capitals first, "-" before ".", "10" before "9", ASCII before the rest.
    expected = ["B.mp4", "a-b/x.mp4", "a.mp4", "a/x.mp4", "c10.mp4", "c9.mp4", "z.mp4", "ä.mp4"]
    put(tmp_path, *expected[::order])
    assert names(listed(tmp_path)) == expected == sorted(expected, key=str.encode)


def test_listing_a_relative_folder_gives_absolute_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, "v/a.mp4")
    monkeypatch.chdir(tmp_path)
    assert listed("v").sources[0].uri == str(tmp_path / "v" / "a.mp4")


@pytest.mark.parametrize(
    "name", [".hidden.mp4", "notes.txt", "noextension", "mp4", "a.mp4.part", "._a.mp4", "README.md"]
)
def test_a_file_that_is_hidden_or_no_media_by_name_is_ignored_and_counted(
    tmp_path: Path, name: str
) -> None:
    listing = listed(put(tmp_path, "a.mp4", name))
    assert (names(listing), listing.num_ignored) == (["a.mp4"], 1)


def test_a_hidden_folder_counts_as_one_ignored(tmp_path: Path) -> None:
    listing = listed(put(tmp_path, "a.mp4", ".git/b.mp4", ".git/c.mp4", "d/.cache/e.mp4"))
    assert (names(listing), listing.num_ignored) == (["a.mp4"], 2)


def test_a_hidden_folder_that_is_named_itself_is_searched(tmp_path: Path) -> None:
    assert names(listed(put(tmp_path / ".mine", "a.mp4"))) == ["a.mp4"]


def test_a_fifo_named_like_a_video_is_ignored_and_never_opened(tmp_path: Path) -> None:
    put(tmp_path, "a.mp4")
    os.mkfifo(tmp_path / "pipe.mp4")
    listing = listed(tmp_path)  # would wait for ever for a writer
    assert (names(listing), listing.num_ignored) == (["a.mp4"], 1)


def test_a_socket_named_like_a_video_is_ignored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, "a.mp4")
    monkeypatch.chdir(tmp_path)  # the path of a socket is at most 108 bytes
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.mp4")
        assert (names(listed(tmp_path)), listed(tmp_path).num_ignored) == (["a.mp4"], 1)


def test_a_link_to_a_file_is_taken_under_the_name_of_the_link(tmp_path: Path) -> None:
    put(tmp_path, "elsewhere/real.mp4", "videos/a.mp4", content=b"12345")
    (tmp_path / "videos" / "link.mp4").symlink_to(tmp_path / "elsewhere" / "real.mp4")
    listing = listed(tmp_path / "videos")
    assert [(s.name, s.num_bytes) for s in listing.sources] == [("a.mp4", 5), ("link.mp4", 5)]


def test_a_link_that_leads_nowhere_is_ignored_and_counted(tmp_path: Path) -> None:
    put(tmp_path, "a.mp4")
    (tmp_path / "link.mp4").symlink_to(tmp_path / "gone.mp4")
    assert (names(listed(tmp_path)), listed(tmp_path).num_ignored) == (["a.mp4"], 1)


def test_links_to_folders_that_lead_round_in_a_circle_end(tmp_path: Path) -> None:
    put(tmp_path, "a/b.mp4")
    (tmp_path / "a" / "again").symlink_to(tmp_path)
    assert (names(listed(tmp_path)), listed(tmp_path).num_ignored) == (["a/b.mp4"], 1)


def test_a_folder_inside_that_cannot_be_read_is_missing_and_not_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Root may read everything; a path longer than the system's limit is out of reach for all.
    put(tmp_path, "a.mp4")
    monkeypatch.chdir(tmp_path)
    for _ in range(20):
        Path("d" * 250).mkdir()
        monkeypatch.chdir("d" * 250)
    listing = listed(tmp_path)
    assert names(listing) == ["a.mp4"]
    assert [source.name[:5] for source in listing.missing] == ["ddddd"]


AWKWARD = [
    " leading and trailing .mp4",
    "+&?=#%41.mp4",
    "-starts-with-dash.mp4",
    "a:b.mp4",
    "brackets[0-9]*.mp4",
    "new\nline.mp4",
    "naïve 视频 🎬.mp4",
    "quote'\".mp4",
    "tab\there.mp4",
    "x" * 251 + ".mp4",
]


def test_awkward_names_in_a_folder_come_out_as_they_are(tmp_path: Path) -> None:
    assert names(listed(put(tmp_path, *AWKWARD))) == sorted(AWKWARD, key=str.encode)


@pytest.mark.parametrize("name", AWKWARD)
def test_an_awkward_name_can_be_given_directly(tmp_path: Path, name: str) -> None:
    assert names(listed(put(tmp_path, name) / name)) == [name]


def test_bytes_that_are_no_utf8_are_shown_and_the_file_is_still_found(tmp_path: Path) -> None:
    raw = os.fsencode(tmp_path) + b"/caf\xe9.mp4"
    Path(os.fsdecode(raw)).write_bytes(b"12")
    (source,) = listed(tmp_path).sources
    assert source.name == r"caf\xe9.mp4"
    assert os.fsencode(source.uri) == raw
    assert content_id(source.uri, num_bytes=2)


@pytest.mark.parametrize("order", [1, -1])
def test_names_that_look_alike_once_printed_keep_their_order_and_get_two_ids(
    tmp_path: Path, order: int
) -> None:
    for raw in [b"\xff.mp4", rb"\xff.mp4"][::order]:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + raw)).write_bytes(raw)
    sources = listed(tmp_path).sources
    assert [Path(source.uri).read_bytes() for source in sources] == [rb"\xff.mp4", b"\xff.mp4"]
    assert [source.name for source in sources] == [r"\xff.mp4"] * 2
    assert len({source.source_id for source in sources}) == 2
