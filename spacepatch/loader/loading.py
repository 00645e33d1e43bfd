"""Batches for training: epochs, ranks, workers, and going on exactly where it was left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from spacepatch.loader.batches import collate
from spacepatch.loader.dataset import PackDataset
from spacepatch.loader.mixing import PackMix
from spacepatch.loader.numbered import NumberedSteps
from spacepatch.loader.order import UNEVEN, EpochCounts, rank_and_world
from spacepatch.loader.sharing import Sharing
from spacepatch.loader.stream import PackStream
from spacepatch.loader.streamed import StreamedSteps

STATE_VERSION = 1


class PackLoader:
    """Batches of packs, one epoch a loop; left early, the next loop goes on where it was left.

    The order is drawn by seed and epoch, before it is shared out among ranks and workers. At each
    step all ranks have a batch of one shape, and all have the same number of steps.

        loader = PackLoader(PackDataset("shards/"), batch_size=4, num_workers=2)
        for epoch in range(loader.epoch, 10):
            for batch in loader:
                ...
                torch.save({"loader": loader.state_dict(), ...}, path)
    """

    def __init__(
        self,
        packs: PackDataset | PackMix | PackStream,
        *,
        batch_size: int = 1,
        num_workers: int = 0,
        shuffle: bool = True,
        rank: int | None = None,
        world_size: int | None = None,
        uneven: str = "pad",
        collate_fn: Callable[[list[dict[str, Any]]], Any] = collate,
        **options: Any,
    ) -> None:
        """Read nothing yet.

        Args:
            packs: where they come from.
            batch_size: packs of a batch, on each rank; batches are always full.
            num_workers: processes that read, on each rank; 0: this one.
            shuffle: draw another order each epoch; or the order of the shards, for evaluation.
            rank: which of the `world_size` processes this is that share an epoch. Default: as
                `torch.distributed` says, or RANK and WORLD_SIZE of torchrun, or one alone.
            uneven: what is done where the packs do not share out evenly: ``pad`` gives some of them
                twice, ``drop`` leaves some out; `counts` says how many.
            collate_fn: makes a batch of the packs that `PackDataset.__getitem__` returns.
            options: of `torch.utils.data.DataLoader`, such as pin_memory and prefetch_factor.

        Raises:
            ValueError: there is no such batch, rank or word; workers of both kinds; or with
                ``drop`` not one full step.
        """
        if not isinstance(packs, PackDataset | PackMix | PackStream):
            raise ValueError(f"packs are {packs!r}: give a PackDataset, a PackStream or a PackMix")
        if batch_size < 1 or num_workers < 0:
            raise ValueError(f"batch_size {batch_size}, num_workers {num_workers}: must be 1, 0 up")
        if uneven not in UNEVEN:
            raise ValueError(f"uneven is {uneven!r}, must be one of {', '.join(UNEVEN)}")
        taken = {"sampler", "batch_sampler", "drop_last", "in_order"} & options.keys()
        if taken:
            raise ValueError(f"{', '.join(sorted(taken))}: PackLoader orders packs itself")
        if num_workers:
            if any(one.packs_ahead for one in getattr(packs, "datasets", [packs])):
                raise ValueError(
                    f"num_workers is {num_workers}: its workers decode themselves; take "
                    "num_workers=0 with decoder_workers, or decoder_workers=0"
                )
            options.setdefault("persistent_workers", True)
        rank, world_size = rank_and_world(rank, world_size)
        sharing = Sharing(batch_size, num_workers, rank, world_size, uneven, shuffle)
        kind = StreamedSteps if isinstance(packs, PackStream) else NumberedSteps
        self._steps = kind(packs, sharing, collate_fn=collate_fn, options=options)  # type: ignore[arg-type]
        self._epoch = 0
        self._progress: dict[str, int] = {}
        if not self.counts.packs:
            raise ValueError("there are no packs: was everything lost? see losses.parquet")
        if not len(self):
            raise ValueError(
                f"{self.counts.packs} packs do not make a step of {batch_size} on each of "
                f"{world_size} ranks: take uneven='pad', smaller batches or fewer workers"
            )

    def __len__(self) -> int:
        """Steps of the whole epoch, on each rank."""
        return self.counts.steps

    def __iter__(self) -> Iterator[Any]:
        """What is left of the epoch."""
        self._leave_finished_epoch()
        for batch, progress in self._steps.batches(self._epoch, self._progress):
            self._progress = progress
            yield batch
        self.set_epoch(self._epoch + 1)

    @property
    def epoch(self) -> int:
        """The epoch that the next batch is of."""
        self._leave_finished_epoch()
        return self._epoch

    @property
    def counts(self) -> EpochCounts:
        """What a whole epoch gives: steps, and how many packs are given twice or left out."""
        return self._steps.counts(self._epoch, {})

    @property
    def num_steps_left(self) -> int:
        """Of this epoch, on each rank."""
        return self._steps.counts(self._epoch, self._progress).steps

    @property
    def packs_given(self) -> dict[str, int]:
        """In this epoch up to now, on all ranks together: of each dataset, by its name."""
        return self._steps.given(self._epoch, self._progress)

    def set_epoch(self, epoch: int) -> None:
        """Go to the beginning of an epoch."""
        if epoch < 0:
            raise ValueError(f"epoch is {epoch}, must be 0 or above")
        self._epoch, self._progress = epoch, {}

    def state_dict(self) -> dict[str, Any]:
        """Where it is: after the last batch that a loop was given. The same on all ranks.

        Numbers, words and lists only, so it can be kept as json or in a checkpoint.
        """
        return {
            "version": STATE_VERSION,
            "of": self._steps.identity(),
            "epoch": self._epoch,
            "progress": dict(self._progress),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to where `state_dict` was taken; the next loop gives what was left of its epoch.

        Of a PackDataset or a PackMix the remaining stream is the same whatever the numbers of
        ranks and workers and the size of batches are; where packs are of several shapes, that of
        each shape, for whose turn it is hangs on the size of steps. Of a PackStream these numbers
        must be the same.

        Raises:
            ValueError: the state is of other packs, or of another way to draw or share them.
        """
        if not _is_state(state):
            raise ValueError(
                f"the state is no state of PackLoader, version {STATE_VERSION}: "
                "start the epoch anew with set_epoch()"
            )
        own, theirs = self._steps.identity(), state["of"]
        differences = [
            f"{name} {theirs.get(name)!r}, here {own.get(name)!r}"
            for name in sorted(own.keys() | theirs.keys())
            if own.get(name) != theirs.get(name)
        ]
        if differences:
            raise ValueError(f"the state is of another stream: {'; '.join(differences)}")
        self._steps.check(state["epoch"], state["progress"])
        self.set_epoch(state["epoch"])
        self._progress = dict(state["progress"])

    def _leave_finished_epoch(self) -> None:
        if not self.num_steps_left:
            self.set_epoch(self._epoch + 1)


def _is_state(state: Any) -> bool:
    """Has it the form of one? What it says is looked at later."""
    return (
        isinstance(state, dict)
        and type(state.get("version")) is int
        and state["version"] == STATE_VERSION
        and isinstance(state.get("of"), dict)
        and type(state.get("epoch")) is int
        and 0 <= state["epoch"] < 2**31
        and isinstance(state.get("progress"), dict)
        and all(type(number) is int for number in state["progress"].values())
    )
