"""Nothing found, nothing to do, all lost: each says what to do next."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from spacepatch.cli import app
from spacepatch.errors import SpacepatchError

LOOK = "spacepatch probe FILE says what a file is, spacepatch doctor what can be decoded here"


@pytest.fixture
def place(pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("empty", "notes", "tars", "broken"):
        (tmp_path / name).mkdir()
    (tmp_path / "notes" / "a.txt").write_text("no video")
    (tmp_path / "tars" / "000.tar").touch()
    (tmp_path / "broken" / "a.mp4").write_text("no video")
    (tmp_path / "shards").symlink_to(pristine)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(line: str, code: int) -> str:
    """What is said on stderr, or in the error that becomes one line there."""
    done: Any = CliRunner().invoke(app, line.split())
    if isinstance(done.exception, SpacepatchError):
        assert "\n" not in str(done.exception)
        return f"error: {done.exception}"
    assert done.exit_code == code, (done.stderr, done.exception)
    return str(done.stderr)


@pytest.mark.parametrize("command", ["tokenize {} --out o", "plan {}", "bench {}", "probe {}"])
@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("empty", "error: no videos in empty; give videos, folders of them"),
        ("notes", "error: no videos in notes (1 file ignored, no media); give videos"),
        ("tars", "no media); name its tar files to read what they hold: 'tars/*.tar'"),
        ("shards", "error: shards: is an output folder of spacepatch and holds no videos: give"),
    ],
)
def test_a_folder_without_videos_is_told_with_what_to_give(
    place: Path, command: str, source: str, said: str
) -> None:
    assert said in run(command.format(source), 2)
    assert not (place / "o").exists()


def test_where_all_is_lost_it_is_said_how_to_look_and_again_when_it_is_started_again(
    place: Path,
) -> None:
    for _ in range(2):
        said = run("tokenize broken --out out", 3)
        assert "nothing to do: no clip of any source can be had\n" in said
        assert "lost: a.mp4: unreadable" in said
        assert said.endswith(f"nothing was written: {LOOK}\n")
    assert "warning: there would be no shard: " + LOOK in run("plan broken", 0)


@pytest.mark.parametrize("line", ["bench broken", "fit broken --out codec.safetensors"])
def test_what_cannot_be_measured_or_learned_from_names_a_file_and_how_to_look(
    place: Path, line: str
) -> None:
    said = run(line, 2)
    assert "a.mp4: " in said
    assert said.endswith(LOOK)


def test_a_run_that_is_done_says_that_nothing_is_left(place: Path, sample_clips: Path) -> None:
    clip = sample_clips / "still_picture_400x300.png"
    line = f"tokenize {clip} --out out"
    planned = "plan: 1 source, 1 clip, 252 tokens, 1 shard"
    assert run(line, 0) == f"{planned}\n"
    left = "nothing left to do: every shard has its receipt\n"
    assert run(line, 0) == f"{planned}, 0 left to do\n{left}"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("inspect {}", "give the folder that --out named"),
        ("verify {}", "give the folder that --out named"),
        ("convert {} --order raster --out o", "run spacepatch tokenize to the end"),
        ("repack {} --pack-length 64 --out o", "run spacepatch tokenize to the end"),
        ("compare shards {}", "give the --out of a finished run"),
        ("finish {}", "give the --out of its ranks"),
    ],
)
def test_a_folder_that_is_no_dataset_is_told_with_what_to_give(
    place: Path, line: str, said: str
) -> None:
    for source in ("empty", "broken"):
        assert said in run(line.format(source), 1)


def test_a_dataset_that_is_not_finished_is_told_with_what_to_do(place: Path) -> None:
    (place / "half").mkdir()
    for path in (place / "shards").glob("plan*"):
        shutil.copy(path, place / "half")
    assert "tokenize again" in CliRunner().invoke(app, ["inspect", "half"]).stdout
    assert "tokenize again to go on" in CliRunner().invoke(app, ["verify", "half"]).stdout
    assert "start the ranks that have not ended again" in run("finish half", 1)
    assert "run spacepatch tokenize to the end" in run("convert half --order raster --out o", 1)


def test_a_plan_names_the_first_files_that_it_passes_over(place: Path) -> None:
    clips = place / "clips"
    (clips / ".cache").mkdir(parents=True)
    for name in (".cache/a.mp4", "b.txt", "c.txt", "d.srt", "e.json", "f.zip", ".hidden.mp4"):
        (clips / name).touch()
    (clips / "a.mp4").write_text("no video")
    said = run("plan clips", 0)
    names = ".cache/, .hidden.mp4, b.txt, c.txt, d.srt, 2 more"
    assert f"note: 7 files ignored, hidden or no media by name: {names}\n" in said
    assert "ignored" not in run("plan clips/a.mp4", 0)
