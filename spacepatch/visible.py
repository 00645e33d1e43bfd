"""Choose what a masked-prediction model sees of a clip; the tokens that it must predict are stored
as well, so a mask drops nothing."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from spacepatch.distributions import NUMBER, read_number, write_number
from spacepatch.drop import keep_random
from spacepatch.randomness import Draws

_BLOCKS = {"multi-block": (8, 0.15), "multi-block:long": (2, 0.7)}
"""How many blocks hide a clip, and the share of a frame that each covers."""
_ASPECTS = (0.75, 1.5)
"""Least and greatest height of a block for its width."""


@dataclass(frozen=True, slots=True)
class RandomMask:
    """Tokens anywhere in the clip are hidden; int(L (1 - r)) of its L tokens stay visible.

    Source: MAE (arXiv 2111.06377), `random_masking`. 196 tokens at 0.75 leave 49.
    """

    rate: Fraction

    def __str__(self) -> str:
        return f"random:{write_number(self.rate)}"

    def num_visible(self, grid_thw: tuple[int, int, int]) -> int:
        return max(1, int(math.prod(grid_thw) * (1 - float(self.rate))))

    def visible(self, grid_thw: tuple[int, int, int], draws: Draws) -> np.ndarray:
        return _at_random(math.prod(grid_thw), self.num_visible(grid_thw), draws)


@dataclass(frozen=True, slots=True)
class TubeMask:
    """The same places are hidden in every frame: int(r L) of the L tokens of a grid row.

    Source: VideoMAE (arXiv 2203.12602), `TubeMaskingGenerator`. 196 a row at 0.9 leave 20.
    """

    rate: Fraction

    def __str__(self) -> str:
        return f"tube:{write_number(self.rate)}"

    def num_visible(self, grid_thw: tuple[int, int, int]) -> int:
        num_cells = grid_thw[1] * grid_thw[2]
        return grid_thw[0] * (num_cells - int(float(self.rate) * num_cells))

    def visible(self, grid_thw: tuple[int, int, int], draws: Draws) -> np.ndarray:
        num_rows, num_cells = grid_thw[0], grid_thw[1] * grid_thw[2]
        seen = _at_random(num_cells, self.num_visible(grid_thw) // num_rows, draws)
        return np.tile(seen, num_rows)


@dataclass(frozen=True, slots=True)
class BlockMask:
    """Blocks through all frames are hidden; what none of them covers stays visible.

    The blocks of a clip have one size, of a drawn aspect ratio, and drawn places, as
    `_MaskGenerator` of V-JEPA (arXiv 2404.08471; facebookresearch/vjepa2, src/masks) makes them
    with its training settings. It trains with both kinds: 8 short-range blocks that each cover 15 %
    of a frame (`multi-block`) and 2 long-range ones of 70 % (`multi-block:long`). V-JEPA draws one
    size a batch and cuts the visible tokens of a batch to equal numbers; here each clip is drawn
    for itself and nothing is cut. A grid too small for a block of one cell has no block.
    """

    word: str

    def __str__(self) -> str:
        return self.word

    def visible(self, grid_thw: tuple[int, int, int], draws: Draws) -> np.ndarray:
        num_rows, grid_h, grid_w = grid_thw
        num_blocks, share = _BLOCKS[self.word]
        area = int(grid_h * grid_w * share)
        aspect = _ASPECTS[0] + draws.uniform() * (_ASPECTS[1] - _ASPECTS[0])
        height = min(round(math.sqrt(area * aspect)), grid_h)
        width = min(round(math.sqrt(area / aspect)), grid_w)
        seen = np.zeros((grid_h, grid_w), bool)
        # Again where the blocks cover all. One block never does, so that it comes to an end.
        while not seen.any():
            seen[:] = True
            for _ in range(num_blocks):
                top, left = draws.integer(grid_h - height + 1), draws.integer(grid_w - width + 1)
                seen[top : top + height, left : left + width] = False
        return np.tile(seen.ravel(), num_rows)


Mask = RandomMask | TubeMask | BlockMask
"""`visible(grid_thw, draws) -> (T * H * W,) bool` in raster order, True where the encoder sees the
token, which is so for at least one; and `str()`, one spelling for all that mean the same."""


def parse_mask(text: str) -> Mask:
    """``random:R``, ``tube:R``, where 0 <= R < 1, ``multi-block`` or ``multi-block:long``.

    Raises:
        ValueError: anything else.
    """
    word, _, rest = text.strip().partition(":")
    if text.strip() in _BLOCKS:
        return BlockMask(text.strip())
    if word not in MASKS or not re.fullmatch(NUMBER, rest):
        raise ValueError(f"{text!r} is none of random:R, tube:R, multi-block and multi-block:long")
    rate = read_number(rest, text)
    if rate >= 1:
        raise ValueError(f"{text!r}: R is below 1, or no token would be visible")
    return MASKS[word](rate)


MASKS: dict[str, Callable[[Fraction], RandomMask | TubeMask]] = {
    "random": RandomMask,
    "tube": TubeMask,
}
"""The masks that hide a share of the tokens."""


def _at_random(num_tokens: int, num_visible: int, draws: Draws) -> np.ndarray:
    """``(num_tokens,)`` bool."""
    seen = np.zeros(num_tokens, bool)
    seen[keep_random(num_tokens, num_visible, draws=draws)] = True
    return seen
