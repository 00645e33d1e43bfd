"""Films: the frames of segments, one segment after the other, at their true times."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import IO, TYPE_CHECKING

import numpy as np

from spacepatch.errors import ConfigError
from spacepatch.inspection.decoded import DecodedSegment
from spacepatch.preview.captions import (
    CAPTION,
    FAINT,
    GAP,
    INK,
    MARGIN,
    PAPER,
    SPACE,
    TITLE,
    facts_of,
    font,
    shortened,
    title_of,
    wrapped,
)
from spacepatch.preview.marks import Scale, row_of
from spacepatch.preview.sheets import drawn_frame, pictures_of
from spacepatch.videos import frame_times, write_mp4

if TYPE_CHECKING:
    from PIL import Image

MOST_SIDE = {"mp4": 960, "gif": 320}
"""Pixels of a frame as it is shown, by the suffix of the film."""
LEAST_WIDTH = 480
"""Of a film: for its words to be read."""
LEAST_COLUMN = 48
"""Of a picture in it: for the word above it."""
MOST_GIF_PIXELS = 300_000_000
"""Of all frames of a gif, which are in memory together."""
LEAST_DELAY = 2
"""Centiseconds: what browsers show shorter ones as is ten."""
PALETTE_FRAMES = 12
"""Frames, spread over a gif, whose colours are its palette."""


@dataclass(frozen=True, slots=True)
class Film:
    """What is shown, and when."""

    segments: Sequence[DecodedSegment]
    kind: str
    most_side: int
    grid: bool
    times: Sequence[Fraction]
    """When each frame begins, from 0, and when the last one ends, in seconds."""

    @classmethod
    def of(
        cls, segments: Sequence[DecodedSegment], kind: str, *, most_side: int, grid: bool
    ) -> Film:
        """Of segments of which all frames are at hand."""
        times, start = list[Fraction](), Fraction(0)
        for segment in segments:
            *own, end = frame_times(segment.row["frame_pts"], Fraction(segment.row["time_base"]))
            times += [start + time for time in own]
            start += end
        return cls(segments, kind, most_side, grid, [*times, start])

    def frames(self) -> Iterator[Image.Image]:
        """All of one size."""
        from PIL import Image, ImageDraw

        measure = ImageDraw.Draw(Image.new("RGB", (1, 1)))
        scales = [self._scale_of(segment) for segment in self.segments]
        widths, heights = [LEAST_WIDTH], list[int]()
        for segment, scale in zip(self.segments, scales, strict=True):
            pictures = pictures_of(segment, self.kind)
            height, width = scale.apply(pictures[0][1][0]).shape[:2]
            widths.append(len(pictures) * max(width + GAP, LEAST_COLUMN) + 2 * MARGIN)
            heights.append(height)
        width, inner = max(widths), max(widths) - 2 * MARGIN
        words = [
            [
                shortened(measure, title_of(segment), width=inner, height=TITLE),
                *wrapped(measure, facts_of(segment), width=inner, height=TITLE),
            ]
            for segment in self.segments
        ]
        num_lines = max(map(len, words)) + 1
        heading = MARGIN + num_lines * (TITLE + GAP) + CAPTION + 2 * GAP
        size = width, heading + max(heights) + MARGIN
        for segment, scale, lines in zip(self.segments, scales, words, strict=True):
            for place in range(len(segment.found.shown)):
                picture = Image.new("RGB", size, PAPER)
                self._draw(picture, segment, scale, lines, place, heading)
                yield picture

    def _scale_of(self, segment: DecodedSegment) -> Scale:
        height, width = pictures_of(segment, self.kind)[0][1].shape[1:3]
        return Scale.of((height, width), most_side=self.most_side)

    def _draw(
        self,
        picture: Image.Image,
        segment: DecodedSegment,
        scale: Scale,
        lines: Sequence[str],
        place: int,
        heading: int,
    ) -> None:
        from PIL import Image, ImageDraw

        draw = ImageDraw.Draw(picture)
        number = segment.found.shown[place]
        last_row = len(segment.row_starts) - 2
        now = (
            f"{segment.seconds[place]:.3f} s{SPACE}frame {number} of 0 to "
            f"{segment.found.num_frames - 1}{SPACE}t {row_of(segment, number)} of 0 to {last_row}"
        )
        for line, text in enumerate((*lines, now)):
            colour = INK if line in (0, len(lines)) else FAINT
            draw.text((MARGIN, MARGIN + line * (TITLE + GAP)), text, colour, font(TITLE))
        left = MARGIN
        for word, frames in pictures_of(segment, self.kind):
            drawn = drawn_frame(segment, word, frames, place, scale, grid=self.grid)
            draw.text((left, heading - CAPTION - GAP), word, FAINT, font(CAPTION))
            picture.paste(Image.fromarray(drawn), (left, heading))
            left += max(drawn.shape[1] + GAP, LEAST_COLUMN)


def write_film(file: IO[bytes], film: Film) -> None:
    """As MP4."""
    frames = (np.asarray(picture) for picture in film.frames())
    write_mp4(file, frames, times=film.times, lossless=False)


def gif_of(film: Film) -> tuple[bytes, int]:
    """As GIF, which counts in hundredths of a second, and how many frames were too short for it.

    Each begins at the hundredth nearest to its time, so that errors do not add up.

    Raises:
        ConfigError: it would be too large.
    """
    pictures = list(_shown_in_gif(film))
    delays = [delay for _, delay in pictures]
    step = max(1, len(pictures) // PALETTE_FRAMES)
    palette = _palette_of([picture for picture, _ in pictures[::step]])
    first, *others = [picture.quantize(palette=palette) for picture, _ in pictures]
    content = io.BytesIO()
    first.save(
        content,
        "GIF",
        save_all=True,
        append_images=others,
        duration=[10 * delay for delay in delays],
        loop=0,
        optimize=False,
    )
    return content.getvalue(), len(film.times) - 1 - len(pictures)


def _shown_in_gif(film: Film) -> Iterator[tuple[Image.Image, int]]:
    """Frames, and for how many hundredths of a second each is shown."""
    ticks = [round(time * 100) for time in film.times]
    starts = [0]
    for number, tick in enumerate(ticks[:-1]):
        if tick - ticks[starts[-1]] >= LEAST_DELAY:
            starts.append(number)
    stops = [ticks[number] for number in starts[1:]] + [ticks[-1]]
    delays = {
        number: max(stop - ticks[number], LEAST_DELAY)
        for number, stop in zip(starts, stops, strict=True)
    }
    for number, picture in enumerate(film.frames()):
        if picture.width * picture.height * len(delays) > MOST_GIF_PIXELS:
            raise ConfigError(
                f"{len(delays)} frames of {picture.width}x{picture.height} are too much for a gif: "
                "give .mp4, or one --segment"
            )
        if number in delays:
            yield picture, delays[number]


def _palette_of(pictures: Sequence[Image.Image]) -> Image.Image:
    """The colours of some frames of a film."""
    from PIL import Image

    side = pictures[0].size
    all_of_them = Image.new("RGB", (side[0], side[1] * len(pictures)))
    for number, picture in enumerate(pictures):
        all_of_them.paste(picture, (0, number * side[1]))
    return all_of_them.quantize(256)
