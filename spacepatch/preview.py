"""Show what a dataset holds: frames of its sources above the frames that its tokens decode to."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from spacepatch.config import RunConfig
from spacepatch.errors import ConfigError, SpacepatchError
from spacepatch.inspection.decoded import Decoded, DecodedSegment
from spacepatch.inspection.decoding import decode_segments
from spacepatch.pipeline.folder import check_file
from spacepatch.storage import PRIVATE, publish_bytes

if TYPE_CHECKING:
    from PIL import Image, ImageDraw, ImageFont

MOST_SIDE = 512
"""Pixels of a frame as it is shown; larger ones are shown smaller, by a whole number."""
MOST_FRAMES = 1000
"""Of one picture, sources and reconstructions together: what a viewer can take."""
GAP, MARGIN = 4, 12
TITLE, CAPTION = 16, 11
"""Heights of letters in pixels."""
PAPER, INK, FAINT = (255, 255, 255), (0, 0, 0), (110, 110, 110)
SPACE = " " * 4


def preview(
    folder: Path,
    *,
    out: Path,
    config: RunConfig,
    roots: Mapping[int, str],
    num_segments: int = 4,
    num_frames: int = 6,
    overwrite: bool = False,
) -> Decoded:
    """Write one PNG of frames of some segments, the same ones as `verify --decode` takes.

    Args:
        config, roots: as of `decode_segments`. Where a source is not at hand, what its tokens
            decode to is shown alone.

    Raises:
        ConfigError: `out` is there already, or is none for a PNG; or as of `decode_segments`.
        SpacepatchError: there is nothing to show.
        OSError: it cannot be written.
    """
    if out.suffix.lower() != ".png":
        raise ConfigError(f"{out}: is not the name of a PNG: let it end in .png")
    check_file(out)
    if out.exists() and not overwrite:
        raise ConfigError(f"{out}: is there already; give another --out, or --overwrite")
    if 2 * num_segments * num_frames > MOST_FRAMES:
        raise ConfigError(
            f"{num_segments} segments of {num_frames} frames are too many for one picture, "
            f"{MOST_FRAMES // 2} frames are most"
        )
    decoded = decode_segments(
        folder,
        num_segments=num_segments,
        config=config,
        roots=roots,
        make_again=False,
        num_shown=num_frames,
    )
    shown = [segment for segment in decoded.segments if segment.found.decoded_frames is not None]
    if not shown:
        why = [segment.problem for segment in decoded.segments if segment.problem]
        raise SpacepatchError(f"{folder}: nothing to show: {(why or decoded.notes)[0]}")
    picture = draw_segments(shown, decoded.kind)
    content = io.BytesIO()
    picture.save(content, "PNG")
    publish_bytes(out, content.getvalue())
    with suppress(OSError):  # in a folder of shards it holds more than the file on its way
        (out.parent / PRIVATE).rmdir()
    return decoded


def draw_segments(segments: list[DecodedSegment], kind: str) -> Image.Image:
    """The picture: a block a segment, one below the other."""
    from PIL import Image

    blocks = [_draw_segment(segment, kind) for segment in segments]
    width = max(block.width for block in blocks) + 2 * MARGIN
    height = sum(block.height for block in blocks) + MARGIN * (len(blocks) + 1)
    picture = Image.new("RGB", (width, height), PAPER)
    top = MARGIN
    for block in blocks:
        picture.paste(block, (MARGIN, top))
        top += block.height + MARGIN
    return picture


def _draw_segment(segment: DecodedSegment, kind: str) -> Image.Image:
    from PIL import Image, ImageDraw

    rows = _rows_of(segment, kind)
    shrink = max(math.ceil(max(frames.shape[1:3]) / MOST_SIDE) for _, frames in rows)
    lines = _title_of(segment, shrink)
    images = [[Image.fromarray(frame).reduce(shrink) for frame in frames] for _, frames in rows]
    side_w, side_h = images[0][0].size
    measure = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    label = max(_length(measure, word, CAPTION) for word, _ in rows) + 2 * GAP
    seconds = [f"{time:.2f} s" for time in segment.seconds]
    column = max(side_w, *(_length(measure, text, CAPTION) for text in seconds)) + GAP
    heading = len(lines) * (TITLE + GAP) + CAPTION + 2 * GAP
    width = max(label + len(seconds) * column, *(_length(measure, text, TITLE) for text in lines))
    block = Image.new("RGB", (width, heading + len(rows) * (side_h + GAP)), PAPER)
    draw = ImageDraw.Draw(block)
    for number, text in enumerate(lines):
        draw.text((0, number * (TITLE + GAP)), text, INK, _font(TITLE))
    for number, text in enumerate(seconds):
        place = label + number * column, heading - CAPTION - 2 * GAP
        draw.text(place, text, FAINT, _font(CAPTION))
    for row, (word, _) in enumerate(rows):
        top = heading + row * (side_h + GAP)
        draw.text((0, top), word, FAINT, _font(CAPTION))
        for number, image in enumerate(images[row]):
            block.paste(image, (label + number * column, top))
    return block


def _rows_of(segment: DecodedSegment, kind: str) -> list[tuple[str, np.ndarray]]:
    """By a word for each: the source's frames where they are at hand, and those of the tokens."""
    found = segment.found
    assert found.decoded_frames is not None, "there is something to show"
    rows = [("stored" if kind == "pixels" else "decoded", found.decoded_frames)]
    if found.source_frames is not None:
        rows.insert(0, ("source", found.source_frames))
    return rows


def _title_of(segment: DecodedSegment, shrink: int) -> list[str]:
    """Lines: which segment, and how good."""
    found = segment.found
    name = "".join(letter if letter.isprintable() else "?" for letter in segment.source)
    view = f" view {segment.view}" if segment.view else ""
    times = f"{segment.start_seconds:.2f} to {segment.stop_seconds:.2f} s"
    parts = []
    if segment.psnr is not None:
        equal = math.isinf(segment.psnr)
        parts.append("equal to the source" if equal else f"PSNR {segment.psnr:.2f} dB")
    if found.ssim is not None:
        parts.append(f"SSIM {found.ssim:.4f}")
    parts.append(f"{found.num_frames} frame{'s' * (found.num_frames != 1)}")
    if found.source_frames is None:
        parts.append("source not at hand")
    if shrink > 1:
        parts.append(f"shown at 1/{shrink}")
    return [f"{name}{SPACE}clip {segment.clip}{view}{SPACE}{times}", SPACE.join(parts)]


def _font(height: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    from PIL import ImageFont

    return ImageFont.load_default(height)


def _length(draw: ImageDraw.ImageDraw, text: str, height: int) -> int:
    return math.ceil(draw.textlength(text, _font(height)))
