"""The scripts of docs/cluster.md, as written."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
from ranked_runs import (
    DONE_WITH_LOSSES,
    SETTINGS,
    digests,
    make_place,
)
from ray_clusters import free_port, make_cluster

from spacepatch.config import load_config
from spacepatch.pipeline import tokenize


@pytest.fixture(scope="module")
def place(sample_clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_place(tmp_path_factory.mktemp("place"), sample_clips)


SRUN = """#!/bin/bash
# srun [OPTION...] COMMAND: as many processes as the job has tasks
while [[ $1 == -* ]]; do shift; done
for ((number = 0; number < SLURM_NTASKS; number++)); do
    SLURM_STEP_ID=0 SLURM_PROCID=$number "$@" &
    processes+=($!)
done
for process in "${processes[@]}"; do wait "$process" || code=$?; done
exit "${code:-0}"
"""

SBATCH = """#!/bin/bash
# sbatch [OPTION...] --wrap COMMAND: now, one element after the other
for argument in "$@"; do
    [[ $argument == --array=0-* ]] && last=${argument#--array=0-}
done
if [[ -v last ]]; then
    export SLURM_ARRAY_TASK_MIN=0 SLURM_ARRAY_TASK_MAX=$last SLURM_ARRAY_TASK_STEP=1
    export SLURM_ARRAY_TASK_COUNT=$((last + 1))
    for ((number = 0; number <= last; number++)); do
        SLURM_ARRAY_TASK_ID=$number bash -c "$argument" >&2 || exit
    done
else
    bash -c "$argument" >&2 || exit
fi
echo 78
"""


@pytest.fixture
def scripts() -> list[str]:
    page = (Path(__file__).parents[1] / "docs" / "cluster.md").read_text()
    return re.findall(r"```bash\n(.*?)```", page, re.DOTALL)


@pytest.fixture(scope="module")
def documented(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process makes of videos/."""
    out = tmp_path_factory.mktemp("documented") / "out"
    tokenize([str(place / "videos")], out=out, config=load_config(SETTINGS))
    return out


Bash = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def bash(place: Path, tmp_path: Path) -> Bash:
    """Run a script beside videos/ and run.toml, with spacepatch and stubs on the path."""
    (tmp_path / "bin").mkdir()
    for name in ("videos", "run.toml"):
        (tmp_path / name).symlink_to(place / name)
    command = f'exec {shlex.quote(sys.executable)} -m spacepatch "$@"'
    programs = {"spacepatch": f"#!/bin/bash\n{command}\n", "srun": SRUN, "sbatch": SBATCH}
    for name, text in programs.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    path = f"{tmp_path / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"

    def run(script: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-c", script],
            cwd=tmp_path,
            env={**os.environ, "PATH": path, **variables},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            timeout=120,
        )

    return run


def test_the_sbatch_script_of_the_page_works_as_written(
    scripts: list[str], bash: Bash, documented: Path, tmp_path: Path
) -> None:
    (script,) = (text for text in scripts if "#SBATCH" in text)
    # What SLURM tells a batch script; of fewer tasks than the page has.
    job = {"SLURM_JOB_ID": "77", "SLURM_PROCID": "0", "SLURM_NTASKS": "3"}
    done = bash(script, **job, SLURM_CPUS_PER_TASK="8")
    assert done.returncode == DONE_WITH_LOSSES, done.stderr
    assert sorted(re.findall(r"rank \d of 3", done.stdout)) == [f"rank {n} of 3" for n in range(3)]
    assert digests(tmp_path / "shards") == digests(documented)


def test_the_job_array_of_the_page_works_as_written(
    scripts: list[str], bash: Bash, documented: Path, tmp_path: Path
) -> None:
    (script,) = (text for text in scripts if "--array" in text)
    done = bash(script, SLURM_JOB_ID="77")
    assert done.stderr.count("of its own") == 4
    assert digests(tmp_path / "shards") == digests(documented)


def test_the_torchrun_script_of_the_page_works_as_written(
    scripts: list[str], bash: Bash, documented: Path, tmp_path: Path
) -> None:
    pytest.importorskip("torch")
    (script,) = (text for text in scripts if "torchrun" in text)
    done = bash(script)
    assert done.returncode == DONE_WITH_LOSSES, done.stderr
    assert done.stdout.count("of its own") == 2
    assert digests(tmp_path / "shards") == digests(documented)


@pytest.mark.skipif(
    find_spec("aiohttp_cors") is None or find_spec("opencensus") is None,
    reason="Ray's dashboard, which takes jobs, is not installed: pip install 'ray[default]'",
)
def test_the_ray_job_of_the_page_works_as_written(
    scripts: list[str],
    bash: Bash,
    documented: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (script,) = (text for text in scripts if "ray job submit" in text)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    # Where the head finds spacepatch: it is the head that starts it.
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    cluster = make_cluster(include_dashboard=True, dashboard_port=free_port())
    try:
        here = script.replace("localhost:8265", cluster.head_node.webui_url)
        done = bash(here.replace("/data/", f"{tmp_path}/"))
    finally:
        cluster.shutdown()
    assert "1 source lost entirely: exit code 3" in done.stdout, done.stdout + done.stderr
    assert done.returncode == 1, "lost sources are a failed job"
    assert digests(tmp_path / "shards") == digests(documented)
