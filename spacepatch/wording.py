"""Counts, bytes and durations in words."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """``1 clip``, ``1,234 clips``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, whichever are few."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{seconds / 3600:,.1f} h"


def bytes_of(count: float) -> str:
    """Bytes in the unit that suits them."""
    for unit, letter in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if count >= unit:
            return f"{count / unit:,.1f} {letter}"
    return f"{count / 1e3:,.1f} kB"
