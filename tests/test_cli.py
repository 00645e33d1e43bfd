"""The command line as users meet it: exit codes, one line per error, help, quick start."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

COMMANDS = "tokenize plan convert fit probe inspect verify preview unpack doctor".split()
HEAVY = ["torch", "webdataset", "av", "pyarrow"]


@pytest.fixture(scope="module")
def dataset(sample_clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cli") / "out"
    done = run("tokenize", str(sample_clips), "--out", str(out), "--fps", "2")
    assert done.returncode == 3, done.stderr
    return out


def run(*arguments: str, **more: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "spacepatch", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        **more,  # type: ignore[call-overload]
    )


@pytest.mark.parametrize("statement", ["import spacepatch", "import spacepatch.cli"])
def test_importing_loads_nothing_heavy(statement: str) -> None:
    code = f"{statement}\nimport sys\nprint([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("arguments", [["--help"], ["tokenize", "--help"]])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom spacepatch.cli import main\n"
        f"sys.argv = ['spacepatch', *{arguments}]\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        f"print('loaded', [m for m in {HEAVY} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("loaded []")


def test_workers_and_the_writing_process_do_without_torch(
    sample_clips: Path, tmp_path: Path
) -> None:
    # A torch that cannot be imported: whoever tries, fails.
    (tmp_path / "torch.py").write_text("raise ImportError('torch is not needed here')")
    (tmp_path / "webdataset.py").write_text("raise ImportError('webdataset is not needed here')")
    done = run(
        "tokenize",
        str(sample_clips),
        "--out",
        str(tmp_path / "out"),
        "--fps",
        "1",
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert done.returncode == 3, done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_ends_with_an_example(command: str) -> None:
    done = run(command, "--help")
    assert done.returncode == 0
    assert done.stdout.rstrip().splitlines()[-1].strip().startswith("Example:  spacepatch")


def test_tokenize_says_what_is_lost_and_exits_3(sample_clips: Path, tmp_path: Path) -> None:
    done = run("tokenize", str(sample_clips), "--out", str(tmp_path / "out"), "--fps", "2")
    assert done.returncode == 3
    assert "lost: broken_on_purpose.mp4: unreadable:" in done.stderr
    assert "10 segments of 10 sources" in done.stdout
    assert "\x1b" not in done.stdout + done.stderr


def test_a_second_start_has_nothing_left_to_do_and_changes_no_byte(
    sample_clips: Path, dataset: Path
) -> None:
    before = {path.name: path.read_bytes() for path in dataset.iterdir() if path.is_file()}
    done = run("tokenize", str(sample_clips), "--out", str(dataset), "--fps", "2")
    assert done.returncode == 3
    assert {p.name: p.read_bytes() for p in dataset.iterdir() if p.is_file()} == before


def test_other_settings_on_the_same_folder_are_refused_with_the_difference(
    sample_clips: Path, dataset: Path
) -> None:
    done = run("tokenize", str(sample_clips), "--out", str(dataset), "--fps", "3")
    assert done.returncode == 1
    assert "fps was '2', is '3'" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["tokenize", "nowhere/", "--out", "o"], 2, "nowhere/"),
        (["tokenize", "empty", "--out", "o"], 2, "no videos in empty"),
        (["tokenize", "empty"], 2, "as in --out shards/"),
        (["tokenize", "empty", "--out", "o", "--fsp", "2"], 2, "--fsp"),
        (["tokenize", "empty", "--out", "o", "--fps", "many"], 2, "fps"),
        (["tokenize", "empty", "--out", "o", "--native", "--short-side", "64"], 2, "short_side"),
        (["tokenize", "empty", "--out", "o", "--packer", "best-fit"], 2, "best-fit-decreasing"),
        (["tokenize", "empty", "--out", "o", "--preset", "navti"], 2, "navit"),
        (["tokenize", "empty", "--out", "o", "--config", "none.toml"], 2, "none.toml"),
        (["inspect", "empty"], 1, "empty"),
        (["verify", "empty"], 1, "empty"),
        (["nonsense"], 2, "nonsense"),
    ],
)
def test_a_newcomers_mistake_gets_a_line_and_an_exit_code(
    tmp_path: Path, arguments: list[str], code: int, expected: str
) -> None:
    (tmp_path / "empty").mkdir()
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert expected in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_a_folder_of_something_else_is_not_touched(sample_clips: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    for more in ([], ["--overwrite"]):
        done = run("tokenize", str(sample_clips), "--out", str(tmp_path), *more)
        assert done.returncode == 1
        assert "thesis.tex" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_overwrite_begins_anew_and_leaves_no_old_shard(sample_clips: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    clip = str(sample_clips / "square_320x320.mp4")
    assert run("tokenize", clip, "--out", str(out), "--fps", "2").returncode == 0
    first = {path.name for path in out.iterdir()}
    assert run("tokenize", clip, "--out", str(out), "--fps", "4", "--overwrite").returncode == 0
    second = {path.name for path in out.iterdir()}
    assert not {name for name in first & second if name.endswith(".tar")}
    assert sum(name.endswith(".tar") for name in second) == 1
    assert run("verify", str(out)).returncode == 0


def test_verify_and_inspect_of_a_whole_dataset(dataset: Path) -> None:
    assert run("verify", str(dataset)).returncode == 0
    done = run("inspect", str(dataset), "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["totals"]["segments"] == 10


def test_verify_finds_a_flipped_bit_and_exits_1(dataset: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(dataset, copy)
    tar = next(copy.glob("*.tar"))
    content = bytearray(tar.read_bytes())
    content[len(content) // 2] ^= 1
    tar.write_bytes(content)
    done = run("verify", str(copy))
    assert done.returncode == 1
    assert tar.name in done.stdout


def test_show_config_is_a_config_file(sample_clips: Path, tmp_path: Path) -> None:
    shown = run("tokenize", str(sample_clips), "--show-config", "--fps", "3", "--patch", "1x14x14")
    assert shown.returncode == 0
    file = tmp_path / "run.toml"
    file.write_text(shown.stdout)
    again = run("tokenize", str(sample_clips), "--show-config", "--config", str(file))
    assert again.stdout == shown.stdout
    assert 'fps = "3"' in shown.stdout


def test_probe_names_what_the_file_is(sample_clips: Path) -> None:
    done = run("probe", str(sample_clips / "rotated_90_phone.mp4"), "--json")
    assert done.returncode == 0
    (document,) = json.loads(done.stdout)
    assert (document["rotation"], document["coded_size"]) == (90, "480x270")


def test_doctor_works_without_a_problem() -> None:
    done = run("doctor", "--json")
    assert done.returncode == 0
    facts = json.loads(done.stdout)
    assert {"h264", "hevc", "av1", "vp9"} <= set(facts["decoders"])


def test_inspect_of_a_plan_that_was_never_run_shows_its_losses(
    sample_clips: Path, tmp_path: Path
) -> None:
    out = str(tmp_path / "out")
    assert run("plan", str(sample_clips), "--out", out).returncode == 0
    done = run("inspect", out)
    assert done.returncode == 0, done.stderr
    assert "not finished: 0 of 1 tasks" in done.stdout
    assert "broken_on_purpose.mp4" in done.stdout


def test_a_name_with_control_characters_is_only_text(tmp_path: Path, spacepatch_cli: Any) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    (videos / "a\x1b[2J\nlost: b.mp4").write_bytes(b"no video")
    for command in (["tokenize", videos, "--out", tmp_path / "out"], ["plan", videos]):
        done = spacepatch_cli(*command)
        said = done.stdout + done.stderr
        assert "\x1b" not in said
        assert "a\\x1b[2J\\nlost: b.mp4" in said
        assert not any(line.startswith("lost: b.mp4") for line in said.splitlines())
