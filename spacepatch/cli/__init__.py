"""The command line: parse, build a config, call one function, print."""

from __future__ import annotations

import errno
import os
import signal
import sys
import traceback
from types import FrameType
from typing import Annotated

import typer

from spacepatch import __version__
from spacepatch.cli import (
    bench,
    compare,
    convert,
    doctor,
    finish,
    fit,
    inspect,
    plan,
    presets,
    preview,
    probe,
    repack,
    tokenize,
    unpack,
    verify,
)
from spacepatch.cli.saying import say
from spacepatch.errors import ConfigError, SpacepatchError

EXAMPLE = "Example:  spacepatch tokenize videos/ --out shards/"

app = typer.Typer(
    name="spacepatch",
    help="Turn videos into packed spacetime-token shards for training video transformers.",
    epilog=EXAMPLE,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
for module in (
    tokenize,
    plan,
    finish,
    bench,
    repack,
    convert,
    fit,
    probe,
    inspect,
    verify,
    compare,
    preview,
    unpack,
    doctor,
):
    name = module.__name__.rsplit(".", 1)[-1]
    app.command(name, epilog=module.EXAMPLE)(module.command)
app.add_typer(presets.app, name="presets")


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"spacepatch {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
) -> None:
    """Options before the command."""


HINTS = {
    errno.ENOSPC: "; make room and give the same command again: what is done is kept",
    errno.EDQUOT: "; make room and give the same command again: what is done is kept",
    errno.EACCES: "; give another --out, or leave to write there",
    errno.EROFS: "; give another --out, this one cannot be written",
}
"""What to do about errors of the system."""


def main() -> None:
    """Run the command line; every error of the world is one line and an exit code."""
    debug = "--debug" in sys.argv[1:2]
    # Arrow's own allocators keep what tables took until the end: 50 MB for the plan of three hours.
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    signal.signal(signal.SIGTERM, _interrupt)
    # Typer makes the options of all commands, of which one is wanted: a tenth of a start.
    named = [command for command in app.registered_commands if command.name in sys.argv[1:2]]
    app.registered_commands = named or app.registered_commands
    try:
        app(prog_name="spacepatch")
    except KeyboardInterrupt:
        sys.exit(130)
    except SpacepatchError as error:
        _fail(str(error), 2 if isinstance(error, ConfigError) else 1, debug)
    except OSError as error:
        what = f"{error.filename}: " if error.filename else ""
        hint = HINTS.get(error.errno or 0, "")
        _fail(f"{what}{error.strerror or error}{hint}", 1, debug)


def _fail(message: str, code: int, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    say(f"error: {message}", err=True)
    sys.exit(code)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """SIGTERM is Ctrl-C: workers end, what is finished stays, the same command goes on later."""
    raise KeyboardInterrupt
