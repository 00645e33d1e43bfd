"""The setting `store`: what of the tokens is on disk."""

from __future__ import annotations

from spacepatch.config.fields import spell_rational

STORES = ("tokens", "refs", "compressed", "compressed:DB")
HIGHEST_FLOOR = 60
"""dB; beyond it next to nothing is saved, and what is stored without loss is exact."""
LOWEST_FLOOR = 30


def spell_store(value: str) -> str:
    """One spelling a value; a ValueError for anything but `STORES`."""
    word, colon, floor = value.partition(":")
    if word not in STORES or (colon and word != "compressed"):
        raise ValueError(f"must be one of {', '.join(STORES)}, such as compressed:42")
    if not colon:
        return word
    number = spell_rational(floor)
    found = floor_of(f"{word}:{number}")
    if found is None or not LOWEST_FLOOR <= found <= HIGHEST_FLOOR:
        raise ValueError(f"DB is a PSNR from {LOWEST_FLOOR} to {HIGHEST_FLOOR}, not {floor}")
    return f"{word}:{number}"


def floor_of(store: str) -> float | None:
    """The PSNR in dB that each segment has at least; None: tokens are exact, or not stored."""
    _, _, number = store.partition(":")
    if not number:
        return None
    numerator, _, denominator = number.partition("/")
    return int(numerator) / int(denominator or 1)
