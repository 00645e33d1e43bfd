"""Contact sheets: the frames of segments in order of time, source above, tokens below."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from spacepatch.inspection.decoded import DecodedSegment
from spacepatch.preview.captions import (
    CAPTION,
    FAINT,
    GAP,
    INK,
    MARGIN,
    PAPER,
    TITLE,
    facts_of,
    font,
    shortened,
    text_length,
    title_of,
    wrapped,
)
from spacepatch.preview.marks import Scale, kept_at, marked, row_of, with_gaps
from spacepatch.stored_frames import UNKNOWN

if TYPE_CHECKING:
    from PIL import Image

MOST_SIDE = 512
"""Pixels of a frame as it is shown; larger ones are shown smaller, by a whole number."""
MOST_PIXELS = 40_000_000
"""Of all frames of a sheet: the more there are, the smaller they are shown."""
PAGE = 1920
"""Width of a line of frames in pixels, where one frame is not wider."""
BAR = 2
"""Height of the line over the frames of one grid row."""


def draw_segments(
    segments: Sequence[DecodedSegment], kind: str, *, grid: bool = True
) -> Image.Image:
    """The picture: a block a segment, one below the other."""
    from PIL import Image

    num_frames = sum(
        len(frames) for segment in segments for _, frames in pictures_of(segment, kind)
    )
    most_side = min(MOST_SIDE, math.isqrt(MOST_PIXELS // num_frames))
    blocks = [_draw_segment(segment, kind, most_side, grid) for segment in segments]
    width = max(block.width for block in blocks) + 2 * MARGIN
    height = sum(block.height for block in blocks) + MARGIN * (len(blocks) + 1)
    picture = Image.new("RGB", (width, height), PAPER)
    top = MARGIN
    for block in blocks:
        picture.paste(block, (MARGIN, top))
        top += block.height + MARGIN
    return picture


def pictures_of(segment: DecodedSegment, kind: str) -> list[tuple[str, np.ndarray]]:
    """By a word for each: the source's frames where they are at hand, and those of the tokens."""
    found = segment.found
    rows = [
        ("source", found.source_frames),
        ("pixels", found.pixel_frames),
        ("stored" if kind == "pixels" else "decoded", found.decoded_frames),
    ]
    return [(word, frames) for word, frames in rows if frames is not None]


def drawn_frame(
    segment: DecodedSegment, word: str, frames: np.ndarray, place: int, scale: Scale, *, grid: bool
) -> np.ndarray:
    """One of `pictures_of`, as it is shown: the tokens' own with their marks."""
    frame, number = scale.apply(frames[place]), segment.found.shown[place]
    if word in ("source", "pixels"):
        is_lost = (frames[place] == UNKNOWN).all() and not kept_at(segment, number).any()
        return with_gaps(frame, np.ones(frame.shape[:2], bool)) if is_lost else frame
    return marked(frame, segment, number, grid=grid)


def _draw_segment(segment: DecodedSegment, kind: str, most_side: int, grid: bool) -> Image.Image:
    from PIL import Image, ImageDraw

    rows = pictures_of(segment, kind)
    height, width = rows[0][1].shape[1:3]
    scale = Scale.of((height, width), most_side=most_side)
    side_h, side_w = scale.apply(rows[0][1][0]).shape[:2]
    seconds = [f"{time:.2f} s" for time in segment.seconds]
    measure = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    label = max(text_length(measure, word, CAPTION) for word, _ in rows) + 2 * GAP
    column = max(side_w, *(text_length(measure, text, CAPTION) for text in seconds)) + GAP
    lines = _lines_of(segment, most=max(1, (PAGE - label) // column))
    across = label + max(map(len, lines)) * column
    facts = facts_of(segment) + ([] if scale == Scale() else [f"shown at {scale}"])
    words = wrapped(measure, facts, width=max(across, PAGE // 2), height=TITLE)
    title = shortened(measure, title_of(segment), width=PAGE, height=TITLE)
    words.insert(0, title)
    heading = len(words) * (TITLE + GAP)
    above = 2 * (CAPTION + GAP) + BAR + GAP
    each = above + len(rows) * (side_h + GAP) + GAP
    across = max(across, *(text_length(measure, text, TITLE) for text in words))
    block = Image.new("RGB", (across, heading + len(lines) * each), PAPER)
    draw = ImageDraw.Draw(block)
    for number, text in enumerate(words):
        draw.text((0, number * (TITLE + GAP)), text, INK, font(TITLE))
    for line, places in enumerate(lines):
        top = heading + line * each
        lefts = {place: label + number * column for number, place in enumerate(places)}
        for t, own in groupby(places, lambda place: row_of(segment, segment.found.shown[place])):
            first, *others = own
            stop = lefts[others[-1] if others else first] + side_w
            draw.text((lefts[first], top), f"t {t}", FAINT, font(CAPTION))
            bar = top + CAPTION + GAP
            draw.rectangle((lefts[first], bar, stop - 1, bar + BAR - 1), FAINT)
        for place, left in lefts.items():
            draw.text((left, top + CAPTION + GAP + BAR), seconds[place], FAINT, font(CAPTION))
        for number, (word, frames) in enumerate(rows):
            row_top = top + above + number * (side_h + GAP)
            draw.text((0, row_top), word, FAINT, font(CAPTION))
            for place, left in lefts.items():
                drawn = drawn_frame(segment, word, frames, place, scale, grid=grid)
                block.paste(Image.fromarray(drawn), (left, row_top))
    return block


def _lines_of(segment: DecodedSegment, *, most: int) -> list[list[int]]:
    """The places of frames that are shown, line by line: where it can be had, no grid row is
    divided."""
    shown = segment.found.shown
    rows = [
        list(own)
        for _, own in groupby(range(len(shown)), lambda place: row_of(segment, shown[place]))
    ]
    # Lines of about the same length: no single frame is left for the last one.
    num_lines = -(-len(shown) // most)
    even, together = -(-len(shown) // num_lines), max(map(len, rows))
    most = max(min(-(-even // together) * together, most), 1)
    lines: list[list[int]] = [[]]
    for places in rows:
        if lines[-1] and len(lines[-1]) + len(places) > most:
            lines.append([])
        for place in places:
            if len(lines[-1]) == most:
                lines.append([])
            lines[-1].append(place)
    return lines
