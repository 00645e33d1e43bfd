"""Write docs/commands.md from what `spacepatch COMMAND --help` is made of; a test holds it to be
current."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typer.main import get_command

from spacepatch.cli import app
from spacepatch.config import RunConfig

HELP = {name: field.description or "" for name, field in RunConfig.model_fields.items()}


WRITTEN = ("recut", "repacked")
"""No wish of a user's: what convert and repack write."""


def commands_page() -> str:
    """The page as Markdown."""
    program = get_command(app)
    lines = [
        "# Commands",
        "",
        "What `spacepatch COMMAND --help` says. This page is made from the code by",
        "`python docs/make_commands.py`. Options that are settings of a run are only named here:",
        "[settings.md](settings.md) says what they do. Every command has `-h` and `--help`.",
        "What `--json` prints is in [json.md](json.md).",
        "",
        "Exit codes, unless a command says otherwise: 0 all done, 3 done but whole sources are",
        "lost, 2 wrong usage, 1 failed or something is wrong with what was looked at, 130",
        "interrupted.",
        "",
        "`spacepatch --install-completion` teaches your shell (bash, zsh, fish, PowerShell) the",
        "commands, options, presets and the words of settings that take one of a list; open a new",
        "shell after it.",
        "",
        "```text",
        "spacepatch [--debug] COMMAND ...",
        "```",
        "",
        "| option | meaning |",
        "|---|---|",
        *_rows(program),
    ]
    for path, command in commands(program):
        lines += ["", f"## {path}", "", *_command(path, command)]
    return "\n".join(lines) + "\n"


def commands(program: Any, path: str = "spacepatch") -> Iterator[tuple[str, Any]]:
    """Every command in the order of `--help`, as `spacepatch presets show`; those that only have
    commands of their own too."""
    for name, command in program.commands.items():
        yield f"{path} {name}", command
        if hasattr(command, "commands"):
            yield from commands(command, f"{path} {name}")


def _command(path: str, command: Any) -> Iterator[str]:
    arguments = [entry.metavar for entry in command.params if entry.param_type_name == "argument"]
    yield "```text"
    yield " ".join([path, *arguments, "[OPTION...]"])
    yield "```"
    yield ""
    yield (command.help or "").strip()
    yield ""
    yield f"`{(command.epilog or '').removeprefix('Example:').strip()}`"
    rows = _rows(command)
    if rows:
        yield from ("", "| argument or option | meaning |", "|---|---|", *rows)
    settings = [f"`{entry.opts[0]}`" for entry in command.params if _is_setting(entry)]
    if len(settings) >= len(HELP) - len(WRITTEN):
        yield from ("", "Settings: all of [settings.md](settings.md).")
    elif settings:
        yield from ("", f"Settings: {', '.join(settings)}.")


def _rows(command: Any) -> list[str]:
    """What --help lists, but for settings."""
    context = command.context_class(command)
    rows = []
    for entry in command.params:
        record = None if _is_setting(entry) else entry.get_help_record(context)
        if record is not None:
            is_argument = entry.param_type_name == "argument"
            name, text = entry.metavar if is_argument else record[0], record[1]
            name, text = (" ".join(part.split()).replace("|", "\\|") for part in (name, text))
            rows.append(f"| `{name}` | {text} |")
    return rows


def _is_setting(entry: Any) -> bool:
    """Whether it was made from a field of `RunConfig`; repack has a `--name` of its own."""
    text = getattr(entry, "help", None) or ""
    return entry.name in HELP and text.startswith(HELP[entry.name])


if __name__ == "__main__":
    Path(__file__).with_name("commands.md").write_text(commands_page(), encoding="utf-8")
