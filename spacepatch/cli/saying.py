"""Lines for the terminal, in which names from outside are only text."""

from __future__ import annotations

import typer


def printable(text: object) -> str:
    """`text` with control characters escaped: a file's name moves no cursor and fakes no line."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in str(text)
    )


def say(text: str, *, err: bool = False) -> None:
    """Print one line, on stderr if `err`."""
    typer.echo(printable(text), err=err)
