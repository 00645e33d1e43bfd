"""What every setting is made of: a default, a fingerprint, a help text; and shared checks."""

from __future__ import annotations

import re
from contextlib import suppress
from fractions import Fraction
from typing import Any, Literal

from pydantic import Field

Fingerprint = Literal["token", "layout", "selection", "seed", "run"]


def setting(default: Any, fingerprint: Fingerprint, description: str, **more: Any) -> Any:
    """A field of `RunConfig`; its description is its help text."""
    return Field(
        default, description=description, json_schema_extra={"fingerprint": fingerprint}, **more
    )


def spell_rational(value: Any, *, may_be_zero: bool = False) -> str | None:
    """One spelling a value, so that 8, 8.0 and 16/2 have one fingerprint."""
    if value is None:
        return None
    try:
        rational = Fraction(str(value))
    except (ValueError, ZeroDivisionError):
        raise ValueError("not a number, such as 8, 29.97 or 30000/1001") from None
    if rational < 0 or (rational == 0 and not may_be_zero):
        raise ValueError("must be above 0")
    return str(rational)


def spell_distribution(
    value: Any,
    *,
    above: int | None = None,
    least: Fraction | None = None,
    most: Fraction | None = None,
) -> str | None:
    """A distribution in its one spelling, all of its values in these bounds."""
    from spacepatch.distributions import parse_distribution, write_number

    if value is None:
        return None
    text = str(value)
    with suppress(ValueError, ZeroDivisionError):
        text = write_number(Fraction(text))  # 8e0 too, as TOML has it
    found = parse_distribution(text)
    if above is not None and found.lowest <= above:
        raise ValueError(f"must be above {above}")
    if least is not None and found.lowest < least:
        raise ValueError(f"must be {float(least):g} at least")
    if most is not None and found.highest > most:
        raise ValueError(f"must be {float(most):g} at most")
    return str(found)


def spell_range(value: str | None) -> str | None:
    """``MIN..MAX`` of whole numbers."""
    if value is None:
        return None
    match = re.fullmatch(r"(\d+)\.\.(\d+)", value)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise ValueError("not MIN..MAX pixels, such as 100352..602112")
    return f"{int(match[1])}..{int(match[2])}"


def parse_range(value: str) -> tuple[int, int]:
    low, high = value.split("..")
    return int(low), int(high)
