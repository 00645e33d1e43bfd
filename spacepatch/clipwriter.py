"""Put the frames of one clip into tokens as they come, a grid row after the other."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np

from spacepatch.data import ClipSpec, Picture
from spacepatch.decode.opening import MAX_PIXELS
from spacepatch.rowdrops import dropper_of
from spacepatch.tubelets import cell_order, grid_shape, token_width, write_frame


@dataclass(frozen=True, slots=True)
class TokenSettings:
    """What makes tokens out of pictures: plain values, so that a worker needs no config."""

    layout: str
    tail: str
    resampler: str
    merge: int = 1
    halo: int = 0
    decoder: str = "pyav"
    trust_input: bool = False
    max_pixels: int = MAX_PIXELS
    interlaced: str = "deinterlace"
    untagged: str = "bt601"
    hdr: str = "tonemap"
    background: tuple[int, int, int] = (0, 0, 0)
    alpha: bool = False
    allow_corrupt: bool = False
    static_threshold: Fraction | None = None
    """Of run-length tokenization; None: static tubelets stay."""
    token_dtype: str = "uint8"

    def width_of(self, clip: ClipSpec) -> int:
        """Values in a token of a clip."""
        return token_width(clip.tubelet_size, clip.patch_size, 4 if self.alpha else 3, self.halo)


@dataclass(frozen=True, slots=True)
class ClipTokens:
    """What became of one clip."""

    grid_t: int
    """Rows that its frames fill, kept or not; 0: nothing of it could be had."""
    rows: np.ndarray
    """(R,) int32: the rows of which every frame is there."""
    num_kept: int
    """Tokens that lie in the arena, one after the other."""
    kept: np.ndarray | None
    """(num_kept,) uint32: raster index of each in the clip's grid; None: all of `rows`."""
    run_lengths: np.ndarray | None
    """(num_kept,) uint16: tubelets that each stands for, where static ones are dropped."""
    num_frames: int
    """Selected frames that the rows cover, kept or not."""
    padded_frames: int
    losses: tuple[tuple[str, int, int, str], ...]
    """(reason, frames, tokens, message), all of stage decode."""
    damaged: np.ndarray = field(default_factory=lambda: np.empty(0, np.int32))
    """(n,) int32: the samples whose frames are flagged, and kept all the same."""
    decoder: str = ""
    """Which one read it; two, where the first could not read on."""


class ClipWriter:
    """Puts the frames of one clip into tokens as they come, a grid row after the other."""

    def __init__(
        self, clip: ClipSpec, tokens: np.ndarray, settings: TokenSettings, *, clip_id: str
    ) -> None:
        """Fill ``(num_kept, D)`` `tokens`; `clip_id` keys what is dropped at random."""
        self.clip, self.tokens, self._settings = clip, tokens, settings
        self._size, self.cells = clip.tubelet_size, clip.cells
        self._order = cell_order(*clip.grid_thw[1:], merge=settings.merge)
        self._samples = clip.frame_indices
        self._next = 0
        """The first sample that no picture has filled or passed."""
        self._rows: list[int] = []
        self._filled = 0
        """Tokens that lie in `tokens`."""
        self._dropper = dropper_of(clip, settings.static_threshold, clip_id)
        self._row = (
            np.empty((self.cells, tokens.shape[1]), tokens.dtype)
            if self._dropper is not None
            else None
        )
        self._kept: list[np.ndarray] = []
        """Raster indices of what is kept of each row, in the order that it is stored in."""
        self._best: tuple[int, int, np.ndarray] | None = None
        """(rank, raster index, token) of the best that is not kept, while none is."""
        self._bad: set[int] = set()
        """Rows that a flagged or missing frame touches."""
        self._decoders: list[str] = []
        self._damaged: list[int] = []
        """Samples whose frames are flagged, and kept."""
        self._frame: np.ndarray | None = None
        self._first: np.ndarray | None = None
        """The first frame of the row that is being filled."""
        self._reason: tuple[str, str] | None = None

    def add(self, picture: Picture, frame: np.ndarray, decoder: str) -> None:
        """Fill the samples that take this picture; samples passed over had none."""
        if decoder not in self._decoders:
            self._decoders.append(decoder)
        while self._next < len(self._samples) and self._samples[self._next] < picture.index:
            self._bad.add(self._next // self._size)
            self._advance()
        while self._next < len(self._samples) and self._samples[self._next] == picture.index:
            if picture.is_corrupt and self._settings.allow_corrupt:
                self._damaged.append(self._next)
            elif picture.is_corrupt:
                self._bad.add(self._next // self._size)
            self._put(frame, self._next)
            self._advance()

    def stop(self, reason: str, message: str) -> None:
        """No more pictures will come, and why."""
        self._reason = self._reason or (reason, message)

    def finish(self) -> ClipTokens:
        """Settle the last row by the tail policy, and account for every selected frame."""
        settings, size = self._settings, self._size
        count, planned = self._next, len(self._samples)
        losses: list[tuple[str, int, int, str]] = []
        grid_t = grid_shape(
            count,
            self.clip.size,
            tubelet_size=size,
            patch_size=self.clip.patch_size,
            tail=settings.tail,
        )[0]
        if count < planned:
            default = ("truncated", "the pictures end before the plan does")
            if count == 0:
                default = ("fewer_frames_than_planned", "no planned picture could be decoded")
            reason, message = self._reason or default
            lost = range(grid_t, self.clip.grid_thw[0])
            losses.append((reason, planned - count, self._planned_in(lost), message))
        padded = max(0, grid_t * size - count)
        if padded:
            assert self._frame is not None, "a row was begun"
            last = self._frame if settings.tail == "repeat" else np.zeros_like(self._frame)
            for sample in range(grid_t * size - padded, grid_t * size):
                self._put(last, sample)
            self._end_row(grid_t - 1)
        elif grid_t * size < count:
            dropped = count - grid_t * size
            message = f"{dropped} frames fill no tubelet of {size}"
            losses.append(("tail_dropped", dropped, 0, message))
        covered = min(count, grid_t * size)
        bad = sorted(row for row in self._bad if row < grid_t)
        if bad:
            frames = sum(min(size, covered - row * size) for row in bad)
            message = "frames that are damaged or missing; their grid rows are dropped"
            losses.append(("corrupt_frames", frames, self._planned_in(bad), message))
        if self._best is not None and not self._filled:
            # All that was to be kept was in the lost rows: another token is, in its place.
            _, place, self.tokens[0] = self._best
            self._kept, self._filled = [np.array([place], np.uint32)], 1
            spared = next(n for n, (_, _, tokens, _) in enumerate(losses) if tokens)
            reason, frames, lost_tokens, message = losses[spared]
            losses[spared] = (reason, frames, lost_tokens - 1, message)
        kept, lengths = None, None
        if self._dropper is not None:
            kept = np.concatenate([np.empty(0, np.uint32), *self._kept])
            lengths = self._dropper.run_lengths(grid_t)
        return ClipTokens(
            grid_t=grid_t if self._rows else 0,
            rows=np.array(self._rows, np.int32),
            num_kept=self._filled,
            kept=kept,
            run_lengths=None if kept is None or lengths is None else lengths[kept],
            num_frames=covered,
            padded_frames=padded,
            losses=tuple(losses),
            decoder=", ".join(self._decoders),
            damaged=np.array(
                [k for k in self._damaged if k < covered and k // size not in self._bad], np.int32
            ),
        )

    def _planned_in(self, rows: range | list[int]) -> int:
        """Tokens that were to be kept of some rows; of static tubelets, at most."""
        if self._dropper is not None:
            return sum(self._dropper.planned_in(row) for row in rows)
        return len(rows) * self.cells

    def _advance(self) -> None:
        self._next += 1
        if self._next % self._size == 0:
            self._end_row(self._next // self._size - 1)

    def _end_row(self, row: int) -> None:
        # A bad row's place is taken by the next one: tokens lie one after the other.
        if row in self._bad or row >= self.clip.grid_thw[0]:
            return
        self._rows.append(row)
        if self._dropper is None or self._row is None:
            self._filled += self.cells
            return
        assert self._first is not None and self._frame is not None, "a row has frames"
        keep = self._dropper.keep(row, self._first, self._frame)[self._order]
        chosen = self._row[keep]
        self.tokens[self._filled : self._filled + len(chosen)] = chosen
        self._filled += len(chosen)
        self._kept.append((row * self.cells + self._order[keep]).astype(np.uint32))
        rank = self._dropper.rank(row)
        if rank is not None and not self._filled:
            place = int(np.argmin(rank[self._order]))
            cell = int(self._order[place])
            if self._best is None or rank[cell] < self._best[0]:
                self._best = int(rank[cell]), row * self.cells + cell, self._row[place].copy()

    def _put(self, frame: np.ndarray, sample: int) -> None:
        row, k = divmod(sample, self._size)
        self._frame = frame
        if k == 0:
            self._first = frame
        if row >= self.clip.grid_thw[0]:
            # Frames past the last whole tubelet, which `tail="drop"` does not keep.
            return
        place = self._row
        if place is None:
            place = self.tokens[self._filled : self._filled + self.cells]
        write_frame(
            frame,
            place,
            index_in_tubelet=k,
            tubelet_size=self._size,
            patch_size=self.clip.patch_size,
            layout=self._settings.layout,
            merge=self._settings.merge,
            halo=self._settings.halo,
        )
