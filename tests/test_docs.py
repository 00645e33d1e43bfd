"""What the documentation says is what the program does."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as parquet
import pytest

ROOT = Path(__file__).resolve().parents[1]


def test_the_page_of_settings_is_current() -> None:
    made = subprocess.run(
        [
            sys.executable,
            "-c",
            "from make_settings import settings_page; print(settings_page(), end='')",
        ],
        cwd=ROOT / "docs",
        capture_output=True,
        text=True,
        check=True,
    )
    assert (ROOT / "docs" / "settings.md").read_text() == made.stdout


def test_every_command_is_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    commands = "tokenize plan finish bench convert repack fit inspect verify preview doctor"
    for command in commands.split():
        assert f"spacepatch {command}" in readme


def test_every_flag_in_the_readme_exists() -> None:
    usage = "".join(
        subprocess.run(
            [sys.executable, "-m", "spacepatch", command, "--help"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for command in ("tokenize", "plan", "bench", "repack", "fit", "verify", "preview")
    )
    text = (ROOT / "README.md").read_text().replace("--index-url", "").replace("--help", "")
    for flag in sorted(set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text))):
        assert flag in usage, flag


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
