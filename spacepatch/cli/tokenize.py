"""`spacepatch tokenize`: plan, run, finish."""

from __future__ import annotations

import os
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spacepatch.cli.options import (
    Append,
    Json,
    Out,
    Overwrite,
    Root,
    ShowConfig,
    Sources,
    with_settings,
)
from spacepatch.config import RunConfig
from spacepatch.wording import counted

if TYPE_CHECKING:
    from spacepatch.pipeline import RankSummary

EXAMPLE = "Example:  spacepatch tokenize videos/ --out shards/ --fps 4"

LOST_SOURCES = 3
"""Exit code: done, with losses of whole sources."""


@with_settings
def command(
    sources: Sources,
    *,
    out: Out = None,
    root: Root = None,
    overwrite: Overwrite = False,
    append: Append = False,
    retry_lost: Annotated[
        bool,
        typer.Option(
            "--retry-lost", help="Do again what was lost to timeout, crash, memory or io."
        ),
    ] = False,
    rank: Annotated[
        str | None,
        typer.Option(
            "--rank",
            metavar="I|auto",
            help="Do this process's part of a plan (spacepatch plan) only, beside others: the "
            "I-th from 0 on; auto: what torchrun, MPI, SLURM, SGE or PBS tells. Then: finish.",
        ),
    ] = None,
    world_size: Annotated[
        int | None, typer.Option("--world-size", help="How many ranks there are.")
    ] = None,
    show_config: ShowConfig = False,
    json: Json = False,
    config: RunConfig,
) -> None:
    """Turn videos into packed shards. Started again, it goes on where it stopped.

    Exit codes: 0 all done, 3 done but whole sources are lost, 2 wrong usage, 1 failed,
    130 interrupted. With --rank, lost sources are for spacepatch finish to tell.
    """
    from spacepatch.cli import display
    from spacepatch.cli.progress import RunProgress
    from spacepatch.errors import ConfigError
    from spacepatch.pipeline import tokenize, tokenize_rank
    from spacepatch.ranks import parse_rank

    if show_config:
        display.show_config(config)
        return
    if out is None:
        raise typer.BadParameter(
            "where do the shards go? Name a folder or a URL, as in --out shards/",
            param_hint="--out",
        )
    part = parse_rank(rank, world_size, os.environ)
    if part is not None:
        if overwrite:
            raise ConfigError(
                "overwrite: would remove what other ranks make; begin anew with spacepatch plan "
                "--overwrite, then start the ranks"
            )
        if append:
            raise ConfigError(
                "append: what is new is planned once; do that with spacepatch plan --append, then "
                "start the ranks"
            )
        if config.executor != "local":
            raise ConfigError(
                f"executor: {config.executor} shares out the shards itself; leave --rank out"
            )
        with RunProgress() as progress:
            done = tokenize_rank(
                sources,
                out=out,
                config=config,
                rank=part,
                root=root,
                retry_lost=retry_lost,
                watch=progress.watch(),
            )
        show_rank(out, done, as_json=json)
        return
    with RunProgress() as progress:
        summary = tokenize(
            sources,
            out=out,
            config=config,
            root=root,
            overwrite=overwrite,
            append=append,
            retry_lost=retry_lost,
            watch=progress.watch(),
        )
    display.show_summary(out, summary, as_json=json)
    if summary.lost_sources:
        raise typer.Exit(LOST_SOURCES)


def show_rank(out: Path, summary: RankSummary, *, as_json: bool) -> None:
    """What a rank did, and what comes after it."""
    from spacepatch.cli import display

    display.show_losses(summary.losses, out / "losses.parquet")
    rank, made = summary.rank, summary.made
    sums = {
        "packs": sum(report.num_packs for report in made),
        "segments": sum(report.num_segments for report in made),
        "tokens": sum(report.num_tokens for report in made),
    }
    if as_json:
        document = {
            "rank": rank.number,
            "world_size": rank.world_size,
            "own": summary.num_own,
            "made": len(made),
            **sums,
            "losses": [asdict(loss) for loss in summary.losses],
        }
        display.print_json(document)
        return
    typer.echo(
        f"{out}: {rank}: {counted(summary.num_own, 'shard')} of its own, "
        f"{len(made):,} made now: {counted(sums['segments'], 'segment')}, "
        f"{counted(sums['tokens'], 'token')} in {counted(sums['packs'], 'pack')}"
    )
    typer.echo(
        f"when all ranks are done: spacepatch finish {shlex.quote(str(out))} "
        f"--world-size {rank.world_size}"
    )
