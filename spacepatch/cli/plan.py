"""`spacepatch plan`: everything up to the first decode."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from spacepatch.cli.options import (
    Append,
    Bound,
    Html,
    Json,
    Overwrite,
    Root,
    ShowConfig,
    Sources,
    with_settings,
)
from spacepatch.cli.saying import say
from spacepatch.config import RunConfig
from spacepatch.errors import SpacepatchError
from spacepatch.storage import open_folder

TRIAL_SECONDS = 8
"""Of a sample of the sources, about; of few short ones it takes less."""

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
    append: Append = False,
    show_config: ShowConfig = False,
    bound: Bound = False,
    html: Html = None,
    json: Json = False,
    config: RunConfig,
) -> None:
    """Count frames, tokens, packs, shards and bytes from headers and packets, before decoding.

    With --html also how long tokenize will take, from a short trial on a sample.
    """
    from spacepatch.cli import display
    from spacepatch.cli.progress import RunProgress
    from spacepatch.pipeline import make_plan
    from spacepatch.pipeline.forecast import forecast

    if show_config:
        display.show_config(config)
        return
    if html is not None:
        from spacepatch.report import check_page

        check_page(html)
    with RunProgress(resumes=False) as progress:
        plan = make_plan(
            sources,
            config=config,
            root=root,
            out=out,
            overwrite=overwrite,
            append=append,
            watch=progress.watch(),
        )
    figures = forecast(plan, thorough=bound)
    if html is not None:
        from spacepatch.report import report_plan, write_page

        say(f"measuring a sample, about {TRIAL_SECONDS} s", err=True)
        page = report_plan(plan, figures, _trial(sources, out, root, config))
        say(f"{html}: {write_page(html, page) / 1e6:.1f} MB", err=json)
        if not json:
            return
    display.show_forecast(figures, as_json=json)


def _trial(
    sources: Sequence[str], out: Path | None, root: str | None, config: RunConfig
) -> dict[str, Any] | str:
    """What a sample of the sources takes here; or why that cannot be said."""
    from spacepatch.pipeline.benching import bench
    from spacepatch.storage import is_on_store

    where = None if out is None or is_on_store(out) else out
    try:
        return bench(sources, config=config, seconds=TRIAL_SECONDS, out=where, root=root)
    except (SpacepatchError, OSError) as error:
        return str(error)
