"""What the documentation says is what the program does."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as parquet
import pytest
from typer.main import get_command

from spacepatch.cli import app

ROOT = Path(__file__).resolve().parents[1]

OTHERS = ("--help", "--index-url", "--sort")
"""Of every program, of pip and of tar."""
ELSEWHERE = ("performance.md", "cluster.md", "recipes.md", "coming-from.md")
"""Pages with options of other programs: benchmarks, SLURM, torchrun, Ray, recipes, peers."""


@pytest.mark.parametrize("page", ["settings", "commands"])
def test_pages_made_from_the_code_are_current(page: str) -> None:
    made = subprocess.run(
        [
            sys.executable,
            "-c",
            f"from make_{page} import {page}_page; print({page}_page(), end='')",
        ],
        cwd=ROOT / "docs",
        capture_output=True,
        text=True,
        check=True,
    )
    assert (ROOT / "docs" / f"{page}.md").read_text() == made.stdout


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "README.md" or f"]({page.name})" in index, page.name


def test_every_command_is_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    commands = (
        "tokenize plan finish bench convert repack fit inspect verify compare preview unpack doctor"
    )
    for command in commands.split():
        assert f"spacepatch {command}" in readme


def test_every_flag_on_the_pages_exists() -> None:
    program = get_command(app)
    options = [entry for part in (program, *program.commands.values()) for entry in part.params]
    known = {name for entry in options for name in (*entry.opts, *entry.secondary_opts)}
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        if page.name in ELSEWHERE:
            continue
        for flag in sorted(set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", page.read_text()))):
            assert flag in known.union(OTHERS), f"{page.name}: {flag}"


def test_every_link_in_the_documentation_leads_somewhere() -> None:
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_training_example_of_the_readme_runs(sample_clips: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    out = tmp_path / "shards"
    done = subprocess.run(
        [sys.executable, "-m", "spacepatch", "tokenize", str(sample_clips), "--out", str(out)],
        capture_output=True,
    )
    assert done.returncode == 3
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "torch.Size([2, 8192, 1536])" in ran.stdout


def test_the_reading_example_of_the_format_page_runs(sample_clips: Path, tmp_path: Path) -> None:
    out = tmp_path / "shards"
    clip = sample_clips / "square_320x320.mp4"
    subprocess.run(
        [
            sys.executable,
            "-m",
            "spacepatch",
            "tokenize",
            str(clip),
            "--out",
            str(out),
            "--name",
            "NAME",
        ],
        check=True,
        capture_output=True,
    )
    page = (ROOT / "docs" / "format.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    code += "\nprint(tokens.shape, len(segments))"
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip() == "(3328, 1536) 1"


def test_the_query_of_the_format_page_counts_what_pyarrow_counts(
    pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    duckdb = pytest.importorskip("duckdb", reason="duckdb is not installed")
    page = (ROOT / "docs" / "format.md").read_text()
    (query,) = re.findall(r"```sql\n(.*?)```", page, re.DOTALL)
    (tmp_path / "shards").symlink_to(pristine)
    monkeypatch.chdir(tmp_path)
    table = parquet.read_table(pristine / "segments.parquet").group_by("source")
    counted = table.aggregate([("num_kept", "count"), ("num_kept", "sum")]).sort_by("source")
    assert duckdb.sql(query).fetchall() == [tuple(row.values()) for row in counted.to_pylist()]


def test_the_histogram_example_of_the_page_of_packs_says_what_it_prints() -> None:
    pytest.importorskip("scipy")
    page = (ROOT / "docs" / "packing.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == code.strip().rpartition("# ")[2]
