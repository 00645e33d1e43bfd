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


def counted(number: int, noun: str) -> str:
    """``1 clip``, ``1,234 clips``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, whichever are few."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{seconds / 3600:,.1f} h"
