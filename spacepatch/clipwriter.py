"""Put the frames of one clip into tokens as they come, a grid row after the other."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from spacepatch.data import ClipSpec, EncoderFacts, Picture
from spacepatch.decode.opening import MAX_PIXELS
from spacepatch.latents.encoders import EncoderSettings
from spacepatch.rowdrops import dropper_of
from spacepatch.token_dtypes import storage_of
from spacepatch.tubelets import cell_order, token_width, write_frame


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
    encoder: EncoderSettings | None = None
    facts: EncoderFacts | None = None
    """Of the encoder, as planned; None: pixels are cut."""
    pixel_tubelet: tuple[int, int, int] | None = None
    """(frames, height, width) of the pixel tokens that are stored beside those of an encoder."""

    @property
    def channels(self) -> int:
        """Of a cell: of a pixel, or of a latent."""
        if self.facts is not None:
            return self.facts.channels
        return 4 if self.alpha else 3

    @property
    def storage(self) -> str:
        """dtype of tokens in memory."""
        return storage_of(self.token_dtype)

    def num_bytes(self, clip: ClipSpec) -> int:
        """Of the tokens of a clip, those of its pixels not counted."""
        return clip.num_kept * self.width_of(clip) * np.dtype(self.storage).itemsize

    def width_of(self, clip: ClipSpec) -> int:
        """Values in a token of a clip."""
        return token_width(clip.tubelet_size, clip.patch_size, self.channels, self.halo)


class ClipLoss(NamedTuple):
    """What a clip lost in its job."""

    reason: str
    num_frames: int
    num_tokens: int
    message: str
    stage: str = "decode"


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
    losses: tuple[ClipLoss, ...]
    damaged: np.ndarray = field(default_factory=lambda: np.empty(0, np.int32))
    """(n,) int32: the samples whose frames are flagged, and kept all the same."""
    decoder: str = ""
    """Which one read it; two, where the first could not read on."""
    num_pixel_tokens: int = 0
    """Of the pixel tokens beside those of an encoder, all of their grid."""


class ClipWriter:
    """Puts the frames of one clip into tokens as they come, a grid row after the other."""

    def __init__(
        self, clip: ClipSpec, tokens: np.ndarray, settings: TokenSettings, *, clip_id: str
    ) -> None:
        """Fill ``(num_kept, D)`` `tokens`; `clip_id` keys what is dropped at random."""
        self.clip, self.tokens, self._settings = clip, tokens, settings
        self.cells = clip.cells
        self._starts: list[int] = clip.row_starts.tolist()
        """The sample that each row begins with, and where the last one ends."""
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
        """Samples that are flagged or missing: their rows are lost."""
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
            self._bad.add(self._next)
            self._advance()
        while self._next < len(self._samples) and self._samples[self._next] == picture.index:
            if picture.is_corrupt and self._settings.allow_corrupt:
                self._damaged.append(self._next)
            elif picture.is_corrupt:
                self._bad.add(self._next)
            self._put(frame, self._next)
            self._advance()

    def stop(self, reason: str, message: str) -> None:
        """No more pictures will come, and why."""
        self._reason = self._reason or (reason, message)

    def finish(self) -> ClipTokens:
        """Settle the last row by the tail policy, and account for every selected frame."""
        losses: list[ClipLoss] = []
        count = self._next
        grid_t = self._account_for_end(count, losses)
        padded = self._starts[grid_t] - count
        if padded > 0:
            assert self._frame is not None, "a row was begun"
            is_repeated = self._settings.tail == "repeat"
            last = self._frame if is_repeated else np.zeros_like(self._frame)
            for sample in range(count, self._starts[grid_t]):
                self._put(last, sample)
            self._end_row(grid_t - 1)
        self._account_for_rows(grid_t, count, losses)
        return self._result(grid_t, count, losses)

    def finish_as_planned(self) -> ClipTokens:
        """What the clip would give if all of its frames came: without a picture, and no tokens.

        Of static tubelets, which are found in pictures, nobody can say."""
        losses: list[ClipLoss] = []
        self._next = len(self._samples)
        grid_t = self._account_for_end(self._next, losses)
        nothing = np.empty(0)
        for row in range(grid_t):
            self._rows.append(row)
            if self._dropper is None:
                self._filled += self.cells
                continue
            keep = self._dropper.keep(row, nothing, nothing)[self._order]
            self._filled += int(keep.sum())
            self._kept.append((row * self.cells + self._order[keep]).astype(np.uint32))
        return self._result(grid_t, self._next, losses)

    def _account_for_end(self, count: int, losses: list[ClipLoss]) -> int:
        """What the end of the clip loses, of which `count` samples can be used; the grid rows that
        they fill."""
        clip, planned = self.clip, len(self._samples)

        def rows_of(num_frames: int) -> int:
            return clip.lattice.num_rows(
                num_frames, tubelet_size=clip.tubelet_size, tail=self._settings.tail
            )

        came, grid_t = rows_of(self._next), rows_of(count)
        if self._next < planned:
            default = ("truncated", "the pictures end before the plan does")
            if self._next == 0:
                default = ("fewer_frames_than_planned", "no planned picture could be decoded")
            reason, message = self._reason or default
            lost = self._planned_in(range(came, clip.grid_thw[0]))
            losses.append(ClipLoss(reason, planned - self._next, lost, message))
        if count < self._next:
            message = (
                "a frame is damaged or missing: the clip ends before it, as what the encoder made "
                "of later ones would show it"
            )
            lost = self._planned_in(range(grid_t, came))
            losses.append(ClipLoss("corrupt_frames", self._next - count, lost, message))
        if self._starts[grid_t] < count:
            over = count - self._starts[grid_t]
            reason, _, message = clip.lattice.unfilled(over, tubelet_size=clip.tubelet_size)
            stage = "encode" if clip.lattice.has_encoder else "decode"
            losses.append(ClipLoss(reason, over, 0, message, stage))
        return grid_t

    def _account_for_rows(self, grid_t: int, count: int, losses: list[ClipLoss]) -> None:
        """What is lost of the rows before the end."""
        bad = sorted({row for row in map(self._row_of, self._bad) if row < grid_t})
        if bad:
            message = "frames that are damaged or missing; their grid rows are dropped"
            losses.append(self._loss_of("corrupt_frames", bad, count, message))

    def _loss_of(
        self, reason: str, rows: list[int], count: int, message: str, stage: str = "decode"
    ) -> ClipLoss:
        frames = sum(
            min(self._starts[row + 1], count) - min(self._starts[row], count) for row in rows
        )
        return ClipLoss(reason, frames, self._planned_in(rows), message, stage)

    def _result(self, grid_t: int, count: int, losses: list[ClipLoss]) -> ClipTokens:
        if self._best is not None and not self._filled:
            # All that was to be kept was in the lost rows: another token is, in its place.
            _, place, self.tokens[0] = self._best
            self._kept, self._filled = [np.array([place], np.uint32)], 1
            spared = next(n for n, loss in enumerate(losses) if loss.num_tokens)
            losses[spared] = losses[spared]._replace(num_tokens=losses[spared].num_tokens - 1)
        kept, lengths = None, None
        if self._dropper is not None:
            kept = np.concatenate([np.empty(0, np.uint32), *self._kept])
            lengths = self._dropper.run_lengths(grid_t)
        covered = min(count, self._starts[grid_t])
        rows = set(self._rows)
        return ClipTokens(
            grid_t=grid_t if self._rows else 0,
            rows=np.array(self._rows, np.int32),
            num_kept=self._filled,
            kept=kept,
            run_lengths=None if kept is None or lengths is None else lengths[kept],
            num_frames=covered,
            padded_frames=max(0, self._starts[grid_t] - count),
            losses=tuple(losses),
            decoder=", ".join(self._decoders),
            damaged=np.array(
                [k for k in self._damaged if k < covered and self._row_of(k) in rows], np.int32
            ),
        )

    def _is_bad(self, row: int) -> bool:
        return any(sample in self._bad for sample in range(*self._starts[row : row + 2]))

    def _row_of(self, sample: int) -> int:
        """The row that a sample lies in; past the last whole one, their number."""
        return bisect_right(self._starts, sample) - 1

    def _planned_in(self, rows: range | list[int]) -> int:
        """Tokens that were to be kept of some rows; of static tubelets, at most."""
        if self._dropper is not None:
            return sum(self._dropper.planned_in(row) for row in rows)
        return len(rows) * self.cells

    def _advance(self) -> None:
        self._next += 1
        row = self._row_of(self._next - 1)
        if row < self.clip.grid_thw[0] and self._next == self._starts[row + 1]:
            self._end_row(row)

    def _end_row(self, row: int) -> None:
        # A bad row's place is taken by the next one: tokens lie one after the other.
        if self._is_bad(row):
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
        row = self._row_of(sample)
        if row >= self.clip.grid_thw[0]:
            # Frames past the last whole tubelet, which `tail="drop"` does not keep.
            return
        self._write(frame, row, sample - self._starts[row])

    def _write(self, cells: np.ndarray, row: int, index_in_tubelet: int) -> None:
        """Put the cells of one frame, or of one latent, into the tokens of its row."""
        self._frame = cells
        if index_in_tubelet == 0:
            self._first = cells
        place = self._row
        if place is None:
            place = self.tokens[self._filled : self._filled + self.cells]
        write_frame(
            cells,
            place,
            index_in_tubelet=index_in_tubelet,
            tubelet_size=self.clip.tubelet_size,
            patch_size=self.clip.patch_size,
            layout=self._settings.layout,
            merge=self._settings.merge,
            halo=self._settings.halo,
        )
