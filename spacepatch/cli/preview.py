"""`spacepatch preview`: see what the tokens of a dataset decode to."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spacepatch.cli.decode_options import SourceRoot, with_encoder
from spacepatch.cli.options import Dataset
from spacepatch.cli.saying import say
from spacepatch.config import RunConfig
from spacepatch.storage import local_file

EXAMPLE = "Example:  spacepatch preview shards/ --out preview.png --source-root videos/"


@with_encoder
def command(
    folder: Dataset,
    *,
    out: Annotated[
        Path, typer.Option("--out", metavar="PNG", parser=local_file, help="PNG to write.")
    ],
    segments: Annotated[
        int, typer.Option("--segments", help="How many, spread over the dataset.", min=1)
    ] = 4,
    frames: Annotated[
        int, typer.Option("--frames", help="Of each segment, spread over it.", min=1)
    ] = 6,
    source_root: SourceRoot = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a file of that name.")
    ] = False,
    config: RunConfig,
) -> None:
    """Draw frames of some segments: of the source above, and of the tokens below, decoded.

    Without --source-root, those of the tokens alone. Latents and codes need --encoder.
    """
    from spacepatch.inspection.source_roots import parse_roots
    from spacepatch.preview import preview

    decoded = preview(
        folder,
        out=out,
        config=config,
        roots=parse_roots(source_root or []),
        num_segments=segments,
        num_frames=frames,
        overwrite=overwrite,
    )
    for note in decoded.notes:
        say(f"note: {note}", err=True)
    for problem in decoded.problems:
        say(f"note: {problem.where}: {problem.what}", err=True)
    if not source_root:
        say("note: no --source-root: what the tokens decode to is shown alone", err=True)
    shown = sum(segment.found.decoded_frames is not None for segment in decoded.segments)
    say(f"{out}: {shown} segments")
