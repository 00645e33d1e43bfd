"""Batches of packs as the recipes take them, their labels, and what there is to count in them."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from spacepatch.loader import PackDataset, PackLoader

Batch = dict[str, Any]


def batches_of(args: argparse.Namespace, packs: PackDataset, *, shuffle: bool) -> PackLoader:
    """Batches of padded packs, an epoch a loop: in another order each, or in stored order."""
    return PackLoader(packs, batch_size=min(args.batch_size, len(packs)), shuffle=shuffle)


def words_of(packs: PackDataset, column: str) -> list[str]:
    """The words that a column of the manifest holds, in the order of the alphabet."""
    found = {
        one["extra"][column] for index in range(len(packs)) for one in packs[index]["segments"]
    }
    return sorted(found)


def labels_of(batch: Batch, column: str, words: Sequence[str]) -> torch.Tensor:
    """A column of the manifest as numbers.

    Returns:
        ``(B, S)`` int64 places in `words`; S is the most segments of a pack, and packs of fewer
        are filled with -1.
    """
    most = max(map(len, batch["segments"]))
    rows = [[words.index(one["extra"][column]) for one in pack] for pack in batch["segments"]]
    return torch.tensor([row + [-1] * (most - len(row)) for row in rows])


def label_loss(
    model: nn.Module, packs: PackDataset, column: str, words: Sequence[str]
) -> Callable[[Batch], torch.Tensor]:
    """The loss of a batch, (): the cross entropy of a column.

    Args:
        model: from numbers (B, N, D), the batch and S to logits ``(B, S, len(words))``.
    """

    def loss_of(batch: Batch) -> torch.Tensor:
        labels = labels_of(batch, column, words)
        logits = model(packs.normalize(batch["tokens"]), batch, labels.shape[1])
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-1)

    return loss_of


def count_tokens(batch: Batch) -> tuple[int, int]:
    """Tokens of a batch, without padding and with it."""
    ids = batch["segment_ids"]
    return int(torch.count_nonzero(ids)), ids.numel()


def shuffled(batch: Batch) -> Batch:
    """The batch with its tokens dealt out anew: all else is as it was, and nothing fits.

    A model that does not go by the tokens does as well on it.
    """
    places = batch["segment_ids"].flatten().nonzero()[:, 0]
    tokens = batch["tokens"].flatten(0, 1)
    # By where each place takes its token from: torch gathers any dtype, and scatters no uint16.
    sources = torch.arange(len(tokens))
    sources[places] = places[torch.randperm(len(places))]
    return batch | {"tokens": tokens[sources].view_as(batch["tokens"])}
