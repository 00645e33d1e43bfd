"""Charts as SVG, drawn by Vega-Lite when the page is made: the page needs no library."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from spacepatch.extras import needed
from spacepatch.report.records import Chart, Table, short_of

WIDTH, BAR, LABELS, NUMBERS = 350, 20, 124, 60
"""Pixels: of a chart, from bar to bar, and what words on the left and numbers on the right take."""
SIDES = 94
"""The same to both sides of ranges."""
WIDE, HEIGHT = 1060, 170
"""Pixels of a chart as wide as the page."""

# What is measured is the font that comes with the library, so that charts are the same
# everywhere; what is seen is the font of the page, whose letters are about as wide.
CONFIG = {
    "font": "Liberation Sans, Arial, sans-serif",
    "background": None,
    "view": {"stroke": None},
    "axis": {
        "labelColor": "var(--muted)",
        "titleColor": "var(--muted)",
        "gridColor": "var(--line)",
        "domainColor": "var(--line)",
        "tickColor": "var(--line)",
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
    },
}
"""Colours are those of the style sheet: one picture for light and dark."""


def draw_bars(
    title: str,
    rows: Sequence[tuple[str, float]],
    *,
    columns: tuple[str, str],
    numbers: Sequence[str] | None = None,
    marked: str | None = None,
    most: float | None = None,
    table: Table | None = None,
    note: str = "",
) -> Chart:
    """A bar a row, from top to bottom.

    Args:
        rows: what each is, and its length; no two have the same name.
        numbers: what is written beside each bar; None: its length.
        marked: the row that stands out; None: all look alike.
        most: the length of a whole line; None: the longest.
        table: with more columns than the two.
    """
    written = list(numbers) if numbers is not None else [short_of(value) for _, value in rows]
    values = [
        {"row": name, "value": value, "number": number, "is_marked": marked in (None, name)}
        for (name, value), number in zip(rows, written, strict=True)
    ]
    top = most or max((value for _, value in rows), default=0) or 1
    spec = {
        "padding": {"left": LABELS, "right": NUMBERS, "top": 2, "bottom": 2},
        "autosize": {"type": "none", "contains": "content"},
        "width": WIDTH - LABELS - NUMBERS,
        "height": BAR * max(len(rows), 1),
        "data": {"values": values},
        "encoding": {
            "y": _rows(LABELS),
            "x": {
                "field": "value",
                "type": "quantitative",
                "axis": None,
                "stack": None,
                "scale": {"domain": [0, top], "nice": False},
            },
        },
        "layer": [
            {
                "mark": {"type": "bar", "height": BAR - 7, "cornerRadiusEnd": 3},
                "encoding": {
                    "color": {
                        "field": "is_marked",
                        "type": "nominal",
                        "legend": None,
                        "scale": {
                            "domain": [True, False],
                            "range": ["var(--accent)", "var(--soft)"],
                        },
                    },
                    "description": {"field": "said"},
                },
            },
            {
                "mark": {"type": "text", "align": "left", "dx": 6, "fontSize": 12, "aria": False},
                "encoding": {"text": {"field": "number"}, "color": {"value": "var(--muted)"}},
            },
        ],
    }
    for value in values:
        value["said"] = f"{value['row']}: {value['number']}"
    said = f"Bar chart. {title}: " + _listed([str(value["said"]) for value in values])
    table = table or Table.of(columns, zip([name for name, _ in rows], written, strict=True))
    return Chart(title, _draw(spec), said, table, note)


def draw_band(
    title: str,
    rows: Sequence[tuple[str, int, float, float, float]],
    *,
    columns: tuple[str, str],
    table: Table,
    note: str = "",
) -> Chart:
    """Shares of one thing after the other, as a line of means within a band.

    Args:
        rows: what each is, its number from 0, and the lowest, mean and highest share.
        columns: what is counted from left to right, and what the shares are of.
    """
    values = [
        {
            "place": place,
            "low": low,
            "mean": mean,
            "high": high,
            "said": f"{name}: {mean:.1%}" + f", {low:.1%} to {high:.1%}" * (low < high),
        }
        for name, place, low, mean, high in rows
    ]
    lowest = min((low for _, _, low, _, _ in rows), default=0.0)
    floor = next(edge for edge in (0.9, 0.5, 0) if lowest >= edge)
    scale = {"domain": [floor, 1], "nice": False}
    x = {
        "field": "place",
        "type": "quantitative",
        "axis": {"title": columns[0], "grid": False, "tickMinStep": 1, "format": ",d"},
        "scale": {"nice": False, "padding": 8},
    }
    y = {"type": "quantitative", "scale": scale}
    axis = {"title": None, "format": ".0%", "tickCount": 5, "domain": False, "ticks": False}
    spec = {
        "padding": {"left": 52, "right": 14, "top": 8, "bottom": 42},
        "autosize": {"type": "none", "contains": "content"},
        "width": WIDE - 66,
        "height": HEIGHT,
        "data": {"values": values},
        "encoding": {"x": x},
        "layer": [
            {
                "mark": {"type": "area", "color": "var(--soft)", "aria": False},
                "encoding": {"y": y | {"field": "low", "axis": axis}, "y2": {"field": "high"}},
            },
            {
                "mark": {"type": "line", "color": "var(--accent)", "strokeWidth": 1.5}
                | {"aria": False},
                "encoding": {"y": y | {"field": "mean", "axis": axis}},
            },
            {
                "mark": {"type": "circle", "color": "var(--accent)", "size": 34, "opacity": 1},
                "encoding": {
                    "y": y | {"field": "mean", "axis": axis},
                    "description": {"field": "said"},
                },
            },
        ],
    }
    said = f"Line chart. {title}: " + _listed([str(value["said"]) for value in values])
    return Chart(title, _draw(spec), said, table, note, is_wide=True)


def draw_spreads(
    title: str,
    rows: Sequence[tuple[str, float, float]],
    *,
    columns: tuple[str, str, str],
    note: str = "",
) -> Chart:
    """A point with a line to both sides of it a row, such as a mean and its deviation."""
    values = [
        {
            "row": name,
            "middle": middle,
            "low": middle - side,
            "high": middle + side,
            "number": f"{middle:.2f} ± {side:.2f}",
            "said": f"{name}: {middle:.4g} ± {side:.4g}",
        }
        for name, middle, side in rows
    ]
    x = {"type": "quantitative", "scale": {"nice": True, "zero": True}}
    axis = {"title": None, "tickCount": 5, "domain": False, "ticks": False}
    spec = {
        "padding": {"left": SIDES, "right": SIDES, "top": 4, "bottom": 24},
        "autosize": {"type": "none", "contains": "content"},
        "width": WIDTH - 2 * SIDES,
        "height": BAR * len(rows),
        "data": {"values": values},
        "encoding": {"y": _rows(SIDES)},
        "layer": [
            {
                "mark": {"type": "rule", "color": "var(--soft)", "strokeWidth": 7}
                | {"aria": False},
                "encoding": {"x": x | {"field": "low", "axis": axis}, "x2": {"field": "high"}},
            },
            {
                "mark": {"type": "circle", "color": "var(--accent)", "size": 46, "opacity": 1},
                "encoding": {"x": x | {"field": "middle"}, "description": {"field": "said"}},
            },
            {
                "mark": {"type": "text", "align": "left", "fontSize": 11, "aria": False},
                "encoding": {
                    "x": {"value": WIDTH - 2 * SIDES + 8},
                    "text": {"field": "number"},
                    "color": {"value": "var(--muted)"},
                },
            },
        ],
    }
    said = f"Chart of ranges. {title}: " + _listed([str(value["said"]) for value in values])
    return Chart(title, _draw(spec), said, Table.of(columns, rows), note)


def _rows(room: int) -> dict[str, Any]:
    """Rows by their names, which have so much room on the left."""
    axis = {
        "title": None,
        "domain": False,
        "ticks": False,
        "labelPadding": 8,
        "labelLimit": room - 10,
        "labelColor": "var(--ink)",
    }
    return {"field": "row", "type": "nominal", "sort": None, "axis": axis}


MOST_SAID = 12


def _listed(parts: Sequence[str]) -> str:
    """A sentence of a few of many parts; the table has them all."""
    more = f"; and {len(parts) - MOST_SAID} more" if len(parts) > MOST_SAID else ""
    return "; ".join(parts[:MOST_SAID]) + more + "."


def _draw(spec: dict[str, Any]) -> str:
    convert = needed("vl_convert", "vl-convert-python", by="--html", extra="report")
    whole = {"$schema": "https://vega.github.io/schema/vega-lite/v5.json", "config": CONFIG} | spec
    svg = convert.vegalite_to_svg(whole, allowed_base_urls=[])
    # The page names the chart; sizes are those of the style sheet.
    svg = re.sub(r'^<svg ([^>]*?)width="\d+" height="\d+" ', r"<svg \1", str(svg))
    assert " id=" not in svg, "such names are counted up: the same chart is to be the same text"
    return svg
