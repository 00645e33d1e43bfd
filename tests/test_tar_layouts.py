"""Tars that other tools wrote: what they say of a video travels with its clips."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import webdataset
from listings import listed, make_tar, names, put
from small_runs import SMALL, rows, run

from spacepatch.config import load_config
from spacepatch.errors import ConfigError, ResumeError
from spacepatch.inspection import verify
from spacepatch.pipeline import make_plan

CLIPS = ("square_320x320.mp4", "ten_bit_432x240_hevc.mp4")


def extras(path: Path) -> dict[str, dict]:
    """By name, what is said of each video."""
    return {s.name: s.ranges[0].extra if s.ranges else {} for s in listed(path).sources}


def told(tmp_path: Path, *members: tuple[str, bytes]) -> tuple[dict, str]:
    """What a tar of one video and these members says of it, and what of that is lost."""
    (source,) = listed(make_tar(tmp_path / "x.tar", [("0.mp4", b"video"), *members])).sources
    return source.ranges[0].extra if source.ranges else {}, source.metadata_lost


# --- video2dataset -----------------------------------------------------------------------------


def write_video2dataset(path: Path, clips: Path) -> Path:
    """Two samples and a download that failed, as its `WebDatasetSampleWriter` writes them."""
    with webdataset.TarWriter(str(path)) as tar:
        for number, name in enumerate([CLIPS[0], None, CLIPS[1]]):
            key = f"{number:09d}"
            meta = {
                "url": f"https://example.com/{number}",
                "caption": f"caption {number}",
                "clips": [[0.5, 2.25]],
                "key": key,
                "status": "success" if name else "failed_to_download",
                "error_message": None if name else "ERROR: [youtube]: gone",
                "yt_meta_dict": {"info": {"title": "naïve 🎬", "duration": 4}},
            }
            sample = {"__key__": key, "txt": meta["caption"], "json": json.dumps(meta, indent=4)}
            tar.write(sample | ({"mp4": (clips / name).read_bytes()} if name else {}))
    return path


def test_fields_and_captions_of_video2dataset_reach_the_table_and_the_loader(
    sample_clips: Path, tmp_path: Path
) -> None:
    tar = write_video2dataset(tmp_path / "00000.tar", sample_clips)
    out = tmp_path / "out"
    summary = run([tar], out)
    assert verify(out) == []
    assert (summary.losses, summary.totals["ignored"]) == ((), 2)
    segments = rows(out, "segments.parquet")
    assert {row["source"] for row in segments} == {
        "00000.tar/000000000.mp4",
        "00000.tar/000000002.mp4",
    }
    for row in segments:
        number = int(row["source"][-5])
        extra = json.loads(row["extra"])
        assert extra == {
            "url": f"https://example.com/{number}",
            "caption": f"caption {number}",
            "clips": [[0.5, 2.25]],
            "key": f"{number:09d}",
            "status": "success",
            "error_message": None,
            "yt_meta_dict": {"info": {"title": "naïve 🎬", "duration": 4}},
        }

    from spacepatch.loader import PackDataset

    packs = PackDataset(out)
    loaded = [segment for pack in packs for segment in pack["segments"]]
    assert {segment["extra"]["caption"] for segment in loaded} == {"caption 0", "caption 2"}


def test_a_caption_that_changed_in_the_tar_is_refused_on_resume(
    sample_clips: Path, tmp_path: Path
) -> None:
    tar, out = tmp_path / "x.tar", tmp_path / "out"
    video = ("0.mp4", (sample_clips / CLIPS[0]).read_bytes())
    config = load_config(SMALL)
    make_plan([str(make_tar(tar, [video, ("0.txt", b"a dog")]))], config=config, out=out)
    make_tar(tar, [video, ("0.txt", b"a cat")])
    with pytest.raises(ResumeError, match="what a tar says of its videos changed"):
        make_plan([str(tar)], config=config, out=out)


def test_each_of_several_videos_of_a_sample_has_what_is_said_of_it(tmp_path: Path) -> None:
    members = [("d.v1/7.480p.mp4", b"small"), ("d.v1/7.720P.MP4", b"large"), ("d.v1/7.txt", b"t")]
    found = extras(make_tar(tmp_path / "x.tar", [*members, ("d.v1/8.mp4", b"other")]))
    assert found == {
        "x.tar/d.v1/7.480p.mp4": {"caption": "t"},
        "x.tar/d.v1/7.720P.MP4": {"caption": "t"},
        "x.tar/d.v1/8.mp4": {},
    }


@pytest.mark.parametrize(
    ("members", "extra"),
    [
        ([("0.json", b'{"a": 1}')], {"a": 1}),
        ([("0.txt", b"  a dog\n")], {"caption": "a dog"}),
        ([("0.JSON", b"\xef\xbb\xbf{}"), ("0.Txt", "\ufeffé".encode())], {"caption": "é"}),
        ([("0.json", b'{"caption": "same"}'), ("0.txt", b"same")], {"caption": "same"}),
        ([("0.json", b'{"caption": "kept"}'), ("0.txt", b"")], {"caption": "kept"}),
        ([("0.json", b'{"caption": null}'), ("0.txt", b"said")], {"caption": "said"}),
        (
            [("0.json", b'{"caption": "video"}'), ("0.txt", b"clip")],
            {"caption": "clip", "json_caption": "video"},
        ),
        (
            [("0.json", b'{"caption": 1, "json_caption": 2}'), ("0.txt", b"3")],
            {"caption": "3", "json_caption": 2, "json_json_caption": 1},
        ),
        # No range is read from it, unlike from a manifest's columns.
        ([("0.json", b'{"uri": "u", "start": 1, "end": 2}')], {"uri": "u", "start": 1, "end": 2}),
        (
            [("0.json", b'{"a": NaN, "b": -Infinity, "c": 1e999}')],
            {"a": None, "b": None, "c": None},
        ),
        ([("0.json", rb'{"a": "cut \ud83d", "b": "\u0000"}')], {"a": "cut ?", "b": "\0"}),
        ([("0.json", b'{"a": 1, "a": 2}')], {"a": 2}),
        (
            [("0.json", b'{"a": 123456789012345678901234567890}')],
            {"a": 123456789012345678901234567890},
        ),
        # Only these two extensions are of the layout.
        ([("0.meta.json", b'{"a": 1}'), ("0.txt.bak", b"x")], {}),
    ],
)
def test_json_and_text_of_a_sample_become_one_object(
    tmp_path: Path, members: list[tuple[str, bytes]], extra: dict
) -> None:
    assert told(tmp_path, *members) == (extra, "")
    assert told(tmp_path, *reversed(members)) == (extra, "")


# --- what is lost of it ------------------------------------------------------------------------

LEVELS = b"[" * 100_000 + b"]" * 100_000


@pytest.mark.parametrize(
    ("content", "lost"),
    [
        (b"", "the json is no JSON"),
        (b'{"a": ', "the json is no JSON"),
        (b"[1, 2]", "the json is no JSON object"),
        (b'{"a": "caf\xe9"}', "the json is no UTF-8"),
        (b'{"a": ' + b"9" * 10_000 + b"}", "the json is no JSON"),
        (b'{"a": ' + LEVELS + b"}", "the json has more than 32 levels"),
        (b'{"a": ' + b"[" * 32 + b"]" * 32 + b"}", "the json has more than 32 levels"),
        (b'{"a": "' + b"x" * (4 << 20) + b'"}', "the json has more than 4,194,304 bytes"),
    ],
    ids="empty cut list latin1 digits deep nested huge".split(),
)
def test_a_json_that_is_none_costs_only_itself(tmp_path: Path, content: bytes, lost: str) -> None:
    found, why = told(tmp_path, ("0.json", content), ("0.txt", b"a dog"))
    assert found == {"caption": "a dog"}
    assert why.startswith(lost)


def test_a_text_that_is_no_utf8_costs_only_itself(tmp_path: Path) -> None:
    found = told(tmp_path, ("0.json", b'{"a": 1}'), ("0.txt", "café".encode("latin-1")))
    assert found == ({"a": 1}, "the txt is no UTF-8")


def test_of_too_much_the_largest_values_are_left_out(tmp_path: Path) -> None:
    subtitles = [{"start": n, "line": "word " * 9} for n in range(2000)]
    meta = {"subtitles": subtitles, "url": "u", "views": list(range(20_000))}
    found = told(tmp_path, ("0.json", json.dumps(meta).encode()), ("0.txt", b"a dog"))
    lost = "more than 65,536 bytes: without subtitles, views"
    assert found == ({"url": "u", "caption": "a dog"}, lost)


def test_what_does_not_lie_next_to_its_video_is_not_taken_and_said(tmp_path: Path) -> None:
    members = [("0.mp4", b"0"), ("1.mp4", b"1"), ("0.json", b'{"a": 1}'), ("2.json", b"{}")]
    first, second = listed(make_tar(tmp_path / "x.tar", members)).sources
    assert (first.ranges, second.metadata_lost) == ((), "")
    assert first.metadata_lost.startswith("its json or txt is not next to it in the tar")


def test_a_name_that_comes_again_begins_another_sample(tmp_path: Path) -> None:
    members = [("0.mp4", b"old"), ("0.txt", b"first"), ("0.mp4", b"newer"), ("0.txt", b"second")]
    sources = listed(make_tar(tmp_path / "x.tar", members)).sources
    assert [(s.num_bytes, s.ranges[0].extra) for s in sources] == [
        (3, {"caption": "first"}),
        (5, {"caption": "second"}),
    ]


def test_lost_metadata_is_a_loss_with_a_reason_and_costs_no_frame(
    sample_clips: Path, tmp_path: Path, spacepatch_cli
) -> None:
    video = (sample_clips / CLIPS[0]).read_bytes()
    good = [("a.mp4", video), ("a.json", b'{"n": 1}')]
    bad = [("b.mp4", video), ("b.json", b'{"n": ' + LEVELS), ("b.txt", b"fine")]
    tar = make_tar(tmp_path / "x.tar", [*good, *bad])
    out = tmp_path / "out"
    done = spacepatch_cli("tokenize", tar, "--out", out, "--fps", "2", "--workers", "2")
    assert done.returncode == 0, done.stderr
    assert "lost: x.tar/b.mp4: metadata: the json has more than 32 levels\n" in done.stderr
    assert verify(out) == []
    (loss,) = rows(out, "losses.parquet")
    assert (loss["source"], loss["reason"], loss["num_frames"]) == ("x.tar/b.mp4", "metadata", 0)
    assert {(row["source"], row["extra"]) for row in rows(out, "segments.parquet")} == {
        ("x.tar/a.mp4", '{"n": 1}'),
        ("x.tar/b.mp4", '{"caption": "fine"}'),
    }


def test_a_video_with_a_caption_that_is_cut_off_loses_as_many_frames_as_without(
    ffmpeg: str, tmp_path: Path
) -> None:
    whole = tmp_path / "whole.mp4"
    make = f"{ffmpeg} -v error -f lavfi -i testsrc2=size=160x96:rate=25,trim=end_frame=100"
    subprocess.run([*make.split(), "-movflags", "faststart", str(whole)], check=True)
    content = whole.read_bytes()
    cut = ("0.mp4", content[: len(content) // 2])
    lost = []
    for number, members in enumerate(([cut], [cut, ("0.txt", b"a dog")])):
        tar = make_tar(tmp_path / f"{number}.tar", members)
        plan = make_plan([str(tar)], config=load_config(SMALL))
        (loss,) = plan.losses()
        lost.append((loss.reason, loss.num_frames))
    assert lost[0] == lost[1]
    assert lost[0][1] > 0


# --- cosmos-curate -----------------------------------------------------------------------------


class Bomb:
    """Whoever unpickles it is found out."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.mark),)


def test_the_metas_beside_the_videos_of_cosmos_curate_are_read_and_no_pickle_is(
    sample_clips: Path, tmp_path: Path
) -> None:
    """Its sharding pipeline writes three tars of the same keys."""
    videos = tmp_path / "v0" / "resolution_720" / "aspect_ratio_16_9" / "frames_0_255"
    mark = tmp_path / "unpickled"
    bomb = pickle.dumps(Bomb(mark))
    keys = ("1f0e", "9b3c")
    metas = [json.dumps({"span_uuid": k, "windows": [{"qwen_caption": k}]}) for k in keys]
    for kind, extension, contents in [
        ("video", "mp4", [(sample_clips / clip).read_bytes() for clip in CLIPS]),
        ("metas", "json", [text.encode() for text in metas]),
        ("t5_xxl", "pickle", [bomb, bomb]),
    ]:
        folder = videos / kind / "part_000000"
        folder.mkdir(parents=True)
        members = [(f"{k}.{extension}", content) for k, content in zip(keys, contents, strict=True)]
        make_tar(folder / "000000.tar", members)
    out = tmp_path / "out"
    summary = run([videos / "*" / "part_*" / "*.tar"], out)
    assert (summary.losses, summary.totals["sources"], summary.totals["ignored"]) == ((), 2, 4)
    found = {row["source"]: json.loads(row["extra"]) for row in rows(out, "segments.parquet")}
    assert found == {
        f"video/part_000000/000000.tar/{key}.mp4": json.loads(meta)
        for key, meta in zip(keys, metas, strict=True)
    }
    assert not mark.exists()
    pickle.loads(bomb)  # it would have been seen
    assert mark.exists()

    (videos / "metas" / "part_000000" / "000000.tar").write_bytes(b"no tar" * 999)
    with pytest.raises(ConfigError, match=r"metas/part_000000/000000\.tar: not a plain tar"):
        listed(videos / "video" / "part_000000" / "000000.tar")


# --- folders -----------------------------------------------------------------------------------


def test_texts_in_a_folder_of_videos_change_nothing(sample_clips: Path, tmp_path: Path) -> None:
    folder = put(tmp_path / "videos", "0.txt", "0.json")
    shutil.copy(sample_clips / CLIPS[0], folder / "0.mp4")
    listing = listed(folder)
    assert (names(listing), listing.num_ignored) == (["0.mp4"], 2)
    assert listing.sources[0].ranges == ()


def test_the_manifest_of_a_folder_that_the_page_makes_can_be_listed(tmp_path: Path) -> None:
    put(tmp_path, "dataset/00000/1.mp4", "dataset/00000/0.mp4")
    for number in range(2):
        text = json.dumps({"caption": f"c{number}", "key": str(number)})
        (tmp_path / f"dataset/00000/{number}.json").write_text(text)
    page = (Path(__file__).parents[1] / "docs" / "tars.md").read_text()
    program = page.split("```python\n")[1].split("```")[0]
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)
    assert extras(tmp_path / "dataset" / "manifest.jsonl") == {
        f"00000/{n}.mp4": {"caption": f"c{n}", "key": str(n)} for n in range(2)
    }
