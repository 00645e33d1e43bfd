"""Tokens of a segment as a film, which is what codecs take, and back."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from spacepatch.errors import ShardError
from spacepatch.tubelets import (
    LAYOUTS,
    cells_of_rows,
    change_layout,
    copy_in_words,
    join_tubelets,
)

STRIP = 32
"""Tokens side by side in a picture, where they are taken one by one and not as their frames."""
UNKNOWN = 128
"""Grey, where no token has been up to then."""


@dataclass(frozen=True, slots=True)
class Film:
    """How the tokens of a segment lie in its film.

    Tokens of whole frames, or of more than half of their area, lie where they were cut. Others, and
    those that overlap (a halo), lie side by side, as if cut from pictures of one row of patches.
    """

    grid: tuple[int, int, int]
    """(t, h, w) of the film."""
    token_shape: tuple[int, int, int, int]
    """(c, t, p, q) of a token, with its halo."""
    layout: str
    merge: int
    places: np.ndarray
    """``(n,)`` int64: where each token is in the film's own order, that of `cut_tubelets`."""
    is_whole: bool
    """Whether tokens are those of `cut_tubelets`, all and in its order."""

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """``(T, C, H, W)``."""
        (t, h, w), (channels, frames, p, q) = self.grid, self.token_shape
        return t * frames, channels, h * p, w * q

    @property
    def width(self) -> int:
        """D: values in a token."""
        channels, frames, p, q = self.token_shape
        return channels * frames * p * q

    def draw(self, tokens: np.ndarray) -> np.ndarray:
        """``(T, C, H, W)`` uint8 pictures of ``(n, D)`` tokens; a cell without a token shows on
        what it showed before, which costs codecs least."""
        (t, h, w), (channels, frames, p, q) = self.grid, self.token_shape
        if not self.is_whole:
            whole = np.full((t * h * w, self.width), UNKNOWN, np.uint8)
            moved = self._moved(tokens, self.layout, "c t p q")
            whole[self.places] = moved
            self._fill(whole.reshape(t, h * w, channels, frames, p * q))
        else:
            whole = self._moved(tokens, self.layout, "c t p q")
        # Each colour of each frame as if it were a frame of its own: pictures are planes.
        planes = join_tubelets(
            whole,
            grid_thw=self.grid,
            tubelet_size=channels * frames,
            patch_size=(p, q),
            merge=self.merge,
        )
        by_colour = planes.reshape(t, channels, frames, h * p, w * q)
        return by_colour.transpose(0, 2, 1, 3, 4).reshape(self.shape)

    def cut(self, pictures: Iterable[np.ndarray]) -> np.ndarray:
        """``(n, D)`` tokens of T pictures ``(C, H, W)`` uint8, the inverse of `draw`."""
        (t, h, w), (channels, frames, p, q) = self.grid, self.token_shape
        tokens = np.empty((len(self.places), self.width), np.uint8)
        rows, cells = np.divmod(self.places, h * w)
        order = np.argsort(rows, kind="stable")
        starts = np.searchsorted(rows[order], np.arange(t + 1))
        room = np.empty((h * w, self.width), np.uint8)
        coming = iter(pictures)
        for row in range(t):
            target = tokens[row * h * w : (row + 1) * h * w] if self.is_whole else room
            m = self.merge
            # (h mh) (w mw) c k p q -> c k (h mh p) (w mw q)
            view = target.reshape(h // m, w // m, m, m, channels, frames, p, q)
            for k in range(frames):
                picture = next(coming).reshape(channels, h // m, m, p, w // m, m, q)
                copy_in_words(view[:, :, :, :, :, k], picture.transpose(1, 4, 2, 5, 0, 3, 6))
            if not self.is_whole:
                here = order[starts[row] : starts[row + 1]]
                tokens[here] = target[cells[here]]
        next(coming, None)  # what comes after the last is for the decoder to refuse
        return self._moved(tokens, "c t p q", self.layout)

    def _moved(self, tokens: np.ndarray, before: str, after: str) -> np.ndarray:
        if LAYOUTS[before] == LAYOUTS[after]:
            return tokens
        return change_layout(tokens, token_shape=self.token_shape, before=before, after=after)

    def _fill(self, cells: np.ndarray) -> None:
        """Write into those of ``(t, hw, c, k, pq)`` that have no token."""
        known = np.zeros(len(cells) * cells.shape[1], bool)
        known[self.places] = True
        for before, here, is_known in zip(
            cells[:-1], cells[1:], known.reshape(cells.shape[:2])[1:], strict=True
        ):
            here[~is_known] = before[~is_known][:, :, -1:]


def film_of(
    kept: np.ndarray,
    *,
    grid_thw: tuple[int, int, int],
    tubelet_size: int,
    patch_size: tuple[int, int],
    channels: int,
    halo: int,
    layout: str,
    merge: int,
) -> Film:
    """The film of a segment, which its geometry alone decides.

    Args:
        kept: ``(n,)`` raster indices of its tokens in its grid, no two alike.

    Raises:
        ShardError: an index beyond the grid, or one that comes twice.
    """
    cells = grid_thw[0] * grid_thw[1] * grid_thw[2]
    num = len(kept)
    if num > cells or int(kept.max(initial=0)) >= cells or len(np.unique(kept)) < num:
        raise ShardError(f"its {num} tokens are not each of a cell of the grid {list(grid_thw)}")
    token_shape = (channels, tubelet_size, patch_size[0] + 2 * halo, patch_size[1] + 2 * halo)
    places = np.arange(num, dtype=np.int64)
    if halo or 2 * num < cells:
        wide = max(1, min(num, STRIP))
        tall = max(1, -(-num // wide))
        return Film((tall, 1, wide), token_shape, layout, 1, places, tall * wide == num)
    if merge == 1:
        places = kept.astype(np.int64)
    else:
        order = cells_of_rows(np.arange(grid_thw[0]), *grid_thw[1:], merge=merge)
        place = np.empty(cells, np.int64)
        place[order] = np.arange(cells)
        places = place[kept]
    is_whole = num == cells and bool((places == np.arange(cells)).all())
    return Film(grid_thw, token_shape, layout, merge, places, is_whole)
