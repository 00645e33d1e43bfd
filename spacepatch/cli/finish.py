"""`spacepatch finish`: what ranks made becomes a dataset."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from spacepatch.cli.options import Json
from spacepatch.cli.tokenize import LOST_SOURCES
from spacepatch.storage import open_folder

EXAMPLE = "Example:  spacepatch finish shards/ --world-size 16"


def command(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="DIR",
            parser=partial(open_folder, writes=True),
            help="The --out of the ranks.",
            show_default=False,
        ),
    ],
    *,
    world_size: Annotated[
        int | None,
        typer.Option(
            "--world-size", help="Of the ranks: to name those that left shards undone.", min=1
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Merge what `spacepatch tokenize --rank` made, or name the shards that are missing.

    Needs no sources. Exit codes: 0 all done, 3 done but whole sources are lost, 1 shards are
    missing or a rank is at work still, 2 wrong usage.
    """
    from spacepatch.cli import display
    from spacepatch.errors import UnfinishedError
    from spacepatch.pipeline import join_ranks

    try:
        summary = join_ranks(folder, world_size=world_size)
    except UnfinishedError as error:
        if json:
            display.print_json({"missing": error.missing})
        raise
    display.show_summary(folder, summary, as_json=json)
    if summary.lost_sources:
        raise typer.Exit(LOST_SOURCES)
