"""The words beside the frames of a segment, and how they are drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from spacepatch.inspection.decoded import DecodedSegment

if TYPE_CHECKING:
    from PIL import ImageDraw, ImageFont

GAP, MARGIN = 4, 12
TITLE, CAPTION = 16, 11
"""Heights of letters in pixels."""
PAPER, INK, FAINT = (255, 255, 255), (0, 0, 0), (110, 110, 110)
SPACE = " " * 4


def title_of(segment: DecodedSegment) -> str:
    """Which segment."""
    name = "".join(letter if letter.isprintable() else "?" for letter in segment.source)
    view = f" view {segment.view}" if segment.view else ""
    times = f"{segment.start_seconds:.2f} to {segment.stop_seconds:.2f} s"
    return f"{name}{SPACE}clip {segment.clip}{view}{SPACE}{times}"


def facts_of(segment: DecodedSegment) -> list[str]:
    """How good it is, what of it is shown, and what is not."""
    found, row, parts = segment.found, segment.row, list[str]()
    if segment.psnr is not None:
        equal = math.isinf(segment.psnr)
        parts.append("equal to the source" if equal else f"PSNR {segment.psnr:.2f} dB")
    if found.ssim is not None and segment.psnr != math.inf:
        parts.append(f"SSIM {found.ssim:.4f}")
    many = f"{found.num_frames} frame{'s' * (found.num_frames != 1)}"
    parts.append(f"{len(found.shown)} of {many}" if len(found.shown) < found.num_frames else many)
    if row:
        t, h, w = row["grid_thw"]
        patch = "x".join(map(str, (row["tubelet_size"], *row["patch_size"])))
        parts.append(f"grid {t} x {h} x {w} of {patch}")
        if row["num_kept"] < row["num_tokens"]:
            parts.append(f"{row['num_kept']:,} of {row['num_tokens']:,} tokens")
            if found.decoded_frames is not None:
                parts[-1] += ", gaps checkered"
        if found.visible is not None and found.decoded_frames is not None:
            masked = row["num_kept"] - int(found.visible.sum())
            parts.append(f"{masked:,} tokens masked, dark")
        if row["padded_frames"]:
            more = f"{row['padded_frames']} more only fill{'s' * (row['padded_frames'] == 1)}"
            parts.append(f"{more} the end, not shown")
    if found.source_frames is None:
        parts.append("source not at hand")
    return parts


def wrapped(
    draw: ImageDraw.ImageDraw, parts: Sequence[str], *, width: int, height: int
) -> list[str]:
    """Lines of parts that are not wider, where a part by itself is not."""
    lines: list[str] = []
    for part in parts:
        longer = f"{lines[-1]}{SPACE}{part}" if lines else part
        if lines and text_length(draw, longer, height) <= width:
            lines[-1] = longer
        else:
            lines.append(part)
    return lines


def shortened(draw: ImageDraw.ImageDraw, text: str, *, width: int, height: int) -> str:
    """Without some of its middle, where it would be too long."""
    left = len(text)
    short = text
    while left > 8 and text_length(draw, short, height) > width:
        left -= 1
        short = f"{text[: left // 2]}...{text[len(text) - (left - left // 2) :]}"
    return short


def font(height: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    from PIL import ImageFont

    return ImageFont.load_default(height)


def text_length(draw: ImageDraw.ImageDraw, text: str, height: int) -> int:
    return math.ceil(draw.textlength(text, font(height)))
