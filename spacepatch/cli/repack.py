"""`spacepatch repack`: the same segments in other packs."""

from __future__ import annotations

from typing import Annotated

import typer

from spacepatch.cli.completion import words_of
from spacepatch.cli.options import Bound, Dataset, Json, NewShards, Overwrite

EXAMPLE = "Example:  spacepatch repack shards/ --pack-length 16384 --packer optimal --out longer/"


def command(
    folder: Dataset,
    *,
    out: NewShards,
    pack_length: Annotated[
        int | None, typer.Option("--pack-length", help="Tokens in a pack.", min=1)
    ] = None,
    packer: Annotated[
        str | None,
        typer.Option(
            "--packer",
            help="Which segments share a pack, as of spacepatch tokenize.",
            autocompletion=words_of("packer"),
        ),
    ] = None,
    max_segments: Annotated[
        int | None,
        typer.Option(
            "--max-segments", help="Segments in a pack at most; 0: as many as fit.", min=0
        ),
    ] = None,
    window: Annotated[
        int | None, typer.Option("--window", help="Open packs of first-fit.", min=1)
    ] = None,
    balance: Annotated[
        str | None,
        typer.Option(
            "--balance",
            help="attention: packs of near-equal sums of squared lengths, no more of them; none.",
            autocompletion=words_of("balance"),
        ),
    ] = None,
    shard_size: Annotated[
        str | None, typer.Option("--shard-size", help="Size of a shard at most (64MB, 1GiB).")
    ] = None,
    name: Annotated[
        str | None,
        typer.Option("--name", help="Name of the shards; default: 8 hex digits of the plan's id."),
    ] = None,
    overwrite: Overwrite = False,
    bound: Bound = False,
    json: Json = False,
) -> None:
    """Pack a dataset anew, without decoding: the same segments, in other packs and shards.

    What is not given stays as it is. No segment is cut or joined: those that were cut for the old
    pack length stay so, and one that is longer than the new packs is an error that names it.
    """
    from spacepatch.cli import display
    from spacepatch.cli.progress import RunProgress
    from spacepatch.inspection import summarize
    from spacepatch.inspection.packed import attention_of
    from spacepatch.pipeline import repack

    with RunProgress() as progress:
        repacked = repack(
            folder,
            out=out,
            pack_length=pack_length,
            packer=packer,
            max_segments=max_segments,
            window=window,
            balance=balance,
            shard_size=shard_size,
            name=name,
            overwrite=overwrite,
            on_shard=progress.on_shard,
        )
    before, after = attention_of(folder), summarize(out, thorough=bound)
    if json:
        attention = {"before": before, "after": after["attention"]}
        display.print_json(
            {
                "totals": repacked.totals,
                "lower_bound": after["lower_bound"],
                "attention": attention,
            }
        )
        return
    display.show_totals(out, repacked.totals, bound=display.packs_bound(after))
    if repacked.totals["packs"]:
        typer.echo(f"attention before: {display.attention_spread(before)}")
        typer.echo(f"attention after:  {display.attention_spread(after['attention'])}")
