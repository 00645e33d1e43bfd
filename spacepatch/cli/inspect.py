"""`spacepatch inspect`: what is in a dataset, or in one shard."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from spacepatch.cli.options import Json
from spacepatch.cli.saying import say

EXAMPLE = "Example:  spacepatch inspect shards/ --json"

BAR_WIDTH = 40
SHARDS_SHOWN = 12


def command(
    path: Annotated[Path, typer.Argument(metavar="DIR", help="An output folder, or one .tar.")],
    json: Json = False,
) -> None:
    """Show totals, fill, histograms and losses."""
    from spacepatch.cli import display
    from spacepatch.inspection import summarize

    summary = summarize(path)
    if json:
        display.print_json(summary)
        return
    _show_totals(path, summary)
    if summary["shards"]:
        _show_shards(summary)
    else:
        typer.echo("\nno shard is there")
    for title, bins in summary["histograms"].items():
        _show_histogram(title, bins)
    _show_losses(summary)


def _show_totals(path: Path, summary: dict[str, Any]) -> None:
    totals, tokens = summary["totals"], summary["tokens"]
    state = ""
    if not summary["finished"]:
        done = summary["tasks"]
        state = f", not finished: {done['done']} of {done['planned']} tasks; tokenize again"
    typer.echo(f"{path}: {summary['kind']} {summary['name']}{state}")
    if tokens["tubelet_size"] is None:
        return
    patch = "x".join(str(side) for side in (tokens["tubelet_size"], *tokens["patch_size"]))
    typer.echo(
        f"  tokens    {tokens['kind'] or 'pixels'} {patch}, {tokens['token_width']} x "
        f"{tokens['token_dtype']} a token, layout {tokens['layout']!r}, tail {tokens['tail']}"
    )
    if summary["settings"]:
        settings = summary["settings"]
        frames = f"{settings['fps']} fps" if settings["fps"] else "every frame"
        if settings["num_frames"]:
            frames = f"{settings['num_frames']} frames a clip"
        sizes = ("max_tokens_per_frame", "pixels", "short_side", "long_side", "native")
        size = next(f"{key} {settings[key]}" for key in sizes if settings[key])
        typer.echo(f"  sampled   {frames}, {size}, {settings['resampler']}")
    typer.echo(
        f"  held      {totals['segments']:,} segments of {totals['sources_with_segments']:,} "
        f"sources, {totals['tokens']:,} tokens"
    )
    typer.echo(
        f"  packed    {totals['packs']:,} packs of {tokens['pack_length']:,}, fill "
        f"{totals['fill']:.2%}, lower bound {totals['lower_bound']:,}, "
        f"{totals['shards']:,} shards, {totals['bytes'] / 1e6:,.1f} MB"
    )
    if totals.get("frames_selected") is not None:
        typer.echo(
            f"  frames    {totals['frames_selected']:,} selected = "
            f"{totals['frames_written']:,} written + {totals['frames_lost']:,} lost"
        )
    error = summary["aspect_error"]
    if error["mean"] is not None:
        typer.echo(f"  aspect    error {error['mean']:.2%} on average, {error['max']:.2%} at most")


def _show_shards(summary: dict[str, Any]) -> None:
    typer.echo("\nshards")
    for shard in summary["shards"][:SHARDS_SHOWN]:
        typer.echo(
            f"  {shard['name']}  {shard['packs']:>6,} packs  {shard['segments']:>8,} segments  "
            f"fill {shard['fill']:.1%}  {shard['bytes'] / 1e6:>9,.1f} MB"
        )
    if len(summary["shards"]) > SHARDS_SHOWN:
        typer.echo(f"  ... {len(summary['shards']) - SHARDS_SHOWN} more (--json)")


def _show_histogram(title: str, bins: list[dict[str, Any]]) -> None:
    """Bars of the ranges between the first and the last that hold anything."""
    held = [place for place, entry in enumerate(bins) if entry["count"]]
    if not held:
        return
    typer.echo(f"\nsegments by {title.replace('_', ' ')}")
    most = max(entry["count"] for entry in bins)
    for entry in bins[held[0] : held[-1] + 1]:
        bar = "#" * -(-entry["count"] * BAR_WIDTH // most)
        typer.echo(f"  {entry['range']:>16}  {entry['count']:>7,}  {bar}".rstrip())


def _show_losses(summary: dict[str, Any]) -> None:
    if not summary["losses"]:
        typer.echo("\nno losses")
        return
    typer.echo("\nlosses")
    for loss in summary["losses"]:
        retry = "  (--retry-lost tries again)" if loss["retryable"] else ""
        typer.echo(
            f"  {loss['reason']}: {loss['rows']:,} losses, {loss['frames']:,} frames, "
            f"{loss['tokens']:,} tokens{retry}"
        )
        for example in loss["examples"]:
            say(f"    {example['source']}: {example['message']}")
