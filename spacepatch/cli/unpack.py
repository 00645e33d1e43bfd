"""`spacepatch unpack`: the frames of a dataset as files."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from spacepatch.cli.decode_options import OnePack, OneSegment, with_encoder
from spacepatch.cli.options import Dataset, Json
from spacepatch.cli.saying import say
from spacepatch.config import RunConfig
from spacepatch.storage import local_file
from spacepatch.wording import counted

EXAMPLE = "Example:  spacepatch unpack shards/ --out frames/"


@with_encoder
def command(
    folder: Dataset,
    *,
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            metavar="DIR",
            parser=local_file,
            help="New folder for the frames, on local disk; a folder in it for each segment.",
        ),
    ],
    file_format: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="png|mp4|mp4-lossless",
            help="A PNG a frame (exact); an MP4 a segment that plays everywhere (not exact); or "
            "one of the very same RGB, which few players show.",
        ),
    ] = "png",
    pack: OnePack = None,
    segment: OneSegment = None,
    json: Json = False,
    config: RunConfig,
) -> None:
    """Write the frames of every segment, at the size and with the very values that were cut.

    Exact for pixels without dropping; what else is missing is said, and unpacked.parquet has it by
    segment. Latents and codes are decoded, which is never exact: they need --encoder.
    """
    from spacepatch.cli import display
    from spacepatch.cli.progress import RunProgress
    from spacepatch.unpack import unpack

    with RunProgress() as progress:
        done = unpack(
            folder,
            out=out,
            config=config,
            file_format=file_format,
            pack=pack,
            segment=segment,
            on_pack=progress.on_pack,
        )
    if json:
        display.print_json(asdict(done))
        return
    exact = "all exact" if done.num_exact == done.num_segments else f"{done.num_exact} exact"
    say(
        f"{out}: {counted(done.num_frames, 'frame')} of "
        f"{counted(done.num_segments, 'segment')}, {exact}"
    )
    if done.num_gaps:
        say(
            f"note: tokens are missing of {counted(done.num_gaps, 'segment')}: grey there, "
            "kept.npy says where",
            err=True,
        )
    if done.lost_frames:
        say(
            f"note: no token at all, and no file, of {counted(done.lost_frames, 'frame')}", err=True
        )
    if done.padded_frames:
        say(
            f"note: left out, as they only fill a segment's end: "
            f"{counted(done.padded_frames, 'frame')}",
            err=True,
        )
