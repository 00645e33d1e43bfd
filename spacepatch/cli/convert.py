"""`spacepatch convert`: the same pixels in another layout, order or patch size."""

from __future__ import annotations

from typing import Annotated

import typer

from spacepatch.cli.options import Dataset, Json, NewShards, Overwrite

EXAMPLE = "Example:  spacepatch convert shards/ --to 't p q c' --out shards-tpqc/"


def command(
    folder: Dataset,
    *,
    out: NewShards,
    to: Annotated[
        str | None,
        typer.Option("--to", help="Order of the values inside a token, such as 't p q c'."),
    ] = None,
    order: Annotated[
        str | None,
        typer.Option("--order", help="Order of a frame's tokens: raster, or 'merge 2 x 2'."),
    ] = None,
    patch: Annotated[
        str | None,
        typer.Option("--patch", help="Cut the frames again: 1x32x32. Of undropped pixels only."),
    ] = None,
    pack_length: Annotated[
        int | None,
        typer.Option(
            "--pack-length",
            help="With --patch: tokens in a pack, instead of as many pixels.",
            min=1,
        ),
    ] = None,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Write a dataset anew in another form, without decoding. Converting back gives the same bytes.

    With --patch the frames are cut again. Packs keep their pixels, so that pack_length changes in
    proportion (with another tubelet size it may have to be longer), and back again.
    """
    from spacepatch.cli import display
    from spacepatch.cli.progress import RunProgress
    from spacepatch.pipeline import convert

    with RunProgress() as progress:
        summary = convert(
            folder,
            out=out,
            layout=to,
            order=order,
            patch=patch,
            pack_length=pack_length,
            overwrite=overwrite,
            on_shard=progress.on_shard,
        )
    if json:
        display.print_json({"totals": summary.totals})
    else:
        display.show_totals(out, summary.totals)
