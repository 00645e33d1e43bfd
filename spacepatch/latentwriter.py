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
from spacepatch.token_dtypes import to_stored
from spacepatch.tubelets import cut_tubelets


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
        self._count: int | None = None
        """The samples that are encoded; None before that."""
        self._made: Future[np.ndarray] | None = None
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
        losses: list[ClipLoss] = []
        grid_t = self._account_for_end(self._count, losses)
        self._account_for_rows(grid_t, self._count, losses)
        if self._made is not None:
            self._cut(grid_t, self._count, losses)
        if not self._filled:
            self._num_pixel_tokens = 0
        result = self._result(grid_t, self._count, losses)
        return replace(result, num_pixel_tokens=self._num_pixel_tokens)

    def _put(self, frame: np.ndarray, sample: int) -> None:
        if self._clip is None:
            length = max(len(self._samples), self._starts[-1])
            self._clip = np.zeros((length, *frame.shape), frame.dtype)
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
        if grid_t == 0 or frames is None:
            return
        end = self._starts[grid_t]
        frames[count:end] = frames[count - 1]
        self._cut_pixels(frames[: min(count, end)])
        self._made = self._encoder.start(frames[:end], seed=(self._clip_id,))

    def _cut(self, grid_t: int, count: int, losses: list[ClipLoss]) -> None:
        """Put the latents of the rows that are there into tokens."""
        facts, size = self._encoder.facts, self.clip.tubelet_size
        assert self._made is not None, "something is encoded"
        there = [row for row in range(grid_t) if not self._is_bad(row)]
        try:
            with beating():
                latents = self._made.result()
        except SourceError as error:
            if there:
                losses.append(self._loss_of(error.reason, there, count, str(error), "encode"))
            return
        if facts.kind == "latents":
            wrong = [row for row in there if not _is_sound(latents[row * size : (row + 1) * size])]
            if wrong:
                lost = wrong if facts.is_local else there
                message = (
                    f"{facts.name} made NaN, Inf or values beyond {MAX_LATENT:g} of it: try "
                    "--encoder-dtype float32, or see whether its weights are whole"
                )
                losses.append(self._loss_of("nonfinite_latent", lost, count, message, "encode"))
                there = [row for row in there if row not in lost]
        stored = to_stored(latents, self._settings.token_dtype)
        for row in there:
            for index in range(size):
                self._write(stored[row * size + index], row, index)
            self._end_row(row)

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
