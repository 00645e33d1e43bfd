"""SOURCE arguments: what is found, in which order, under which names, and what is refused."""

import csv
import hashlib
import io
import json
import math
import os
import socket
import tarfile
from dataclasses import replace
from datetime import date
from fractions import Fraction
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spacepatch.data import Source
from spacepatch.errors import ConfigError
from spacepatch.selection import parse_share, parse_split, select_sources
from spacepatch.sources import (
    Listing,
    content_id,
    list_sources,
    make_source_id,
)


def listed(*arguments: str | Path, root: Path | None = None) -> Listing:
    return list_sources(map(str, arguments), root=root)


def names(listing: Listing) -> list[str]:
    return [source.name for source in listing.sources]


def put(folder: Path, *files: str, content: bytes = b"x") -> Path:
    for name in files:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


# --- folders ---------------------------------------------------------------------------------


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


# --- files, globs and errors -----------------------------------------------------------------


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


@pytest.mark.parametrize("url", ["http://x/a.mp4", "s3://bucket/a.mp4", "file:///etc/passwd"])
def test_a_url_is_refused_by_name(url: str) -> None:
    with pytest.raises(ConfigError, match="only local paths") as error:
        listed(url)
    assert url in str(error.value)


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


# --- lists -----------------------------------------------------------------------------------


def test_a_list_names_one_source_a_line_in_its_own_order(tmp_path: Path) -> None:
    put(tmp_path, "b.mp4", "sub/a.mp4", "c d.mp4")
    (tmp_path / "list.txt").write_text("# these\nsub/a.mp4\n\n  c d.mp4  \r\nb.mp4", "utf-8")
    assert names(listed(f"@{tmp_path}/list.txt")) == ["sub/a.mp4", "c d.mp4", "b.mp4"]


def test_a_list_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    put(tmp_path, "a.mp4")
    (tmp_path / "list.txt").write_text("a.mp4\n", "utf-8-sig")
    assert names(listed(f"@{tmp_path}/list.txt")) == ["a.mp4"]


def test_only_line_feeds_end_the_lines_of_a_list(tmp_path: Path) -> None:
    name = "a\u2028b\x0cc.mp4"
    put(tmp_path, name)
    (tmp_path / "list.txt").write_text(name + "\n", "utf-8")
    assert names(listed(f"@{tmp_path}/list.txt")) == [name]


def test_a_list_reaches_names_that_are_no_utf8(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xe9.mp4")).write_bytes(b"x")
    (tmp_path / "list.txt").write_bytes(b"\xe9.mp4\n")
    assert names(listed(f"@{tmp_path}/list.txt")) == [r"\xe9.mp4"]


def test_what_a_list_names_and_is_not_there_is_missing_and_not_an_error(tmp_path: Path) -> None:
    put(tmp_path, "a.mp4")
    (tmp_path / "folder.mp4").mkdir()
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "list.txt").write_text("gone.mp4\na.mp4\nfolder.mp4\npipe.mp4\n")
    listing = listed(f"@{tmp_path}/list.txt")
    assert names(listing) == ["a.mp4"]
    assert [s.name for s in listing.missing] == ["gone.mp4", "folder.mp4", "pipe.mp4"]


def test_a_list_that_is_not_there_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"@.*list\.txt: no such list"):
        listed(f"@{tmp_path}/list.txt")


# --- manifests -------------------------------------------------------------------------------


def manifest(folder: Path, kind: str, rows: list[dict]) -> Path:
    path = folder / f"manifest.{kind}"
    if kind == "csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_manifest_gives_a_source_a_uri_and_a_range_a_row(tmp_path: Path, kind: str) -> None:
    put(tmp_path, "a.mp4", "b c.mp4")
    rows = [
        {"uri": "b c.mp4", "id": "1", "start": 0.5, "end": 2, "caption": "a dog, running\nfast"},
        {"uri": "a.mp4", "id": "2", "start": 0, "end": 1.1, "caption": "naïve 🎬"},
        {"uri": "b c.mp4", "id": "3", "start": 2, "end": 3, "caption": ""},
    ]
    first, second = listed(manifest(tmp_path, kind, rows)).sources
    assert (first.name, second.name) == ("b c.mp4", "a.mp4")
    assert [(r.start_seconds, r.stop_seconds) for r in first.ranges] == [
        (Fraction(1, 2), 2),
        (2, 3),
    ]
    # The decimal that was written, not the nearest binary fraction.
    assert second.ranges[0].stop_seconds == Fraction(11, 10)
    assert [r.extra for r in first.ranges + second.ranges] == [
        {"id": "1", "caption": "a dog, running\nfast"},
        {"id": "3", "caption": ""},
        {"id": "2", "caption": "naïve 🎬"},
    ]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_an_empty_start_or_end_is_the_start_or_end_of_the_video(tmp_path: Path, kind: str) -> None:
    put(tmp_path, "a.mp4")
    empty = "" if kind == "csv" else None
    rows = [{"uri": "a.mp4", "start": empty, "end": empty}, {"uri": "a.mp4", "start": 1, "end": 2}]
    ranges = listed(manifest(tmp_path, kind, rows)).sources[0].ranges
    assert [(r.start_seconds, r.stop_seconds) for r in ranges] == [(None, None), (1, 2)]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", Fraction(0)),
        ("3.5", Fraction(7, 2)),
        (" 12 ", Fraction(12)),
        (".25", Fraction(1, 4)),
        ("1e-05", Fraction(1, 100_000)),
        ("1:02", Fraction(62)),
        ("1:02:03.5", Fraction(7447, 2)),
        ("01:00:00", Fraction(3600)),
        ("100:00:00", Fraction(360_000)),
    ],
)
def test_times_are_seconds_or_hours_minutes_seconds(
    tmp_path: Path, text: str, seconds: Fraction
) -> None:
    put(tmp_path, "a.mp4")
    path = manifest(tmp_path, "csv", [{"uri": "a.mp4", "start": text}])
    assert listed(path).sources[0].ranges[0].start_seconds == seconds


@pytest.mark.parametrize(
    "text", "abc -1 1:2:3:4 1:-5 1.5:30 1/2 1/0 inf 1e999999999 1,5 0x10 :5 5: 1s True".split()
)
def test_a_bad_time_names_the_row_the_column_and_the_value(tmp_path: Path, text: str) -> None:
    put(tmp_path, "a.mp4")
    rows = [{"uri": "a.mp4", "start": "1"}, {"uri": "a.mp4", "start": text}]
    with pytest.raises(ConfigError, match=r"row 2: start .* is no time") as error:
        listed(manifest(tmp_path, "csv", rows))
    assert repr(text) in str(error.value)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"url": "a.mp4", "start": 1}], "row 1: has no uri; columns are url, start"),
        ([{"uri": "a.mp4"}, {"uri": ""}], "row 2: has no uri"),
        ([{"uri": "a.mp4", "start": 2, "end": 1}], "row 1: end 1 is not after 2"),
        ([{"uri": "a.mp4", "start": 2, "end": 2}], "row 1: end 2 is not after 2"),
        ([{"uri": "a.mp4", "end": 0}], "row 1: end 0 is not after 0"),
        ([{"uri": "a.mp4"}, {"uri": "b.mp4"}, {"uri": "a.mp4"}], "row 3: repeats the range"),
        (
            [{"uri": "a.mp4", "start": "", "end": 3}, {"uri": "a.mp4", "start": "0.0", "end": "3"}],
            "row 2: repeats the range",
        ),
    ],
)
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_row_that_makes_no_sense_is_refused_by_number(
    tmp_path: Path, kind: str, rows: list[dict], message: str
) -> None:
    put(tmp_path, "a.mp4", "b.mp4")
    with pytest.raises(ConfigError, match=message) as error:
        listed(manifest(tmp_path, kind, rows))
    assert f"manifest.{kind}: row " in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.csv", b"uri,caption\na.mp4,a dog, running\n", "row 1: more cells"),
        ("m.csv", "uri,caption\na.mp4,ok\na.mp4,caf\xe9\n".encode("latin-1"), "row .*utf-8"),
        ("m.csv", b"uri,caption\na.mp4," + b"x" * 200_000 + b"\n", "row 1: field larger"),
        ("m.jsonl", b'{"uri": "a.mp4"}\n{"uri": \n', "row 2: Expecting value"),
        ("m.jsonl", b'{"uri": "a.mp4"}\n["a.mp4"]\n', "row 2: no JSON object"),
        ("m.jsonl", b'{"uri": 5}\n', "row 1: has no uri"),
        ("m.parquet", b"not parquet at all", "row 1: "),
    ],
)
def test_a_damaged_manifest_is_an_error_of_one_line_and_no_traceback(
    tmp_path: Path, spacepatch_cli, name: str, content: bytes, message: str
) -> None:
    put(tmp_path, "a.mp4")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=message) as error:
        listed(tmp_path / name)
    assert str(error.value).startswith(f"{tmp_path}/{name}: ")
    assert "\n" not in str(error.value)


def test_a_caption_may_hold_what_some_take_for_the_end_of_a_line(tmp_path: Path) -> None:
    put(tmp_path, "a.mp4")
    row = {"uri": "a.mp4", "caption": "one\u2028two\x85three"}
    (tmp_path / "m.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n\n", "utf-8")
    assert listed(tmp_path / "m.jsonl").sources[0].ranges[0].extra["caption"] == row["caption"]


def test_what_json_cannot_hold_travels_as_text_or_null(tmp_path: Path) -> None:
    put(tmp_path, "a.mp4")
    rows = [{"uri": "a.mp4", "day": date(2024, 2, 29), "score": math.nan, "n": 2**40, "tags": [1]}]
    (source,) = listed(manifest(tmp_path, "parquet", rows)).sources
    assert source.ranges[0].extra == {"day": "2024-02-29", "score": None, "n": 2**40, "tags": [1]}


def test_half_a_surrogate_pair_in_a_caption_becomes_a_question_mark(tmp_path: Path) -> None:
    put(tmp_path, "a.mp4")
    (tmp_path / "m.jsonl").write_text(r'{"uri": "a.mp4", "caption": "cut \ud83d"}')
    assert listed(tmp_path / "m.jsonl").sources[0].ranges[0].extra == {"caption": "cut ?"}


def test_a_manifest_may_name_what_is_not_there(tmp_path: Path) -> None:
    put(tmp_path, "a.mp4")
    listing = listed(manifest(tmp_path, "csv", [{"uri": "gone.mp4"}, {"uri": "a.mp4"}]))
    assert (names(listing), [s.name for s in listing.missing]) == (["a.mp4"], ["gone.mp4"])


# --- roots -----------------------------------------------------------------------------------


@pytest.mark.parametrize("escape", ["../out.mp4", "sub/../../out.mp4", "ABSOLUTE", "link.mp4"])
@pytest.mark.parametrize("kind", ["list", "csv"])
def test_a_path_outside_the_root_is_refused_naming_root(
    tmp_path: Path, kind: str, escape: str
) -> None:
    put(tmp_path, "out.mp4", "in/a.mp4")
    (tmp_path / "in" / "link.mp4").symlink_to(tmp_path / "out.mp4")
    uri = str(tmp_path / "out.mp4") if escape == "ABSOLUTE" else escape
    if kind == "csv":
        argument = str(manifest(tmp_path / "in", "csv", [{"uri": uri}]))
    else:
        (tmp_path / "in" / "list.txt").write_text(uri)
        argument = f"@{tmp_path}/in/list.txt"
    with pytest.raises(ConfigError, match=r"(row|line) 1: .* lies outside .*--root"):
        listed(argument)


def test_an_absolute_path_below_the_root_is_named_from_there(tmp_path: Path) -> None:
    put(tmp_path, "out/a.mp4", "lists/none")
    path = manifest(tmp_path / "lists", "csv", [{"uri": str(tmp_path / "out" / "a.mp4")}])
    assert names(listed(path, root=tmp_path)) == ["out/a.mp4"]


def test_dots_that_stay_inside_are_resolved(tmp_path: Path) -> None:
    put(tmp_path, "a.mp4", "sub/b.mp4")
    path = manifest(tmp_path, "csv", [{"uri": "sub/../a.mp4"}, {"uri": "./sub/b.mp4"}])
    assert names(listed(path)) == ["a.mp4", "sub/b.mp4"]


def test_root_is_what_relative_paths_begin_at(tmp_path: Path) -> None:
    put(tmp_path, "data/v/a.mp4", "lists/none")
    path = manifest(tmp_path / "lists", "csv", [{"uri": "v/a.mp4"}])
    assert names(listed(path, root=tmp_path / "data")) == ["v/a.mp4"]


@pytest.mark.parametrize(
    "uri", ["a\\u0000.mp4", "http://x/a.mp4", "file:///etc/passwd", "\\ud83d.mp4"]
)
def test_a_uri_that_is_no_local_path_is_refused_by_row(tmp_path: Path, uri: str) -> None:
    (tmp_path / "m.jsonl").write_text(f'{{"uri": "{uri}"}}\n')
    with pytest.raises(ConfigError, match=r"row 1: .* is no local path"):
        listed(tmp_path / "m.jsonl")


# --- tars ------------------------------------------------------------------------------------


def make_tar(path: Path, members: list[tuple[str, bytes]], format_: int = tarfile.PAX_FORMAT):
    with tarfile.open(path, "w", format=format_) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


MEMBERS = [
    ("0002.mp4", b"second" * 300),
    ("0001.mp4", b"first"),
    ("0001.json", b"{}"),
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
    make_tar(tmp_path / "d" / "1.tar", [("a.mp4", b"1"), ("a.txt", b"1")])
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


# --- sample, limit, split --------------------------------------------------------------------


def some(count: int, prefix: str = "v") -> tuple[Source, ...]:
    found = [f"{prefix}{number}.mp4" for number in range(count)]
    return tuple(Source(n, n, 0, make_source_id(n, ordinal=0), 1) for n in found)


@given(
    count=st.integers(1, 60),
    shares=st.tuples(st.integers(0, 100), st.integers(0, 100)),
    seed=st.integers(0, 5),
)
@settings(max_examples=60, deadline=None)
def test_a_larger_sample_contains_the_smaller_one_in_the_same_order(count, shares, seed) -> None:
    low, high = sorted(shares)
    sources = some(count)
    small = select_sources(sources, seed=seed, sample=f"{low}%")
    large = select_sources(sources, seed=seed, sample=f"{high}%")
    assert len(small) == math.ceil(count * low / 100)
    assert set(small) <= set(large)
    assert list(large) == [source for source in sources if source in set(large)]


def test_a_sample_by_count_takes_that_many_and_depends_on_the_seed() -> None:
    sources = some(200)
    chosen = [select_sources(sources, seed=seed, sample="20") for seed in (0, 0, 1)]
    assert [len(picked) for picked in chosen] == [20, 20, 20]
    assert chosen[0] == chosen[1] != chosen[2]
    assert chosen[0] != sources[:20]


def test_a_sample_larger_than_all_is_all() -> None:
    assert select_sources(some(3), seed=0, sample="100") == some(3)


def test_a_source_stays_in_a_percentage_when_others_leave() -> None:
    sources = some(100)
    half = select_sources(sources, seed=3, sample="50%")
    assert set(select_sources(half, seed=3, sample="25")) == set(
        select_sources(sources, seed=3, sample="25")
    )


def test_limit_takes_the_first_after_the_sample() -> None:
    sources = some(100)
    sampled = select_sources(sources, seed=0, sample="30")
    assert select_sources(sources, seed=0, limit=5) == sources[:5]
    assert select_sources(sources, seed=0, sample="30", limit=5) == sampled[:5]


@pytest.mark.parametrize(
    "text", ["x", "-1", "-1%", "-0.5%", "101%", "1.5", "%", "nan%", "1/0%", ""]
)
def test_a_bad_sample_names_itself(text: str) -> None:
    with pytest.raises(ConfigError, match=r"sample: .* is no count") as error:
        select_sources(some(3), seed=0, sample=text)
    assert repr(text) in str(error.value)


@pytest.mark.parametrize(("text", "count"), [("0", 0), ("7", 7), ("1%", 2), ("0.1%", 1), ("0%", 0)])
def test_a_share_is_rounded_up(text: str, count: int) -> None:
    assert parse_share("sample", text, 150) == count


def test_split_shares_come_out_as_asked() -> None:
    split = select_sources(some(5000), seed=0, split="train=0.9,val=0.06,test=0.04")
    for name, share in [("train", 0.9), ("val", 0.06), ("test", 0.04)]:
        found = sum(source.split == name for source in split) / 5000
        assert abs(found - share) < 4 * math.sqrt(share * (1 - share) / 5000), name


def test_a_source_keeps_its_split_whatever_else_is_listed() -> None:
    few, many = some(50), some(400, "w") + some(50) + some(30, "z")
    splits = {
        s.name: s.split for s in select_sources(many, seed=1, split="train=0.7,val=0.3", limit=460)
    }
    alone = select_sources(few, seed=1, split="train=0.7,val=0.3")
    assert {s.split for s in alone} == {"train", "val"}
    assert all(splits[s.name] == s.split for s in alone)


def test_split_changes_nothing_but_the_split() -> None:
    split = select_sources(some(20), seed=1, split="a=1/3,b=2/3")
    assert tuple(replace(source, split="") for source in split) == some(20)


def test_a_larger_share_only_adds_to_the_first_split() -> None:
    small = select_sources(some(300), seed=1, split="a=0.2,b=0.8")
    large = select_sources(some(300), seed=1, split="a=0.4,b=0.6")
    in_small = {s.name for s in small if s.split == "a"}
    assert in_small < {s.name for s in large if s.split == "a"}


@pytest.mark.parametrize(
    "text",
    "train train= train=x train=0.5 a=0.5,b=0.6 a=0.5,a=0.5 a/b=1 =1 a=-1,b=2 a=nan,b=1 a=1/0 é=1"
    " a=1, x23456789012345678901234567890123=1".split(),
)
def test_a_bad_split_is_an_error_that_says_what(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^split: "):
        parse_split(text)
