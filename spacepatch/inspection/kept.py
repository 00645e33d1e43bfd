"""Check which cells of its grid a segment keeps, in what order, and what is stored of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from spacepatch.data import ClipSpec, Task
from spacepatch.framerules import Lattice
from spacepatch.inspection.findings import Report
from spacepatch.inspection.pixels import PIXELS
from spacepatch.inspection.segments import Origin, Row, read_drop, row_frames
from spacepatch.randomness import Draws
from spacepatch.shards import ShardReceipt
from spacepatch.tubelets import merge_of
from spacepatch.visible import Mask, parse_mask

WHOLE_CLIPS = frozenset({"tail_dropped", "encoder_trim", "nonfinite_latent"})
"""Losses of a clip that is read to its end all the same; `corrupt_frames` too, where a grid row is
lost by itself."""


@dataclass(frozen=True, slots=True)
class KeptRules:
    """What decides which tokens the segments of a shard keep."""

    origin: Origin
    specs: dict[tuple[str, int, int], ClipSpec]
    """By source_id, clip and view, as planned; empty without the plan."""
    cut_short: frozenset[tuple[str, int | None]]
    """(source_id, clip) of clips whose end is lost."""
    mask: Mask | None
    """That is stored; None: there is none, or the settings are not at hand."""

    @classmethod
    def of(cls, origin: Origin, task: Task | None, receipt: ShardReceipt) -> KeptRules:
        specs = {}
        if origin.plan is not None and task is not None:
            for spec in task.clips:
                source_id = origin.plan.sources[spec.source].source.source_id
                specs[source_id, spec.clip, spec.view] = spec
        try:
            mask = parse_mask(str(origin.settings["mask"]))
        except (KeyError, ValueError):
            mask = None
        whole = WHOLE_CLIPS
        if origin.encoder is None or (origin.encoder.is_local and PIXELS not in receipt.members):
            whole = whole | {"corrupt_frames"}
        cut_short = {
            (loss["source_id"], loss.get("clip"))
            for loss in receipt.losses
            if loss.get("reason") not in whole
        }
        return cls(origin, specs, frozenset(cut_short), mask)

    def drawn(self, row: Row) -> tuple[int, int, str] | None:
        """(tokens, kept tokens, clip id) that a segment's tokens were drawn by; None: not known.

        Tokens are drawn of the clip as planned, of which the end may be missing.
        """
        origin = self.origin
        spec = self.specs.get((row["source_id"], row["clip"], row["view"]))
        if spec is not None and origin.token_fingerprint is not None:
            identity = origin.segment_id(row, start_pts=spec.start_pts, stop_pts=spec.stop_pts)
            return spec.num_tokens, spec.num_kept, identity
        if origin.plan is not None or (row["source_id"], row["clip"]) in self.cut_short:
            return None
        num_tokens = row["num_tokens"]
        return num_tokens, read_drop(row["drop"]).num_kept(num_tokens), row["segment_id"]


def check_kept(
    arrays: dict[str, np.ndarray],
    rows: Sequence[Row],
    *,
    rules: KeptRules,
    at: Callable[[int], Report],
) -> None:
    """Report where the members of a pack disagree with what its segments were to keep.

    Args:
        arrays: the npy members that are as declared.
    """
    name = "positions.npy" if "positions.npy" in arrays else "kept.npy"
    if name not in arrays:
        return
    lattice = rules.origin.lattice
    for place, row in enumerate(rows):
        report = at(place)
        span = slice(row["offset"], row["offset"] + row["num_kept"])
        cells = _raster_of(arrays[name][span].astype(np.int64), row["grid_thw"])
        if cells is None:
            report(f"{name} lies outside the grid {tuple(row['grid_thw'])}")
            continue
        if (np.diff(_stored_places(cells, row)) <= 0).any():
            report(f"{name} is not in {row['order']} order (t, then h, then w)")
            continue
        # In order: without repeats, too.
        if "run_lengths.npy" in arrays:
            lengths = arrays["run_lengths.npy"][span].astype(np.int64)
            _check_runs(cells, lengths, row, lattice, report)
        elif row["drop"] is None:
            _check_whole_rows(name, cells, row, lattice, report)
        elif read_drop(row["drop"]).is_bound:
            report("its static tokens are dropped, and it has no run_lengths.npy")
        else:
            _check_drawn(name, cells, row, rules.drawn(row), lattice, report)
        if "visible.npy" in arrays:
            _check_visible(arrays["visible.npy"][span], cells, row, rules, report)


def _raster_of(cells: np.ndarray, grid: Sequence[int]) -> np.ndarray | None:
    """``(n,)`` raster indices of positions or of raster indices; None: some are not in the grid."""
    grid_t, grid_h, grid_w = grid
    bounds = np.array(grid) if cells.ndim == 2 else grid_t * grid_h * grid_w
    if (cells < 0).any() or (cells >= bounds).any():
        return None
    if cells.ndim == 2:
        cells = (cells[:, 0] * grid_h + cells[:, 1]) * grid_w + cells[:, 2]
    return np.asarray(cells)


def _stored_places(cells: np.ndarray, row: Row) -> np.ndarray:
    """Where each cell would lie if all were stored: a row of the grid after the other, in blocks of
    merge x merge cells."""
    merge, (_, grid_h, grid_w) = merge_of(row["order"]), row["grid_thw"]
    t, cell = np.divmod(cells, grid_h * grid_w)
    h, w = np.divmod(cell, grid_w)
    block = h // merge * (grid_w // merge) + w // merge
    inner = h % merge * merge + w % merge
    return np.asarray(t * (grid_h * grid_w) + block * merge * merge + inner)


def _frames_of(first: np.ndarray, last: np.ndarray, row: Row, lattice: Lattice) -> np.ndarray:
    """Frames in grid rows [first, last): the first and the last row of a clip may have fewer than
    others."""
    rule, num_frames = lattice.rule, len(row["frame_pts"])

    def start_of(rows: np.ndarray) -> np.ndarray:
        # As of `Lattice.row_starts`, whose array of all rows a spoiled grid may make too large.
        latents = rows.astype(np.int64) * row["tubelet_size"]
        starts = np.maximum(rule.first + (latents - rule.first) * rule.step, 0)
        return np.asarray(np.minimum(starts, num_frames))

    return np.asarray(start_of(last) - start_of(first))


def _check_frames(frames: int, row: Row, report: Report) -> None:
    if frames != row["valid_frames"]:
        report(f"its grid rows hold {frames} frames, valid_frames says {row['valid_frames']}")


def _check_whole_rows(
    name: str, cells: np.ndarray, row: Row, lattice: Lattice, report: Report
) -> None:
    """Nothing was dropped: a grid row is there as a whole, or lost with its frames."""
    _, grid_h, grid_w = row["grid_thw"]
    kept_rows = np.unique(cells // (grid_h * grid_w))
    if len(kept_rows) * grid_h * grid_w != len(cells):
        report(f"{name} keeps parts of grid rows, though nothing was dropped")
        return
    _check_frames(int(_frames_of(kept_rows, kept_rows + 1, row, lattice).sum()), row, report)


def _check_runs(
    cells: np.ndarray, lengths: np.ndarray, row: Row, lattice: Lattice, report: Report
) -> None:
    """The runs of every cell cover the same grid rows, each of them once: those that are there.

    So a run ends at the next kept token of its cell, at a row that is absent or at the end, and of
    the first row, and of one after an absent row, every token is kept.
    """
    name, (grid_t, grid_h, grid_w) = "run_lengths.npy", row["grid_thw"]
    starts, columns = np.divmod(cells, grid_h * grid_w)
    stops = starts + lengths
    if (lengths < 1).any():
        report(f"{name} has runs of no tubelet")
        return
    if (stops > grid_t).any():
        report(f"{name} has runs beyond the {grid_t} grid rows")
        return
    order = np.lexsort((starts, columns))
    starts, stops, columns = starts[order], stops[order], columns[order]
    is_same = columns[1:] == columns[:-1]
    if (is_same & (starts[1:] < stops[:-1])).any():
        report(f"{name} has runs that go beyond the next kept token of their cell")
        return
    breaks = ~is_same | (starts[1:] != stops[:-1])
    begins, ends = np.concatenate([[True], breaks]), np.concatenate([breaks, [True]])
    num_cells, num_stretches = grid_h * grid_w, int(np.count_nonzero(columns[begins] == 0))
    stretches = np.stack([starts[begins], stops[ends]], axis=1)
    if (
        len(stretches) != num_cells * num_stretches
        or (stretches.reshape(num_cells, num_stretches, 2) != stretches[:num_stretches]).any()
    ):
        report(f"{name}: the runs of its cells do not cover the same grid rows")
        return
    first, last = stretches[:num_stretches].T
    _check_frames(int(_frames_of(first, last, row, lattice).sum()), row, report)


def _check_drawn(
    name: str,
    cells: np.ndarray,
    row: Row,
    drawn: tuple[int, int, str] | None,
    lattice: Lattice,
    report: Report,
) -> None:
    """Tokens dropped at random: of a grid row those that were drawn, or none where it is lost."""
    grid_t, grid_h, grid_w = row["grid_thw"]
    num_cells = grid_h * grid_w
    if drawn is None or drawn[0] < grid_t * num_cells or drawn[0] % num_cells:
        return  # the table has another grid than the plan, which is reported there
    num_tokens, num_kept, key = drawn
    ranks = np.empty(num_tokens, np.int64)
    ranks[Draws(key, "keep").order(num_tokens)] = np.arange(num_tokens)
    ranks = ranks.reshape(-1, num_cells)[:grid_t]
    kept = np.zeros(grid_t * num_cells, bool)
    kept[cells] = True
    kept = kept.reshape(ranks.shape)
    is_there, expected = kept.any(axis=1), ranks < num_kept
    if len(cells) == 1 and not (kept & expected).any():
        # All that were drawn are lost: the best of the rows that are there stays in their place.
        is_lost = (ranks < ranks[kept]).any(axis=1)
        is_right = not (is_lost & is_there).any()
    else:
        is_lost = expected.any(axis=1) & ~is_there
        is_right = np.array_equal(kept[is_there], expected[is_there])
    if not is_right:
        report(f"{name} is not what was drawn of its {num_tokens} tokens")
        return
    each_row = np.arange(grid_t)
    frames = _frames_of(each_row, each_row + 1, row, lattice)
    rest = len(row["frame_pts"]) - row["valid_frames"] - int(frames[is_lost].sum())
    # Rows of which nothing was drawn may be there or lost.
    unknown, most = frames[~is_lost & ~is_there], row_frames(row, lattice)
    whole, sums = np.count_nonzero(unknown == most), {0}
    for part in unknown[unknown < most].tolist():
        sums |= {total + part for total in sums}
    if not any(
        rest >= total and (rest - total) % most == 0 and (rest - total) // most <= whole
        for total in sums
    ):
        _check_frames(int(frames[~is_lost].sum()), row, report)


def _check_visible(
    visible: np.ndarray, cells: np.ndarray, row: Row, rules: KeptRules, report: Report
) -> None:
    if (visible > 1).any():
        report("visible.npy has values other than 0 and 1")
    elif rules.mask is not None:
        seed = rules.origin.settings.get("seed", 0)
        mask = rules.mask.visible(tuple(row["grid_thw"]), Draws(seed, row["segment_id"], "mask"))
        if not np.array_equal(visible, mask[cells]):
            report(f"visible.npy is not the mask {rules.mask} of its segment_id")
