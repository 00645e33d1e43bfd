"""What clips are cut on: pixels themselves, or the latents that an encoder makes of them."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from spacepatch.wording import counted

_RULE = re.compile(r"(?P<first>1\s*\+\s*)?(?P<step>[1-9][0-9]*)?\s*k")


@dataclass(frozen=True, slots=True)
class FrameRule:
    """The numbers of frames that an encoder takes: `first` + k `step`.

    Counts in whole frames of pixels only: a rule never mixes them with latents.
    """

    first: int
    """Frames that the first latent covers by itself: 1 (causal video models) or 0 (all alike)."""
    step: int
    """Frames of every other latent."""

    def __post_init__(self) -> None:
        if self.first not in (0, 1):
            raise ValueError(f"first is {self.first}, must be 0 or 1")
        if self.step < 1:
            raise ValueError(f"step is {self.step}, must be at least 1")

    def __str__(self) -> str:
        return f"{'1+' * self.first}{self.step if self.step > 1 else ''}k"

    def fits(self, num_frames: int) -> bool:
        """Whether the encoder takes `num_frames` as they are. No rule takes 0."""
        return num_frames >= 1 and (num_frames - self.first) % self.step == 0

    def num_latents(self, num_frames: int) -> int:
        """How many latents `num_frames` become.

        Raises:
            ValueError: `num_frames` does not fit; `fit` says what to add or to leave.
        """
        if not self.fits(num_frames):
            raise ValueError(f"{num_frames} frames do not fit the rule {self}")
        return self.first + (num_frames - self.first) // self.step

    def num_frames(self, num_latents: int) -> int:
        """How many frames `num_latents` stand for: the inverse of `num_latents`."""
        return num_latents and self.first + (num_latents - self.first) * self.step

    def fit(self, num_frames: int, tail: str) -> tuple[int, int]:
        """Frames to use of `num_frames`, and how often to repeat the last of them after it.

        Args:
            tail: `repeat`: all are used, and repeats fill up to the next number that fits; `drop`:
                the most that fit are used, none where even the smallest number is more.
        """
        if tail not in ("repeat", "drop"):
            raise ValueError(f"tail is {tail!r}, must be repeat or drop: an encoder sees no zeros")
        over = (num_frames - self.first) % self.step
        if num_frames < 1 or over == 0:
            return max(num_frames, 0), 0
        if tail == "repeat":
            return num_frames, self.step - over
        return num_frames - over, 0

    def sources(self, num_frames: int) -> list[tuple[int, int]]:
        """``[start, stop)`` in frames of each latent, in order: a partition of `num_frames`.

        It is what a latent stands for in time; what a model looks at may reach further.

        Raises:
            ValueError: `num_frames` does not fit.
        """
        self.num_latents(num_frames)
        later = range(self.first, num_frames, self.step)
        return [(0, 1)] * self.first + [(start, start + self.step) for start in later]


def parse_rule(text: str) -> FrameRule:
    """Read `1+4k`, `4k`, or `k` (also spelled `any`), as `str` of a rule writes it.

    Raises:
        ValueError: it is none of these.
    """
    words = text.strip()
    if words == "any":
        return FrameRule(0, 1)
    match = _RULE.fullmatch(words)
    if match is None:
        raise ValueError(f"{text!r} is no frame rule, such as 1+4k, 4k or any")
    return FrameRule(int(match["first"] is not None), int(match["step"] or 1))


@dataclass(frozen=True, slots=True)
class Lattice:
    """The cells that tubelets are made of: pixels, or the latents of an encoder.

    `tubelet_size` and `patch_size` count its cells, wherever there is a lattice.
    """

    rule: FrameRule
    stride: tuple[int, int]
    """Rows and columns of pixels of each cell."""
    has_encoder: bool = True

    def num_rows(self, num_frames: int, *, tubelet_size: int, tail: str) -> int:
        """Grid rows of `num_frames` frames; the tail policy fills the last one or leaves it out."""
        if num_frames < 1:
            return 0
        first, step = self.rule.first, self.rule.step
        if tail == "drop":
            return (first + (num_frames - first) // step) // tubelet_size
        latents = first - (first - num_frames) // step
        return -(-latents // tubelet_size)

    def row_starts(self, num_rows: int, *, tubelet_size: int) -> np.ndarray:
        """``(num_rows + 1,)`` int64: the frame that each grid row begins with, and where they end,
        which may be beyond the frames that there are."""
        latents = np.arange(num_rows + 1, dtype=np.int64) * tubelet_size
        starts = self.rule.first + (latents - self.rule.first) * self.rule.step
        return np.maximum(starts, 0)

    def unfilled(self, num_frames: int, *, tubelet_size: int) -> tuple[str, int, str]:
        """(reason, frames, message) of the loss of frames that fill no grid row."""
        if not self.has_encoder:
            return (
                "tail_dropped",
                num_frames,
                f"no tubelet of {tubelet_size} can be filled with {counted(num_frames, 'frame')}",
            )
        message = (
            f"no tubelet of {tubelet_size} latents of {self.rule} frames can be filled with "
            f"{counted(num_frames, 'frame')}"
        )
        return "encoder_trim", num_frames, message

    def grid(
        self,
        num_frames: int,
        size: tuple[int, int],
        *,
        tubelet_size: int,
        patch_size: tuple[int, int],
        tail: str,
    ) -> tuple[int, int, int]:
        """Tubelets in time, height and width of `num_frames` frames of (h, w) pixels."""
        units = self.stride[0] * patch_size[0], self.stride[1] * patch_size[1]
        if size[0] % units[0] or size[1] % units[1]:
            raise ValueError(f"size {size} is no multiple of {units}")
        rows = self.num_rows(num_frames, tubelet_size=tubelet_size, tail=tail)
        return rows, size[0] // units[0], size[1] // units[1]


PIXELS = Lattice(FrameRule(0, 1), (1, 1), has_encoder=False)
"""Without an encoder: a cell is a pixel of one frame."""
