"""Packs of several datasets in one stream, by weight."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import numpy as np

from spacepatch.loader.dataset import PackDataset
from spacepatch.randomness import Draws


class PackMix:
    """Several datasets, of which an epoch has so many packs each as their weights say.

    Each epoch goes on in each dataset where the last one ended: a small dataset with a great weight
    is gone through several times, each time in another order and with other draws, and of a large
    one with a small weight no pack comes twice before all others have come.

    Packs of one shape make batches with one another. Of datasets with other shapes (widths, lengths
    or tensors) each batch has packs of one of them, on all ranks at the same step.
    """

    def __init__(
        self,
        datasets: Mapping[str, tuple[PackDataset, float]],
        *,
        num_packs: int | None = None,
        seed: int = 0,
    ) -> None:
        """Args:
            datasets: by a name of your own: its packs, and its weight, above 0. Weights are shares
                of packs; they need not sum to 1.
            num_packs: packs of an epoch; default: as many as all datasets have.
            seed: of the order.

        Raises:
            ValueError: no dataset, a weight that is not above 0, or fewer packs than datasets.
        """
        if not datasets:
            raise ValueError("a mix needs a dataset")
        self.names = list(datasets)
        self.datasets = [packs for packs, _ in datasets.values()]
        self.weights = [weight for _, weight in datasets.values()]
        self.seed = seed
        for name, packs in zip(self.names, self.datasets, strict=True):
            if not isinstance(packs, PackDataset):
                raise ValueError(f"{name} is {packs!r}: a mix takes PackDatasets")
        for name, weight in zip(self.names, self.weights, strict=True):
            if not (math.isfinite(weight) and weight > 0):
                raise ValueError(f"the weight of {name} is {weight}, must be above 0")
        total = sum(map(len, self.datasets)) if num_packs is None else num_packs
        self.quotas = _quotas(self.weights, max(0, total))
        """Packs of each dataset in an epoch."""
        if not all(self.quotas):
            least = math.ceil(sum(self.weights) / min(self.weights))
            raise ValueError(
                f"num_packs {total} leaves {self.names[self.quotas.index(0)]} without a pack: "
                f"take {least} or more"
            )

    def groups(self, epoch: int, *, shuffle: bool) -> dict[str, np.ndarray]:
        """See `PackDataset.groups`."""
        turns = np.repeat(np.arange(len(self.datasets)), self.quotas)
        if shuffle:
            turns = turns[Draws(self.seed, epoch, "mix").order(len(turns))]
        # Drawn is whose turn it is; the packs of each dataset stay in the order of its passes.
        rows = np.empty((len(turns), 3), np.int64)
        for number in range(len(self.datasets)):
            rows[turns == number] = self._rows(number, epoch, shuffle=shuffle)
        # Of each dataset and width, the group: packs of one shape share the first one's.
        names: dict[tuple[Any, ...], str] = {}
        groups: dict[str, np.ndarray] = {}
        labels = np.empty(len(rows), np.int64)
        for number, packs in enumerate(self.datasets):
            widths = np.zeros(len(rows), np.int64)
            for turn in np.unique(rows[rows[:, 0] == number, 1]).tolist():
                own = (rows[:, 0] == number) & (rows[:, 1] == turn)
                widths[own] = packs.packs.each_width(turn)[rows[own, 2]]
            for width in packs.packs.widths():
                name = names.setdefault(packs.shape_of(width), f"{self.names[number]} {width}")
                labels[widths == width] = list(names.values()).index(name)
        for label, name in enumerate(names.values()):
            groups[name] = rows[labels == label]
        return {name: packs for name, packs in groups.items() if len(packs)}

    def identity(self) -> dict[str, Any]:
        """What a stream hangs on."""
        return {
            "seed": self.seed,
            "quotas": dict(zip(self.names, self.quotas, strict=True)),
            "datasets": [packs.identity() for packs in self.datasets],
        }

    def _rows(self, number: int, epoch: int, *, shuffle: bool) -> np.ndarray:
        """``(quota, 3)`` int64 of one dataset: its number, the pass, and the pack."""
        packs, quota = self.datasets[number], self.quotas[number]
        places = np.arange(epoch * quota, (epoch + 1) * quota)
        passes, places = places // len(packs), places % len(packs)
        found = np.empty(quota, np.int64)
        for turn in np.unique(passes).tolist():
            own = passes == turn
            order = np.arange(len(packs))
            if shuffle:
                order = Draws(self.seed, turn, "mix", self.names[number]).order(len(packs))
            found[own] = order[places[own]]
        return np.stack([np.full(quota, number), passes, found], axis=-1)


def _quotas(weights: list[float], total: int) -> list[int]:
    """Whole numbers that sum to `total`, by the largest remainder; ties to the first."""
    exact = [Fraction(weight) * total / sum(map(Fraction, weights)) for weight in weights]
    quotas = [math.floor(number) for number in exact]
    order = sorted(range(len(exact)), key=lambda place: (quotas[place] - exact[place], place))
    for place in order[: total - sum(quotas)]:
        quotas[place] += 1
    return quotas
