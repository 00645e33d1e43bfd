"""Lists and manifests as SOURCE: rows, times, what is refused, and the root of their paths."""

import csv
import json
import math
import os
from datetime import date
from fractions import Fraction
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from listings import listed, names, put

from spacepatch.errors import ConfigError


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


@pytest.mark.parametrize("uri", ["a\\u0000.mp4", "\\ud83d.mp4"])
def test_a_uri_that_is_no_local_path_is_refused_by_row(tmp_path: Path, uri: str) -> None:
    (tmp_path / "m.jsonl").write_text(f'{{"uri": "{uri}"}}\n')
    with pytest.raises(ConfigError, match=r"row 1: .* is no local path"):
        listed(tmp_path / "m.jsonl")
