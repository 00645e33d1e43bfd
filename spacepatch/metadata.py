"""What travels with a source: columns of manifests, and the json and txt beside a tar's video."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

TEXTS = ("json", "txt")
"""Extensions of members that say something of the videos in their sample."""

MOST_TEXT_BYTES = 4 * 1024 * 1024
"""Of one such member. Hours of subtitles are a megabyte; what is larger is not even read."""
MOST_EXTRA_BYTES = 64 * 1024
"""Of what is taken of a sample, as JSON: every clip of its videos repeats it, in the plan, the
tables and the packs."""
MOST_LEVELS = 32
"""Of nested values: whoever reads `extra` recurses."""
NAMES_SHOWN = 3
NAME_LENGTH = 40


def jsonable(row: dict[str, Any]) -> dict[str, Any]:
    """Only what JSON and UTF-8 can hold: dates become text, NaN null, half a surrogate `?`."""
    text = json.dumps(row, default=str, ensure_ascii=False).encode("utf-8", "replace")
    return json.loads(text, parse_constant=lambda name: None)  # type: ignore[no-any-return]


def sample_extra(texts: Mapping[str, bytes | None]) -> tuple[dict[str, Any], str]:
    """What the json and txt of a sample say of its videos.

    A JSON object gives its values by their names, as a manifest does its columns; none is
    reserved. A text is the `caption`, as for video2dataset; what the object calls so and is
    something else is `json_caption`.

    Args:
        texts: content by extension, see `TEXTS`; None: too large to be read.

    Returns:
        Those values, and what is not among them and why; empty where nothing is missing.
    """
    extra: dict[str, Any] = {}
    faults = []
    if "json" in texts:
        try:
            extra = _read_object(texts["json"])
        except ValueError as error:
            faults.append(f"the json {error}")
    if "txt" in texts:
        try:
            caption = _read_text(texts["txt"]).strip()
        except ValueError as error:
            faults.append(f"the txt {error}")
        else:
            if caption and extra.get("caption") not in (None, "", caption):
                name = "json_caption"
                while name in extra:
                    name = f"json_{name}"
                extra[name] = extra["caption"]
            if caption:
                extra["caption"] = caption
    extra, left_out = _bounded(extra)
    if left_out:
        shown = ", ".join(name[:NAME_LENGTH] for name in left_out[:NAMES_SHOWN])
        more = f" and {len(left_out) - NAMES_SHOWN} more" if len(left_out) > NAMES_SHOWN else ""
        faults.append(f"more than {MOST_EXTRA_BYTES:,} bytes: without {shown}{more}")
    return extra, "; ".join(faults)


def _read_text(content: bytes | None) -> str:
    if content is None:
        raise ValueError(f"has more than {MOST_TEXT_BYTES:,} bytes")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError("is no UTF-8") from None


def _read_object(content: bytes | None) -> dict[str, Any]:
    text = _read_text(content)
    try:
        found = json.loads(text)
        too_deep = _num_levels(found) > MOST_LEVELS
    except RecursionError:
        too_deep = True
    except ValueError:
        raise ValueError("is no JSON") from None
    if too_deep:
        raise ValueError(f"has more than {MOST_LEVELS} levels")
    if not isinstance(found, dict):
        raise ValueError("is no JSON object")
    return jsonable(found)


def _num_levels(value: Any) -> int:
    """How deep lists and objects are nested, found without recursion."""
    levels, row = 0, [value]
    while row := [x for x in row if isinstance(x, (dict, list))]:
        levels += 1
        row = [y for x in row for y in (x.values() if isinstance(x, dict) else x)]
    return levels


def _bounded(extra: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """`extra` without its largest values, where it is too large; and their names."""
    sizes = {
        name: len(json.dumps({name: value}, ensure_ascii=False).encode())
        for name, value in extra.items()
    }
    total = sum(sizes.values())
    left_out = []
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        if total <= MOST_EXTRA_BYTES:
            break
        total -= sizes[name]
        left_out.append(name)
    gone = set(left_out)
    return {name: value for name, value in extra.items() if name not in gone}, left_out
