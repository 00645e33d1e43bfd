"""`spacepatch convert`: the same pixels in another layout, order, patch size or store."""

from __future__ import annotations

from typing import Annotated

import typer

from spacepatch.cli.completion import store_words
from spacepatch.cli.decode_options import SourceRoot, with_workers
from spacepatch.cli.options import Dataset, Json, NewShards, Overwrite
from spacepatch.cli.saying import say
from spacepatch.config import RunConfig
from spacepatch.errors import ConfigError
from spacepatch.wording import counted

EXAMPLE = "Example:  spacepatch convert shards/ --to 't p q c' --out shards-tpqc/"

LOST_SOURCES = 3
"""Exit code: done, with losses of whole sources."""


@with_workers
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
    store: Annotated[
        str | None,
        typer.Option(
            "--store",
            help="tokens; refs, all but the tokens, with their checksums; compressed, or "
            "compressed:DB. By itself.",
            autocompletion=store_words,
        ),
    ] = None,
    source_root: SourceRoot = None,
    on_mismatch: Annotated[
        str,
        typer.Option(
            "--on-mismatch",
            metavar="error|warn",
            help="With --store, where a source gives other tokens than their checksum says.",
        ),
    ] = "error",
    retry_lost: Annotated[
        bool,
        typer.Option(
            "--retry-lost",
            help="With --store: do again what was lost to timeout, crash, memory or io.",
        ),
    ] = False,
    overwrite: Overwrite = False,
    json: Json = False,
    config: RunConfig,
) -> None:
    """Write a dataset anew in another form. Converting back gives the same bytes.

    With --patch the frames are cut again. Packs keep their pixels, so that pack_length changes in
    proportion (with another tubelet size it may have to be longer), and back again.

    Only with --store may sources be decoded, for tokens that are not there: from refs and from
    compressed:DB. Give --source-root then; what is written is what tokenize would write.

    Exit codes: 3 done but whole sources are lost, else as ever.
    """
    from spacepatch.cli import display
    from spacepatch.cli.progress import RunProgress
    from spacepatch.pipeline import Restoring, convert
    from spacepatch.source_roots import parse_roots

    if store is None and config.model_fields_set:
        raise ConfigError(f"{min(config.model_fields_set)} is for --store: nothing else is decoded")
    with RunProgress() as progress:
        summary = convert(
            folder,
            out=out,
            layout=to,
            order=order,
            patch=patch,
            pack_length=pack_length,
            store=store,
            restoring=Restoring(
                roots=parse_roots(source_root or []),
                config=config,
                on_mismatch=on_mismatch,
                retry_lost=retry_lost,
                watch=progress.watch(),
            ),
            overwrite=overwrite,
            on_shard=progress.on_shard,
        )
    if summary.other_tokens is None:  # nothing was decoded: losses were told when it was
        if json:
            display.print_json({"totals": summary.totals})
        else:
            display.show_totals(out, summary.totals)
        return
    display.show_summary(out, summary, as_json=json)
    if summary.other_tokens and not json:
        others = counted(summary.other_tokens, "segment")
        say(f"note: {others} with other tokens than the checksum said", err=True)
    if summary.lost_sources:
        raise typer.Exit(LOST_SOURCES)
