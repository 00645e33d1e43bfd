"""`spacepatch plan`: everything up to the first decode."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from spacepatch.cli.options import Bound, Json, Overwrite, Root, ShowConfig, Sources, with_settings
from spacepatch.config import RunConfig
from spacepatch.storage import open_folder

EXAMPLE = "Example:  spacepatch plan videos/ --pack-length 16384 --json"


@with_settings
def command(
    sources: Sources,
    *,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            parser=partial(open_folder, writes=True),
            help="Write the plan there, a folder or a URL; tokenize --out follows it.",
        ),
    ] = None,
    root: Root = None,
    overwrite: Overwrite = False,
    show_config: ShowConfig = False,
    bound: Bound = False,
    json: Json = False,
    config: RunConfig,
) -> None:
    """Count frames, tokens, packs, shards and bytes from headers and packets, before decoding."""
    from spacepatch.cli import display
    from spacepatch.pipeline import make_plan
    from spacepatch.pipeline.forecast import forecast

    if show_config:
        display.show_config(config)
        return
    with display.RunProgress(resumes=False) as progress:
        plan = make_plan(
            sources,
            config=config,
            root=root,
            out=out,
            overwrite=overwrite,
            watch=progress.watch(),
        )
    display.show_forecast(forecast(plan, thorough=bound), as_json=json)
