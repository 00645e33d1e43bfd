"""Whole runs from Python: inputs of every kind, what travels, what is refused, what is counted."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import psutil
import pytest
from small_runs import SMALL, copied, rows, run

from spacepatch.config import load_config
from spacepatch.errors import LossLimitError, ResumeError
from spacepatch.inspection import verify
from spacepatch.pipeline import make_plan
from spacepatch.pipeline.forecast import forecast


@pytest.fixture
def clips(sample_clips: Path, tmp_path: Path) -> Path:
    """A folder with three samples that may be changed."""
    names = ("square_320x320.mp4", "portrait_270x480.mp4", "still_picture_400x300.png")
    return copied(sample_clips, tmp_path / "clips", names)


def test_awkward_names_are_read_and_shown_as_they_are(sample_clips: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    names = ["-dash.mp4", "a b.mp4", "ünï çødé.mp4", "q+&?=.mp4", "c:o:l.mp4", "100%d.mp4"]
    for name in [*names, "deep/er/x.y.z.mp4"]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(sample_clips / "square_320x320.mp4", folder / name)
    os.link(folder / "a b.mp4", os.fsencode(folder) + b"/\xff\xfe.mp4")
    run([folder], tmp_path / "out")
    written = {row["source"] for row in rows(tmp_path / "out", "segments.parquet")}
    assert written == {*names, "deep/er/x.y.z.mp4", "\\xff\\xfe.mp4"}
    assert verify(tmp_path / "out") == []


def test_columns_of_a_manifest_travel_to_the_segments(clips: Path, tmp_path: Path) -> None:
    manifest = clips / "list.csv"
    with manifest.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["uri", "id", "start", "end", "caption"])
        writer.writerow(["square_320x320.mp4", "a", "0.5", "1.5", "a ball, bouncing"])
        writer.writerow(["square_320x320.mp4", "b", "1.5", "0:00:02.5", "später"])
    run([manifest], tmp_path / "out")
    segments = sorted(rows(tmp_path / "out", "segments.parquet"), key=lambda row: row["clip"])
    assert [json.loads(row["extra"]) for row in segments] == [
        {"id": "a", "caption": "a ball, bouncing"},
        {"id": "b", "caption": "später"},
    ]
    assert [row["seconds"][0] for row in segments] == pytest.approx([0.5, 1.5], abs=1 / 24)
    assert [row["valid_frames"] for row in segments] == [2, 2]
    assert segments[0]["clip_stop_pts"] == segments[1]["clip_start_pts"]


def test_videos_in_a_tar_give_the_tokens_of_the_same_files_outside(
    clips: Path, tmp_path: Path
) -> None:
    with tarfile.open(tmp_path / "videos.tar", "w") as archive:
        for path in sorted(clips.iterdir()):
            archive.add(path, f"sub/{path.name}")
            note = tarfile.TarInfo(f"sub/{path.stem}.json")
            archive.addfile(note)
    run([tmp_path / "videos.tar"], tmp_path / "tar")
    run([clips], tmp_path / "files")

    def checksums(out: Path) -> dict[str, int]:
        return {
            row["source"].rsplit("/", 1)[-1]: row["tokens_crc32c"]
            for row in rows(out, "segments.parquet")
        }

    assert checksums(tmp_path / "tar") == checksums(tmp_path / "files")
    assert verify(tmp_path / "tar") == []


def test_a_still_picture_is_one_frame_at_zero_seconds(clips: Path, tmp_path: Path) -> None:
    run([clips / "still_picture_400x300.png"], tmp_path / "out")
    (row,) = rows(tmp_path / "out", "segments.parquet")
    assert (row["seconds"], row["valid_frames"], row["padded_frames"]) == ([0.0], 1, 1)


def test_a_source_added_removed_or_changed_is_refused_by_name(clips: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run([clips], out)
    extra = clips / "new.mp4"
    shutil.copy(clips / "square_320x320.mp4", extra)
    with pytest.raises(ResumeError, match=r"1 added \(new\.mp4\)"):
        run([clips], out)
    extra.unlink()
    moved = tmp_path / "square.mp4"
    shutil.move(clips / "square_320x320.mp4", moved)
    with pytest.raises(ResumeError, match=r"1 removed \(square_320x320\.mp4\)"):
        run([clips], out)
    shutil.copy(clips / "portrait_270x480.mp4", clips / "square_320x320.mp4")
    with pytest.raises(ResumeError, match=r"1 changed \(square_320x320\.mp4\)"):
        run([clips], out)
    shutil.copy(moved, clips / "square_320x320.mp4")
    assert run([clips], out).lost_sources == ()


def test_a_changed_caption_is_refused(clips: Path, tmp_path: Path) -> None:
    manifest = clips / "list.jsonl"
    manifest.write_text('{"uri": "square_320x320.mp4", "caption": "one"}\n')
    run([manifest], tmp_path / "out")
    manifest.write_text('{"uri": "square_320x320.mp4", "caption": "two"}\n')
    with pytest.raises(ResumeError, match="columns of the manifest"):
        run([manifest], tmp_path / "out")


def test_a_file_that_a_list_names_and_that_is_not_there_is_a_loss(
    clips: Path, tmp_path: Path
) -> None:
    (clips / "list.txt").write_text("square_320x320.mp4\ngone.mp4\n")
    summary = run([f"@{clips / 'list.txt'}"], tmp_path / "out")
    assert summary.lost_sources == ("gone.mp4",)
    (loss,) = rows(tmp_path / "out", "losses.parquet")
    assert (loss["source"], loss["stage"], loss["reason"]) == ("gone.mp4", "list", "unreadable")


def test_too_many_losses_stop_the_run_which_then_resumes(clips: Path, tmp_path: Path) -> None:
    (clips / "bad1.mp4").write_bytes(b"no video")
    (clips / "bad2.mp4").write_bytes(b"no video either")
    out = tmp_path / "out"
    with pytest.raises(LossLimitError, match="2 sources lost, max_losses allows 1"):
        run([clips], out, max_losses="1")
    assert not (out / "dataset.json").exists()
    assert len(run([clips], out, max_losses="50%").lost_sources) == 2
    assert verify(out) == []


def test_a_run_that_loses_everything_writes_tables_and_no_tar(tmp_path: Path) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    summary = run([tmp_path / "bad.mp4"], tmp_path / "out")
    assert summary.lost_sources == ("bad.mp4",)
    assert not list((tmp_path / "out").glob("*.tar"))
    assert rows(tmp_path / "out", "segments.parquet") == []
    assert verify(tmp_path / "out") == []


def test_no_absolute_path_and_no_host_is_in_what_is_written(clips: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run([clips], out)
    for path in out.iterdir():
        if path.suffix == ".parquet":
            content = json.dumps(rows(out, path.name), default=str).encode()
        elif path.is_file():
            content = path.read_bytes()
        else:
            continue
        assert str(tmp_path).encode() not in content, path.name
        assert os.uname().nodename.encode() not in content, path.name


def test_plan_tells_duplicates_better_lengths_and_every_packer(clips: Path, tmp_path: Path) -> None:
    shutil.copy(clips / "square_320x320.mp4", clips / "twin.mp4")
    figures = forecast(make_plan([str(clips)], config=load_config(SMALL | {"pack_length": 380})))
    assert figures["duplicates"] == [["square_320x320.mp4", "twin.mp4"]]
    assert set(figures["packers"]) >= {"next-fit", "best-fit-decreasing", "cut-to-fit"}
    assert figures["totals"]["fill"] < 0.95
    assert any("below 95%" in warning for warning in figures["warnings"])
    assert 1 <= len(figures["better_pack_lengths"]) <= 3
    best = figures["better_pack_lengths"][0]
    again = make_plan(
        [str(clips)], config=load_config(SMALL | {"pack_length": best["pack_length"]})
    )
    assert forecast(again)["totals"]["fill"] == pytest.approx(best["fill"])


def test_a_written_plan_is_the_one_that_tokenize_follows(clips: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    plan = make_plan([str(clips)], config=load_config(SMALL), out=out)
    before = (out / "plan.parquet").read_bytes(), (out / "plan.json").read_bytes()
    run([clips], out)
    assert before == ((out / "plan.parquet").read_bytes(), (out / "plan.json").read_bytes())
    totals = json.loads((out / "dataset.json").read_text())["totals"]
    assert totals["tokens"] == totals["planned_tokens"] == plan.num_tokens


def test_overlapping_clips_cut_to_fit_keep_ids_of_their_own(clips: Path, tmp_path: Path) -> None:
    manifest = clips / "list.csv"
    lines = [f"square_320x320.mp4,0,{end}" for end in ("1", "1.5", "2", "2.5", "3")]
    manifest.write_text("\n".join(["uri,start,end", *lines]))
    out = tmp_path / "out"
    run([manifest], out, fps="8", patch="1x16x16", pack_length=300, cut_to_fit=True)
    ids = [row["segment_id"] for row in rows(out, "segments.parquet")]
    assert len(ids) > len(lines)
    assert len(set(ids)) == len(ids)
    assert len({row["view"] for row in rows(out, "segments.parquet")}) == len(lines)
    assert verify(out) == []


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("dataset.json", '{"mine": 1}'),
        ("plan.json", '{"terraform": true}'),
        ("plan.json", '{"format_version": 1, "plan_id": "x", "name": "../victim"}'),
        ("plan.parquet", "mine"),
        ("segments.parquet", "mine"),
    ],
)
def test_files_of_somebody_else_are_never_touched(
    clips: Path, tmp_path: Path, name: str, content: str, overwrite: bool
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text(content)
    with pytest.raises(ResumeError, match=name):
        run([clips], out, overwrite=overwrite)
    assert {path.name: path.read_text() for path in out.iterdir()} == {name: content}


def test_overwrite_leaves_files_that_only_look_like_shards(clips: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run([clips], out, name="train")
    (out / "train-notes.txt").write_text("mine")
    run([clips], out, name="other", overwrite=True)
    assert (out / "train-notes.txt").read_text() == "mine"
    assert not list(out.glob("train-*.tar"))


def test_max_losses_holds_over_several_starts(clips: Path, tmp_path: Path) -> None:
    for number in range(3):
        shutil.copy(clips / "square_320x320.mp4", clips / f"{number}.mp4")
    out = tmp_path / "out"
    settings = {"pack_length": 256, "shard_size": "1MB", "workers": 1}
    make_plan([str(clips)], config=load_config(SMALL | settings), out=out)
    sources = {path: path.stat().st_size for path in clips.glob("?.mp4")}
    # Changed between plan and decoding: every task that needs them loses them.
    plan_run = load_config(SMALL | settings | {"max_losses": "1"})
    from spacepatch.pipeline import make_pool, run_tasks
    from spacepatch.pipeline.planfile import open_plan
    from spacepatch.pipeline.whole import LossCount
    from spacepatch.sources import list_sources

    plan = open_plan(out, list_sources([str(clips)]).find)
    for path, size in sources.items():
        path.write_bytes(bytes(size))
    with make_pool(plan_run) as pool:
        reports = list(run_tasks(plan, plan.tasks, folder=out, pool=pool))
    assert {loss.reason for report in reports for loss in report.losses} == {"source_changed"}
    count = LossCount(plan, 1)
    with pytest.raises(LossLimitError, match=r"[23] sources lost, max_losses allows 1"):
        for report in reports:
            count.add(plan.tasks[report.number], report.losses)


def test_an_absurd_rate_is_a_loss_and_no_memory(clips: Path, tmp_path: Path) -> None:
    summary = run([clips / "square_320x320.mp4"], tmp_path / "out", fps="1e9")
    (loss,) = summary.losses
    assert loss.reason == "too_large"
    assert "1e+09 samples a second" in loss.message


def test_limit_does_not_hide_a_file_that_is_not_there(clips: Path, tmp_path: Path) -> None:
    (clips / "list.txt").write_text("square_320x320.mp4\ngone.mp4\n")
    summary = run([f"@{clips / 'list.txt'}"], tmp_path / "out", limit=5)
    assert summary.lost_sources == ("gone.mp4",)


def test_a_probe_that_was_lost_to_a_timeout_is_mended_by_retry_lost(
    clips: Path, tmp_path: Path, ffmpeg: str
) -> None:
    # Raw pictures: long to scan, quick to decode.
    source = "testsrc2=size=640x360:rate=30:duration=40"
    encode = f"{ffmpeg} -v error -f lavfi -i {source} -c:v rawvideo".split()
    big = clips / "big.mkv"
    subprocess.run([*encode, str(big)], check=True)
    out, again = tmp_path / "out", tmp_path / "again"

    def command(folder: Path, *more: str) -> list[str]:
        run = [sys.executable, "-m", "spacepatch", "tokenize", str(clips), "--out", str(folder)]
        return [*run, "--fps", "1", "--max-tokens-per-frame", "16", "--workers", "1", *more]

    process = subprocess.Popen(command(out, "--timeout", "1"), stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    stopped = None
    while stopped is None and time.monotonic() < deadline:
        for child in psutil.Process(process.pid).children(recursive=True):
            if any(file.path == str(big) for file in child.open_files()):
                child.suspend()
                stopped = child
    _, stderr = process.communicate(timeout=120)
    assert "lost: big.mkv: timeout" in stderr
    assert process.returncode == 3
    (loss,) = rows(out, "losses.parquet")
    assert (loss["stage"], loss["reason"], loss["retryable"]) == ("probe", "timeout", True)
    done = subprocess.run(command(out, "--retry-lost"), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert verify(out) == []
    assert subprocess.run(command(again), capture_output=True).returncode == 0
    assert {p.name: p.read_bytes() for p in out.iterdir() if p.is_file()} == {
        p.name: p.read_bytes() for p in again.iterdir() if p.is_file()
    }
