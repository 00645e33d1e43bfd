"""Write what the benchmarks found (build/benchmarks/*.json) into docs/performance.md."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from tests.benchmarks.results import HEADINGS, RESULTS, ROOT, Figure

PARTS = {
    "speed": "Speed",
    "growth": "Growth and memory",
    "packing": "Packing",
    "plans": "Plans",
    "stores": "Stores",
    "codecs": "Codecs",
}
"""From a file's name to its heading."""
BEGIN = "<!-- Written by `make bench`; do not edit. -->"
END = "<!-- End of what `make bench` writes. -->"


def section(heading: str, found: Mapping[str, Any]) -> str:
    """One file's results: on what, the figures, and the seconds behind them."""
    lines = [f"### {heading}", "", describe(found["machine"], found["settings"]), ""]
    figures = [
        Figure(*(one[key] for key in ("work", "measure", "each", "at_most", "at_least")))
        for one in found["figures"]
    ]
    lines += table(HEADINGS, [figure.cells() for figure in figures])
    seconds = [
        [work, name, *(f"{value:.2f}" for value in (min(times), median(times), max(times))), cpu]
        for work, contenders in found["runs"].items()
        for name, made in contenders.items()
        for times in [[one["seconds"] for one in made]]
        for cpu in [f"{median(one['cpu_seconds'] for one in made):.2f}"]
    ]
    if seconds:
        headings = ["work", "who", "min s", "median s", "max s", "CPU s, median"]
        lines += ["", *table(headings, seconds)]
    works = found["settings"].get("works", {})
    for name, work in works.items():
        wrong = {variant: files for variant, files in work["differ_by_workers"].items() if files}
        verdict = f"NOT the same: {wrong}" if wrong else "the same"
        tokens = ", ".join(f"{who} {count:,}" for who, count in work["tokens"].items())
        lines += [
            "",
            f"{name}: every file that 1 worker and 2 write is {verdict}. Tokens: {tokens}.",
        ]
    return "\n".join(lines)


def describe(machine: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    rounds = f", {settings['rounds']} rounds" if "rounds" in settings else ""
    source = f", clips of `{settings['source']}`" if "source" in settings else ""
    return (
        f"{machine['cores']} cores of {machine['cpu']}, {machine['system']}, Python "
        f"{machine['python']}, {versions}; commit {machine['commit']}{source}{rounds}."
    )


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(row) + " |" for row in (headings, ["---"] * len(headings), *rows)]


def fill_page(page: str, sections: Sequence[str]) -> str:
    """Put sections between the two markers of a page, in place of what is there.

    Raises:
        ValueError: the page does not have the two markers, once each.
    """
    if page.count(BEGIN) != 1 or page.count(END) != 1:
        raise ValueError(f"the page must have {BEGIN!r} and {END!r} once each")
    before, _, rest = page.partition(BEGIN)
    after = rest.partition(END)[2]
    return "\n\n".join([before + BEGIN, *sections, END + after])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON files")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "performance.md")
    options = parser.parse_args()
    sections = [
        section(heading, json.loads(path.read_text()))
        for name, heading in PARTS.items()
        if (path := options.results / f"{name}.json").exists()
    ]
    if not sections:
        print(f"{options.results} holds no results: run `make bench` first", file=sys.stderr)
        return 1
    options.page.write_text(fill_page(options.page.read_text(), sections))
    print(f"written: {options.page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
