"""Report pages as tests make and read them: with Python's own parser of HTML."""

from __future__ import annotations

import json
from base64 import b64decode
from dataclasses import dataclass, field
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from spacepatch.config import load_config
from spacepatch.inspection import summarize
from spacepatch.report import report_dataset, write_page


@dataclass
class ReadPage:
    """What a browser would find in a page."""

    html: str
    tags: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    """The texts that are shown, in order."""
    data: dict[str, Any] = field(default_factory=dict)
    tables: dict[str, list[list[str]]] = field(default_factory=dict)
    """By label, the rows with their header."""

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    @property
    def segments(self) -> list[dict[str, Any]]:
        return [segment for pack in self.data["packs"] for segment in pack["segments"]]


class _Reader(HTMLParser):
    def __init__(self, page: ReadPage) -> None:
        super().__init__()
        self.page = page
        self.inside = ""
        self.label = ""
        self.is_cell = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.page.tags.append((tag, values))
        if tag in ("script", "style"):
            self.inside = values.get("type") or tag
        if tag == "div" and values.get("class") == "scroll":
            self.label = values["aria-label"] or ""
            self.page.tables[self.label] = []
        if tag == "tr":
            self.page.tables[self.label].append([])
        self.is_cell = tag in ("td", "th")
        if self.is_cell:
            self.page.tables[self.label][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self.is_cell = False
        if tag in ("script", "style"):
            self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside == "application/json":
            self.page.data = json.loads(data)
        elif not self.inside:
            self.page.words.append(data)
            if self.is_cell:
                self.page.tables[self.label][-1][-1] += data


def make_page(folder: Path, path: Path, **settings: Any) -> ReadPage:
    """Write the report of a dataset, as `spacepatch inspect --html` does, and read it."""
    write_page(path, report_dataset(folder, summarize(folder), config=load_config(settings)))
    return read_page(path)


def read_page(path: Path) -> ReadPage:
    page = ReadPage(path.read_text(encoding="utf-8"))
    _Reader(page).feed(page.html)
    return page


def picture_of(frame: dict[str, str]) -> np.ndarray:
    """``(H, W, 4)`` uint8 of a frame in a page."""
    kind, _, content = frame["image"].partition(",")
    assert kind == "data:image/webp;base64"
    return np.asarray(Image.open(BytesIO(b64decode(content))).convert("RGBA"))
