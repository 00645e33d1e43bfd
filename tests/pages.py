"""The command lines and programs that stand in README.md and in docs."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PAGES = (README, *sorted((ROOT / "docs").glob("*.md")), ROOT / "samples" / "train" / "README.md")

PROGRAMS = "spacepatch make pip python python3 srun sbatch torchrun ray".split()


@dataclass(frozen=True)
class Line:
    """One command, as it is to be typed."""

    page: Path
    text: str
    """Without what the shell does with it: comments, ends of lines, `|| exit`, `>`."""

    @property
    def words(self) -> list[str]:
        return shlex.split(self.text)

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}: {self.text}"


def command_lines() -> list[Line]:
    """Those in blocks of code, in their order."""
    return [Line(page, text) for page in PAGES for text in _commands(page.read_text())]


SHELL = ("", "bash", "sh", "console")
"""Languages of fences between which commands stand."""


def _commands(text: str) -> Iterator[str]:
    fence: str | None = None
    before, is_code = "", False
    for line in text.replace("\\\n", " ").splitlines():
        if line.startswith("```"):
            fence = line[3:].strip() if fence is None else None
            continue
        # Indented code begins after an empty line.
        is_code = line.startswith("    ") and (is_code or not before)
        before = line
        is_shell = is_code if fence is None else fence in SHELL
        if not is_shell:
            continue
        plain = line.strip().removeprefix("$ ")
        words = re.split(r"\s+(?:#|\|\||&&|>)(?=\s|$)", plain)[0]
        if words.split(" ")[0] in PROGRAMS:
            yield re.sub(r" +", " ", words)


def inline_commands() -> list[Line]:
    """Those in the middle of a sentence: `spacepatch` and a command, with what of it is meant."""
    return [
        Line(page, text)
        for page in PAGES
        for text in re.findall(r"`(spacepatch [a-z][^`]*)`", page.read_text())
    ]


def python_pages() -> list[Path]:
    """Pages with blocks of Python."""
    return [page for page in PAGES if "```python\n" in page.read_text()]
