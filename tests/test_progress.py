"""What a run says on its way where stderr is no terminal."""

import json
from pathlib import Path

import pytest
from conftest import SpacepatchCli
from small_runs import SMALL

from spacepatch.cli.progress import RunProgress
from spacepatch.config import load_config
from spacepatch.pipeline import tokenize
from spacepatch.wording import counted, duration


def said(sources: Path, out: Path, capsys: pytest.CaptureFixture[str], seconds: float) -> list[str]:
    with RunProgress(seconds_between=seconds) as progress:
        tokenize([str(sources)], out=out, config=load_config(SMALL), watch=progress.watch())
    printed = capsys.readouterr()
    assert printed.out == ""
    return printed.err.splitlines()


def test_a_line_now_and_then_says_how_far_it_is(
    sample_clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = said(sample_clips, tmp_path / "out", capsys, seconds=0)
    totals = json.loads((tmp_path / "out" / "dataset.json").read_text())["totals"]
    planned = lines.index(
        f"plan: 11 sources (1 lost), 10 clips, {totals['tokens']:,} tokens, 1 shard"
    )
    assert lines[:planned] == [f"planning: {done}/11 sources" for done in range(12)]
    assert lines[planned + 1].startswith("0/1 shards, 0/10 videos, 0 tokens, ")
    assert ", 4/10 videos, " in lines[planned + 5]
    assert lines[planned + 5].endswith(" left")
    # What the plan has lost is lost, although no job of it fails.
    assert lines[-1].startswith("1/1 shards, 10/10 videos, ")
    assert lines[-1].endswith("/s, 1 lost")


def test_a_short_run_says_what_is_planned_and_no_more(
    sample_clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (line,) = said(sample_clips / "square_320x320.mp4", tmp_path / "out", capsys, seconds=60)
    assert line.startswith("plan: 1 source, 1 clip, ")
    again = said(sample_clips / "square_320x320.mp4", tmp_path / "out", capsys, seconds=60)
    assert again == [
        f"{line}, 0 left to do",
        "nothing left to do: every shard has its receipt",
    ]


def test_with_json_it_stands_on_stderr(
    spacepatch_cli: SpacepatchCli, sample_clips: Path, tmp_path: Path
) -> None:
    clip = sample_clips / "square_320x320.mp4"
    done = spacepatch_cli("tokenize", clip, "--out", tmp_path / "out", "--fps", "1", "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["totals"]["sources"] == 1
    assert done.stderr.startswith("plan: 1 source, ")


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 clips"), (1, "1 clip"), (2, "2 clips"), (1234, "1,234 clips")]
)
def test_of_one_there_is_no_plural(number: int, text: str) -> None:
    assert counted(number, "clip") == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (99, "99.0 s"), (600, "10 min"), (36_000, "10.0 h")]
)
def test_a_duration_is_in_the_unit_of_which_there_are_few(seconds: float, text: str) -> None:
    assert duration(seconds) == text
