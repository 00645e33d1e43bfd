"""`spacepatch inspect`: what is in a dataset, or in one shard."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spacepatch.cli.options import Json

EXAMPLE = "Example:  spacepatch inspect shards/ --json"


def command(
    path: Annotated[Path, typer.Argument(metavar="DIR", help="An output folder, or one .tar.")],
    json: Json = False,
) -> None:
    """Show totals, fill, histograms and losses."""
    from spacepatch.cli import display
    from spacepatch.inspection import summarize

    display.show_dataset(summarize(path), as_json=json)
