"""`spacepatch preview`: see what the tokens of a dataset decode to."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spacepatch.cli.decode_options import OnePack, OneSegment, SourceRoot, with_encoder
from spacepatch.cli.options import Dataset
from spacepatch.cli.saying import say
from spacepatch.config import RunConfig
from spacepatch.storage import local_file
from spacepatch.wording import counted

EXAMPLE = "Example:  spacepatch preview shards/ --out preview.png --source-root videos/"


@with_encoder
def command(
    folder: Dataset,
    *,
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            metavar="FILE",
            parser=local_file,
            help="PNG, MP4 or GIF to write, by its suffix.",
        ),
    ],
    pack: OnePack = None,
    segment: OneSegment = None,
    segments: Annotated[
        int | None,
        typer.Option(
            "--segments",
            help="How many, spread over the dataset (4), or the first of the pack (24).",
            min=1,
        ),
    ] = None,
    frames: Annotated[
        int | None,
        typer.Option(
            "--frames",
            help="In a PNG: of each segment, spread over it (6; of --segment 48).",
            min=1,
        ),
    ] = None,
    grid: Annotated[bool, typer.Option(help="Draw the borders of tokens.")] = True,
    source_root: SourceRoot = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a file of that name.")
    ] = False,
    config: RunConfig,
) -> None:
    """Draw a pack, a segment, or some segments: frames of the source, and what the tokens hold.

    A PNG is a sheet of some frames. An MP4 or a GIF has all of them at their true times. Dropped
    tokens are checkered, masked ones dark. Latents and codes need --encoder.
    """
    from spacepatch.preview import preview
    from spacepatch.source_roots import parse_roots

    decoded = preview(
        folder,
        out=out,
        config=config,
        roots=parse_roots(source_root or []),
        pack=pack,
        segment=segment,
        num_segments=segments,
        num_frames=frames,
        grid=grid,
        overwrite=overwrite,
    )
    for note in decoded.notes:
        say(f"note: {note}", err=True)
    for problem in decoded.problems:
        say(f"note: {problem.where}: {problem.what}", err=True)
    if not source_root:
        say("note: no --source-root: what the tokens hold is shown alone", err=True)
    shown = [len(segment.found.shown) for segment in decoded.segments if segment.found.shown]
    say(f"{out}: {counted(sum(shown), 'frame')} of {counted(len(shown), 'segment')}")
