"""Check what a row of segments.parquet says: against itself, and against the settings."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np

from spacepatch.config.stores import floor_of
from spacepatch.distributions import NUMBER
from spacepatch.drop import Drawn, DrawnRate, DrawnStatic, DrawnTokens
from spacepatch.framerules import PIXELS, Lattice
from spacepatch.inspection.encoders import KnownEncoder
from spacepatch.inspection.findings import Report
from spacepatch.pipeline.plan import Plan
from spacepatch.pipeline.segments import make_segment_id
from spacepatch.tubelets import merge_of, token_width

Row = dict[str, Any]
"""A row of segments.parquet."""

PAIRS = {"grid_thw": 3, "size": 2, "patch_size": 2, "pad": 2, "scale": 2}
"""Entries of the lists of fixed length."""

SEGMENT_ID = re.compile(r"[0-9a-f]{32}")

READERS = {"pyav", "decord", "torchcodec", "pillow"}
"""What the column `decoder` names, one or two of them."""

PIXEL_CHANNELS = (3, 4)
"""RGB, or RGBA."""


@dataclass(frozen=True, slots=True)
class Origin:
    """What a dataset's documents say that a row must follow; None in all where a shard is alone."""

    plan: Plan | None = None
    token_fingerprint: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    encoder: KnownEncoder | None = None
    """None: pixels are cut."""

    @property
    def lattice(self) -> Lattice:
        """What tubelets are cut on."""
        return PIXELS if self.encoder is None else self.encoder.lattice

    @property
    def channels(self) -> tuple[int, ...]:
        """Those that a cell may have."""
        if self.encoder is not None:
            return (self.encoder.channels,)
        if self.plan is not None:
            return (self.plan.layout.channels,)
        if "alpha" in self.settings:
            return (4 if self.settings["alpha"] else 3,)
        return PIXEL_CHANNELS

    def segment_id(self, row: Row, *, start_pts: int, stop_pts: int) -> str:
        """Of an interval of a row's source and view, where the token fingerprint is at hand."""
        return make_segment_id(
            str(self.token_fingerprint),
            seed=self.settings.get("seed", 0),
            source_id=row["source_id"],
            start_pts=start_pts,
            stop_pts=stop_pts,
            time_base=row["time_base"],
            view=row["view"],
        )


def is_sound(row: Row, report: Report) -> bool:
    """Whether a row can be reckoned with at all."""
    faults = [
        f"{key} has {len(row[key])} entries" for key, n in PAIRS.items() if len(row[key]) != n
    ]
    sides = (*row["grid_thw"], *row["size"], *row["patch_size"], row["tubelet_size"])
    if min(sides) < 1 or row["num_kept"] < 1 or row["offset"] < 0:
        faults.append("a length is not above 0")
    try:
        if Fraction(row["time_base"]) <= 0:
            faults.append(f"time_base is {row['time_base']}")
    except (ValueError, ZeroDivisionError):
        faults.append(f"time_base {row['time_base']!r} is no fraction")
    try:
        json.loads(row["extra"])
    except (ValueError, RecursionError):
        faults.append("extra is no JSON")
    for key in ("source_fps", "sampled_fps", "psnr", "aspect_error", "scale", "crop", "seconds"):
        if not np.isfinite(np.array(row[key] or 0.0)).all():
            faults.append(f"{key} is not finite")
    if row["crop"] is not None and len(row["crop"]) != 4:
        faults.append(f"crop has {len(row['crop'])} entries")
    try:
        merge_of(row["order"])
        read_drop(row["drop"] or "tokens 1")
    except ValueError as error:
        faults.append(f"order is {row['order']!r}, drop is {row['drop']!r}: {error}")
    for what in faults:
        report(what)
    return not faults


def check_segment(row: Row, report: Report, *, origin: Origin, width: int, store: str) -> None:
    """Report what a row (that `is_sound`) says against itself.

    Args:
        width: values in a token of its pack.
        store: what its pack holds: tokens, refs or compressed.
    """
    grid_t, grid_h, grid_w = row["grid_thw"]
    tubelet, (patch_h, patch_w) = row["tubelet_size"], row["patch_size"]
    if row["num_tokens"] != grid_t * grid_h * grid_w:
        report(f"num_tokens {row['num_tokens']} is not that of grid {tuple(row['grid_thw'])}")
    stride_h, stride_w = origin.lattice.stride
    if tuple(row["size"]) != (grid_h * patch_h * stride_h, grid_w * patch_w * stride_w):
        report(f"size {tuple(row['size'])} is not that of grid {tuple(row['grid_thw'])}")
    if grid_h % merge_of(row["order"]) or grid_w % merge_of(row["order"]):
        report(f"grid {tuple(row['grid_thw'])} has no whole blocks of order {row['order']!r}")
    widths = {token_width(tubelet, (patch_h, patch_w), n, row["halo"]) for n in origin.channels}
    if row["halo"] < 0 or width not in widths:
        patch = f"{tubelet}x{patch_h}x{patch_w}"
        report(f"its pack has tokens of {width} values, not of patch {patch}, halo {row['halo']}")
    _check_store(row, report, origin, store)
    _check_frames(row, report, origin)
    _check_num_kept(row, report, origin.lattice)
    _check_fit(row, report)
    _check_times(row, report, origin.lattice)
    _check_settings(row, report, origin)


def _check_store(row: Row, report: Report, origin: Origin, store: str) -> None:
    """What is said of its tokens: who decoded them, and what became of them."""
    if row["tokens_crc32c"] is not None:
        if not READERS.issuperset(row["decoder"].split(", ")):
            report(f"decoder is {row['decoder']!r}")
    elif store != "refs" or row["decoder"]:
        report(f"has no tokens_crc32c, with store {store} and decoder {row['decoder']!r}")
    psnr, asked = row["psnr"], str(origin.settings.get("store", "compressed:0"))
    floor = floor_of(asked)
    if psnr is not None and (store != "compressed" or floor is None):
        report(f"has psnr {psnr}, and store is {asked}")
    elif psnr is not None and floor is not None and not psnr >= floor:
        report(f"psnr is {psnr}, less than the {floor:g} dB of store {asked}")


def _check_frames(row: Row, report: Report, origin: Origin) -> None:
    for key in ("padded_frames", "repeated_frames", "corrupt_frames", "damaged_frames"):
        if row[key] < 0:
            report(f"{key} is {row[key]}")
    grid_t, tubelet, padded = row["grid_thw"][0], row["tubelet_size"], row["padded_frames"]
    num_frames = len(row["frame_pts"])
    if num_frames != row["valid_frames"] + row["corrupt_frames"]:
        report(
            f"has {num_frames} frames, not {row['valid_frames']} valid and "
            f"{row['corrupt_frames']} corrupt ones"
        )
    rule, latents = origin.lattice.rule, " latents" if origin.encoder is not None else ""
    end = rule.num_frames(grid_t * tubelet)
    if num_frames + padded != end:
        report(
            f"{num_frames} frames and {padded} padded ones do not fill {grid_t} grid rows "
            f"of {tubelet}{latents}, which cover {end}"
        )
    last_row = end - rule.num_frames((grid_t - 1) * tubelet)
    if padded >= last_row or (padded and row["tail"] == "drop"):
        report(
            f"has {padded} padded frames, with tubelets of {last_row} frames and tail "
            f"{row['tail']!r}"
        )
    if row["corrupt_frames"] and origin.encoder is not None and origin.encoder.is_local is False:
        report(
            f"has {row['corrupt_frames']} corrupt frames, though a clip of this encoder ends "
            "before the first of them"
        )
    if row["valid_frames"] < 1 or row["damaged_frames"] > row["valid_frames"]:
        report(f"valid_frames is {row['valid_frames']}, {row['damaged_frames']} of them damaged")


def row_frames(row: Row, lattice: Lattice) -> int:
    """Frames in a grid row; the first and the last one may have fewer."""
    return int(row["tubelet_size"] * lattice.rule.step)


def num_lost_rows(row: Row, lattice: Lattice) -> int:
    """Grid rows of a segment that are lost: whole ones, but the last may be padded.

    Where the first has fewer frames than others too, clips end before what is lost.
    """
    return int(-(-row["corrupt_frames"] // row_frames(row, lattice)))


def _check_num_kept(row: Row, report: Report, lattice: Lattice) -> None:
    """How many tokens are kept of the rows that are there; which ones, the packs say."""
    grid_t, grid_h, grid_w = row["grid_thw"]
    least, most = 1, (grid_t - num_lost_rows(row, lattice)) * grid_h * grid_w
    if row["drop"] is None:
        least = most
    elif read_drop(row["drop"]).is_bound:
        least = grid_h * grid_w  # all of the first row
    if not least <= row["num_kept"] <= most:
        wanted = f"{least}" if least == most else f"{least} to {most}"
        report(f"keeps {row['num_kept']} tokens, not {wanted} (drop is {row['drop']!r})")


def _check_fit(row: Row, report: Report) -> None:
    """Where the frame lies in the scaled picture."""
    crop, pad = row["crop"], row["pad"]
    if min(pad) < 0 or (crop is not None and (min(crop) < 0 or min(crop[2:]) < 1)):
        report(f"crop is {crop}, pad is {pad}")
    elif crop is not None and [crop[2] + pad[0], crop[3] + pad[1]] != row["size"]:
        report(f"crop {crop} and pad {pad} do not make up size {tuple(row['size'])}")
    scale_h, scale_w = row["scale"]
    if not min(row["scale"]) > 0:
        report(f"scale is {row['scale']}")
    elif not math.isclose(
        row["aspect_error"], max(scale_w / scale_h, scale_h / scale_w) - 1, abs_tol=1e-9
    ):
        report(f"aspect_error {row['aspect_error']} is not that of scale {row['scale']}")


def _check_times(row: Row, report: Report, lattice: Lattice) -> None:
    pts = np.array(row["frame_pts"], np.int64)
    indices = np.array(row["frame_indices"], np.int64)
    if len(pts) != len(indices):
        report(f"has {len(pts)} frame_pts and {len(indices)} frame_indices")
        return
    for name, values in (("frame_pts", pts), ("frame_indices", indices)):
        if (np.diff(values) < 0).any():
            report(f"{name} decreases")
    repeats = np.diff(indices) == 0
    if not np.array_equal(repeats, np.diff(pts) == 0):
        report("frame_pts and frame_indices do not repeat at the same places")
    if np.count_nonzero(repeats) != row["repeated_frames"]:
        report(f"repeats {np.count_nonzero(repeats)} frames, not {row['repeated_frames']}")
    start, stop = row["clip_start_pts"], row["clip_stop_pts"]
    if start >= stop:
        report(f"its clip [{start}, {stop}) is empty")
    elif len(pts) and pts.max() >= stop + _is_finer_than_ticks(row):
        report(f"has a frame at {pts.max()}, after its clip [{start}, {stop})")
    seconds = np.array(row["seconds"], np.float64)
    if (np.diff(seconds) < 0).any():
        report("seconds decrease")
    if (np.diff(seconds) == 0).any() and not row["repeated_frames"]:
        report("seconds stand still, though no frame is repeated")
    time_base = Fraction(row["time_base"])
    if len(seconds) != row["grid_thw"][0]:
        report(f"has {len(seconds)} seconds for {row['grid_thw'][0]} grid rows")
        return
    starts = lattice.row_starts(len(seconds), tubelet_size=row["tubelet_size"])[:-1]
    firsts = pts[starts[starts < len(pts)]]
    if row["seconds"] != [float(int(first) * time_base) for first in firsts]:
        report("seconds are not frame_pts x time_base of each grid row's first frame")


def _is_finer_than_ticks(row: Row) -> bool:
    """Whether there are more samples than ticks, so that samples on both sides of a cut can have
    the tick of the cut: borders are rounded down to ticks."""
    fps = row["sampled_fps"]
    return fps is not None and bool(Fraction(fps) * Fraction(row["time_base"]) > 1)


def _check_settings(row: Row, report: Report, origin: Origin) -> None:
    """Its identity, and what the settings say of every segment, as far as they are at hand."""
    settings = origin.settings
    if not SEGMENT_ID.fullmatch(row["segment_id"]):
        report(f"segment_id {row['segment_id']!r} is not 32 hex digits")
    elif origin.token_fingerprint is not None:
        expected = origin.segment_id(
            row, start_pts=row["clip_start_pts"], stop_pts=row["clip_stop_pts"]
        )
        if row["segment_id"] != expected:
            report(f"segment_id {row['segment_id']} is not that of its source and times")
    for key in ("layout", "order", "tail", "halo"):
        if key in settings and settings[key] != row[key]:
            report(f"{key} is {row[key]!r}, the settings say {settings[key]!r}")
    patch = "x".join(map(str, (row["tubelet_size"], *row["patch_size"])))
    if "patch" in settings and patch not in str(settings["patch"]).split(","):
        report(f"patch is {patch!r}, the settings say {settings['patch']!r}")
    if row["damaged_frames"] and not settings.get("allow_corrupt", True):
        report(f"has {row['damaged_frames']} damaged frames, the settings allow none")
    # The word alone: what was drawn stands in the plan.
    asked = str(settings.get("drop", row["drop"])).replace(":", " ")
    if asked.split(" ")[0] != str(row["drop"]).split(" ")[0]:
        report(f"drop is {row['drop']!r}, the settings say {settings['drop']!r}")


DROPS: dict[str, Callable[[str], Drawn]] = {
    "random": lambda value: DrawnRate(((1, Fraction(value)),)),
    "tokens": lambda value: DrawnTokens(int(value)),
    "static": lambda value: DrawnStatic(Fraction(value)),
}
"""What was drawn, by the first word of the column `drop`, from the rest of it."""


def read_drop(text: str) -> Drawn:
    """The column `drop` of a segment: ``random 0.4873``, ``tokens 256`` or ``static 0.1``.

    Raises:
        ValueError: anything else.
    """
    word, _, value = text.partition(" ")
    if word not in DROPS or not re.fullmatch(NUMBER, value):
        raise ValueError(f"{text!r} is not random RATE, tokens N or static THRESHOLD")
    try:
        drawn = DROPS[word](value)
    except ZeroDivisionError:
        raise ValueError(f"{text!r} divides by 0") from None
    if str(drawn) != text or (isinstance(drawn, DrawnRate) and drawn.rate(1) >= 1):
        raise ValueError(f"{text!r} is not as such values are written")
    return drawn
