"""Every command in README.md and in docs is run as it is written; what cannot be run here is named
with the reason, and is held against the options that there are."""

from __future__ import annotations

import re
import shlex
import tarfile
import tomllib
from pathlib import Path
from typing import Any

import pytest
from pages import README, ROOT, Line, command_lines, inline_commands, python_pages
from typer.main import get_command
from typer.testing import CliRunner

from spacepatch.cli import app

CLIPS = ("square_320x320.mp4", "landscape_640x360.mp4")
DONE = (0, 3)
"""Exit codes: all done, also where whole sources are lost."""

NOT_RUN = {
    r"s3://": "needs an object store; tests/test_remote_*.py have one",
    r"--executor ray": "needs a cluster; tests/test_ray.py has one",
    r"--rank|spacepatch finish|--config run.toml": "several machines; tests/test_cluster_page.py",
    r"--segment [0-9a-f]": "an id of somebody's own; tests/test_preview.py",
    r"^spacepatch bench": "takes 20 s and more; tests/test_bench.py",
    r"diffusers:": "needs weights of gigabytes; tests/test_diffusers_encoders.py has small ones",
    r"samples/manifest.csv": "makes the shards of a recipe; tests/test_recipes_video.py",
    r"--decoder torchcodec": "each worker loads torch for it; tests/test_conformance.py",
    r"--preset (?!wan)": "each worker loads torch for its resampler; tests/test_preset_runs.py",
    r"^make ": "CI runs test and check; that the others are there is seen below",
    r"^pip install": "would change the environment; that its extras are there is seen below",
    r"^(srun|sbatch|torchrun) ": "tests/test_cluster_page.py",
    r"^ray ": "needs a cluster; tests/test_ray.py has one",
    r"^python tests/conformance_table.py": "takes minutes; tests/test_conformance.py",
    r"^python samples/train/": "trains for a minute; tests/test_recipes_video.py",
}
"""Patterns of command lines, and why they are not run here."""

PLACEHOLDERS = {"I": "0", "N": "4", "$SLURM_NTASKS": "4"}

LINES = command_lines()
OURS = [line for line in LINES if line.words[0] == "spacepatch"]
OF_README = [line for line in OURS if line.page == README]
COMMANDS: dict[str, Any] = get_command(app).commands


def why_not(line: Line) -> str | None:
    return next((why for pattern, why in NOT_RUN.items() if re.search(pattern, line.text)), None)


def unique(lines: list[Line]) -> list[Line]:
    """The first of those that are alike."""
    return list({line.text: line for line in reversed(lines)}.values())[::-1]


def invoke(words: list[str]) -> Any:
    """In this process: a start takes as long as most of these commands."""
    return CliRunner().invoke(app, words[1:])


@pytest.fixture(scope="module")
def place(sample_clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pages take for given: videos, and what was made of them before."""
    place = tmp_path_factory.mktemp("pages")
    (place / "videos").mkdir()
    for name in CLIPS:
        (place / "videos" / name).symlink_to(sample_clips / name)
    (place / "dataset").mkdir()
    with tarfile.open(place / "dataset" / "000000.tar", "w") as tar:
        tar.add(sample_clips / CLIPS[0], "000000.mp4")
    (place / "dataset" / "manifest.jsonl").write_text('{"uri": "../videos/square_320x320.mp4"}\n')
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        for text in (
            "tokenize videos/ --out shards --fps 2 --multiple 2",
            "convert shards --to 't p q c' --out shards-tpqc",
            "fit videos/ --out codec.safetensors --channels 4 --codebook 16 --sample-blocks 2000",
            "tokenize videos/ --out codes --encoder linear:codec.safetensors",
            "tokenize videos/ --out refs --store refs --fps 2 --multiple 2",
        ):
            done = invoke(["spacepatch", *shlex.split(text)])
            assert done.exit_code == 0, (done.stderr, done.exception)
    return place


@pytest.mark.parametrize(
    "line",
    # README's come first, and are run below.
    [line for line in unique(OURS) if line.page != README and not why_not(line)],
    ids=str,
)
def test_a_command_of_a_page_runs_as_written(
    line: Line, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = line.words
    made = words[words.index("--out") + 1].rstrip("/") if "--out" in words else None
    for path in place.iterdir():
        if path.name != made:
            (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    done = invoke(words)
    codes = (1,) if words[1] == "compare" else DONE  # they differ
    assert done.exit_code in codes, (done.stderr, done.exception)
    assert made is None or (tmp_path / made).exists()


def test_the_commands_of_the_readme_run_one_after_the_other_on_a_folder_of_videos(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "videos").symlink_to(place / "videos")
    monkeypatch.chdir(tmp_path)
    lines = [line for line in OF_README if not why_not(line)]
    assert len(lines) > 5
    for line in lines:
        done = invoke(line.words)
        assert done.exit_code in DONE, (line.text, done.stderr, done.exception)


@pytest.mark.parametrize("line", unique(OURS), ids=str)
def test_a_command_of_a_page_has_options_and_settings_that_there_are(
    line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.toml").touch()
    words = [PLACEHOLDERS.get(word, word) for word in line.words]
    if words[1] in ("tokenize", "plan", "bench"):
        # Settings are looked at before any source.
        done = invoke([*words, "--show-config"])
        assert done.exit_code == 0, (done.stderr, done.exception)
    else:
        assert COMMANDS[words[1]].make_context(words[1], words[2:]).params


@pytest.mark.parametrize("line", unique(inline_commands()), ids=str)
def test_a_command_in_a_sentence_has_options_that_there_are(line: Line) -> None:
    words = line.text.split()
    if "COMMAND" in words:
        return
    options = {name for entry in COMMANDS[words[1]].params for name in entry.opts}
    for word in words[2:]:
        if word.startswith("--") and word != "--help":
            assert word in options, word


def test_what_is_not_run_is_still_there_to_be_run() -> None:
    for pattern in NOT_RUN:
        assert any(re.search(pattern, line.text) for line in LINES), pattern
    for line in LINES:
        assert line.words[0] == "spacepatch" or why_not(line), line


def test_targets_extras_and_scripts_that_the_pages_name_are_there() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for line in LINES:
        words = line.words
        if words[0] == "make":
            assert [word for word in words[1:] if word in targets], line
        if words[0] == "pip":
            for extra in re.findall(r"spacepatch\[(\w+)\]", line.text):
                assert extra in extras["optional-dependencies"], line
        if words[0] == "python":
            assert (ROOT / words[1]).is_file(), line


def test_a_test_runs_the_python_of_every_page_that_has_some() -> None:
    tests = "".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py"))
    for page in python_pages():
        assert f'"{page.name}"' in tests, page.name


def test_the_python_of_the_page_of_geometry_makes_tokens_of_frames() -> None:
    page = (ROOT / "docs" / "geometry.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    clip = names["clip"]
    # 16 frames at 30 a second are 4 at 2 a second at least; 180 x 320 is 168 x 308 for Qwen2-VL.
    assert clip.clip.grid_thw == (2, 168 // 14, 308 // 14)
    assert clip.tokens.shape == (2 * 12 * 22, 3 * 2 * 14 * 14)


def test_the_python_of_the_page_for_those_who_come_from_qwen_gives_what_its_model_takes(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    page = (ROOT / "docs" / "coming-from.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    grids = names["video_grid_thw"]
    assert len(names["pixel_values_videos"]) == grids.prod(dim=1).sum()
    # A slice a grid row, of h x w tokens each.
    slices = grids[:, 1:].prod(dim=1).repeat_interleave(grids[:, 0])
    assert names["cu_seqlens"].diff().tolist() == slices.tolist()
