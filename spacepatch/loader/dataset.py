"""Packs by number, read in place from local files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from spacepatch.loader.listing import open_shard
from spacepatch.loader.packs import Packs
from spacepatch.randomness import Draws
from spacepatch.shards import PackMembers, ShardReader

MAX_OPEN_SHARDS = 128
"""Open at once in a process: each takes a file descriptor, of which macOS grants 256."""

NEIGHBOURS = 16
"""Packs that are made together where all are read in order: what one source has in them is decoded
in one pass."""


class PackDataset(Packs, Dataset[dict[str, Any]]):
    """All packs of a finished dataset, in the order of its shards, read in place from local files.

    Every process opens its own shards when it first reads them, so any kind of DataLoader worker
    will do. The checksum of a pack is verified before anything of it is handed out.
    """

    def __init__(self, folder: str | Path, **options: Any) -> None:
        """Take the options of `Packs`."""
        super().__init__(folder, **options)
        self._readers: dict[str, ShardReader] = {}
        self._process = os.getpid()

    def __len__(self) -> int:
        return len(self.packs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One pack of N tokens in S segments; N is `padded_length`, or without padding what the
        pack has.

        Returns:
            - ``tokens``: (N, D), as stored, bit by bit: pixels (uint8; `normalize` makes numbers of
              them), latents (float16, float32 or bfloat16; `to_model_space`), or codes (uint8,
              uint16 or uint32, with which torch does little: ``tokens.long()``).
            - ``segment_ids``: (N,) int32, 1 to S, 0 = padding.
            - ``positions``: (N, 3) int32, t, h, w of each token in the grid of its segment: true
              whatever the order of the tokens, and whatever was dropped.
            - ``seconds``: (N,) float64, the time of each token's grid row on its video's own clock.
            - ``run_lengths``: (N,) int32, the tubelets in time that each token stands for, where
              the dataset was made with ``--drop static``. Padding: 0.
            - ``visible``: (N,) bool, what the encoder sees, where there is a mask. No padding is.
            - ``cu_seqlens``: (S + 1,) int32, borders of the segments, counted in kept tokens: from
              0, strictly increasing, to `num_tokens`.
            - ``cu_seqlens_padded``: int32, with `pad_multiple` (S + 1,): where in the pack each
              segment begins, and where the padding of the last one ends. With `fixed_shapes`
              (max_segments + 2,): the padding at the end is a segment of its own, and what is left
              over has no tokens.
            - ``max_seqlen_padded``: int, what goes with it: the longest of these, or with
              `fixed_shapes` the length of the pack, the same in all.
            - ``max_seqlen``: int, tokens of the longest segment.
            - ``num_tokens``: int, tokens without padding.
            - ``grid_thw``: (S, 3) int32. Rows or tokens of a grid may have been dropped, so a
              segment can have fewer than t * h * w tokens.
            - ``patch``: (S, 3) int32, frames, height and width of a tubelet, without halo. With
              `fixed_shapes` both are (max_segments, 3), with zeros at the end.
            - ``segments``: a dict a segment, as in pack.json: segment_id, source, clip, extra (the
              manifest's columns, such as label and caption), ... With `drop`, its offset and
              num_kept are those of what is left.
            - ``keep``, ``restore``: where something is dropped, masked or brought into random
              order, two lists of S int64 tensors. ``keep[s]`` says which tokens of the segment as
              stored the encoder takes, in its order; with ``restore[s]`` (L,), for L stored tokens,
              ``cat([encoded, fill])[restore[s]]`` brings what it made, and L - len(keep[s]) rows of
              fill, into stored order.

        Where the dataset was made with ``--also pixels``, also P pixel tokens of the same segments,
        whole grids, of which nothing is dropped or masked; P is `pixel_length`, or without padding
        ``num_pixel_tokens``: ``pixels`` (P, Dp) uint8, ``pixel_segment_ids`` (P,),
        ``pixel_positions`` (P, 3), ``pixel_cu_seqlens`` (S + 1,), ``pixel_max_seqlen``,
        ``pixel_grid_thw`` (S, 3) and ``pixel_patch`` (S, 3), as those of the tokens.

        Raises:
            IndexError: there is no such pack.
            ShardError: the shard is missing, damaged, or not the one that dataset.json lists.
        """
        return self.read(range(len(self))[index], epoch=int(self._shared.epoch))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """All packs in their order, of the epoch that is set."""
        for index in range(len(self)):
            if index % NEIGHBOURS == 0:
                ahead = NEIGHBOURS * (2 if self.packs_ahead else 1)
                self.expect(range(index, min(index + ahead, len(self))))
            yield self[index]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """The packs of a batch, as a DataLoader asks for them."""
        self.expect([range(len(self))[index] for index in indices])
        return [self[index] for index in indices]

    def read(self, index: int, *, epoch: int) -> dict[str, Any]:
        """As `__getitem__`, in an epoch that is given."""
        return self.tensors(self.stored(index, self._read, epoch=epoch), epoch=epoch)

    @property
    def datasets(self) -> list[PackDataset]:
        """Itself: see `PackMix`."""
        return [self]

    @property
    def names(self) -> list[str]:
        return [str(self.folder)]

    def groups(self, epoch: int, *, shuffle: bool) -> dict[str, np.ndarray]:
        """The packs of an epoch that can make a batch with one another, in order.

        Returns:
            By a name, ``(n, 3)`` int64: 0, the epoch that all draws are of, the number of the
            pack.
        """
        groups = {}
        for width in self.packs.widths():
            numbers = self.packs.of_width(width, epoch)
            if shuffle:
                numbers = numbers[Draws(self.seed, epoch, "packs", width).order(len(numbers))]
            groups[str(width)] = np.stack(
                [np.zeros_like(numbers), np.full_like(numbers, epoch), numbers], axis=-1
            )
        return groups

    def __getstate__(self) -> dict[str, Any]:
        # A memory map cannot be pickled; a worker opens its own.
        return self.__dict__ | {"_readers": {}}

    def _read(self, index: int, epoch: int) -> PackMembers:
        return self.read_pack(index, self._reader(index), epoch=epoch)

    def expect(self, numbers: Iterable[int], *, epoch: int | None = None) -> None:
        """Packs that will be read soon, in about this order; see `expect_packs`. None: in the epoch
        that is set."""
        epoch = int(self._shared.epoch) if epoch is None else epoch
        self.expect_packs(numbers, self._reader, epoch=epoch)

    def _reader(self, index: int) -> ShardReader:
        if self._process != os.getpid():
            self._readers, self._process = {}, os.getpid()
        run, _ = self.packs.find(index)
        reader = self._readers.pop(run.shard, None)
        if reader is None:
            reader = open_shard(self.folder, self.document, run, ShardReader)
        # Last in the dict = last used; the map of one that falls out goes with its last array.
        self._readers[run.shard] = reader
        if len(self._readers) > MAX_OPEN_SHARDS:
            del self._readers[next(iter(self._readers))]
        return reader
