"""What the shell completes, with the script that is installed and a real bash."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from spacepatch.cli import app
from spacepatch.config import choices_of
from spacepatch.config.settings import WORDS
from spacepatch.packers import ALL_PACKERS
from spacepatch.presets import preset_names


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with `spacepatch` on the path, whose shell completes it."""
    program = tmp_path / "bin" / "spacepatch"
    program.parent.mkdir()
    program.write_text(f'#!/bin/bash\nexec {shlex.quote(sys.executable)} -m spacepatch "$@"\n')
    program.chmod(0o755)
    # Not the last command, which bash would become: the shell is found among the parents.
    done = bash(tmp_path, "spacepatch --install-completion; code=$?; exit $code")
    assert done.returncode == 0, done.stderr
    assert "bash completion installed" in done.stdout
    return tmp_path


def bash(home: Path, script: str) -> subprocess.CompletedProcess[str]:
    path = f"{home / 'bin'}:{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "--norc", "-c", script],
        env={**os.environ, "HOME": str(home), "PATH": path},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_the_installed_script_completes_commands_options_and_words(home: Path) -> None:
    asked = {
        "spacepatch tokenize --pack-l": ["--pack-length"],
        "spacepatch tokenize --packer ": list(ALL_PACKERS),
        "spacepatch repack --packer opt": ["optimal"],
        "spacepatch presets show vi": [n for n in preset_names() if n.startswith("vi")],
    }
    script = 'source "$HOME/.bash_completions/spacepatch.sh"\n'
    for line in asked:
        words = [*line.split(), *([""] if line.endswith(" ") else [])]
        script += (
            f"COMP_WORDS=({shlex.join(words)}) COMP_CWORD={len(words) - 1} COMPREPLY=()\n"
            '_spacepatch_completion spacepatch; echo "${COMPREPLY[*]}"\n'
        )
    done = bash(home, script)
    assert done.stderr == ""
    found = [line.split() for line in done.stdout.splitlines()]
    assert found == list(asked.values())
    assert (home / ".bashrc").read_text().count("spacepatch.sh") == 1


@pytest.mark.parametrize("setting", WORDS)
def test_every_setting_of_a_closed_list_completes_its_words(setting: str) -> None:
    command = get_command(app).commands["tokenize"]
    (option,) = (entry for entry in command.params if entry.name == setting)
    found = [entry.value for entry in option.shell_complete(command.context_class(command), "")]
    assert [word for word in found if word != "none"] == [
        word for word in choices_of(setting) if " " not in word
    ]
    assert not found or option.shell_complete(command.context_class(command), "x-none") == []
