"""Drop tokens of a clip row by row, as its frames come."""

from __future__ import annotations

from fractions import Fraction
from typing import Protocol

import numpy as np

from spacepatch.data import ClipSpec
from spacepatch.drop import MAX_RUN, changed_tokens, run_lengths
from spacepatch.randomness import Draws


class Dropper(Protocol):
    """Decides on one grid row after the other, in order of time; damaged rows are passed over."""

    def planned_in(self, row: int) -> int:
        """Tokens of a row that were to be kept; of static tubelets, at most."""
        ...

    def keep(self, row: int, first: np.ndarray, last: np.ndarray) -> np.ndarray:
        """``(cells,)`` bool in raster order, from the first and last frame of a row."""
        ...

    def run_lengths(self, num_rows: int) -> np.ndarray | None:
        """``(num_rows * cells,)`` uint16 in raster order: tubelets that each kept token stands for;
        None where tokens stand for themselves alone."""
        ...

    def rank(self, row: int) -> np.ndarray | None:
        """``(cells,)`` in raster order: which token is kept where no other could be, the lowest
        first; None where a row is never without a token."""
        ...


class RandomDropper:
    """Keeps what was drawn beforehand over the whole grid, without replacement: `keep_random`."""

    def __init__(self, clip: ClipSpec, draws: Draws) -> None:
        ranks = np.empty(clip.num_tokens, np.int64)
        ranks[draws.order(clip.num_tokens)] = np.arange(clip.num_tokens)
        self._ranks: np.ndarray = ranks.reshape(clip.grid_thw[0], clip.cells)
        self._num_kept = clip.num_kept

    def planned_in(self, row: int) -> int:
        return int(np.count_nonzero(self._ranks[row] < self._num_kept))

    def keep(self, row: int, first: np.ndarray, last: np.ndarray) -> np.ndarray:
        return np.asarray(self._ranks[row] < self._num_kept)

    def run_lengths(self, num_rows: int) -> None:
        return None

    def rank(self, row: int) -> np.ndarray:
        return np.asarray(self._ranks[row])


class StaticDropper:
    """Keeps what has changed since the row before: `keep_static`."""

    def __init__(self, clip: ClipSpec, threshold: Fraction) -> None:
        self._cells, self._patch_size, self._threshold = clip.cells, clip.patch_size, threshold
        self._kept: dict[int, np.ndarray] = {}
        self._before: tuple[int, np.ndarray] | None = None
        """The last row and its first frame."""
        self._since = 0
        """Rows since all tokens were kept."""

    def planned_in(self, row: int) -> int:
        return self._cells

    def keep(self, row: int, first: np.ndarray, last: np.ndarray) -> np.ndarray:
        before, self._before = self._before, (row, first)
        # After a row that is lost, nothing is known to be unchanged; and runs end at 16 bits.
        if before is None or before[0] != row - 1 or self._since == MAX_RUN:
            self._since = 1
            self._kept[row] = np.ones(self._cells, bool)
        else:
            self._since += 1
            self._kept[row] = changed_tokens(
                before[1], last, patch_size=self._patch_size, threshold=self._threshold
            )
        return self._kept[row]

    def run_lengths(self, num_rows: int) -> np.ndarray:
        keep, present = np.zeros((num_rows, self._cells), bool), np.zeros(num_rows, bool)
        for row, kept in self._kept.items():
            keep[row], present[row] = kept, True
        lengths = np.zeros((num_rows, self._cells), np.uint16)
        lengths[keep] = run_lengths(keep, present)
        return lengths.reshape(-1)

    def rank(self, row: int) -> None:
        return None


def dropper_of(clip: ClipSpec, threshold: Fraction | None, clip_id: str) -> Dropper | None:
    """What drops tokens of a clip; None: nothing does.

    Args:
        threshold: of static tubelets; None: tokens are dropped at random.
        clip_id: keys the draws.
    """
    if clip.drop is None:
        return None
    if threshold is not None:
        return StaticDropper(clip, threshold)
    return RandomDropper(clip, Draws(clip_id, "keep"))
