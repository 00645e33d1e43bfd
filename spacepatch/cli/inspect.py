"""`spacepatch inspect`: what is in a dataset, or in one shard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from spacepatch.cli.decode_options import with_encoder
from spacepatch.cli.options import Bound, DatasetOrShard, Html, Json
from spacepatch.cli.saying import say
from spacepatch.config import RunConfig
from spacepatch.errors import ConfigError
from spacepatch.wording import counted

EXAMPLE = "Example:  spacepatch inspect shards/ --html report.html"

BAR_WIDTH = 40
SHARDS_SHOWN = 12

FRAMES = {
    "fps": "{} fps",
    "num_frames": "{} frames a clip",
    "every_frame": "every frame",
    "stride": "stride {}",
    "keyframes": "keyframes",
}
"""Which frames, by the setting that says so."""
SIZES = {
    "max_tokens_per_frame": "max_tokens_per_frame {}",
    "pixels": "pixels {}",
    "video_pixels": "video_pixels {}",
    "resolution": "resolution {}",
    "short_side": "short_side {}",
    "long_side": "long_side {}",
    "native": "native size",
}
"""How large they are, likewise."""
DETAILS = ("sampler", "random_offset", "upscale", "multiple", "fit", "crop", "buckets",
           "random_crop")  # fmt: skip
"""Shown where they are not as they are by default."""


@with_encoder
def command(
    path: DatasetOrShard,
    *,
    bound: Bound = False,
    html: Html = None,
    json: Json = False,
    config: RunConfig,
) -> None:
    """Show totals, fill, histograms and losses; with --html as a page, with frames.

    For frames of latents and codes, --html needs --encoder.
    """
    from spacepatch.cli import display
    from spacepatch.inspection import summarize

    if html is not None:
        from spacepatch.report import check_page

        check_page(html)
    elif config.encoder is not None:
        raise ConfigError(f"--encoder {config.encoder}: decodes frames for a page: give --html too")
    summary = summarize(path, thorough=bound)
    if html is not None:
        from spacepatch.report import report_dataset, write_page

        if config.encoder is not None:
            say("decoding a few segments", err=True)
        size = write_page(html, report_dataset(path, summary, config=config))
        say(f"{html}: {size / 1e6:.1f} MB", err=json)
        if not json:
            return
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
    from spacepatch.cli import display

    totals, tokens = summary["totals"], summary["tokens"]
    state = ""
    if not summary["finished"]:
        done = summary["tasks"]
        state = f", not finished: {done['done']} of {done['planned']} tasks; tokenize again"
    typer.echo(f"{path}: {summary['kind']} {summary['name']}{state}")
    if not summary["patches"]:
        return
    _show_tokens(summary)
    if summary["encoder"] is not None:
        _show_encoder(summary)
    if summary["settings"]:
        _show_settings(summary, is_stored="visible.npy" in tokens["members"])
    typer.echo(
        f"  held      {counted(totals['segments'], 'segment')} of "
        f"{counted(totals['sources_with_segments'], 'source')}, "
        f"{counted(totals['tokens'], 'token')}"
    )
    typer.echo(
        f"  packed    {counted(totals['packs'], 'pack')} of {tokens['pack_length']:,}, fill "
        f"{totals['fill']:.2%}, {display.packs_bound(summary)}, "
        f"{counted(totals['shards'], 'shard')}, {totals['bytes'] / 1e6:,.1f} MB"
    )
    if totals["packs"]:
        typer.echo(f"  attention {display.attention_spread(summary['attention'])}")
    if totals.get("frames_selected") is not None:
        typer.echo(
            f"  frames    {totals['frames_selected']:,} selected = "
            f"{totals['frames_written']:,} written + {totals['frames_lost']:,} lost"
        )
    error = summary["aspect_error"]
    if error["mean"] is not None:
        typer.echo(f"  aspect    error {error['mean']:.2%} on average, {error['max']:.2%} at most")


def _show_tokens(summary: dict[str, Any]) -> None:
    tokens, drop, patches = summary["tokens"], summary["drop"], []
    for entry in summary["patches"]:
        patch = "x".join(map(str, (entry["tubelet_size"], *entry["patch_size"])))
        several = len(summary["patches"]) > 1
        patches.append(patch + f" ({counted(entry['segments'], 'segment')})" * several)
    widths = ", ".join(map(str, tokens["token_widths"]))
    typer.echo(
        f"  tokens    {tokens['kind'] or 'pixels'} {', '.join(patches)}, {widths} x "
        f"{tokens['token_dtype']} a token, layout {tokens['layout']!r}, order {tokens['order']}, "
        f"tail {tokens['tail']}" + f", halo {tokens['halo']}" * bool(tokens["halo"])
    )
    if tokens["store"] not in (None, "tokens"):
        typer.echo(f"  stored    {_store_of(summary)}")
    if summary["views"] > 1:
        typer.echo(f"  views     {summary['views']}")
    if drop["policy"] is not None:
        whole = drop["kept_tokens"] + drop["dropped_tokens"]
        typer.echo(
            f"  dropped   {drop['dropped_tokens']:,} of {whole:,} tokens "
            f"({drop['dropped_tokens'] / whole:.1%}) by {drop['policy']}"
        )


def _store_of(summary: dict[str, Any]) -> str:
    """What is there of the tokens."""
    settings = summary["settings"] or {}
    if summary["tokens"]["store"] != "refs":
        return f"store {settings.get('store', summary['tokens']['store'])}"
    is_known = "as checked" if settings.get("checked") else "as planned"
    return (
        "store refs"
        + f", {is_known}" * bool(settings)
        + ": no tokens, they are made of the sources"
    )


def _show_encoder(summary: dict[str, Any]) -> None:
    encoder, pixels = summary["encoder"], summary["pixels"]
    holds = counted(encoder["channels"], "channel")
    if encoder["codebook_size"] is not None:
        # Of several channels each has a stage of a residual quantizer.
        stages = f" in {encoder['channels']} stages" * (encoder["channels"] > 1)
        holds = f"codebook of {encoder['codebook_size']:,}{stages}"
    shown = [
        encoder["name"],
        f"frames {encoder['rule']}",
        f"stride {'x'.join(map(str, encoder['stride']))}",
        holds,
        encoder["dtype"],
        encoder["posterior"] and f"posterior {encoder['posterior']}",
        encoder["device"] and f"on {encoder['device']}",
    ]
    typer.echo(f"  encoder   {', '.join(filter(None, shown))}")
    if encoder["mean"] is not None:
        means, deviations = (
            f"{min(values):.3g} to {max(values):.3g}"
            for values in (encoder["mean"], encoder["std"])
        )
        typer.echo(f"  measured  mean {means}, std {deviations} over the channels")
    if pixels is not None:
        typer.echo(
            f"  pixels    {'x'.join(map(str, pixels['tubelet']))}, "
            f"{counted(pixels['tokens'], 'token')} of "
            f"{pixels['token_width']} x uint8, {pixels['pack_length']:,} in a pack at most"
        )


def _show_settings(summary: dict[str, Any], *, is_stored: bool) -> None:
    settings, encoder = summary["settings"], summary["encoder"]

    def given(texts: dict[str, str]) -> str:
        return next(text.format(settings[key]) for key, text in texts.items() if settings[key])

    fields = RunConfig.model_fields
    details = [
        key if settings[key] is True else f"{key} {settings[key]}"
        for key in DETAILS
        if settings[key] != fields[key].default
    ]
    shown = [given(FRAMES), given(SIZES), *details, settings["resampler"]]
    typer.echo(f"  sampled   {', '.join(shown)}")
    if settings["mask"] is not None:
        where = "stored in visible.npy" if is_stored else "made by the loader"
        typer.echo(f"  mask      {settings['mask']}, {where}")
    shown = [] if encoder is None else [_constants(encoder)]
    if encoder is None or summary["pixels"] is not None:
        shown.append("pixels " * (encoder is not None) + f"normalize {settings['normalize']}")
    typer.echo(f"  loaded    {', '.join(shown)}")


def _constants(encoder: dict[str, Any]) -> str:
    """What turns the stored values into a model's."""
    if encoder["kind"] == "codes":
        return "codes as they are"
    given = [
        f"{key} {value:g}" if isinstance(value, int | float) else f"{key} by channel"
        for key, value in sorted((encoder["constants"] or {}).items())
        if value is not None
    ]
    return f"raw latents ({', '.join(given) or 'no constants of their model'})"


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
            f"  {loss['reason']}: {loss['rows']:,} {'loss' if loss['rows'] == 1 else 'losses'}, "
            f"{counted(loss['frames'], 'frame')}, {counted(loss['tokens'], 'token')}{retry}"
        )
        for example in loss["examples"]:
            say(f"    {example['source']}: {example['message']}")
