"""Tars as SOURCE: their members are read where they lie."""

import json
import tarfile
from pathlib import Path

import pytest
from listings import listed, make_tar, names, put

from spacepatch.errors import ConfigError

MEMBERS = [
    ("0002.mp4", b"second" * 300),
    ("0001.mp4", b"first"),
    ("0001.vtt", b"{}"),
    ("deep/er/0003.webm", bytes(range(256)) * 7),
    ("deep/" + "n" * 150 + ".mkv", b"a name longer than a ustar header holds"),
    ("./0004.mp4", b"."),
    ("naïve 视频.mp4", b"unicode"),
    ("empty.mp4", b""),
]


@pytest.mark.parametrize("format_", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_the_bytes_of_a_member_are_those_that_tarfile_reads(tmp_path: Path, format_: int) -> None:
    path = make_tar(tmp_path / "x.tar", MEMBERS, format_)
    sources = listed(path).sources
    assert len(sources) == 7
    with tarfile.open(path) as archive:
        for source in sources:
            member = archive.extractfile(source.name.removeprefix("x.tar/"))
            with Path(source.uri).open("rb") as file:
                file.seek(source.member_offset)
                assert file.read(source.num_bytes) == member.read()


def test_members_are_sorted_named_after_their_tar_and_nothing_is_extracted(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "x.tar", MEMBERS[:4])
    listing = listed(path)
    assert names(listing) == ["x.tar/0001.mp4", "x.tar/0002.mp4", "x.tar/deep/er/0003.webm"]
    assert listing.num_ignored == 1
    assert list(tmp_path.iterdir()) == [path]


def test_links_folders_hidden_and_other_members_are_no_videos(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as archive:
        for name, kind in [
            ("a.mp4", tarfile.REGTYPE),
            ("symbolic.mp4", tarfile.SYMTYPE),
            ("hard.mp4", tarfile.LNKTYPE),
            ("pipe.mp4", tarfile.FIFOTYPE),
            ("folder.mp4", tarfile.DIRTYPE),
            ("._a.mp4", tarfile.REGTYPE),
            (".cache/b.mp4", tarfile.REGTYPE),
            ("notes.txt", tarfile.REGTYPE),
        ]:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
    listing = listed(path)
    assert (names(listing), listing.num_ignored) == (["x.tar/a.mp4"], 6)


def test_a_member_named_to_climb_out_is_only_a_name(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "in.tar", [("../../evil.mp4", b"evil"), ("/etc/evil.mp4", b"evil")])
    sources = listed(path).sources
    assert {source.uri for source in sources} == {str(path)}
    assert list(tmp_path.iterdir()) == [path]


def test_equal_names_inside_a_tar_get_two_ids_in_the_order_of_the_tar(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "x.tar", [("a.mp4", b"old"), ("a.mp4", b"newer")])
    sources = listed(path).sources
    assert [source.num_bytes for source in sources] == [3, 5]
    assert len({source.source_id for source in sources}) == 2


def test_a_glob_of_tars_reads_their_members(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    make_tar(tmp_path / "d" / "2.tar", [("a.mp4", b"2")])
    make_tar(tmp_path / "d" / "1.tar", [("a.mp4", b"1"), ("a.nfo", b"1")])
    listing = listed(tmp_path / "*" / "*.tar")
    assert names(listing) == ["d/1.tar/a.mp4", "d/2.tar/a.mp4"]
    assert listing.num_ignored == 1


@pytest.mark.parametrize("damage", ["compressed", "text", "cut in a member", "header overwritten"])
def test_a_tar_that_cannot_be_read_whole_is_refused_by_name(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "x.tar"
    make_tar(path, [("a.mp4", b"1" * 2000), ("b.mp4", b"2" * 2000), ("c.mp4", b"3" * 2000)])
    content = bytearray(path.read_bytes())
    if damage == "compressed":
        with tarfile.open(path, "w:gz"):
            pass
    elif damage == "text":
        path.write_bytes(b"this is no tar at all " * 100)
    elif damage == "cut in a member":
        path.write_bytes(content[: 2560 + 512 + 700])
    else:
        content[2560:2660] = b"\xff" * 100
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"x\.tar: not a plain tar that can be read"):
        listed(path)


def test_a_video_inside_a_tar_is_planned_like_the_file_itself(
    tmp_path: Path, sample_clips: Path, spacepatch_cli
) -> None:
    content = (sample_clips / "odd_size_321x179_vp9.webm").read_bytes()
    put(tmp_path, "a.webm", content=content)
    make_tar(tmp_path / "x.tar", [("z.txt", b"before"), ("a.webm", content), ("b.txt", b"after")])
    done = [spacepatch_cli("plan", "--json", tmp_path / name) for name in ("a.webm", "x.tar")]
    plain, member = (json.loads(run.stdout)["sources"] for run in done)
    assert member[0].pop("source") == "x.tar/a.webm"
    assert plain[0].pop("source") == "a.webm"
    assert plain == member
