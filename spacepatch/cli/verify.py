"""`spacepatch verify`: prove that a dataset is whole."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from spacepatch.cli.options import Json
from spacepatch.cli.saying import say

EXAMPLE = "Example:  spacepatch verify shards/"


def command(
    path: Annotated[Path, typer.Argument(metavar="DIR", help="An output folder, or one .tar.")],
    json: Json = False,
) -> None:
    """Check structure, checksums, counts, conservation of frames, times and positions.

    Exit code 1 if anything is wrong, each problem on a line.
    """
    from spacepatch.cli import display
    from spacepatch.inspection import verify

    problems = verify(path)
    if json:
        display.print_json({"problems": [asdict(problem) for problem in problems]})
    else:
        for problem in problems:
            say(f"{problem.where}: {problem.what}")
        typer.echo(f"{path}: {len(problems)} problems" if problems else f"{path}: verified, clean")
    if problems:
        typer.echo(
            "to mend: delete the files named, and run the same spacepatch tokenize again", err=True
        )
        raise typer.Exit(1)
