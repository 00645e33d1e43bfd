"""What packs read one by one and packs read in a stream have in common."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch

from spacepatch.distributions import Choice
from spacepatch.drop import Drop, RandomDrop, static_threshold
from spacepatch.errors import SegmentError, ShardError
from spacepatch.loader.decoding import Decoding
from spacepatch.loader.draws import (
    TOKEN_ORDERS,
    choose_tokens,
    draw_visible,
    encoder_order,
    read_drop,
)
from spacepatch.loader.listing import SegmentTable, list_packs, open_shard, read_dataset
from spacepatch.loader.references import References, ReferredPack, varying_of
from spacepatch.loader.sharing import SharedState
from spacepatch.loader.tensors import PackShape, Values, to_tensors
from spacepatch.loader.values import TokenValues
from spacepatch.shards import PackMembers, ShardReader
from spacepatch.storage import open_folder
from spacepatch.visible import Mask, parse_mask

ON_BAD_SHARD = ("error", "skip")
"""What is done where a shard is missing or damaged."""


class Packs(TokenValues):
    """The packs of a finished dataset, and what is made of them."""

    pack_length: int
    """Tokens that a pack was made for."""
    padded_length: int
    """Tokens of a padded pack: `pack_length`, or with `pad_multiple` what the fullest one takes."""
    pixel_length: int
    """Pixel tokens beside them in a padded pack; 0 where there are none."""

    def __init__(
        self,
        folder: str | Path,
        *,
        padded: bool = True,
        fixed_shapes: bool = False,
        pad_multiple: int = 1,
        split: str | None = None,
        token_width: int | None = None,
        normalized: bool = False,
        mask: str | None = None,
        drop: str | None = None,
        token_order: str = "stored",
        seed: int = 0,
        on_bad_shard: str = "error",
        max_bad_fraction: float = 1.0,
        **decoding: Any,
    ) -> None:
        """Read dataset.json; no shard is opened yet, but with ``on_bad_shard="skip"``.

        Args:
            folder: what `spacepatch tokenize --out` wrote, or its URL on an object store.
            padded: fill every pack up to `padded_length` with zeros, so that packs stack to
                batches; without it packs are as long as what they hold, for kernels that take
                cu_seqlens.
            fixed_shapes: what has a row a segment gets rows of zeros up to `max_segments`, and
                `cu_seqlens_padded` is there with its `max_seqlen_padded`. A model that is compiled
                over these is compiled once; `cu_seqlens`, `max_seqlen`, `keep` and `restore` are as
                long or as large as the segments are.
            pad_multiple: each segment begins at a multiple of so many tokens, with padding behind
                it, so that context parallelism can share out each segment evenly (2 x ranks for
                the kernels of Transformer Engine). `cu_seqlens` counts kept tokens all the same;
                where they lie, `cu_seqlens_padded` says.
            split: only the packs of this split; default: all.
            token_width: only the packs whose tokens have so many values (FlexiViT's differ);
                default: all.
            normalized: tokens as numbers, by the dataset's own constants: pixels through
                `normalize`, latents through `to_model_space`; padding is 0. Four bytes a value.
                Pixels beside latents or codes stay as they are stored.
            mask: as `--mask`, say ``random:0.75``: what a masked-prediction model sees, drawn anew
                each epoch. Default: the mask that is stored; without one, that of the dataset's
                settings, drawn anew each epoch; without one, none.
            drop: as `--drop`, but not ``static``: drop tokens, drawn anew each epoch.
            token_order: ``stored``, or ``random``: the tokens of each segment in an order that is
                drawn anew each epoch.
            seed: of all that is drawn. Masks, drops and orders of tokens go by seed, epoch and
                segment id alone, so they are the same in any worker, batch and order.
            on_bad_shard: ``error``; or ``skip``: shards that are missing, cut off or unreadable are
                left out from the beginning, and a pack whose checksum is wrong is replaced by the
                next one that is good. `bad_shards` and `num_bad_packs` count them.
            max_bad_fraction: with ``skip``, the share of all packs that may be bad.
            decoding: the options of `Decoding`, such as source_root: how tokens are made where the
                dataset has references in their place (store refs). Of no account for others.

        Raises:
            ShardError: the dataset is missing, unfinished, of a newer format, or worse than
                `max_bad_fraction`.
            ValueError: there is no such split or width, no such mask or drop, or what is asked for
                does not go together.
        """
        if pad_multiple < 1:
            raise ValueError(f"pad_multiple is {pad_multiple}, must be 1 or above")
        if fixed_shapes and not padded:
            raise ValueError("fixed_shapes needs padded packs")
        for name, word, words in (
            ("token_order", token_order, TOKEN_ORDERS),
            ("on_bad_shard", on_bad_shard, ON_BAD_SHARD),
        ):
            if word not in words:
                raise ValueError(f"{name} is {word!r}, must be one of {', '.join(words)}")
        self.folder = open_folder(folder)
        self.padded, self.seed = padded, seed
        self.document = read_dataset(self.folder)
        self.pack_length = self.padded_length = self.document["pack_length"]
        pixels = self.document.get("pixels")  # not every dataset says so
        self.pixel_length = pixels["pack_length"] if pixels else 0
        self._decoding = Decoding(**decoding)
        varying = varying_of(self.document, self._decoding, seed=seed)
        self.packs = list_packs(
            self.document,
            folder=self.folder,
            split=split,
            token_width=token_width,
            patches=None if varying is None else varying.patches,
        )
        self.bad_shards: dict[str, str] = {}
        """With ``skip``: what was left out, by name, and why."""
        self._skips, self._max_bad_fraction = on_bad_shard == "skip", max_bad_fraction
        self._num_listed = len(self.packs)
        if self._skips:
            self._leave_out_bad_shards()
        self._segments: SegmentTable | None = None
        if padded and pad_multiple > 1:
            # Rounded up, so that a pack as a whole is a multiple too.
            longest = max(self.pack_length, self.segments.longest_pack(pad_multiple))
            self.padded_length = -(-longest // pad_multiple) * pad_multiple
        self._shape = PackShape(
            self.padded_length if padded else None,
            self.pixel_length if padded else None,
            pad_multiple,
            self.max_segments if fixed_shapes else None,
            self.pack_length,
        )
        self._mask = self._choose_mask(mask)
        self._drop = None if drop is None else read_drop(drop)
        self._token_order = token_order
        self._values = self._choose_values() if normalized else None
        self.references: References | None = None
        """What makes the tokens of store refs."""
        if self.document["store"] == "refs":
            self.references = References(
                self.folder, self.document, self._decoding, varying=varying
            )
        self._options = {
            "split": split,
            "token_width": token_width,
            "mask": None if self._mask is None else str(self._mask),
            "drop": None if self._drop is None else str(self._drop),
            "token_order": token_order,
            "vary": self._decoding.spelled_variation,
        }
        self._shared = SharedState(len(self.packs))

    def identity(self) -> dict[str, Any]:
        """What a stream of the packs hangs on."""
        return {
            "plan_id": self.document["plan_id"],
            "packs": len(self.packs),
            "left_out": sorted(self.bad_shards),
            "seed": self.seed,
            **self._options,
        }

    def shape_of(self, width: int) -> tuple[Any, ...]:
        """The same for packs that make batches with one another."""
        dtype = "float32" if self._values else self.document["token_dtype"]
        drawn = [name for name in ("mask", "drop") if self._options[name]]
        pixels = self.document.get("pixels") or {}
        settings = self.document["settings"]
        told = static_threshold(settings["drop"]) is not None, settings["store_mask"]
        return (
            (self.document.get("kind"), dtype, width, *self.document["members"], *told),
            (self._shape, *drawn, self._token_order, math.isnan(float(self._shared.drop_rate))),
            # Means and variances become means.
            (pixels.get("token_width"), settings.get("posterior")),
        )

    @property
    def segments(self) -> SegmentTable:
        """How large the segments of all packs are."""
        if self._segments is None:
            self._segments = SegmentTable.of_folder(self.folder)
        return self._segments

    @property
    def max_segments(self) -> int:
        """Segments in the pack of the dataset that has the most."""
        return self.segments.most_segments()

    @property
    def max_seqlen(self) -> int:
        """Tokens of the longest segment of the dataset, as stored."""
        return self.segments.longest()

    @property
    def num_bad_packs(self) -> int:
        """With ``skip``: packs that were left out with their shards, or found to be damaged and
        replaced by others, up to now, in all workers."""
        return self._num_listed - len(self.packs) + int(self._shared.bad.sum())

    @property
    def num_bad_segments(self) -> int:
        """With ``on_bad_source="skip"``: segments that packs lack, as they were last read, in all
        workers."""
        return int(self._shared.lacking.sum())

    @property
    def fill(self) -> float:
        """Tokens in the packs that were read, as they were last read in any worker and before what
        `drop` takes, by their room; nan before the first one."""
        return self._shared.mean_tokens / self.pack_length

    def set_epoch(self, epoch: int) -> None:
        """Draw other masks, drops, orders and variations: call it before each epoch's loop over a
        DataLoader.

        Workers learn of it, those that persist too; what they have already read stays as it is.
        """
        if epoch < 0:
            raise ValueError(f"epoch is {epoch}, must be 0 or above")
        self._shared.epoch.fill_(epoch)

    def set_mask(self, mask: Mask) -> None:
        """Draw this mask from now on; in this process only."""
        self._mask = mask
        self._options = self._options | {"mask": str(mask)}

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
        self._shared.drop_rate.fill_(rate)

    def tensors(self, stored: PackMembers, *, epoch: int) -> dict[str, Any]:
        """See `PackDataset.__getitem__`."""
        key = self.seed, epoch
        drop = self._current_drop()
        if drop is None and self._token_order == "stored" and not self._has_mask(stored):
            return to_tensors(stored, self._shape, self._values)
        drawn = choose_tokens(stored, drop=drop, token_order=self._token_order, key=key)
        if self._mask is not None:
            visible = draw_visible(drawn.pack, self._mask, key)
            drawn = replace(drawn, pack=replace(drawn.pack, visible=visible))
        keep, restore = encoder_order(drawn, stored.segments[:, 1].tolist())
        return to_tensors(drawn.pack, self._shape, self._values) | {
            "keep": [torch.from_numpy(indices) for indices in keep],
            "restore": [torch.from_numpy(indices) for indices in restore],
        }

    def stored(
        self, index: int, read: Callable[[int, int], PackMembers], *, epoch: int
    ) -> PackMembers:
        """A pack, or where it is bad and may be skipped the next good one of its width."""
        for other in self._and_others(index, epoch):
            try:
                return self._checked(read(other, epoch))
            except (ShardError, SegmentError) as error:
                self._count_bad(other, error)
                last = error
        raise ShardError(f"{self.folder}: no pack can be read any more, as of {last}")

    def _and_others(self, index: int, epoch: int) -> Iterator[int]:
        """A pack, then those that may come in its place."""
        yield index
        others = self.packs.of_width(self.packs.each_width(epoch)[index], epoch)
        yield from [*others[others > index].tolist(), *others[others < index].tolist()]

    def read_pack(self, index: int, reader: ShardReader, *, epoch: int) -> PackMembers:
        """A pack as it is stored; of references, with the tokens that are made of them."""
        run, place = self.packs.find(index)
        if self.references is None:
            found = reader.read(place)
        else:
            pack = ReferredPack(run.shard, reader.references(place), epoch)
            if self._decoding.on_bad_source == "skip":
                self._shared.lacking[index] = len(pack.references.segments)  # until they are made
            made = self.references.make(pack)
            found, self._shared.lacking[index] = made.members, made.num_bad
        self._shared.tokens[index] = len(found.tokens)
        return found

    def expect_packs(
        self, numbers: Iterable[int], reader: Callable[[int], ShardReader], *, epoch: int
    ) -> None:
        """They will be asked for, about in this order: of references, what one source has in them
        is decoded in one pass, and by other processes meanwhile."""
        if self.references is None:
            return
        found = []
        for number in numbers:
            run, place = self.packs.find(number)
            try:
                found.append(ReferredPack(run.shard, reader(number).references(place), epoch))
            except ShardError:
                continue  # who asks for it is told
        self.references.expect(found)

    @property
    def packs_ahead(self) -> int:
        """Packs that are worth expecting before they are read; 0: nobody would make them."""
        return 0 if self.references is None else 2 * self._decoding.decoder_workers

    def _checked(self, pack: PackMembers) -> PackMembers:
        """Raises a ShardError where a pack has more tokens than packs of the dataset have."""
        num_pixels = 0 if pack.pixels is None else len(pack.pixels)
        if len(pack.tokens) > self.pack_length or num_pixels > self.pixel_length:
            raise ShardError(
                f"{self.folder}: {pack.key} has {len(pack.tokens)} tokens and {num_pixels} pixel "
                f"tokens, and packs hold {self.pack_length} and {self.pixel_length}; "
                "run spacepatch verify, then tokenize again"
            )
        return pack

    def _count_bad(self, index: int, error: ShardError | SegmentError) -> None:
        """Note a pack that cannot be read; raises `error` where none may be skipped."""
        skips = self._skips
        if isinstance(error, SegmentError):
            skips = self._decoding.on_bad_source == "skip" and error.reason != "other_tokens"
        if not skips:
            raise error
        self._shared.bad[index] = 1
        self._check_bad_fraction()

    def _leave_out_bad_shards(self) -> None:
        for run in {run.shard: run for run in self.packs.runs}.values():
            try:
                open_shard(self.folder, self.document, run, ShardReader).close()
            except ShardError as error:
                self.bad_shards[run.shard] = str(error)
        self.packs = self.packs.without(list(self.bad_shards))
        self._shared = SharedState(0)
        self._check_bad_fraction()
        if not len(self.packs):
            raise ShardError(f"{self.folder}: no shard can be read: {self.bad_shards}")

    def _check_bad_fraction(self) -> None:
        if self.num_bad_packs > self._max_bad_fraction * self._num_listed:
            raise ShardError(
                f"{self.folder}: {self.num_bad_packs} of {self._num_listed} packs are bad, more "
                f"than max_bad_fraction = {self._max_bad_fraction}; run spacepatch verify"
            )

    @property
    def is_varied(self) -> bool:
        """Are tokens made in ways that are drawn anew each epoch?"""
        return self._decoding.vary is not None

    @property
    def can_replace(self) -> bool:
        """May another pack come in the place of a bad one?"""
        return self._skips or self._decoding.on_bad_source == "skip"

    def _choose_mask(self, given: str | None) -> Mask | None:
        settings = self.document["settings"]
        if given is None and not settings["store_mask"]:
            given = settings["mask"]
        return None if given is None else parse_mask(given)

    def _choose_values(self) -> Values:
        kind = self.document.get("kind", "pixels")
        if kind == "codes":
            raise ValueError(f"{self.folder}: codes cannot be normalized: they are indices")
        if kind == "latents":
            self._latent_space().config_scale()  # raises where the config does not say how
            return self.to_model_space
        return self.normalize

    def _has_mask(self, stored: PackMembers) -> bool:
        return self._mask is not None or stored.visible is not None

    def _current_drop(self) -> Drop | None:
        rate = float(self._shared.drop_rate)
        return self._drop if math.isnan(rate) else RandomDrop(Choice((Fraction(rate),)))
