"""`spacepatch tokenize`: plan, run, finish."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spacepatch.cli.options import Json, Overwrite, Root, ShowConfig, Sources, with_settings
from spacepatch.config import RunConfig

EXAMPLE = "Example:  spacepatch tokenize videos/ --out shards/ --fps 4"

LOST_SOURCES = 3
"""Exit code: done, with losses of whole sources."""


@with_settings
def command(
    sources: Sources,
    *,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for the shards.", show_default=False)
    ] = None,
    root: Root = None,
    overwrite: Overwrite = False,
    retry_lost: Annotated[
        bool,
        typer.Option(
            "--retry-lost", help="Do again what was lost to timeout, crash, memory or io."
        ),
    ] = False,
    show_config: ShowConfig = False,
    json: Json = False,
    config: RunConfig,
) -> None:
    """Turn videos into packed shards. Started again, it goes on where it stopped.

    Exit codes: 0 all done, 3 done but whole sources are lost, 2 wrong usage, 1 failed,
    130 interrupted.
    """
    from spacepatch.cli import display
    from spacepatch.pipeline import tokenize

    if show_config:
        display.show_config(config)
        return
    if out is None:
        raise typer.BadParameter("where do the shards go?", param_hint="--out")
    with display.RunProgress() as progress:
        summary = tokenize(
            sources,
            out=out,
            config=config,
            root=root,
            overwrite=overwrite,
            retry_lost=retry_lost,
            watch=progress.watch(),
        )
    display.show_summary(out, summary, as_json=json)
    if summary.lost_sources:
        raise typer.Exit(LOST_SOURCES)
