"""`spacepatch presets`: the named settings that come with the package."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from spacepatch.cli.completion import preset_words
from spacepatch.cli.options import Json
from spacepatch.config import to_toml
from spacepatch.presets import describe_preset, load_preset, preset_names

EXAMPLE = "Example:  spacepatch presets show videomae > videomae.toml"

app = typer.Typer(help="List the presets, or show the settings of one.", rich_markup_mode=None)


@app.callback(invoke_without_command=True, epilog=EXAMPLE)
def command(context: typer.Context, json: Json = False) -> None:
    """List the presets: name, what it reproduces, source. `show NAME` prints one's settings."""
    from spacepatch.cli import display

    if context.invoked_subcommand is not None:
        return
    presets = [{"name": name, **describe_preset(name)} for name in preset_names()]
    if json:
        settings = [load_preset(preset["name"]) for preset in presets]
        pairs = zip(presets, settings, strict=True)
        display.print_json([{**preset, "settings": values} for preset, values in pairs])
        return
    width = max(len(preset["name"]) for preset in presets)
    for preset in presets:
        first, *others = _about(preset)
        typer.echo(f"{preset['name']:{width}}  {first}")
        for line in others:
            typer.echo(f"{'':{width}}  {line}")


@app.command(epilog=EXAMPLE)
def show(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="One of `spacepatch presets`.", autocompletion=preset_words
        ),
    ],
) -> None:
    """Print a preset as TOML for `--config`, where it can be changed."""
    settings = load_preset(name)
    for line in _about(describe_preset(name)):
        typer.echo(f"# {line}")
    typer.echo(to_toml(settings), nl=False)


def _about(preset: dict[str, Any]) -> list[str]:
    lines = [preset["reproduces"], preset["source"]]
    if "needs_encoder" in preset:
        needs = preset["needs_encoder"]
        lines.append(
            f"needs --encoder: {needs['kind']} of stride {needs['stride']}, "
            f"such as {needs['example']}"
        )
    return lines
