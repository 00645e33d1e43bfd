"""Packs as PyTorch tensors.

dataset = PackDataset("shards/")
for batch in DataLoader(dataset, batch_size=4, shuffle=True, collate_fn=collate): ...
"""

from __future__ import annotations

import json
import math
import os
import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from spacepatch.distributions import Choice
from spacepatch.drop import Drop, RandomDrop
from spacepatch.errors import ShardError
from spacepatch.model_space import LatentSpace
from spacepatch.normalization import Normalization, normalize_tokens
from spacepatch.packdraws import draw_visible, drop_tokens, read_drop
from spacepatch.packtensors import STACKED, to_tensors
from spacepatch.shards import DATASET, ShardReader, check_version
from spacepatch.visible import Mask, parse_mask

MAX_OPEN_SHARDS = 128
"""Open at once in a process: each takes a file descriptor, of which macOS grants 256."""


class PackDataset(Dataset[dict[str, Any]]):
    """All packs of a finished dataset, in the order of its shards, read in place from local files.

    Every process opens its own shards when it first reads them, so any kind of DataLoader worker
    will do. The checksum of a pack is verified before anything of it is handed out.
    """

    document: dict[str, Any]
    """dataset.json: settings, fingerprints, constants, totals."""
    pack_length: int
    """Tokens in a padded pack."""
    pixel_length: int
    """Pixel tokens beside them; 0 where there are none."""

    def __init__(
        self,
        folder: str | Path,
        *,
        padded: bool = True,
        split: str | None = None,
        token_width: int | None = None,
        mask: str | None = None,
        drop: str | None = None,
        seed: int = 0,
    ) -> None:
        """Read dataset.json; no shard is opened yet.

        Args:
            folder: what `spacepatch tokenize --out` wrote.
            padded: fill every pack up to `pack_length` with zeros, so that packs stack to batches;
                without it packs are as long as what they hold, for kernels that take cu_seqlens.
            split: only the packs of this split; default: all.
            token_width: only the packs whose tokens have so many values (FlexiViT's differ);
                default: all.
            mask: as `--mask`, say ``random:0.75``: what a masked-prediction model sees, drawn anew
                each epoch. Default: the mask that is stored; without one, that of the dataset's
                settings, drawn anew each epoch; without one, none.
            drop: as `--drop`, but not ``static``: drop tokens, drawn anew each epoch.
            seed: of masks and drops. They go by seed, epoch and segment id alone, so they are the
                same in any worker, batch and order.

        Raises:
            ShardError: the dataset is missing, unfinished, or of a newer format.
            ValueError: there is no such split or width, or no such mask or drop.
        """
        self.folder = Path(folder)
        self.padded = padded
        self.document = _read_dataset(self.folder)
        self.pack_length = self.document["pack_length"]
        # Not every dataset says so.
        self._pixels = self.document.get("pixels")
        self.pixel_length = self._pixels["pack_length"] if self._pixels else 0
        shards = self.document["shards"]
        if split is not None:
            known = sorted({shard["split"] for shard in shards})
            if split not in known:
                raise ValueError(f"split {split!r}: {self.folder} has {known}")
            shards = [shard for shard in shards if shard["split"] == split]
        for shard in shards:
            if not re.fullmatch(r"[0-9A-Za-z_-]{1,80}", str(shard["name"])):
                raise ShardError(f"{self.folder / DATASET}: {shard['name']!r} is no shard's name")
        self._shards: list[tuple[str, int]] = [(shard["name"], shard["packs"]) for shard in shards]
        runs = [
            (width, number, first, packs)
            for number, shard in enumerate(shards)
            # Before there were several widths, dataset.json named the one.
            for width, first, packs in _runs_of(
                shard.get("token_widths", [[self.document["token_width"], shard["packs"]]])
            )
        ]
        if token_width is not None:
            widths = sorted({width for width, *_ in runs})
            if token_width not in widths:
                raise ValueError(f"token_width {token_width}: {self.folder} has {widths}")
            runs = [run for run in runs if run[0] == token_width]
        self._runs = [(number, first) for _, number, first, _ in runs]
        """Packs of one width and shard: its place in `_shards`, and the first of them."""
        self._starts = [0, *accumulate(packs for *_, packs in runs)]
        self._mask = self._choose_mask(mask)
        self._drop = None if drop is None else read_drop(drop)
        self._seed = seed
        # In shared memory, so that workers see what is set after they have started.
        self._epoch = _shared(torch.zeros((), dtype=torch.int64))
        self._drop_rate = _shared(torch.full((), math.nan, dtype=torch.float64))
        self._readers: dict[int, ShardReader] = {}
        self._process = os.getpid()

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One pack of N tokens in S segments; N is `pack_length`, or without padding `num_tokens`.

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
            - ``cu_seqlens``: (S + 1,) int32, borders of the segments; padding is beyond the last.
            - ``max_seqlen``: int, tokens of the longest segment.
            - ``num_tokens``: int, tokens without padding.
            - ``grid_thw``: (S, 3) int32. Rows or tokens of a grid may have been dropped, so a
              segment can have fewer than t * h * w tokens.
            - ``patch``: (S, 3) int32, frames, height and width of a tubelet, without halo.
            - ``segments``: a dict a segment, as in pack.json: segment_id, source, clip, extra, ...
              With `drop`, its offset and num_kept are those of what is left.

        Where the dataset was made with ``--also pixels``, also P pixel tokens of the same segments,
        whole grids, of which nothing is dropped or masked; P is `pixel_length`, or without padding
        ``num_pixel_tokens``: ``pixels`` (P, Dp) uint8, ``pixel_segment_ids`` (P,),
        ``pixel_positions`` (P, 3), ``pixel_cu_seqlens`` (S + 1,), ``pixel_max_seqlen``,
        ``pixel_grid_thw`` (S, 3) and ``pixel_patch`` (S, 3), as those of the tokens.

        Raises:
            IndexError: there is no such pack.
            ShardError: the shard is missing, damaged, or not the one that dataset.json lists.
        """
        index = range(len(self))[index]
        run = bisect_right(self._starts, index) - 1
        shard, first = self._runs[run]
        pack = self._reader(shard).read(first + index - self._starts[run])
        key = self._seed, int(self._epoch)
        drop = self._current_drop()
        if drop is not None:
            pack = drop_tokens(pack, drop, key)
        if self._mask is not None:
            pack = replace(pack, visible=draw_visible(pack, self._mask, key))
        return to_tensors(
            pack,
            length=self.pack_length if self.padded else None,
            pixel_length=self.pixel_length if self.padded else None,
        )

    def set_epoch(self, epoch: int) -> None:
        """Draw other masks and drops: call it before each epoch's loop over the DataLoader.

        Workers learn of it, those that persist too; what they have already read stays as it is.
        """
        if epoch < 0:
            raise ValueError(f"epoch is {epoch}, must be 0 or above")
        self._epoch.fill_(epoch)

    def set_drop_rate(self, rate: float) -> None:
        """From now on drop this share of each segment at random, in place of what `drop` says.

        For schedules such as `spacepatch.drop.drop_rate_at`. Workers learn of it as of the epoch:
        set before the loop, it holds for the whole epoch. Within one, it holds for what no worker
        has read yet: some num_workers * prefetch_factor batches later, and which pack is the first
        may differ from run to run.

        Args:
            rate: in [0, 1); int(L (1 - rate)) of L tokens stay, at least 1.
        """
        if not 0 <= rate < 1:
            raise ValueError(f"rate is {rate}, must be in [0, 1)")
        self._drop_rate.fill_(rate)

    def normalize(self, tokens: torch.Tensor) -> torch.Tensor:
        """Make the numbers that the dataset's `normalize` setting says, from stored tokens.

        Args:
            tokens: ``(.., D)`` uint8 of one token width, on any device: a pack's, or a batch's.
                Where an encoder made the tokens, ``pixels`` of ``--also pixels``.

        Returns:
            The same shape in float32. Zeros of padding become other numbers, which mean nothing.

        Raises:
            ValueError: the tokens are not uint8: they may be normalized already; or they are
                latents or codes.
        """
        kind = self.document.get("kind", "pixels")
        if kind != "pixels" and (
            self._pixels is None or tokens.shape[-1] != self._pixels["token_width"]
        ):
            wanted = {
                "latents": "to_model_space() brings them to what a model takes",
                "codes": "take them as tokens.long()",
            }
            raise ValueError(f"{self.folder}: normalize takes pixels, not {kind}: {wanted[kind]}")
        if tokens.dtype != torch.uint8:
            raise ValueError(f"tokens are {tokens.dtype}: normalize takes them as stored, uint8")
        constants = self._pixels or self.document["constants"]
        fields = {name: value for name, value in constants["normalize"].items() if name != "name"}
        made = normalize_tokens(
            tokens.reshape(-1, tokens.shape[-1]),
            constants=Normalization(**fields),
            channels=constants.get("channels", 3),
            layout=self.document["settings"]["layout"],
        )
        return made.view(tokens.shape)

    def to_model_space(self, tokens: torch.Tensor) -> torch.Tensor:
        """Latents as the model takes them that the encoder was made for, from stored tokens.

        Each channel is shifted and scaled by the constants of the encoder's own config, as
        `spacepatch.model_space.scale_of_config` says; nothing is assumed that it does not say.

        Args:
            tokens: ``(.., D)`` as stored, on any device. What is scaled already is refused: it is
                float32. Where that is what is stored, only the tensor itself that this function
                returned is known, and no copy of it.

        Returns:
            The same shape in float32. With ``--posterior mean_logvar`` the means, ``(.., D / 2)``.
            Zeros of padding become other numbers, which mean nothing.

        Raises:
            ValueError: the config does not say how (`standardize` needs none); or the tokens are
                not those of this dataset, or no latents.
        """
        space = self._latent_space()
        return space.scaled(tokens, space.config_scale())

    def from_model_space(self, latents: torch.Tensor) -> torch.Tensor:
        """The inverse of `to_model_space`: what the encoder's decoder takes, in float32.

        Args:
            latents: what `to_model_space` or `sample_latents` returns, or a model, in any float.
        """
        space = self._latent_space()
        return space.unscaled(latents, space.config_scale())

    def sample_latents(
        self, tokens: torch.Tensor, *, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        """A draw from the distribution of each latent, in model space: of ``--posterior
        mean_logvar`` mean + exp(log variance / 2) * N(0, 1), and then as `to_model_space`.

        Args:
            tokens: ``(.., D)`` as stored.
            generator: of the device of the tokens; None: torch's own.

        Returns:
            ``(.., D / 2)`` float32.
        """
        space = self._latent_space()
        return space.drawn(tokens, space.config_scale(), generator)

    def standardize(self, tokens: torch.Tensor) -> torch.Tensor:
        """As `to_model_space`, but to mean 0 and standard deviation 1 in each channel, as measured
        over this dataset: for models that are trained from nothing, and need no other's constants.
        """
        space = self._latent_space()
        return space.scaled(tokens, space.measured_scale())

    def unstandardize(self, latents: torch.Tensor) -> torch.Tensor:
        """The inverse of `standardize`."""
        space = self._latent_space()
        return space.unscaled(latents, space.measured_scale())

    def __getstate__(self) -> dict[str, Any]:
        # A memory map cannot be pickled; a worker opens its own.
        return self.__dict__ | {"_readers": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        # A worker gets the memory itself; a plain pickle made a copy, for workers of its own.
        _shared(self._epoch)
        _shared(self._drop_rate)

    def _latent_space(self) -> LatentSpace:
        return LatentSpace.of_dataset(self.document, where=str(self.folder))

    def _choose_mask(self, given: str | None) -> Mask | None:
        stored = "visible.npy" in self.document["members"]
        if given is None and not stored:
            given = self.document["settings"]["mask"]
        return None if given is None else parse_mask(given)

    def _current_drop(self) -> Drop | None:
        rate = float(self._drop_rate)
        return self._drop if math.isnan(rate) else RandomDrop(Choice((Fraction(rate),)))

    def _reader(self, shard: int) -> ShardReader:
        if self._process != os.getpid():
            self._readers, self._process = {}, os.getpid()
        reader = self._readers.pop(shard, None)
        if reader is None:
            name, packs = self._shards[shard]
            reader = ShardReader(self.folder / f"{name}.tar")
            if len(reader) != packs:
                raise ShardError(
                    f"{reader.path}: has {len(reader)} packs, dataset.json says {packs}; "
                    "run spacepatch tokenize to the end"
                )
        # Last in the dict = last used; the map of one that falls out goes with its last array.
        self._readers[shard] = reader
        if len(self._readers) > MAX_OPEN_SHARDS:
            del self._readers[next(iter(self._readers))]
        return reader


def collate(packs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Make a batch of padded packs, as `DataLoader(..., collate_fn=collate)`.

    Returns:
        tokens (B, N, D), segment_ids (B, N), positions (B, N, 3), seconds (B, N), and where packs
        have them run_lengths and visible (B, N), pixels (B, P, Dp), pixel_segment_ids (B, P) and
        pixel_positions (B, P, 3), as tensors; the others, whose shapes differ from pack to pack, as
        lists with one entry a pack.

    Raises:
        ValueError: the tokens of the packs differ in width.
    """
    widths = sorted({pack["tokens"].shape[1] for pack in packs})
    if len(widths) > 1:
        raise ValueError(
            f"packs of tokens of {widths} values make no batch: "
            "PackDataset(.., token_width=..) has those of one width"
        )
    return {
        name: torch.stack([pack[name] for pack in packs])
        if name in STACKED
        else [pack[name] for pack in packs]
        for name in packs[0]
    }


def _read_dataset(folder: Path) -> dict[str, Any]:
    path = folder / DATASET
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ShardError(
            f"{folder}: no dataset.json: not a dataset, or an unfinished one; "
            "run spacepatch tokenize to the end"
        ) from None
    except (ValueError, OSError) as error:
        raise ShardError(f"{path}: cannot be read ({error})") from None
    check_version(document, str(path))
    return document  # type: ignore[no-any-return]


def _runs_of(token_widths: list[list[int]]) -> list[tuple[int, int, int]]:
    """(width, first pack, packs) of a shard, from its [width, packs]."""
    firsts = [0, *accumulate(packs for _, packs in token_widths)]
    return [
        (width, first, packs) for (width, packs), first in zip(token_widths, firsts, strict=False)
    ]


def _shared(value: torch.Tensor) -> torch.Tensor:
    """The same tensor, whose memory the processes that it is handed to have too."""
    return value.share_memory_()  # type: ignore[no-any-return, no-untyped-call]
