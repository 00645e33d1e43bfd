"""`spacepatch probe`: what headers and packets say of single files."""

from __future__ import annotations

import typer

from spacepatch.cli.options import AllowNetwork, Json, Sources

EXAMPLE = "Example:  spacepatch probe holiday.mp4 --json"


def command(sources: Sources, json: Json = False, allow_network: AllowNetwork = False) -> None:
    """Show container, codec, size, rotation, colour, frames and times of videos."""
    from spacepatch.cli import display
    from spacepatch.config import RunConfig
    from spacepatch.pipeline import list_inputs, make_pool
    from spacepatch.pipeline.planning import probe_sources

    config = RunConfig(allow_network=allow_network)
    listing = list_inputs(sources, config, root=None)
    with make_pool(config) as pool:
        found = probe_sources(listing.sources, config, pool)
    display.show_probes(list(zip(listing.sources, found, strict=True)), as_json=json)
    if any(entry.info is None for entry in found):
        raise typer.Exit(3)
