"""A report as one HTML file: nothing in it asks a network, nothing from a file is markup."""

from __future__ import annotations

import hashlib
import json
from base64 import b64encode
from contextlib import suppress
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from spacepatch.errors import ConfigError
from spacepatch.extras import needed
from spacepatch.pipeline.folder import check_file
from spacepatch.report.records import Page
from spacepatch.storage import PRIVATE, publish_bytes

GENERATOR = "spacepatch report"
"""What the page says of who made it, by which it is known again."""


def check_page(path: Path) -> None:
    """Refuse a report that could not be written, before the work that is to go into it.

    Raises:
        ConfigError: it is no name of a page, there is no folder for it or none that may be written,
            or something else is there.
        MissingDependencyError: a package is missing.
    """
    if path.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"{path}: is not the name of a page: let it end in .html")
    check_file(path, option="--html")
    if path.exists() and not _is_report(path):
        raise ConfigError(f"{path}: is there already and no report of ours; give another --html")
    for module, package in (("vl_convert", "vl-convert-python"), ("jinja2", "jinja2")):
        needed(module, package, by="--html", extra="report")


def _is_report(path: Path) -> bool:
    with path.open("rb") as file:
        return f'name="generator" content="{GENERATOR}"'.encode() in file.read(1024)


def write_page(path: Path, page: Page) -> int:
    """Publish a report; the same page gives the same bytes.

    Returns:
        Its bytes.

    Raises:
        OSError: it cannot be written; what was there is there still.
    """
    content = render(page).encode("utf-8")
    publish_bytes(path, content)
    with suppress(OSError):  # in a folder of shards it holds more than the file on its way
        (path.parent / PRIVATE).rmdir()
    return len(content)


def render(page: Page) -> str:
    """The page as HTML."""
    script = _part("page.js")
    digest = b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return str(
        _template().render(
            page=page,
            css=_part("page.css"),
            script=script,
            # By its hash no other script runs, whatever a name in the page might be.
            script_hash=f"sha256-{digest}",
            data=json_of({"packs": _packs(page), "figures": page.figures}),
            generator=GENERATOR,
        )
    )


def json_of(value: Any) -> str:
    """JSON that ends no script element and begins no comment in one, whatever its texts are."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    # A name that is not UTF-8 has half characters, which no page can hold.
    return text.encode("utf-8", "backslashreplace").decode()


def _packs(page: Page) -> list[dict[str, Any]]:
    return [{"segments": [segment.to_json() for segment in pack.segments]} for pack in page.packs]


@cache
def _template() -> Any:
    jinja2 = needed("jinja2", "jinja2", by="--html", extra="report")
    environment = jinja2.Environment(
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=_plain,
    )
    return environment.from_string(_part("page.html"))


def _plain(value: Any) -> Any:
    """Text with the half characters of a name that is not UTF-8 written out."""
    if isinstance(value, str) and not value.isascii():
        plain = value.encode("utf-8", "backslashreplace").decode()
        return value if plain == value else plain
    return value


def _part(name: str) -> str:
    return (files("spacepatch.report") / name).read_text(encoding="utf-8")
