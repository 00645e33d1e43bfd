"""Put the latents or codes of one clip into tokens: gather its frames, encode, cut."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import replace

import numpy as np

from spacepatch.clipwriter import ClipLoss, ClipTokens, ClipWriter, TokenSettings
from spacepatch.data import ClipSpec, Picture
from spacepatch.encoding import ClipEncoder, beating
from spacepatch.errors import SourceError
from spacepatch.framerules import PIXELS
from spacepatch.latents.encoders import MAX_LATENT
from spacepatch.stages import stage
from spacepatch.token_dtypes import to_stored
from spacepatch.tubelets import cut_tubelets

SPARE_BYTES = 64 << 20
"""Memory that the frames of a clip leave free."""


class LatentWriter(ClipWriter):
    """A `ClipWriter` whose cells are those of an encoder, which needs the whole clip.

    The frames lie in memory until the last one is there: a clip fits a pack, and is encoded at
    once.
    """

    def __init__(
        self,
        clip: ClipSpec,
        tokens: np.ndarray,
        settings: TokenSettings,
        *,
        clip_id: str,
        encoder: ClipEncoder,
        pixels: np.ndarray | None = None,
    ) -> None:
        """As of `ClipWriter`; also fill ``(n, D)`` `pixels` with the pixel tokens of the clip."""
        super().__init__(clip, tokens, settings, clip_id=clip_id)
        self._encoder, self._clip_id, self.pixels = encoder, clip_id, pixels
        self._clip: np.ndarray | None = None
        """(n, H, W, 3) uint8: its frames, and room for those that fill the last row."""
        self._has_no_room = False
        """There is no memory for it."""
        self._count: int | None = None
        """The samples that are encoded; None before that."""
        self._made: Future[tuple[np.ndarray, list[int]]] | None = None
        """What the encoder makes, as it is stored, and the rows of it that are not sound."""
        self._encode_losses: list[ClipLoss] = []
        self._num_pixel_tokens = 0

    def add(self, picture: Picture, frame: np.ndarray, decoder: str) -> None:
        """As of `ClipWriter`; with the last sample the encoder begins."""
        super().add(picture, frame, decoder)
        if self._next == len(self._samples) and self._count is None:
            self._start()

    def finish(self) -> ClipTokens:
        """Cut what the encoder made, and account for every selected frame."""
        if self._count is None:
            self._start()
        assert self._count is not None, "it has started"
        if self._made is not None:
            self._cut()
        losses: list[ClipLoss] = []
        grid_t = self._account_for_end(self._count, losses)
        self._account_for_rows(grid_t, self._count, losses)
        losses += self._encode_losses
        result = self._result(grid_t, self._count, losses)
        return replace(result, num_pixel_tokens=self._num_pixel_tokens if result.num_kept else 0)

    def _put(self, frame: np.ndarray, sample: int) -> None:
        if self._has_no_room:
            return
        if self._clip is None:
            length = max(len(self._samples), self._starts[-1])
            try:
                # Decoding and encoding must find some beside it.
                np.empty(length * frame.size + SPARE_BYTES, frame.dtype)
                self._clip = np.zeros((length, *frame.shape), frame.dtype)
            except MemoryError:
                # This clip's loss: others of the job may be smaller, or fewer at a time.
                self._has_no_room = True
                return
        self._clip[sample] = frame

    def _advance(self) -> None:
        self._next += 1

    def _start(self) -> None:
        """Have the encoder begin with the samples that can be used."""
        count = self._next
        if self._bad and (self.pixels is not None or not self._encoder.facts.is_local):
            # What it makes of a damaged frame shows in the latents of those after it.
            count = min(count, *self._bad)
        self._bad = {sample for sample in self._bad if sample < count}
        clip = self.clip
        grid_t = clip.lattice.num_rows(
            count, tubelet_size=clip.tubelet_size, tail=self._settings.tail
        )
        self._count, frames = count, self._clip
        self._clip = None
        if self._has_no_room:
            message = (
                "no memory is left for the frames of the clip: raise --worker-memory, or give "
                "shorter or fewer clips that overlap (--clip-stride, --views)"
            )
            self._lose("out_of_memory", self._rows_there(grid_t), message)
        if grid_t == 0 or frames is None:
            return
        end = self._starts[grid_t]
        frames[count:end] = frames[count - 1]
        self._cut_pixels(frames[: min(count, end)])
        self._made = self._encoder.start(frames[:end], self._store, seed=(self._clip_id,))
        if self._made.done():
            self._cut()

    def _rows_there(self, grid_t: int) -> list[int]:
        """The rows, of so many, that no damaged frame takes."""
        return [row for row in range(grid_t) if not self._is_bad(row)]

    def _store(self, made: np.ndarray) -> tuple[np.ndarray, list[int]]:
        """What the encoder made as it is stored, and which of its rows are not sound."""
        size, unsound = self.clip.tubelet_size, []
        if self._encoder.facts.kind == "latents":
            rows = range(len(made) // size)
            unsound = [row for row in rows if not _is_sound(made[row * size : (row + 1) * size])]
        return to_stored(made, self._settings.token_dtype), unsound

    def _cut(self) -> None:
        """Put what the encoder made into tokens: the rows that are there."""
        facts, size = self._encoder.facts, self.clip.tubelet_size
        assert self._made is not None and self._count is not None, "something is encoded"
        made, self._made = self._made, None
        grid_t = self.clip.lattice.num_rows(
            self._count, tubelet_size=size, tail=self._settings.tail
        )
        there = self._rows_there(grid_t)
        try:
            with beating(), stage("wait"):
                stored, unsound = made.result()
        except SourceError as error:
            self._lose(error.reason, there, str(error))
            return
        wrong = [row for row in there if row in unsound]
        if wrong:
            lost = wrong if facts.is_local else there
            message = (
                f"{facts.name} made NaN, Inf or values beyond {MAX_LATENT:g} of it: try "
                "--encoder-dtype float32, or see whether its weights are whole"
            )
            self._lose("nonfinite_latent", lost, message)
            there = [row for row in there if row not in lost]
        for row in there:
            for index in range(size):
                self._write(stored[row * size + index], row, index)
            self._end_row(row)

    def _lose(self, reason: str, rows: list[int], message: str) -> None:
        assert self._count is not None, "it has started"
        if rows:
            loss = self._loss_of(reason, rows, self._count, message, "encode")
            self._encode_losses.append(loss)

    def _cut_pixels(self, frames: np.ndarray) -> None:
        """The pixel tokens of the frames that are encoded; the last tubelet repeats its frame."""
        tubelet = self._settings.pixel_tubelet
        if self.pixels is None or tubelet is None:
            return
        missing = -len(frames) % tubelet[0]
        filled = np.concatenate([frames, *[frames[-1:]] * missing])
        grid_h, grid_w = frames.shape[1] // tubelet[1], frames.shape[2] // tubelet[2]
        self._num_pixel_tokens = len(filled) // tubelet[0] * grid_h * grid_w
        cut_tubelets(
            filled,
            tubelet_size=tubelet[0],
            patch_size=tubelet[1:],
            layout=self._settings.layout,
            merge=self._settings.merge,
            out=self.pixels[: self._num_pixel_tokens],
        )


def pixel_clip(clip: ClipSpec, tubelet: tuple[int, int, int]) -> ClipSpec:
    """A clip of latents as its pixel tokens see it: none of them is dropped."""
    num_frames = min(len(clip.frame_indices), int(clip.row_starts[-1]))
    grid = PIXELS.grid(
        num_frames, clip.size, tubelet_size=tubelet[0], patch_size=tubelet[1:], tail="repeat"
    )
    return replace(
        clip,
        tubelet_size=tubelet[0],
        patch_size=tubelet[1:],
        grid_thw=grid,
        num_kept=grid[0] * grid[1] * grid[2],
        drop=None,
        lattice=PIXELS,
    )


def _is_sound(latents: np.ndarray) -> bool:
    return bool(np.isfinite(latents).all() and np.abs(latents).max() <= MAX_LATENT)
