"""SOURCE arguments: files, globs, what is refused, and the identities of sources."""

import hashlib
import json
import os
from pathlib import Path

import pytest
from listings import listed, make_tar, names, put

from spacepatch.errors import ConfigError
from spacepatch.sources import content_id, make_source_id


@pytest.mark.parametrize("name", ["notes.txt", ".hidden.mp4", "noextension", "x.mp4.part"])
def test_a_file_named_directly_is_always_tried(tmp_path: Path, name: str) -> None:
    listing = listed(put(tmp_path, name) / name)
    assert (names(listing), listing.num_ignored) == ([name], 0)


def test_a_fifo_named_directly_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(ConfigError, match=r"pipe\.mp4: neither a regular file nor a folder"):
        listed(tmp_path / "pipe.mp4")


def test_the_same_file_given_twice_is_two_sources_with_two_ids(tmp_path: Path) -> None:
    put(tmp_path, "a.mp4")
    listing = listed(tmp_path / "a.mp4", tmp_path / "a.mp4", tmp_path)
    assert names(listing) == ["a.mp4"] * 3
    assert [source.source_root for source in listing.sources] == [0, 1, 2]
    assert len({source.source_id for source in listing.sources}) == 3


def test_the_first_of_equal_names_has_the_id_that_it_has_alone(tmp_path: Path) -> None:
    put(tmp_path, "a.mp4")
    alone = listed(tmp_path / "a.mp4").sources[0]
    assert listed(tmp_path / "a.mp4", tmp_path / "a.mp4").sources[0].source_id == alone.source_id


def test_an_id_does_not_depend_on_where_the_folder_lies(tmp_path: Path) -> None:
    put(tmp_path, "here/x/a.mp4", "there/else/x/a.mp4")
    here, there = listed(tmp_path / "here"), listed(tmp_path / "there" / "else")
    assert here.sources[0].source_id == there.sources[0].source_id


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("v/*.mp4", ["a.mp4", "b.mp4"]),
        ("v/**/*.mp4", ["a.mp4", "b.mp4", "deep/d.mp4", "deep/er/c.mp4"]),
        ("v/deep/**/*.mp4", ["d.mp4", "er/c.mp4"]),
        ("v/de*/*", ["deep/d.mp4", "deep/e.txt"]),
        ("./v/[ab].mp4", ["a.mp4", "b.mp4"]),
        ("v/?.mp4", ["a.mp4", "b.mp4"]),
        ("*/a.mp4", ["v/a.mp4"]),
        ("v/deep/../a*", ["a.mp4"]),
    ],
)
def test_the_names_of_a_glob_are_relative_to_its_fixed_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str, expected: list[str]
) -> None:
    put(tmp_path, "v/b.mp4", "v/a.mp4", "v/deep/er/c.mp4", "v/deep/d.mp4", "v/deep/e.txt")
    monkeypatch.chdir(tmp_path)
    assert names(listed(pattern)) == expected
    assert names(listed(tmp_path / pattern)) == expected


def test_a_glob_that_matches_nothing_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\*\.mkv: the pattern matches no file"):
        listed(put(tmp_path, "a.mp4") / "*.mkv")


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(tmp_path: Path) -> None:
    put(tmp_path, "a[1].mp4", "a1.mp4")
    assert names(listed(tmp_path / "a[1].mp4")) == ["a[1].mp4"]


def test_the_order_of_arguments_is_kept(tmp_path: Path) -> None:
    put(tmp_path, "a.mp4", "b.mp4", "c/d.mp4")
    listing = listed(tmp_path / "b.mp4", tmp_path / "c", tmp_path / "a.mp4")
    assert names(listing) == ["b.mp4", "d.mp4", "a.mp4"]


@pytest.mark.parametrize("argument", ["nowhere", "nowhere.mp4", "no/where/", "nowhere.csv", ""])
def test_a_wrong_path_is_an_error_that_names_it(tmp_path: Path, argument: str) -> None:
    path = f"{tmp_path}/{argument}" if argument else ""
    with pytest.raises(ConfigError, match="no such file or folder") as error:
        listed(path)
    assert str(error.value).startswith(path or "''")


def test_the_command_line_names_an_empty_folder_and_a_wrong_path(tmp_path, spacepatch_cli) -> None:
    put(tmp_path / "empty", "notes.txt")
    empty = spacepatch_cli("plan", tmp_path / "empty")
    wrong = spacepatch_cli("plan", tmp_path / "wrong")
    assert (empty.returncode, wrong.returncode) == (2, 2)
    assert f"error: no videos in {tmp_path}/empty" in empty.stderr
    assert wrong.stderr == f"error: {tmp_path}/wrong: no such file or folder\n"


def test_a_name_with_a_leading_dash_is_read_after_two_dashes_and_in_a_folder(
    tmp_path: Path, sample_clips: Path, spacepatch_cli
) -> None:
    put(tmp_path, "-x.mp4", content=(sample_clips / "square_320x320.mp4").read_bytes())
    direct = spacepatch_cli("plan", "--json", "--", "-x.mp4", cwd=tmp_path)
    folder = spacepatch_cli("plan", "--json", ".", cwd=tmp_path)
    plans = [json.loads(done.stdout) for done in (direct, folder)]
    assert [[row["source"] for row in plan["sources"]] for plan in plans] == [["-x.mp4"]] * 2


# --- identities ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "ordinal", "member", "expected"),
    [
        ("a.mp4", 0, "", "c038dc091543a93fb8716ddb9c995c47"),
        ("a.mp4", 1, "", "38001dca906d5801b83b782ac0f3cbf6"),
        ("naïve 🎬.mp4", 0, "", "aa034f2ed0a3a059323b555f9c7cb88a"),
        ("x.tar", 0, "a.mp4", "28c5d7e6faa3a46126bec4ab1f83eb8a"),
    ],
)
def test_source_ids_never_change(name: str, ordinal: int, member: str, expected: str) -> None:
    assert make_source_id(name, ordinal=ordinal, member=member) == expected


def test_a_source_id_is_blake2b_of_name_ordinal_and_member() -> None:
    whole = hashlib.blake2b(b"x.tar\x003\x00a.mp4", digest_size=16).hexdigest()
    assert make_source_id("x.tar", ordinal=3, member="a.mp4") == whole


def brute_content_id(content: bytes) -> str:
    block = 65536
    last = content if len(content) < block else content[-block:]
    data = len(content).to_bytes(8, "little") + content[:block] + last
    return hashlib.blake2b(data, digest_size=16).hexdigest()


@pytest.mark.parametrize("size", [0, 1, 65535, 65536, 65537, 131071, 131072, 131073, 300_000])
def test_a_content_id_is_that_of_the_size_and_both_ends(tmp_path: Path, size: int) -> None:
    content = hashlib.shake_128(b"%d" % size).digest(size)
    put(tmp_path, "a.bin", content=content)
    make_tar(tmp_path / "x.tar", [("pad.txt", b"pad"), ("a.mp4", content)])
    (member,) = listed(tmp_path / "x.tar").sources
    inside = content_id(member.uri, offset=member.member_offset, num_bytes=member.num_bytes)
    plain = content_id(str(tmp_path / "a.bin"), num_bytes=size)
    assert inside == plain == brute_content_id(content)


def test_a_content_id_sees_what_was_appended_since_the_size_was_known(tmp_path: Path) -> None:
    path = put(tmp_path, "a.mp4", content=b"x" * 200_000) / "a.mp4"
    before = content_id(str(path), num_bytes=200_000)
    with path.open("ab") as file:
        file.write(b"more")
    assert content_id(str(path), num_bytes=200_000) != before
